"""Metrics of generated volumes, by region of the chest."""
