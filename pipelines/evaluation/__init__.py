"""Figures that say how good generated volumes are: arrays in, numbers out; nothing here reads a
volume's file.
"""
