"""Plan of a synthetic cohort: source, row and seed of every new case."""
