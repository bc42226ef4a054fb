"""Flags of the benchmarks, a file per family."""
