"""Counterfactuals of an evaluation: axioms of changed volumes, the baseline, and their page."""
