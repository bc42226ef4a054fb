"""A synthetic cohort with planted effects, for tests of what a model reveals."""
