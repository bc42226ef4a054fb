"""Room for prepared volumes: stated, compressed, shared by runs, and made by removing old ones."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import cache_space
from data.cache import CachedCase, cache_cases, cache_folder
from data.cohort import Case
from data.load_cohort import load_cohort
from data.lung_density import text_statistics
from options.base_options import DataOptions, PatchOptions, TextOptions
from util.cli import UserError


@pytest.fixture()
def cases(cohort_dir: Path) -> list[Case]:
    options = DataOptions(dataroot=str(cohort_dir), template="aiib23", body_label="none")
    return list(load_cohort(options, check=False).cases[:4])


@pytest.fixture(autouse=True)
def no_marks() -> Iterator[None]:
    """End what a test marks as in use."""
    yield
    while cache_space._marks:
        os.close(cache_space._marks.pop())


def size_of(cases: list[CachedCase]) -> int:
    files = [file for case in cases for file in case.folder.iterdir()]
    return sum(file.stat().st_size for file in files if file.stem in ("image", "mask"))


def test_the_room_is_stated_before_anything_is_prepared(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = cache_space.needed_bytes(cases, DataOptions())
    with caplog.at_level(logging.INFO):
        prepared = cache_cases(cases, DataOptions(), tmp_path / "cache")
    assert f"Preparing 4 volumes in {tmp_path / 'cache'}: about" in caplog.text
    assert needed == 4 * 24 * 24 * 16 * 3 and needed < size_of(prepared) < 1.1 * needed
    caplog.clear()
    assert cache_cases(cases, DataOptions(), tmp_path / "cache") == prepared
    assert "Preparing" not in caplog.text


def test_a_disk_without_room_is_found_before_anything_is_written(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    with pytest.raises(UserError, match=r"need about .* GB, .*--cache_compression blosc2"):
        cache_cases(cases, DataOptions(), tmp_path / "cache")
    written = {path.name for path in (tmp_path / "cache").iterdir()}
    assert written == {"checks.json", cache_space.IN_USE}


def test_old_volumes_make_room_unless_they_are_in_use(cases: list[Case], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old, used, fresh = (cache_cases([case], DataOptions(), cache)[0] for case in cases[:3])
    while cache_space._marks:
        os.close(cache_space._marks.pop())
    for age, case in ((3, used), (2, old), (1, fresh)):
        os.utime(case.folder, (1e9 - age, 1e9 - age))
    one = sum(file.stat().st_size for file in old.folder.iterdir())
    cache_space.mark_in_use(cache, [used.folder.name])
    assert cache_space.evict(cache, 2.5 * one) > 0
    assert [case.folder.is_dir() for case in (old, used, fresh)] == [False, True, True]
    os.close(cache_space._marks.pop())  # as its process ends
    assert cache_space.evict(cache, 0) > 0
    assert not used.folder.is_dir() and not fresh.folder.is_dir()
    assert not list((cache / cache_space.IN_USE).iterdir())


def test_a_limit_removes_the_longest_unused(cases: list[Case], tmp_path: Path) -> None:
    (first,) = cache_cases(cases[:1], DataOptions(), tmp_path / "cache")
    while cache_space._marks:
        os.close(cache_space._marks.pop())
    options = DataOptions(cache_gb=1e-4)  # 100 kB; a case takes 30 kB and its points
    later = cache_cases(cases[1:], options, tmp_path / "cache")
    assert not first.folder.is_dir() and all(case.folder.is_dir() for case in later)


def test_room_is_not_made_by_removing_what_is_asked_for(cases: list[Case], tmp_path: Path) -> None:
    cache_cases(cases[:2], DataOptions(), tmp_path / "cache")
    while cache_space._marks:  # as in a later process
        os.close(cache_space._marks.pop())
    prepared = cache_cases(cases, DataOptions(cache_gb=1e-6), tmp_path / "cache")
    assert [case.scan().shape for case in prepared] == [(24, 24, 16)] * 4


def test_runs_share_prepared_volumes_and_earlier_runs_keep_theirs(tmp_path: Path) -> None:
    options = DataOptions()
    assert cache_folder(options, tmp_path / "a") == cache_folder(options, tmp_path / "b")
    (tmp_path / "b.cache").mkdir()
    assert cache_folder(options, tmp_path / "b") == tmp_path / "b.cache"
    (tmp_path / "c" / "cache").mkdir(parents=True)
    assert cache_folder(options, tmp_path / "c") == tmp_path / "c" / "cache"
    named = replace(options, cache_dir=str(tmp_path / "named"))
    assert cache_folder(named, tmp_path / "c") == tmp_path / "named"


def test_compressed_volumes_give_the_same_patches(cases: list[Case], tmp_path: Path) -> None:
    pytest.importorskip("blosc2")
    from data.patch_dataset import PatchDataset, PatchSettings, collate_patches

    plain, packed = DataOptions(), DataOptions(cache_compression="blosc2")
    prompts = {case.id: ["a", case.id] for case in cases}
    patches = []
    for options in (plain, packed):
        settings = PatchSettings(options, PatchOptions(patch_size=(16, 16, 8)), TextOptions(), 0, 1)
        dataset = PatchDataset(cases, prompts, (0, 1, 2, 3), settings, tmp_path / "cache")
        patches.append(dataset.inputs(collate_patches([dataset[k] for k in range(8)])))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(patches[0][name].numpy(), patches[1][name].numpy())
    prepared = [cache_cases(cases, options, tmp_path / "cache") for options in (plain, packed)]
    assert size_of(prepared[1]) < 0.7 * size_of(prepared[0])  # small volumes; a third at 1 mm
    window = packed.hu_window
    for one, two in zip(*prepared, strict=True):
        np.testing.assert_array_equal(one.scan().array.clip(*window), two.scan().array)
        np.testing.assert_array_equal(one.labelled().array, two.labelled().array)
    statistics = [text_statistics(cases, o, tmp_path / "cache") for o in (plain, packed)]
    assert statistics[0] == statistics[1]


def test_a_missing_package_is_named(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(UserError, match=r"needs the package blosc2.*pip install blosc2"):
        cache_cases(cases, DataOptions(cache_compression="blosc2"), tmp_path / "cache")
