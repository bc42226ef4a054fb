"""Many patients from a few scanned chests, by smooth deformation of scan and mask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from data.cohort import IMAGES, MASKS
from data.geometry import Volume, resample
from data.phantom.anatomy import LEFT, RIGHT
from data.phantom.kinds.cohort import SourceChest
from data.volumes import load_volume, strip_suffix
from options.expand_options import DeformOptions
from pipelines.synthesis.deform import apply_deformation, deform_plausibly
from util.cli import UserError
from util.metrics.regions import bounding_box

MARGIN_MM = 24.0  # of the crop around the lungs, so that the chest wall stays
MIN_CHESTS = 2  # one to train on, one to test on


@dataclass(frozen=True)
class ChestFiles:
    """The files of a scanned chest."""

    image: Path
    mask: Path

    @property
    def name(self) -> str:
        """The scan's name without suffix."""
        return strip_suffix(self.image.name)


def find_chests(folders: Sequence[str]) -> tuple[ChestFiles, ...]:
    """Return the chests of folders in the layout of a dataroot (img/, gtlung/).

    Raises:
        UserError: A scan has no mask, or there are too few chests.
    """
    chests = []
    for folder in folders:
        for image in sorted((Path(folder) / IMAGES).glob("*")):
            mask = Path(folder) / MASKS / image.name
            if not mask.is_file():
                raise UserError(f"{image} has no mask {mask}. Add it, or remove the scan.")
            chests.append(ChestFiles(image, mask))
    if len(chests) < MIN_CHESTS:
        raise UserError(
            f"--chests: {', '.join(folders)} hold {len(chests)} chests in {IMAGES}/; at least "
            f"{MIN_CHESTS} are needed, because test patients come from chests that are not "
            "trained on."
        )
    return tuple(chests)


def split_chests(chests: Sequence[ChestFiles], seed: int) -> dict[str, tuple[ChestFiles, ...]]:
    """Return the chests to train on, and about a quarter of them to test on."""
    order = np.random.default_rng([seed, 5]).permutation(len(chests))
    tests = max(1, len(chests) // 4)
    shuffled = [chests[i] for i in order]
    return {"train": tuple(shuffled[tests:]), "test": tuple(shuffled[:tests])}


def deformed_chests(
    splits: Mapping[str, Sequence[str]],
    chests: Mapping[str, Sequence[ChestFiles]],
    spacing_mm: float,
    seed: int,
) -> Iterator[SourceChest]:
    """Make the patients of every split from its chests, equally many from each.

    Args:
        splits: Cases by split.
        chests: Chests by split.
        spacing_mm: Voxel side of the result.
        seed: Seed of the deformations.
    """
    for number, name in enumerate(sorted(splits)):
        of_chest = sorted(
            (i % len(chests[name]), i, case) for i, case in enumerate(splits[name])
        )  # by chest, so that each is read once
        for chest, i, case in of_chest:
            yield _deform(case, chests[name][chest], spacing_mm, (seed, 6, number, i))


def _deform(case: str, chest: ChestFiles, spacing_mm: float, seed: Sequence[int]) -> SourceChest:
    hu, mask = _load_cropped(chest)
    deformed = deform_plausibly(mask, DeformOptions(), seed, chest.mask)
    moved = apply_deformation(hu, deformed.deformation, order=1)
    # Without a low-pass filter, detail beyond the new grid would return as noise.
    sigma = [max(0.0, (spacing_mm / side - 1) / 2) for side in hu.spacing]
    smooth = Volume(ndimage.gaussian_filter(moved, sigma), hu.affine)
    spacing = (spacing_mm,) * 3
    labels = resample(Volume(deformed.labels, mask.affine), spacing=spacing, order=0)
    return SourceChest(case, resample(smooth, spacing=spacing), labels)


@lru_cache(maxsize=1)
def _load_cropped(chest: ChestFiles) -> tuple[Volume, Volume]:
    """Return scan and mask, cropped to the lungs with a margin, on an axis-aligned grid."""
    hu = load_volume(chest.image)
    mask = load_volume(chest.mask)
    lungs = np.isin(mask.array, (LEFT, RIGHT))
    if not lungs.any():
        raise UserError(f"{chest.mask} holds no lung (labels {LEFT}, {RIGHT}). Remove the chest.")
    box = bounding_box(lungs, [math.ceil(MARGIN_MM / side) for side in mask.spacing])
    affine = np.diag([*mask.spacing, 1.0])
    return (
        Volume(np.ascontiguousarray(hu.array[box], np.float32), affine),
        Volume(np.ascontiguousarray(mask.array[box], np.uint8), affine),
    )
