"""Work on a cohort grows with its size, not with the square of it, and files are opened once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from data.checks import case as case_checks
from data.checks.cohort import check_volumes
from data.fact_store import FactStore
from data.splits import draw_splits, split_changes
from util import parallel


class Name(str):
    """A case or patient that counts how often it is looked up."""

    __slots__ = ()
    lookups = 0

    def __hash__(self) -> int:
        Name.lookups += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Name.lookups += 1
        return super().__eq__(other)


def lookups_of(count: int) -> int:
    cases = [Name(f"case{k}") for k in range(count)]
    Name.lookups = 0
    splits = draw_splits(cases, 0, {case: Name(f"patient{case}") for case in cases})
    assert split_changes(splits, splits) == []
    return Name.lookups


def test_splits_take_linear_time() -> None:
    assert lookups_of(2000) < 12 * lookups_of(200)


def test_every_case_is_in_one_split_in_order() -> None:
    cases = [f"case{k:03d}" for k in range(50)]
    patients = {case: f"p{k // 2}" for k, case in enumerate(cases)}
    splits = draw_splits(cases, 3, patients)
    assert sorted(case for members in splits.values() for case in members) == cases
    assert all(list(members) == sorted(members) for members in splits.values())
    for members in splits.values():
        assert {patients[case] for case in members}.isdisjoint(
            patients[case] for case in cases if case not in members
        )


def files_of(cohort: Path) -> list[tuple[Path | None, Path]]:
    return [(cohort / "img" / path.name, path) for path in sorted((cohort / "gtlung").iterdir())]


def test_each_file_is_opened_once(cohort_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    load = nib.load

    def load_and_note(path: Path) -> Any:
        opened.append(str(path))
        return load(path)

    monkeypatch.setattr(nib, "load", load_and_note)
    files = files_of(cohort_copy)
    check_volumes(files, cache=cohort_copy / "cache")
    assert sorted(opened) == sorted(str(path) for pair in files for path in pair)
    opened.clear()
    monkeypatch.setattr(FactStore, "_measured", {})
    check_volumes(files, cache=cohort_copy / "cache")
    assert opened == []


def test_a_process_checks_a_file_once(cohort_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(cohort_copy)
    first = check_volumes(files)
    monkeypatch.setattr(
        case_checks, "load_checked", lambda path: pytest.fail(f"{path} is read again")
    )
    assert check_volumes(files) == first


def test_processes_find_what_threads_find(
    cohort_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(cohort_copy)
    files[3][1].write_bytes(b"damaged")
    monkeypatch.setattr(FactStore, "_measured", {})
    by_threads = [case_checks.measure_case(pair, (1, 2)) for pair in files]
    monkeypatch.setattr(parallel, "MIN_ITEMS_FOR_PROCESSES", 1)
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    store = FactStore(None)
    assert case_checks.case_facts(files, store, (1, 2)) == by_threads
    assert len(store.facts) == len(files) - 1  # what cannot be read is read again
