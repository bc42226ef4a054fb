"""Refits: a run trained again on resampled patients, on permuted columns, or without a fold."""
