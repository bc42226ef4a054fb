"""Reading and checking of a cohort."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.checks import check_volumes
from data.cohort import IMAGES, MASKS, Case, Cohort, natural_key
from data.resampling import apply_resampling
from data.splits import Splits, make_splits, read_splits
from data.table import ClinicalTable, find_table, read_table
from data.volumes import SUFFIXES, has_suffix, strip_suffix
from options.base_options import DataOptions
from util.cli import UserError, format_list

log = logging.getLogger(__name__)


def load_cohort(
    options: DataOptions,
    *,
    need_images: bool = True,
    seed: int = 0,
    cache: Path | None = None,
    check: bool = True,
) -> Cohort:
    """Finds, pairs and checks everything in `options.dataroot`.

    Args:
        options: `--dataroot` and how it is read.
        need_images: Whether a scan must stand beside every mask (training); else masks alone do.
        seed: Decides the splits where there is no `splits.json`.
        cache: Folder that remembers what the checks found.
        check: Read every volume (see `data.checks.check_volumes`); without it `labels` is empty.

    Raises:
        UserError: A missing or empty folder, missing pairs, duplicate ids, a bad table, bad splits
            or bad volumes.
    """
    root = _root(options)
    masks = _files(root / MASKS)
    images = _files(root / IMAGES) if (root / IMAGES).is_dir() else {}
    if need_images and not images:
        raise UserError(
            f"{root / IMAGES} does not exist; training needs the scan of every mask there."
        )
    _check_pairs(root, images, masks, need_images)
    path = find_table(root)
    table = ClinicalTable((), {}) if path is None else read_table(path, options.key_column)
    if path is None:
        log.warning("%s has no clinical.csv or clinical.xlsx: nothing is known of any case.", root)
    else:
        _check_rows(path, list(masks), list(table.rows), options.strict)
    empty = dict.fromkeys(table.columns, "")
    cases = tuple(
        Case(key, images.get(key), masks[key], {**empty, **table.rows.get(key, {})})
        for key in sorted(masks, key=natural_key)
    )
    splits = _splits(root, cases, table.columns, options, seed)
    cohort = apply_resampling(Cohort(root, cases, splits, (), table.columns), options, seed)
    if not check:
        return cohort
    return replace(
        cohort, labels=check_volumes([(c.image, c.mask) for c in cases], options.max_labels, cache)
    )


def check_lungs(cohort: Cohort, options: DataOptions) -> None:
    """Raises `UserError` where no mask of the cohort holds a label of the lungs."""
    if cohort.labels and not set(options.lung_labels) & set(cohort.labels):
        raise UserError(
            f"--lung_labels is {','.join(map(str, options.lung_labels))}, but the masks in "
            f"{cohort.root} hold {format_list([str(v) for v in cohort.labels])} only; give the labels "
            "that are lungs."
        )


def _root(options: DataOptions) -> Path:
    if not options.dataroot:
        raise UserError(
            f"--dataroot is not given; it is the folder that holds {IMAGES}/ and {MASKS}/."
        )
    root = Path(options.dataroot)
    if not root.is_dir():
        raise UserError(f"--dataroot {root} does not exist or is no folder.")
    if not (root / MASKS).is_dir():
        inside = format_list(sorted(p.name for p in root.iterdir())) or "nothing"
        raise UserError(f"--dataroot {root} has no folder {MASKS}/ with masks; it holds: {inside}.")
    return root


def _files(folder: Path) -> dict[str, Path]:
    """The volume files of a folder by case id."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not has_suffix(path.name):
            continue
        case = strip_suffix(path.name)
        if case in found:
            both = f"{found[case].name} and {path.name}"
            raise UserError(f"{folder} holds case {case!r} twice: {both}. Keep one of them.")
        found[case] = path
    if not found:
        raise UserError(f"{folder} is empty: it has no file that ends in {', '.join(SUFFIXES)}.")
    return found


def _check_pairs(
    root: Path, images: dict[str, Path], masks: dict[str, Path], need_images: bool
) -> None:
    no_mask = sorted(set(images) - set(masks), key=natural_key)
    no_image = sorted(set(masks) - set(images), key=natural_key)
    if no_mask:
        raise UserError(
            f"{len(no_mask)} scans in {root / IMAGES} have no mask of the same name in "
            f"{root / MASKS}: {format_list(no_mask)}. Add the masks or remove the scans."
        )
    if no_image and need_images:
        raise UserError(
            f"{len(no_image)} masks in {root / MASKS} have no scan of the same name in "
            f"{root / IMAGES}: {format_list(no_image)}. Add the scans or remove the masks."
        )
    if no_image and images:
        log.warning("%d masks have no scan: %s.", len(no_image), format_list(no_image))


def _check_rows(path: Path, cases: Sequence[str], rows: Sequence[str], strict: bool) -> None:
    no_row = sorted(set(cases) - set(rows), key=natural_key)
    no_scan = sorted(set(rows) - set(cases), key=natural_key)
    texts = []
    if no_row:
        texts.append(f"{len(no_row)} of {len(cases)} scans have no row: {format_list(no_row)}")
    if no_scan:
        texts.append(f"{len(no_scan)} of {len(rows)} rows have no scan: {format_list(no_scan)}")
    if texts and strict:
        raise UserError(f"{path}: {'; '.join(texts)}. Complete the table, or leave out --strict.")
    for text in texts:
        log.warning("%s: %s.", path, text)


def _splits(
    root: Path,
    cases: Sequence[Case],
    columns: Sequence[str],
    options: DataOptions,
    seed: int,
) -> Splits:
    column = options.patient_column
    if column and column != options.key_column and column not in columns:
        raise UserError(
            f"--patient_column {column!r} is no column of the table; it has: "
            f"{format_list(list(columns), 30)}."
        )
    patients = {case.id: case.row.get(column, "").strip() for case in cases} if column else {}
    ids = [case.id for case in cases]
    path = Path(options.splits) if options.splits else root / "splits.json"
    if options.splits or path.is_file():
        return read_splits(path, ids, patients)
    return make_splits(ids, seed, patients, images=any(case.image for case in cases))
