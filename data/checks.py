"""Checks of every volume of a cohort before anything long starts; all problems are shown
together.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.geometry import corner_distance, grids_match
from data.volumes import check_labels, load_volume, read_header
from util.cli import UserError, format_list, main_rank
from util.files import atomic_path, file_fingerprint

log = logging.getLogger(__name__)

# A chest CT in HU holds air (-1000) in the lungs and around the body. Volumes scaled to 0..1 or
# -1..1, z-scores, 8-bit
# pictures (0..255) and raw detector values (HU + 1024) all have their darkest voxel above this.
MAX_DARKEST_HU = -200.0
MAX_LABEL = 255
MAX_SHOWN = 10

Facts = dict[str, Any]


def image_facts(path: Path) -> Facts:
    """What `image_problems` needs to know of a CT: {"low": HU, "high": HU, "finite": bool}."""
    array = load_volume(path).array
    low, high = float(array.min()), float(array.max())
    return {"low": low, "high": high, "finite": bool(np.isfinite(low) and np.isfinite(high))}


def mask_facts(path: Path) -> Facts:
    """What `mask_problems` needs to know of a mask: {"labels": [value, ...]}, where there are
    thousands not all.
    """
    values: set[float] = set()
    for plane in load_volume(path).array:  # plane by plane: sorting a whole scan takes gigabytes
        values |= set(np.unique(plane).tolist())
        if len(values) > 1000:
            break
    return {"labels": sorted(float(v) for v in values)}


def image_problems(path: Path, facts: Facts) -> list[str]:
    """Messages on a CT that is not finite, constant, or clearly not in HU."""
    low, high = facts["low"], facts["high"]
    if not facts["finite"]:
        return [f"{path} holds values that are not finite (NaN or infinite). Export it again."]
    if low == high:
        return [f"{path} is constant ({low:g} everywhere). Export it again or remove the case."]
    if low >= MAX_DARKEST_HU:
        return [
            f"{path} is not in HU: its values run from {low:g} to {high:g}, but a chest CT holds "
            f"air, so some voxel lies below {MAX_DARKEST_HU:g}. Apply the rescale slope and intercept; "
            "do not normalise."
        ]
    return []


def mask_problems(path: Path, facts: Facts, most: int) -> list[str]:
    """Messages on a mask with labels that are not whole, out of range or too many."""
    labels = facts["labels"]
    if not (problems := label_problems(path, labels)) and len(labels) > most:
        return [
            f"{path} holds {len(labels)} different labels, more than --max_labels {most}. Is it a "
            "mask?"
        ]
    return problems


def label_problems(path: Path, labels: Sequence[float]) -> list[str]:
    """Messages on values that cannot be labels."""
    if broken := [v for v in labels if not np.isfinite(v) or v != round(v)]:
        return [
            f"{path} holds values that are no whole labels, such as {broken[0]:g}. Save the label "
            "map itself."
        ]
    if outside := [v for v in labels if not 0 <= v <= MAX_LABEL]:
        return [
            f"{path} holds the label {outside[0]:g}; labels run from 0 to {MAX_LABEL}. Relabel "
            "the mask."
        ]
    return []


def check_labels_known(found: Sequence[int], labels: Sequence[int], masks: Sequence[Path]) -> None:
    """Raises `UserError` naming the first mask with a label that a run does not know, if `found`
    holds such a label.
    """
    if set(found) - set(labels):
        for mask in masks:
            check_labels([int(v) for v in mask_facts(mask)["labels"]], labels, mask)


def grid_problems(image: Path, mask: Path) -> list[str]:
    """Messages on a CT and a mask that do not lie on the same grid (see
    `data.geometry.GRID_TOLERANCE`).
    """
    first, second = read_header(image), read_header(mask)
    todo = "Resample the mask onto the CT's grid (nearest neighbour)."
    if first.shape != second.shape:
        return [
            f"{mask} has shape {second.shape} (in RAS), its CT {image} has {first.shape}. {todo}"
        ]
    if not grids_match(first.shape, first.affine, second.affine):
        away = corner_distance(first.shape, first.affine, second.affine)
        return [
            f"{mask} lies elsewhere than its CT {image}: corners are up to {away:.3g} mm apart. "
            f"{todo}"
        ]
    return []


class FactStore:
    """Facts of files, remembered on disk by path, size and time of change, so that a second start
    is fast.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.facts: dict[str, Facts] = {}
        if path is not None and path.is_file():
            try:
                self.facts = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                log.warning("%s is damaged; the volumes are checked anew.", path)

    def get(self, file: Path, measure: Callable[[Path], Facts]) -> Facts:
        """The facts of `file`, measured where they are not known."""
        key = "|".join(map(str, [measure.__name__, *file_fingerprint(file)]))
        if key not in self.facts:
            self.facts[key] = measure(file)
        return self.facts[key]

    def save(self) -> None:
        """Writes what is known, whole or not at all."""
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.facts), encoding="utf-8")


def check_case_files(
    image: Path | None, mask: Path, store: FactStore, most: int
) -> tuple[list[str], list[int]]:
    """The problems of one case, and the labels of its mask."""
    problems: list[str] = []
    labels: list[int] = []
    try:
        facts = store.get(mask, mask_facts)
        problems += mask_problems(mask, facts, most)
        labels = [] if problems else [int(v) for v in facts["labels"]]
        if image is not None:
            problems += grid_problems(image, mask)
            problems += image_problems(image, store.get(image, image_facts))
    except UserError as error:
        problems.append(str(error))
    return problems, labels


def check_volumes(
    pairs: Sequence[tuple[Path | None, Path]],
    most: int = 16,
    cache: Path | None = None,
) -> tuple[int, ...]:
    """Reads every volume once and returns the labels of the cohort, sorted, 0 (background) among
    them.

    Args:
        pairs: (CT or None, mask) of every case.
        most: More different labels than this are an error.
        cache: Folder that remembers what was found.

    Raises:
        UserError: Any file that cannot be read, CT and mask on different grids, labels that are not
            whole or too many, a CT that is constant, not finite or not in HU; the first ten
            problems are listed.
    """
    store = FactStore(cache / "checks.json" if cache else None)
    known = len(store.facts)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = pool.map(lambda pair: check_case_files(pair[0], pair[1], store, most), pairs)
        bar = tqdm(
            jobs,
            total=len(pairs),
            desc="Checking volumes",
            disable=not main_rank() or len(pairs) < 20,
        )
        results = list(bar)
    if len(store.facts) > known:
        store.save()
    problems = [text for found, _ in results for text in found]
    labels = tuple(sorted({0} | {label for _, found in results for label in found}))
    if not problems and len(labels) > most:
        problems = [
            f"The masks hold {len(labels)} different labels, more than --max_labels {most}: "
            f"{labels}."
        ]
    if problems:
        more = f"\n... and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise UserError("\n".join(problems[:MAX_SHOWN]) + more)
    empty = [
        mask.name for (_, mask), (_, found) in zip(pairs, results, strict=True) if not any(found)
    ]
    if empty:
        log.warning("%d masks hold nothing but background: %s.", len(empty), format_list(empty))
    return labels
