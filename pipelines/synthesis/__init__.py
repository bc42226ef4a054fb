"""Synthetic cohorts: planning, generation, the check for copies, and their use for a classifier."""
