"""Splits and records of a prepared dataroot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data.preparation import dataroot
from data.preparation.case import RECORDS, CaseTask
from data.preparation.headers import ACQUISITION
from data.preparation.masks import MaskPlan
from data.preparation.sources import Source
from util.cli import UserError


def test_splits_grow_without_moving_anybody(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    patients = {f"c{i:02d}": f"p{i // 2}" for i in range(40)}
    assert (
        dataroot.write_splits(path, {c: p for c, p in patients.items() if c < "c08"}, 1) is None
        and not path.exists()
    )
    first = dataroot.write_splits(path, {c: p for c, p in patients.items() if c < "c30"}, 1)
    second = dataroot.write_splits(path, patients, 1)
    assert first is not None and second is not None
    home = {c: name for name, cases in second.items() for c in cases}
    assert all(home[c] == name for name, cases in first.items() for c in cases) and set(
        home
    ) == set(patients)
    assert all(home[a] == home[b] for a in patients for b in patients if patients[a] == patients[b])
    assert json.loads(path.read_text()) == {k: list(v) for k, v in second.items()}


def test_splits_that_a_person_wrote_grow(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('{"test": ["A.nii.gz", "gone"], "val": ["b"]}')
    splits = dataroot.write_splits(path, {name: name for name in "abc"}, 0)
    assert splits is not None and splits["test"][:1] == ("a",) and splits["val"][:1] == ("b",)
    assert sorted(case for cases in splits.values() for case in cases) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("kind", "old_kind", "version"), [("threshold", "classic", 2), ("load", "given", 1)]
)
def test_records_of_earlier_versions_stay_valid_where_nothing_changed(
    tmp_path: Path, kind: str, old_kind: str, version: int
) -> None:
    scan = tmp_path / "a.nii.gz"
    scan.write_bytes(b"scan")
    status = scan.stat()
    plan = [old_kind, "", "None", "None"]
    files = [[str(scan), status.st_size, status.st_mtime_ns]]
    stored = json.dumps([version, None, "error", ACQUISITION, plan, files])
    task = CaseTask("a", Source("a", "a", ("a",), volume=scan), tmp_path, MaskPlan(kind))
    assert task.fingerprint() == hashlib.sha256(stored.encode()).hexdigest()
    record = tmp_path / RECORDS / "a.json"
    record.parent.mkdir()
    content: dict[str, object] = {"masks": old_kind, "row": {"KVP": "120"}, "measures": {}}
    content |= {"warnings": [], "notes": [], "left_out": [["series 1", "MR"]]}
    record.write_text(json.dumps(content))
    assert dataroot.read_records(tmp_path) == {"a": content | {"masks": kind}}


@pytest.mark.parametrize("text", ["", "[]", '{"masks": 3}', '{"masks": "load", "row": []}'])
def test_damaged_records_are_named(tmp_path: Path, text: str) -> None:
    record = tmp_path / RECORDS / "a.json"
    record.parent.mkdir()
    record.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        dataroot.read_records(tmp_path)


def test_damaged_splits_are_named(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match=r"splits\.json is damaged"):
        dataroot.write_splits(tmp_path / "splits.json", {"a": "a"}, 0)
