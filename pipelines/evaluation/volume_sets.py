"""Sets of volumes to be judged: results of test.py, a cohort, or any folder of volumes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.cohort import IMAGES, MASKS, natural_key
from data.geometry import Shape, resample, voxel_sizes
from data.splits import read_splits
from data.volumes import Volume, has_suffix, load_volume, read_header, strip_suffix
from util.cli import UserError, format_list

VOLUMES_TABLE = "volumes.csv"  # of test.py
SPACING_TOLERANCE = 0.02  # share by which voxel sizes may differ and still be called equal
WINDOW_TOLERANCE = (
    0.25  # share of the HU window by which the ranges of two sets may differ at an end
)
HU_SAMPLES = 4  # volumes read for a first look at the range of HU


@dataclass(frozen=True)
class VolumeFile:
    """One volume: its case (the name that pairs go by), its file, and the mask of the case where
    there is one.
    """

    case: str
    path: Path
    mask: Path | None


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of a folder in natural order; `flag` names it in messages."""

    flag: str
    root: Path
    files: tuple[VolumeFile, ...]

    @property
    def cases(self) -> list[str]:
        return [file.case for file in self.files]


def find_set(flag: str, folder: str, masks: str = "", split: str = "all") -> VolumeSet:
    """The volumes of a folder.

    Args:
        flag: The flag that named it, for messages.
        folder: Results of test.py (their own-row volumes), a dataroot with img/, or a folder of
            volumes.
        masks: Folder of masks of the same names; by default gtlung/ of a dataroot.
        split: Only this split of a dataroot's splits.json.

    Raises:
        UserError: No such folder, no volumes, a split that is not there.
    """
    root = Path(folder)
    if not folder or not root.is_dir():
        raise UserError(
            f"{flag} {folder or '(not given)'} does not exist or is no folder. Give results of "
            "test.py, a dataroot with img/, or a folder of volumes."
        )
    if masks and not Path(masks).is_dir():
        raise UserError(f"Masks for {flag}: {masks} does not exist or is no folder.")
    if (root / VOLUMES_TABLE).is_file():
        found = _own_volumes(root / VOLUMES_TABLE)
    else:
        found = _volumes(root / IMAGES if (root / IMAGES).is_dir() else root)
    by_mask = (
        _volumes(Path(masks))
        if masks
        else _volumes(root / MASKS)
        if (root / MASKS).is_dir()
        else {}
    )
    chosen = _of_split(root, flag, split, list(found))
    files = tuple(
        VolumeFile(case, found[case], by_mask.get(case)) for case in sorted(chosen, key=natural_key)
    )
    if not files:
        inside = format_list(sorted(p.name for p in root.iterdir())) or "nothing"
        raise UserError(f"{flag} {root} holds no volumes; it holds: {inside}.")
    return VolumeSet(flag, root, files)


def _volumes(folder: Path) -> dict[str, Path]:
    paths = [
        p
        for p in sorted(folder.iterdir())
        if has_suffix(p.name) and not p.name.startswith(".") and p.is_file()
    ]
    found: dict[str, Path] = {}
    for path in paths:
        case = strip_suffix(path.name)
        if case in found:
            raise UserError(
                f"{folder} holds {case!r} twice: {found[case].name} and {path.name}. Keep one of "
                "them."
            )
        found[case] = path
    return found


def _own_volumes(table: Path) -> dict[str, Path]:
    """The volumes generated from the cases' own rows: programs read the table, never names."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"file", "case", "kind"} <= set(rows[0]):
        raise UserError(
            f"{table} is no table of test.py: it needs the columns file, case and kind."
        )
    found = {row["case"]: table.parent / row["file"] for row in rows if row["kind"] == "own"}
    if gone := [str(path) for path in found.values() if not path.is_file()]:
        raise UserError(
            f"{table} names volumes that are not there: {format_list(gone)}. Make the results again."
        )
    return found


def _of_split(root: Path, flag: str, split: str, cases: Sequence[str]) -> list[str]:
    if split == "all":
        return list(cases)
    path = root / "splits.json"
    if not path.is_file():
        raise UserError(
            f"{flag} {root}: a split {split!r} is asked for, but there is no splits.json. Add it, "
            "or ask for all."
        )
    members = set(read_splits(path, list(cases), {}).get(split, ()))
    if not members & set(cases):
        raise UserError(
            f"{flag} {root}: the split {split!r} of splits.json names none of the volumes."
        )
    return [case for case in cases if case in members]


def with_masks(volumes: VolumeSet, other: VolumeSet) -> VolumeSet:
    """The set with the masks of another set's cases where it has none of its own."""
    masks = {file.case: file.mask for file in other.files}
    files = tuple(VolumeFile(f.case, f.path, f.mask or masks.get(f.case)) for f in volumes.files)
    return VolumeSet(volumes.flag, volumes.root, files)


def median_spacing(volumes: VolumeSet) -> np.ndarray:
    """Median voxel size (3,) in mm, from the headers."""
    return np.median([voxel_sizes(read_header(file.path).affine) for file in volumes.files], axis=0)


def median_extent(volumes: VolumeSet) -> np.ndarray:
    """Median size (3,) of the volumes in mm."""
    headers = [read_header(file.path) for file in volumes.files]
    return np.median([voxel_sizes(h.affine) * h.shape for h in headers], axis=0)


def hu_range(volumes: VolumeSet) -> tuple[float, float]:
    """Lowest and highest value of a few volumes; raises `UserError` where they cannot be HU."""
    places = np.unique(np.linspace(0, len(volumes.files) - 1, HU_SAMPLES).astype(int))
    arrays = [load_volume(volumes.files[i].path).array for i in places]
    low, high = float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))
    if low > -500 or high - low < 300:
        raise UserError(
            f"{volumes.flag} {volumes.root}: values run from {low:g} to {high:g}, which is no "
            "chest CT in HU (air is -1000). Convert the volumes to HU first."
        )
    return low, high


def common_spacing(one: VolumeSet, two: VolumeSet, match: bool) -> float:
    """The side in mm of cubic voxels that both sets are compared at: the largest side of the
    coarser set.

    Raises:
        UserError: Voxel sizes that differ, without `match`.
    """
    first, second = median_spacing(one), median_spacing(two)
    if not match and np.any(np.abs(first / second - 1) > SPACING_TOLERANCE):
        texts = [" x ".join(f"{s:.3g}" for s in sides) for sides in (first, second)]
        raise UserError(
            f"{one.flag} has voxels of {texts[0]} mm, {two.flag} of {texts[1]} mm: sharpness would "
            "differ for that alone. Resample one of them, or compare both at the coarser size "
            "with --match."
        )
    return float(max(first.max(), second.max()))


def common_window(
    one: VolumeSet, two: VolumeSet, window: tuple[float, float], match: bool
) -> tuple[float, float]:
    """The HU window in which both sets hold values.

    Raises:
        UserError: One set is cut off inside the window where the other goes on, without `match`.
    """
    ranges = [np.clip(hu_range(volumes), *window) for volumes in (one, two)]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    apart = np.abs(ranges[0] - ranges[1]).max()
    if apart <= WINDOW_TOLERANCE * (window[1] - window[0]):
        return window
    if not match:
        texts = [f"{v.flag} {r[0]:g} to {r[1]:g}" for v, r in zip((one, two), ranges, strict=True)]
        raise UserError(
            f"Within --hu_window {window[0]:g},{window[1]:g} the values run differently far: "
            f"{texts[0]} HU, {texts[1]} HU, so one was cut to another window. Give the window that "
            "both have by --hu_window, or compare the common part with --match."
        )
    return float(low), float(high)


def on_grid(volume: Volume, spacing: float, extent: Sequence[float], order: int = 1) -> Volume:
    """A volume on cubic voxels over a box of `extent` mm around its centre; beyond its border its
    last voxel is repeated.
    """
    sides = voxel_sizes(volume.affine)
    shape: Shape = tuple(max(4, round(e / spacing)) for e in extent)  # type: ignore[assignment]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * (spacing / sides)
    centre = volume.affine[:3, :3] @ ((np.asarray(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return resample(volume, grid=(shape, affine), order=order)
