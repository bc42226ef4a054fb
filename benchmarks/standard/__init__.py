"""A fixed benchmark for any generator that writes NIfTI: the set, its scores, and generators."""
