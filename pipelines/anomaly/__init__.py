"""Anomalies: scans beside the spread of volumes generated from their masks and rows."""
