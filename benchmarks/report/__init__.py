"""Metrics of the benchmarks on planted truth, their tables and pages."""
