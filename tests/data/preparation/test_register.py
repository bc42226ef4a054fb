"""Case ids and the key file."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.preparation.register import MAX_ID_LENGTH, CaseRegister, safe_id
from data.preparation.sources import Source
from util.cli import UserError


@pytest.mark.parametrize("text", ["../../etc", "a/b", "..", "", "x" * 300, ".hidden", "Müller"])
def test_ids_are_safe_names(text: str) -> None:
    safe = safe_id(text)
    assert safe and safe != text and len(safe) <= MAX_ID_LENGTH
    assert "/" not in safe and not safe.startswith(".")
    assert safe_id("LIDC-IDRI-0001") == "LIDC-IDRI-0001" and safe_id("a/b") != safe_id("a_b")


def test_two_scans_of_one_patient_keep_apart(tmp_path: Path) -> None:
    register = CaseRegister(tmp_path / "k.csv", recode=False)
    register.add([Source("s1", "P", ("P",)), Source("s2", "P", ("P",)), Source("s3", "p", ("p",))])
    cases = {k: e.case for k, e in register.entries.items()}
    assert len({c.casefold() for c in cases.values()}) == 3
    assert register.entries["s1", "P"].patient == register.entries["s2", "P"].patient
    again = CaseRegister(tmp_path / "k.csv", recode=False)
    assert {k: e.case for k, e in again.entries.items()} == cases
    (tmp_path / "k.csv").write_text("something else\nx\n")
    with pytest.raises(UserError, match="is not a key file"):
        CaseRegister(tmp_path / "k.csv", recode=False)
