"""The numbers of a counterfactual atlas: regions, population maps, regressions, intervals,
cautions, findings, sentences.
"""
