"""Generation with a trained run: plan, cases, files and the results folder."""
