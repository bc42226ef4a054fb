"""Cohorts with effects of every kind: texture, sparse disease, interactions, rare values."""
