"""Sets of volumes to compare: results of test.py, a cohort, or any folder of volumes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from data.cohort import IMAGES, MASKS, natural_key
from data.geometry import Shape, Volume, resample
from data.splits import read_splits
from data.volumes import has_suffix, load_volume, read_header, strip_suffix
from util.cli import UserError, format_list

VOLUMES_TABLE = "volumes.csv"  # of test.py
SPACING_TOLERANCE = 0.02  # relative difference of voxel sizes that still counts as equal
# Share of the HU window by which the ranges of two sets may differ at an end.
WINDOW_TOLERANCE = 0.25
HU_SAMPLES = 4  # volumes read for a first look at the range of HU
MAX_AIR_HU = -500.0  # a chest CT holds air, so its lowest value is below this
MIN_HU_RANGE = 300.0


@dataclass(frozen=True)
class VolumeFile:
    """One volume.

    Attributes:
        case: Name of the case, by which pairs are formed.
        path: File of the volume.
        mask: Mask of the case, where there is one.
    """

    case: str
    path: Path
    mask: Path | None


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of a folder.

    Attributes:
        flag: The flag that named the folder, for messages.
        root: The folder.
        files: Its volumes in natural order.
    """

    flag: str
    root: Path
    files: tuple[VolumeFile, ...]

    @property
    def cases(self) -> list[str]:
        """Names of the cases."""
        return [file.case for file in self.files]


def find_set(flag: str, folder: str, masks: str = "", split: str = "all") -> VolumeSet:
    """Return the volumes of a folder.

    Args:
        flag: The flag that named it, for messages.
        folder: Results of test.py (their factual volumes), a dataroot with img/, or a folder of
            volumes.
        masks: Folder of masks of the same names; by default gtlung/ of a dataroot.
        split: A split of a dataroot's splits.json, or "all".

    Raises:
        UserError: No such folder, no volumes, a split that is not there.
    """
    root = Path(folder)
    if not folder or not root.is_dir():
        raise UserError(
            f"{flag} {folder or '(not given)'} does not exist or is not a folder. Give results of "
            "test.py, a dataroot with img/, or a folder of volumes."
        )
    if masks and not Path(masks).is_dir():
        raise UserError(f"Masks for {flag}: {masks} does not exist or is not a folder.")
    if (root / VOLUMES_TABLE).is_file():
        volumes = _factual_volumes(root / VOLUMES_TABLE)
    else:
        volumes = _volumes(root / IMAGES if (root / IMAGES).is_dir() else root)
    mask_folder = Path(masks) if masks else root / MASKS
    by_mask = _volumes(mask_folder) if mask_folder.is_dir() else {}
    cases = sorted(_cases_of_split(root, flag, split, list(volumes)), key=natural_key)
    files = tuple(VolumeFile(case, volumes[case], by_mask.get(case)) for case in cases)
    if not files:
        content = format_list(sorted(p.name for p in root.iterdir())) or "nothing"
        raise UserError(
            f"{flag} {root} holds no volumes; it holds: {content}. Give another folder."
        )
    return VolumeSet(flag, root, files)


def _volumes(folder: Path) -> dict[str, Path]:
    """Return the volumes of a folder by case."""
    volumes: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not has_suffix(path.name) or path.name.startswith(".") or not path.is_file():
            continue
        case = strip_suffix(path.name)
        if case in volumes:
            raise UserError(
                f"{folder} holds {case!r} twice: {volumes[case].name} and {path.name}. Keep one of "
                "them."
            )
        volumes[case] = path
    return volumes


def _factual_volumes(table: Path) -> dict[str, Path]:
    """Return the volumes generated from the cases' factual rows, as test.py's table names them."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"file", "case", "kind"} <= set(rows[0]):
        raise UserError(
            f"{table} is not a table of test.py, because it lacks one of the columns file, case "
            "and kind. Give a folder of results."
        )
    volumes = {row["case"]: table.parent / row["file"] for row in rows if row["kind"] == "own"}
    by_file: dict[Path, str] = {}
    for case, path in volumes.items():
        first = by_file.setdefault(path, case)
        if first != case:
            raise UserError(
                f"{table} names {path.name} for both {first!r} and {case!r}, so that one volume "
                "would be judged for two patients. Make the results again with this version."
            )
    if missing := [str(path) for path in volumes.values() if not path.is_file()]:
        raise UserError(
            f"{table} names volumes that are not there: {format_list(missing)}. Make the results "
            "again."
        )
    return volumes


def _cases_of_split(root: Path, flag: str, split: str, cases: Sequence[str]) -> list[str]:
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
            f"{flag} {root}: the split {split!r} of splits.json names none of the volumes. Ask for "
            "another split, or for all."
        )
    return [case for case in cases if case in members]


def with_masks(volumes: VolumeSet, source: VolumeSet) -> VolumeSet:
    """Return the set with the masks of another set's cases where it has none itself."""
    masks = {file.case: file.mask for file in source.files}
    files = [replace(f, mask=f.mask or masks.get(f.case)) for f in volumes.files]
    return replace(volumes, files=tuple(files))


def median_spacing(volumes: VolumeSet) -> np.ndarray:
    """Return the median voxel size `(3,)` in mm, from the headers."""
    return np.median([voxel_sizes(read_header(file.path).affine) for file in volumes.files], axis=0)


def median_extent(volumes: VolumeSet) -> np.ndarray:
    """Return the median size `(3,)` of the volumes in mm."""
    headers = [read_header(file.path) for file in volumes.files]
    return np.median([voxel_sizes(h.affine) * h.shape for h in headers], axis=0)


def hu_range(volumes: VolumeSet) -> tuple[float, float]:
    """Return lowest and highest value of a few volumes.

    Raises:
        UserError: The values cannot be HU.
    """
    indices = np.unique(np.linspace(0, len(volumes.files) - 1, HU_SAMPLES).astype(int))
    low = float("inf")
    high = float("-inf")
    for i in indices:
        array = load_volume(volumes.files[i].path).array
        low = min(low, float(array.min()))
        high = max(high, float(array.max()))
    if low > MAX_AIR_HU or high - low < MIN_HU_RANGE:
        raise UserError(
            f"{volumes.flag} {volumes.root}: values run from {low:g} to {high:g}, so this is no "
            "chest CT in HU (air is -1000). Convert the volumes to HU first."
        )
    return low, high


def common_spacing(one: VolumeSet, two: VolumeSet, match: bool) -> float:
    """Return the side in mm of the cubic voxels that both sets are compared at.

    It is the largest side of the coarser set.

    Raises:
        UserError: Voxel sizes that differ, without `match`.
    """
    first = median_spacing(one)
    second = median_spacing(two)
    if not match and np.any(np.abs(first / second - 1) > SPACING_TOLERANCE):
        raise UserError(
            f"{one.flag} has voxels of {_format_sides(first)} mm, {two.flag} of "
            f"{_format_sides(second)} mm: sharpness would differ for that alone. Resample one of "
            "them, or compare both at the coarser size with --match."
        )
    return float(max(first.max(), second.max()))


def _format_sides(sides: np.ndarray) -> str:
    return " x ".join(f"{side:.3g}" for side in sides)


def common_window(
    one: VolumeSet, two: VolumeSet, window: tuple[float, float], match: bool
) -> tuple[float, float]:
    """Return the HU window in which both sets hold values.

    Raises:
        UserError: The values of one set end inside the window where those of the other do not,
            without `match`.
    """
    first = np.clip(hu_range(one), *window)
    second = np.clip(hu_range(two), *window)
    if np.abs(first - second).max() <= WINDOW_TOLERANCE * (window[1] - window[0]):
        return window
    if not match:
        raise UserError(
            f"Within --hu_window {window[0]:g},{window[1]:g} the ranges of values differ: "
            f"{one.flag} {first[0]:g} to {first[1]:g} HU, {two.flag} {second[0]:g} to "
            f"{second[1]:g} HU, so one was cut to another window. Give the window that both have "
            "by --hu_window, or compare the common part with --match."
        )
    return float(max(first[0], second[0])), float(min(first[1], second[1]))


def on_grid(volume: Volume, spacing: float, extent: Sequence[float], order: int = 1) -> Volume:
    """Resample a volume to cubic voxels over a box around its centre.

    Beyond its border its last voxel is repeated.

    Args:
        volume: The volume.
        spacing: Side of the voxels in mm.
        extent: Size of the box in mm.
        order: 1 for linear interpolation, 0 for labels.
    """
    sides = voxel_sizes(volume.affine)
    shape: Shape = tuple(max(4, round(e / spacing)) for e in extent)  # type: ignore[assignment]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * (spacing / sides)
    centre = volume.affine[:3, :3] @ ((np.asarray(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return resample(volume, grid=(shape, affine), order=order)
