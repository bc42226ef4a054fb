"""Statistics of a counterfactual atlas: regions, population maps, regressions and verdicts."""
