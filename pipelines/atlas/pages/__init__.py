"""pipelines/atlas/pages"""
