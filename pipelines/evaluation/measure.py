"""Reads volumes one at a time and keeps what the figures need, on disk, so that a stopped
evaluation goes on.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.geometry import Volume, grids_match, voxel_sizes
from data.preparation.masks import load_mask, threshold_lungs
from data.volumes import load_volume, to_unit
from pipelines.evaluation.density import lung_density
from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.measurements import PLANES, REGION_STATISTICS, REGIONS, VolumeMeasurements
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.volume_sets import VolumeFile, VolumeSet, on_grid
from util.cli import UserError
from util.files import atomic_path, file_fingerprint, json_digest
from util.metrics.fidelity import fidelity
from util.metrics.regions import body_mask, regions

VERSION = 1  # goes into the keys: raise it when what is measured changes
MAX_COARSE_SIDE = 48  # voxels of the longest side of the coarse copy
Arrays = dict[str, NDArray[Any]]


class FeatureNetwork(Protocol):
    """What features come from (see `pipelines.evaluation.extractors.Extractor`)."""

    @property
    def digest(self) -> str: ...

    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class ComparisonGrid:
    """The common grid: cubic voxels of `spacing` mm over `extent` mm, HU cut to `window`, `slices`
    slices a plane.
    """

    spacing: float
    extent: tuple[float, float, float]
    window: tuple[float, float]
    slices: int
    lung_labels: tuple[int, ...] = (1, 2)
    airway_label: int = 3


@dataclass(frozen=True)
class VolumeMeasurer:
    """Measures volumes; what it found lies in `cache`, under a key of the file, the grid and the
    networks.
    """

    grid: ComparisonGrid
    networks: Sequence[FeatureNetwork]
    networks_3d: Sequence[FeatureNetwork]
    cache: Path

    def __call__(
        self, file: VolumeFile, segmented: Path | None = None, resegment: bool = True
    ) -> VolumeMeasurements:
        """One volume.

        Args:
            file: Its file and mask; without a mask the lungs are found by the classic segmentation.
            segmented: A mask of the volume found by another tool, in place of the classic
                segmentation.
            resegment: Compare the mask with lungs found again.
        """
        parts = [p for p in (file.path, file.mask, segmented) if p is not None]
        key = [
            VERSION,
            "volume",
            asdict(self.grid),
            [n.digest for n in (*self.networks, *self.networks_3d)],
            list(map(file_fingerprint, parts)),
            file.mask is not None,
            resegment,
        ]
        kept = load_or_compute(self.cache, key, lambda: self._measure(file, segmented, resegment))
        return _restored(file.case, kept, len(self.networks), len(self.networks_3d))

    def _measure(self, file: VolumeFile, segmented: Path | None, resegment: bool) -> Arrays:
        grid, volume = self.grid, load_volume(file.path)
        if not np.isfinite(volume.array).all():
            raise UserError(f"{file.path} holds values that are not finite. Export it again.")
        hu = np.clip(volume.array.astype(np.float32), *grid.window)
        spacing = [float(side) for side in voxel_sizes(volume.affine)]
        found = None
        if file.mask is None or resegment:
            found = (
                threshold_lungs(volume) if segmented is None else load_mask(segmented, volume).array
            )
        labels, lung_labels = (
            (found, (1, 2))
            if file.mask is None
            else (load_mask(file.mask, volume).array, grid.lung_labels)
        )
        assert labels is not None
        lungs = np.isin(labels, lung_labels)
        density, histogram = lung_density(hu, lungs)
        again: dict[str, float] = (
            {}
            if file.mask is None or found is None
            else overlap(labels, found, spacing, lung_labels)
        )
        common = on_grid(Volume(hu, volume.affine), grid.spacing, grid.extent)
        small = (
            on_grid(common, max(grid.extent) / MAX_COARSE_SIDE, grid.extent)
            if max(common.shape) > MAX_COARSE_SIDE
            else common
        )
        arrays: Arrays = {
            "detail": detail_vector(hu, spacing, lungs).astype(np.float16),
            "histogram": histogram,
            "small": small.array.astype(np.float16),
            "density": _packed(density),
            "overlap": _packed(again),
            "regional": _regional(hu, labels, spacing, lung_labels, grid.airway_label),
        }
        return arrays | self._features(common.array)

    def _features(self, hu: NDArray[np.floating]) -> Arrays:
        unit = torch.from_numpy(np.ascontiguousarray(to_unit(hu, self.grid.window)))
        found: Arrays = {}
        for i, network in enumerate(self.networks):
            found[f"planes_{i}"] = np.stack(
                [network(_slices(unit, axis, self.grid.slices)) for axis in range(len(PLANES))]
            )
        for i, network in enumerate(self.networks_3d):
            found[f"whole_{i}"] = network(unit[None, None])[0]
        return found


def _slices(unit: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """`(S, 1, H, W)`: slices across an axis, evenly spaced, without the outermost tenth at either
    end.
    """
    n = unit.shape[axis]
    places = torch.linspace(0.1 * (n - 1), 0.9 * (n - 1), count).round().long()
    return unit.index_select(axis, places).movedim(axis, 0)[:, None].contiguous()


def _regional(
    hu: NDArray[np.floating],
    labels: NDArray[Any],
    spacing: Sequence[float],
    lung_labels: Sequence[int],
    airway_label: int,
) -> NDArray[np.float64]:
    where = regions(labels, spacing, lung_labels, airway_label)
    empty = (np.nan,) * len(REGION_STATISTICS)
    return np.concatenate(
        [
            (h.mean(), h.std(), np.percentile(h, 15))
            if name in where and (h := hu[where[name]].astype(float)).size
            else empty
            for name in REGIONS
        ]
    )


def _packed(values: dict[str, float]) -> NDArray[Any]:
    return np.array(json.dumps(values))


def _restored(case: str, kept: Arrays, networks: int, networks_3d: int) -> VolumeMeasurements:
    return VolumeMeasurements(
        case,
        [kept[f"planes_{i}"] for i in range(networks)],
        [kept[f"whole_{i}"] for i in range(networks_3d)],
        kept["detail"],
        kept["histogram"],
        json.loads(str(kept["density"])),
        kept["regional"],
        kept["small"],
        json.loads(str(kept["overlap"])),
    )


def load_or_compute(cache: Path, key: Any, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives for this key, from the cache where it is there; the file appears whole or
    not at all.
    """
    path = cache / f"{json_digest(key)[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink()  # cut off by a full disk; it is made again
    made = make()
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **made)  # type: ignore[arg-type]
    return made


def pair_fidelity(
    synthetic: VolumeSet, real: VolumeSet, grid: ComparisonGrid, cache: Path
) -> list[dict[str, Any]]:
    """MAE (HU), PSNR (dB) and SSIM in body and lungs of every volume whose real scan is there:
    case, region, metric, value.

    Raises:
        UserError: A pair that is not on one grid.
    """
    scans = {file.case: file for file in real.files}
    rows = []
    files = [file for file in synthetic.files if file.case in scans]
    for file in tqdm(files, desc="comparing pairs", unit="pair", leave=False):
        other = scans[file.case]
        key = [
            VERSION,
            "pair",
            file_fingerprint(file.path),
            file_fingerprint(other.path),
            asdict(grid),
        ]
        kept = load_or_compute(cache, key, lambda one=file, two=other: _pair(one, two, grid))  # type: ignore[misc]
        rows += [{"case": file.case, **row} for row in json.loads(str(kept["rows"]))]
    return rows


def _pair(file: VolumeFile, other: VolumeFile, grid: ComparisonGrid) -> Arrays:
    made, scan = load_volume(file.path), load_volume(other.path)
    if made.shape != scan.shape or not grids_match(scan.shape, scan.affine, made.affine):
        raise UserError(
            f"{file.path} and its real scan {other.path} are not on one grid (shapes {made.shape} "
            f"and {scan.shape}), so they cannot be compared voxel by voxel. Resample one, or give "
            "--no-pairs."
        )
    hu = scan.array.astype(np.float32)
    lungs = (
        np.isin(load_mask(other.mask, scan).array, grid.lung_labels)
        if other.mask
        else np.isin(threshold_lungs(scan), (1, 2))
    )
    masks = {"body": body_mask(hu) | lungs} | ({"lungs": lungs} if lungs.any() else {})
    found = fidelity(np.clip(made.array.astype(np.float32), *grid.window), hu, masks, grid.window)
    rows = [{"region": r, "metric": m, "value": v} for r, d in found.items() for m, v in d.items()]
    return {"rows": np.array(json.dumps(rows))}
