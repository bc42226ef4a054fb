"""pipelines/synthesis"""
