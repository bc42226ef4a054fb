"""Streams of random numbers, so that no two uses of a seed share one."""

from __future__ import annotations

BALANCE_STREAM = 11
TABLE_STREAM = 12
CASE_STREAM = 13
SHAPE_STREAM = 14
EDIT_STREAM = 15
RETRIEVAL_STREAM = 16
