"""Every reader takes damaged files: a result or a message; no other error, no hang, bounded memory.

`FUZZ_INPUTS=20000 python -m pytest tests/slow/test_fuzz.py --timeout 0` tries that many inputs of
each format; CI tries a few hundred.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzzing

COUNT = int(os.environ.get("FUZZ_INPUTS", "200"))
MAX_SECONDS_EACH = 0.5  # of the average input


@pytest.mark.slow
@pytest.mark.parametrize("group", fuzzing.GROUPS)
def test_damaged_files_are_read_or_named(group: str, tmp_path: Path) -> None:
    script = fuzzing.ROOT / "tests" / "fuzzing.py"
    words = [sys.executable, str(script), group, str(COUNT), str(tmp_path)]
    seconds = 120 + 8 * COUNT * MAX_SECONDS_EACH
    try:
        done = subprocess.run(
            words, cwd=fuzzing.ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"A reader does not return from input {(tmp_path / 'now.txt').read_text()}")
    now = tmp_path / "now.txt"
    last = now.read_text() if now.is_file() else "none"
    assert done.returncode == 0, f"input {last}: {done.stderr[-2000:]}"
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert failures == {}, json.dumps(failures, indent=1)
