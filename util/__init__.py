"""Tools that know nothing of chest CT cohorts or networks; `util` imports nothing of the project
but `util`.
"""

__version__ = "0.2.0"
