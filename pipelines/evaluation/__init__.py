"""Evaluation of generated volumes against real scans: metrics with intervals and baselines."""
