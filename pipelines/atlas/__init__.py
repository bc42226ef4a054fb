"""The counterfactual atlas of a cohort: what is looked at, the walk over cases, the real scans, and
all tables.
"""
