"""Sets of volumes to compare: results of test.py, a cohort, or any folder of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.checks.cohort import hu_outlier_warnings
from data.checks.intensities import image_facts, image_problems, intensity_warnings
from data.checks.masks import grid_problems
from data.cohort import IMAGES, SPLITS_FILE, natural_key
from data.fact_store import Facts, FactStore
from data.geometry import Shape, Volume, format_sides, resample
from data.integrity import volume_fingerprint
from data.intensity import IntensityScale
from data.provenance import declared_edits
from data.splits import read_splits
from data.volumes import has_suffix, header_warnings, load_volume, read_header, strip_suffix
from options.base_options import DataOptions
from util.cli import UserError, format_list
from util.files import path_inside, read_csv
from util.parallel import map_threads

VOLUMES_TABLE = "volumes.csv"  # of test.py
SPACING_TOLERANCE = 0.02  # relative difference of voxel sizes that still counts as equal
# Share of the HU window by which the ranges of two sets may differ at an end.
WINDOW_TOLERANCE = 0.25
MAX_SHOWN = 10


@dataclass(frozen=True)
class VolumeFile:
    """One volume.

    Attributes:
        case: Name of the case, by which pairs are formed.
        path: File of the volume.
        mask: Mask of the case, where there is one.
        edit_of: The case whose real scan it is a declared edit of; "" for none.
        scale: How its intensities become arbitrary units; None where they are HU, or in arbitrary
            units already.
    """

    case: str
    path: Path
    mask: Path | None
    edit_of: str = ""
    scale: IntensityScale | None = None

    def load(self) -> Volume:
        """Read the volume, in the unit of the evaluation.

        Raises:
            UserError: It cannot be read, or holds values that are not finite.
        """
        volume = load_volume(self.path)
        if not np.isfinite(volume.array).all():
            raise UserError(f"{self.path} holds values that are not finite. Export it again.")
        return volume if self.scale is None else self.scale(volume)

    @property
    def key(self) -> list[object]:
        """What measurements of the volume depend on, as plain values."""
        key: list[object] = [volume_fingerprint(self.path)]
        return key if self.scale is None else [*key, self.scale.key]


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of a folder.

    Attributes:
        flag: The flag that named the folder, for messages.
        root: The folder.
        files: Its volumes in natural order.
        is_generated: They are results of test.py, so they are in HU however bad they are.
    """

    flag: str
    root: Path
    files: tuple[VolumeFile, ...]
    is_generated: bool = False

    @property
    def cases(self) -> list[str]:
        """Names of the cases."""
        return [file.case for file in self.files]


def find_set(
    flag: str,
    folder: str,
    masks: str = "",
    split: str = "all",
    data: DataOptions | None = None,
) -> VolumeSet:
    """Return the volumes of a folder.

    Args:
        flag: The flag that named it, for messages.
        folder: Results of test.py (their factual volumes), a dataroot with img/, or a folder of
            volumes.
        masks: Folder of masks of the same names; by default that of a dataroot.
        split: A split of a dataroot's splits.json, or "all".
        data: How scans are read; as chest CT by default.

    Raises:
        UserError: No such folder, no volumes, a split that is not there.
    """
    root = Path(folder)
    data = data or DataOptions()
    if not folder or not root.is_dir():
        raise UserError(
            f"{flag} {folder or '(not given)'} does not exist or is not a folder. Give results of "
            "test.py, a dataroot with img/, or a folder of volumes."
        )
    if masks and not Path(masks).is_dir():
        raise UserError(f"Masks for {flag}: {masks} does not exist or is not a folder.")
    is_generated = (root / VOLUMES_TABLE).is_file()
    if is_generated:
        volumes = _factual_volumes(root / VOLUMES_TABLE)
    else:
        volumes = volumes_by_case(root / IMAGES if (root / IMAGES).is_dir() else root)
    mask_folder = Path(masks) if masks else root / data.mask_folder
    by_mask = volumes_by_case(mask_folder) if mask_folder.is_dir() else {}
    cases = sorted(_cases_of_split(root, flag, split, list(volumes)), key=natural_key)
    edits = declared_edits(root)
    scale = None if is_generated else IntensityScale.from_options(data)
    files = tuple(
        VolumeFile(case, volumes[case], by_mask.get(case), edits.get(case, ""), scale)
        for case in cases
    )
    if not files:
        content = format_list(sorted(p.name for p in root.iterdir())) or "nothing"
        raise UserError(
            f"{flag} {root} holds no volumes; it holds: {content}. Give another folder."
        )
    return VolumeSet(flag, root, files, is_generated)


def volumes_by_case(folder: Path) -> dict[str, Path]:
    """Return the volumes of a folder by case; raise `UserError` where two are of one case."""
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
    rows = read_csv(table, ["file", "case", "kind"])
    volumes = {}
    for row in rows:
        if row["kind"] == "own":
            volumes[row["case"]] = path_inside(table.parent, row["file"], table)
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
    path = root / SPLITS_FILE
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
    return np.median([read_header(file.path).spacing for file in volumes.files], axis=0)


def median_extent(volumes: VolumeSet) -> np.ndarray:
    """Return the median size `(3,)` of the volumes in mm."""
    headers = [read_header(file.path) for file in volumes.files]
    return np.median([np.multiply(h.spacing, h.shape) for h in headers], axis=0)


def set_facts(
    volumes: VolumeSet, store: FactStore, lung_labels: Sequence[int] = (1, 2)
) -> list[Facts]:
    """Return the facts of every volume (see `hu_facts`), read where they are unknown.

    Raises:
        UserError: A volume cannot be read, or its mask lies on another grid.
    """
    measure = partial(_volume_facts, store=store, lung_labels=tuple(lung_labels))
    return map_threads(measure, volumes.files, f"Checking {volumes.flag}")


def _volume_facts(file: VolumeFile, store: FactStore, lung_labels: Sequence[int]) -> Facts:
    paths = [path for path in (file.path, file.mask) if path is not None]
    if file.mask is not None:
        grids = read_header(file.path), read_header(file.mask)
        if problems := grid_problems(file.path, grids[0], file.mask, grids[1]):
            raise UserError(problems[0])
    name = f"image {','.join(map(str, sorted(lung_labels)))}"
    return store.get(name, paths, lambda: image_facts(file.path, file.mask, lung_labels))


def check_intensities(
    volumes: VolumeSet, store: FactStore, data: DataOptions | None = None
) -> list[str]:
    """Check that every volume is in HU, or can be scaled, by the rule of training.

    Generated volumes are in their unit however bad they are, so that theirs are warnings, too.

    Args:
        store: Facts that are known.
        data: How scans are read; as chest CT by default.

    Returns:
        Warnings.

    Raises:
        UserError: A volume is not in HU, cannot be scaled, or holds values that are not finite.
    """
    data = data or DataOptions()
    facts = set_facts(volumes, store, data.lung_labels)
    scale = IntensityScale.from_options(data)
    expected = scale
    if scale is not None and volumes.is_generated:  # they are in a.u. already
        expected = IntensityScale(None, data.percentiles)
    problems = [
        f"{volumes.flag} {problem}"
        for file, one in zip(volumes.files, facts, strict=True)
        for problem in image_problems(file.path, one, expected)
    ]
    if problems and not (volumes.is_generated and all(one["finite"] for one in facts)):
        hidden = len(problems) - MAX_SHOWN
        more = [f"... and {hidden} more"] if hidden > 0 else []
        raise UserError("\n".join([*problems[:MAX_SHOWN], *more]))
    paths = [file.path for file in volumes.files]
    warnings = [warning for path in paths for warning in header_warnings(path)]
    if scale is None:
        warnings += hu_outlier_warnings(list(zip(paths, facts, strict=True)))
    elif not volumes.is_generated:
        for path, one in zip(paths, facts, strict=True):
            warnings += intensity_warnings(path, one, scale)
    return (problems + warnings)[:MAX_SHOWN]


def hu_range(volumes: VolumeSet, store: FactStore) -> tuple[float, float]:
    """Return the range in which nearly all voxels of a set lie; single voxels do not decide it."""
    ranges = np.array([facts["range"] for facts in set_facts(volumes, store)])
    return float(ranges[:, 0].min()), float(ranges[:, 1].max())


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
            f"{one.flag} has voxels of {format_sides(first)} mm, {two.flag} of "
            f"{format_sides(second)} mm: sharpness would differ for that alone. Resample one of "
            "them, or compare both at the coarser size with --match."
        )
    return float(max(first.max(), second.max()))


def common_window(
    one: VolumeSet,
    two: VolumeSet,
    window: tuple[float, float],
    match: bool,
    store: FactStore | None = None,
) -> tuple[float, float]:
    """Return the HU window in which both sets hold values.

    Args:
        two: The other set.
        window: Lowest and highest HU of interest.
        match: Return the common part where the sets differ.
        store: Facts that are known.

    Raises:
        UserError: The values of one set end inside the window where those of the other do not,
            without `match`.
    """
    store = store or FactStore(None)
    first = np.clip(hu_range(one, store), *window)
    second = np.clip(hu_range(two, store), *window)
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
        spacing: Side of the voxels in mm.
        extent: Size of the box in mm.
        order: 1 for linear interpolation, 0 for labels.
    """
    shape: Shape = tuple(max(4, round(e / spacing)) for e in extent)  # type: ignore[assignment]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * (spacing / np.array(volume.spacing))
    centre = volume.affine[:3, :3] @ ((np.asarray(volume.shape) - 1) / 2) + volume.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return resample(volume, grid=(shape, affine), order=order)
