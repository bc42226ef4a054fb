"""The counterfactual atlas of a cohort: study, generation, real scans, tables and pages."""
