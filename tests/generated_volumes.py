"""Results of test.py, read back by tests."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import TrainedRun
from util.files import file_sha256

SMOKING = "SMOKING HISTORY=Never smoker,Ex smoker,Current smoker"


def volumes(folder: Path) -> dict[str, str]:
    """Name and sha256 of every volume written (pytest takes minutes to compare bytes)."""
    return {path.name: file_sha256(path) for path in sorted((folder / "volumes").iterdir())}


def own_cases(cohort: Path, split: str = "test") -> list[str]:
    found: list[str] = json.loads((cohort / "splits.json").read_text())[split]
    return found


def generate(run: TrainedRun, results: Path, *words: str, cohort: Path | None = None) -> Path:
    """The folder of a `test.py` that must succeed."""
    done = run.test(results, *words, cohort=cohort)
    assert done.code == 0, done.text
    return results / run.name / "test_latest"
