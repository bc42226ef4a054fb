"""Benchmarks train in the process of the tests."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def own_precision() -> None:
    """Let a benchmark choose its precision, which Accelerate keeps for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
