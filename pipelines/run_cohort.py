"""Cohorts read as a run's training read its own: with its splits, and compared with its data."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.cache import cache_folder
from data.cohort import Case, Cohort
from data.fact_store import FactStore
from data.fingerprints import data_changes, data_record, file_digests, volume_digest
from data.load_cohort import load_cohort
from data.splits import Splits, read_run_splits, split_changes
from data.text.prompts import cohort_prompts, load_template
from options.base_options import DataOptions
from util.cli import UserError, counted, format_list
from util.notices import notice
from util.parallel import map_threads
from util.training import checkpoint
from util.training.runs import SPLITS_FILE

log = logging.getLogger(__name__)

LATEST = "latest"


def is_training_cohort(options: DataOptions, root: str | Path) -> bool:
    """Return whether a folder is the cohort that the run was trained on."""
    return Path(root).resolve() == Path(options.dataroot).resolve()


def is_training_copy(cohort: Cohort, trained_on: Cohort) -> bool:
    """Return whether a cohort has all training cases, and the mask of at least one of them."""
    cases = {case.id: case for case in cohort.cases}
    training = trained_on.split("train")
    if not training or any(case.id not in cases for case in training):
        return False
    return any(filecmp.cmp(case.mask, cases[case.id].mask, shallow=False) for case in training)


def load_run_cohort(
    folder: Path,
    options: DataOptions,
    root: str,
    seed: int,
    *,
    need_images: bool,
    accept_changes: bool = False,
) -> Cohort:
    """Load a cohort for a run.

    Args:
        folder: The run's folder, which keeps the splits of its own cohort.
        options: How the run read its cohort.
        root: The cohort's folder.
        seed: The run's seed, which decides splits that no file contains.
        need_images: Whether every mask must have its scan.
        accept_changes: Only warn where the splits of the cohort are not those of the run.

    Raises:
        UserError: See `load_cohort` and `run_splits`.

    Scans, masks and rows that changed since the training are warned of.
    """
    state = _read_state(folder)
    is_own = is_training_cohort(options, root)
    options = replace(options, dataroot=root) if is_own else options.for_other_cohort(root)
    cohort = load_cohort(
        options,
        need_images=need_images,
        seed=seed,
        left_out=state.get("left_out", ()),
        run_folder=folder,
    )
    if not root:
        return cohort
    if is_own or holds_training_scan(cohort, folder, state):
        warn_changed_data(folder, options, cohort, state, is_own)
        splits = run_splits(folder, cohort, options, accept_changes)
        if split_changes(splits, cohort.splits) or not _splits_file(cohort, options).is_file():
            return replace(cohort, splits=splits)
    return cohort  # with the training cases that a resampled run did not draw


def warn_changed_data(
    folder: Path, options: DataOptions, cohort: Cohort, state: Mapping[str, Any], is_own: bool
) -> None:
    """Warn where scans, masks or rows are not those that a run was trained with.

    Args:
        folder: The run's folder.
        options: How the run reads its cohort.
        cohort: The run's cohort, or a copy of it.
        state: The plain values of its checkpoint.
        is_own: Whether it is the run's own cohort, where no case may be missing.
    """
    record = state.get("data") or {}
    if not is_own:
        ids = {case.id for case in cohort.cases}
        record = {
            name: {case: digest for case, digest in record.get(name, {}).items() if case in ids}
            for name in ("files", "rows", "texts")
        } | {"options": record.get("options", {})}
    if changes := changed_data(folder, options, cohort, record):
        log.warning(
            "%s changed since the run %s was trained: %s. What is measured on these cases does not "
            "belong to what the run has seen.",
            cohort.root,
            folder.name,
            "; ".join(changes),
        )


def changed_data(
    folder: Path, options: DataOptions, cohort: Cohort, record: Mapping[str, Any]
) -> list[str]:
    """Return which scans, masks and rows changed since a run was trained, in words.

    Args:
        folder: The run's folder.
        options: How the run reads its cohort.
        cohort: The cohort as it is now.
        record: What the run was trained on (see `data.fingerprints`); empty in older runs, for
            which nothing is found. Rows of permuted columns are not compared.
    """
    cases = [case for case in cohort.cases if case.id in record.get("files", {})]
    if not record.get("files"):
        return []
    template = load_template(
        options.template, cohort.columns, options.key_column, options.patient_column
    )
    cache = cache_folder(options, folder)
    prompts = cohort_prompts(cohort, template)
    now = data_record(cohort, cases, template, prompts, cache if cache.is_dir() else None)
    if record.get("options", {}).get("permute"):
        now = {**now, "rows": {}, "texts": {}}
    return data_changes(record, now)


def _splits_file(cohort: Cohort, options: DataOptions) -> Path:
    return Path(options.splits) if options.splits else cohort.root / SPLITS_FILE


def run_splits(folder: Path, cohort: Cohort, options: DataOptions, accept_changes: bool) -> Splits:
    """Return the splits that a run was trained with, for its own cohort.

    They count even if the cohort's file was edited since, because else the run could be tested on
    cases that it was trained on.

    Args:
        folder: The run's folder.
        cohort: The cohort as it is now.
        options: How the run reads its cohort.
        accept_changes: Only warn of differences.

    Raises:
        UserError: The cohort's splits are others.
    """
    stored = read_run_splits(folder / SPLITS_FILE)
    if stored is None:
        return cohort.splits
    stored = {
        name: tuple(case for case in cases if case not in cohort.rejected)
        for name, cases in stored.items()
    }
    path = _splits_file(cohort, options)
    changes = split_changes(stored, cohort.splits) if path.is_file() else []
    if changes and not accept_changes:
        raise UserError(
            f"{path} is not what the run {folder.name} was trained with: {format_list(changes)}. "
            f"Restore it from the run's copy, {folder / SPLITS_FILE}; new splits belong to a new "
            "run. train.py and test.py can also use the run's splits all the same, with "
            "--accept_changes."
        )
    if changes:
        log.warning(
            "%s is not what the run was trained with, so the run's own splits are used: %s.",
            path,
            format_list(changes),
        )
    return stored


def warn_training_cases(folder: Path, state: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Warn of cases to generate that a run was trained on.

    Args:
        folder: The run's folder.
        state: The plain values of its checkpoint; they have digests of the training masks.
    """
    training = set((read_run_splits(folder / SPLITS_FILE) or {}).get("train", ()))
    files = state.get("data", {}).get("files", {})
    trained_on = []
    for case in cases:
        digest = files.get(case.id, {}).get("mask")
        if case.id in training and digest in (None, volume_digest(case.mask)["sha256"]):
            trained_on.append(case.id)
    if trained_on:
        log.warning(
            "Training cases of the run among %s: %d (%s). Results on them are not results on "
            "unseen cases.",
            counted(len(cases), "case"),
            len(trained_on),
            format_list(trained_on),
            extra=notice("trained on this case", cases=trained_on),
        )


def training_copies(cohort: Cohort, folder: Path, state: Mapping[str, Any]) -> frozenset[str]:
    """Return the cases of another cohort that have the scan or the mask of a training case.

    Their names do not matter. Runs whose checkpoints hold no digests have none.

    Args:
        folder: The run's folder.
        state: The plain values of its checkpoint.
    """
    files = state.get("data", {}).get("files", {})
    training = set((read_run_splits(folder / SPLITS_FILE) or {}).get("train", ()))
    known = {digest for case in training for digest in files.get(case, {}).values()}
    if not known:
        return frozenset()
    digest_files = partial(file_digests, store=FactStore(None))
    digests = map_threads(digest_files, cohort.cases, "Computing checksums")
    return frozenset(
        case.id
        for case, of_case in zip(cohort.cases, digests, strict=True)
        if not known.isdisjoint(of_case.values())
    )


def _read_state(folder: Path) -> dict[str, Any]:
    """Return the plain values of the run's latest checkpoint, empty where there is none."""
    try:
        return checkpoint.load_state(checkpoint.find(folder / LATEST))
    except UserError:
        return {}


def holds_training_scan(cohort: Cohort, folder: Path, state: Mapping[str, Any]) -> bool:
    """Return whether a cohort is a copy of the run's own: it has the mask of a training case.

    Where the checkpoint has no digests of masks, a name shared with the training cases is only
    warned of.

    Args:
        folder: The run's folder.
        state: The plain values of its checkpoint.
    """
    training = (read_run_splits(folder / SPLITS_FILE) or {}).get("train", ())
    cases = {case.id: case for case in cohort.cases}
    shared = [case_id for case_id in dict.fromkeys(training) if case_id in cases]
    files = state.get("data", {}).get("files", {})
    digests = {case_id: files[case_id]["mask"] for case_id in shared if case_id in files}
    if digests:
        return any(volume_digest(cases[k].mask)["sha256"] == d for k, d in digests.items())
    tested = {*cohort.splits.get("val", ()), *cohort.splits.get("test", ())}
    if both := [case_id for case_id in shared if case_id in tested]:
        log.warning(
            "%s has validation or test cases with the names of training cases of the run: %s. If "
            "they are the same scans, results on them are not results on unseen cases.",
            cohort.root,
            format_list(both),
        )
    return False
