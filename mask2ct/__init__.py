"""Mask2CT as a library."""

from util import __version__

__all__ = ["__version__"]
