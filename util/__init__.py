"""Tools without chest CT cohorts or networks; `util` imports nothing of the project but itself."""

__version__ = "0.2.0"
