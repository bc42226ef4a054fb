"""Small inputs of faults that were found, in `../shared/cases` beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def shared_case(name: str) -> Path:
    """Return a folder of `../shared/cases`; the test is skipped where it is absent."""
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
