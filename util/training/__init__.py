"""util/training"""
