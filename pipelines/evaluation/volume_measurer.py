"""Measurement of volumes one at a time, with a cache on disk from which a stopped run resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.geometry import Volume, grids_match
from data.integrity import volume_fingerprint
from data.preparation.masks import load_mask, threshold_lungs
from data.regions import fill_lesions
from data.volumes import to_unit
from pipelines.evaluation.density import lung_density, lung_spectrum, lung_texture
from pipelines.evaluation.detail import DETAIL_HU, detail_vector
from pipelines.evaluation.measurements import (
    HU_BINS,
    PLANES,
    REGION_STATISTICS,
    REGIONS,
    UNIT_BINS,
    VolumeMeasurements,
)
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.volume_sets import VolumeFile, VolumeSet, on_grid
from util.cli import UserError
from util.files import atomic_path, json_digest
from util.metrics.fidelity import compared_masks, fidelity_by_region
from util.metrics.regions import Mask, chest_regions, label_regions
from util.metrics.texture import POWER_BANDS, SPECTRUM_BANDS, radial_power
from util.modality import MODALITIES, Terms

log = logging.getLogger(__name__)

VERSION = 4  # part of the cache keys: raise it when the measurements change
MAX_COARSE_SIDE = 48  # voxels of the longest side of the coarse copy
SEGMENTED_LABELS = (1, 2)  # left and right lung of a segmentation

Arrays = dict[str, NDArray[Any]]


class FeatureNetwork(Protocol):
    """A network that makes features (see `pipelines.evaluation.extractors.Extractor`)."""

    @property
    def digest(self) -> str:
        """Digest of its weights."""
        ...

    def __call__(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Return features `(N, F)`."""
        ...


@dataclass(frozen=True)
class ComparisonGrid:
    """The common grid of all volumes.

    Attributes:
        spacing: Side of the cubic voxels in mm.
        extent: Size of the compared box in mm.
        window: Lowest and highest HU; values outside are clipped.
        slices: Slices per plane.
        lung_labels: Mask labels of the left and the right lung; of other modalities those that are
            compared.
        airway_label: Mask label of the airways.
        modality: Value of `--modality`.
        lesion_labels: Mask labels of lesions, which count as the lung that they lie in.
    """

    spacing: float
    extent: tuple[float, float, float]
    window: tuple[float, float]
    slices: int
    lung_labels: tuple[int, ...] = (1, 2)
    airway_label: int = 3
    modality: str = "ct"
    lesion_labels: tuple[int, ...] = ()

    @property
    def terms(self) -> Terms:
        """Unit and words of the modality."""
        return MODALITIES[self.modality]

    @property
    def detail_window(self) -> tuple[float, float]:
        """Values between which the detail that identifies a patient is compared."""
        return DETAIL_HU if self.terms.is_ct else self.window

    @property
    def bins(self) -> NDArray[np.int64]:
        """Values of the histograms' bins."""
        return HU_BINS if self.terms.is_ct else UNIT_BINS

    @property
    def statistic_regions(self) -> tuple[str, ...]:
        """Regions whose statistics are measured, the same in all volumes."""
        if self.terms.is_ct:
            return REGIONS
        return ("lungs", *(f"label_{label}" for label in self.lung_labels))

    def load_labels(self, mask: Path, volume: Volume) -> NDArray[np.integer]:
        """Return the mask of a volume `(X, Y, Z)`, with its lesions as lung."""
        return fill_lesions(load_mask(mask, volume).array, self.lesion_labels, self.lung_labels)

    def regions(self, labels: NDArray[Any], spacing: Sequence[float]) -> dict[str, Mask]:
        """Return the regions of a mask `(X, Y, Z)` by name; spacing in mm."""
        if self.terms.is_ct:
            return chest_regions(labels, spacing, self.lung_labels, self.airway_label)
        return label_regions(labels, self.lung_labels)


@dataclass(frozen=True)
class VolumeMeasurer:
    """Measures volumes, and keeps the measurements in a cache.

    Attributes:
        grid: The common grid.
        networks: 2D networks.
        networks_3d: 3D networks.
        cache: Folder of the measurements, by a key of the file, the grid and the networks.
    """

    grid: ComparisonGrid
    networks: Sequence[FeatureNetwork]
    networks_3d: Sequence[FeatureNetwork]
    cache: Path

    def __call__(
        self, file: VolumeFile, segmented: Path | None = None, resegment: bool = True
    ) -> VolumeMeasurements:
        """Measure one volume, or read its measurements from the cache.

        Args:
            file: Its file and mask; without a mask the lungs are segmented by a threshold.
            segmented: A mask of the volume from another tool, instead of the threshold.
            resegment: Compare the mask with segmented lungs.
        """
        masks = [path for path in (file.mask, segmented) if path is not None]
        key = [
            VERSION,
            "volume",
            asdict(self.grid),
            [network.digest for network in (*self.networks, *self.networks_3d)],
            [*file.key, *(volume_fingerprint(path) for path in masks)],
            file.mask is not None,
            resegment,
        ]
        arrays = load_or_compute(self.cache, key, lambda: self._measure(file, segmented, resegment))
        return VolumeMeasurements(
            case=file.case,
            planes=[arrays[f"planes_{i}"] for i in range(len(self.networks))],
            whole=[arrays[f"whole_{i}"] for i in range(len(self.networks_3d))],
            detail=arrays["detail"],
            histogram=arrays["histogram"],
            density=json.loads(str(arrays["density"])),
            regional=arrays["regional"],
            small=arrays["small"],
            spectrum=arrays["spectrum"],
            overlap=json.loads(str(arrays["overlap"])),
        )

    def _measure(self, file: VolumeFile, segmented: Path | None, resegment: bool) -> Arrays:
        grid = self.grid
        volume = file.load()
        hu = np.clip(volume.array.astype(np.float32), *grid.window)
        spacing = volume.spacing
        overlaps: dict[str, float] = {}
        if file.mask is None:
            labels = _segment(volume, segmented)
            lung_labels: tuple[int, ...] = SEGMENTED_LABELS
        else:
            labels = grid.load_labels(file.mask, volume)
            lung_labels = grid.lung_labels
            if resegment and grid.terms.is_ct:
                overlaps = overlap(labels, _segment(volume, segmented), spacing, lung_labels)
        lungs = np.isin(labels, lung_labels)
        density, histogram = lung_density(hu, lungs, grid.bins)
        common = on_grid(Volume(hu, volume.affine), grid.spacing, grid.extent)
        lung_volume = Volume(lungs.astype(np.uint8), volume.affine)
        common_lungs = on_grid(lung_volume, grid.spacing, grid.extent, order=0).array > 0
        sides = [grid.spacing] * 3
        bands = (*POWER_BANDS, *SPECTRUM_BANDS)
        power = radial_power(common.array, common_lungs, sides, bands)
        if density:
            # Overlapping names keep the values on the volume's own grid.
            density = lung_texture(common.array, common_lungs, sides, power) | density
            density = {name: value for name, value in density.items() if grid.terms.has(name)}
        small = common
        if max(common.shape) > MAX_COARSE_SIDE:
            small = on_grid(common, max(grid.extent) / MAX_COARSE_SIDE, grid.extent)
        arrays: Arrays = {
            "detail": detail_vector(hu, spacing, lungs, grid.detail_window).astype(np.float16),
            "histogram": histogram,
            "small": small.array.astype(np.float16),
            "spectrum": lung_spectrum(power),
            "density": np.array(json.dumps(density)),
            "overlap": np.array(json.dumps(overlaps)),
            "regional": _regional_statistics(
                hu, replace(grid, lung_labels=lung_labels).regions(labels, spacing), grid
            ),
        }
        return arrays | self._features(common.array)

    def _features(self, hu: NDArray[np.floating]) -> Arrays:
        unit = torch.from_numpy(np.ascontiguousarray(to_unit(hu, self.grid.window)))
        features: Arrays = {}
        for i, network in enumerate(self.networks):
            planes = [network(_slices(unit, axis, self.grid.slices)) for axis in range(len(PLANES))]
            features[f"planes_{i}"] = np.stack(planes)
        for i, network in enumerate(self.networks_3d):
            features[f"whole_{i}"] = network(unit[None, None])[0]
        return features


def _segment(volume: Volume, segmented: Path | None) -> NDArray[Any]:
    """Return lung labels of a volume, from a file where there is one."""
    return threshold_lungs(volume) if segmented is None else load_mask(segmented, volume).array


def _slices(unit: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Return evenly spaced slices `(S, 1, H, W)` across an axis.

    The outermost tenth at either end is left out.
    """
    n = unit.shape[axis]
    places = torch.linspace(0.1 * (n - 1), 0.9 * (n - 1), count).round().long()
    return unit.index_select(axis, places).movedim(axis, 0)[:, None].contiguous()


def _regional_statistics(
    hu: NDArray[np.floating], where: Mapping[str, Mask], grid: ComparisonGrid
) -> NDArray[np.float64]:
    """Return mean, SD and 15th percentile in each of the grid's regions."""
    names = grid.statistic_regions
    statistics = np.full((len(names), len(REGION_STATISTICS)), np.nan)
    for row, name in zip(statistics, names, strict=True):
        if name in where and where[name].any():
            values = hu[where[name]].astype(float)
            row[:] = values.mean(), values.std(), np.percentile(values, 15)
    return statistics.ravel()


def load_or_compute(cache: Path, key: Any, compute: Callable[[], Arrays]) -> Arrays:
    """Return arrays from the cache, or compute them and write them there in one step.

    Args:
        cache: Folder of the cache.
        key: Plain values that decide the arrays.
    """
    path = cache / f"{json_digest(key)[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # zip, zlib and NumPy each raise errors of their own
            log.warning("%s is damaged (%s); it is computed again.", path, error)
            path.unlink()
    arrays = compute()
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return arrays


def pair_fidelity(
    synthetic: VolumeSet, real: VolumeSet, grid: ComparisonGrid, cache: Path
) -> list[dict[str, Any]]:
    """Compare every synthetic volume with the real scan of its case, where there is one.

    Returns:
        Rows with case, region, metric and value: MAE (HU), PSNR (dB) and SSIM in body and lungs.

    Raises:
        UserError: A pair that is not on one grid.
    """
    scans = {file.case: file for file in real.files}
    files = [file for file in synthetic.files if file.case in scans]
    rows = []
    for file in tqdm(files, desc="comparing pairs", unit="pair", leave=False):
        scan = scans[file.case]
        key = [
            VERSION,
            "pair",
            file.key,
            scan.key,
            volume_fingerprint(scan.mask) if scan.mask else None,
            asdict(grid),
        ]
        arrays = load_or_compute(cache, key, partial(_compare_pair, file, scan, grid))
        rows += [{"case": file.case, **row} for row in json.loads(str(arrays["rows"]))]
    return rows


def _compare_pair(file: VolumeFile, scan_file: VolumeFile, grid: ComparisonGrid) -> Arrays:
    volume = file.load()
    scan = scan_file.load()
    if volume.shape != scan.shape or not grids_match(scan.shape, scan.affine, volume.affine):
        raise UserError(
            f"{file.path} and its real scan {scan_file.path} are not on one grid (shapes "
            f"{volume.shape} and {scan.shape}), so they cannot be compared voxel by voxel. "
            "Resample one, or give --no-pairs."
        )
    hu = scan.array.astype(np.float32)
    if scan_file.mask:
        lungs = np.isin(grid.load_labels(scan_file.mask, scan), grid.lung_labels)
    else:
        lungs = np.isin(threshold_lungs(scan), SEGMENTED_LABELS)
    masks = compared_masks(hu, lungs, grid.terms.is_ct)
    if lungs.any():
        masks["lungs"] = lungs
    clipped = np.clip(volume.array.astype(np.float32), *grid.window)
    rows = []
    for region, values in fidelity_by_region(clipped, hu, masks, grid.window).items():
        for metric, value in values.items():
            rows.append({"region": region, "metric": metric, "value": value})
    return {"rows": np.array(json.dumps(rows))}
