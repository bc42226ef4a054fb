"""Voxels of a stack of slices in HU: rescaled slice by slice, padding replaced, steps made even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

from data.checks.intensities import hu_facts
from data.fact_store import Facts
from data.geometry import RAS, Volume, from_ras, to_ras
from data.preparation.headers import SliceHeader
from data.preparation.series import SliceStack
from data.preparation.slices import read_values

HU_RANGE = (-1024, 3071)  # the values of a CT scanner; padding lies outside
AIR_HU = HU_RANGE[0]
MIN_ALTERNATING_SLICES = 10
MIN_ALTERNATION_HU = 5.0
BELOW_AIR_HU = -4096  # stands for padding where the share of air is measured


@dataclass(frozen=True)
class Scan:
    """A scan.

    Attributes:
        volume: Int16 HU in RAS; of other modalities the intensities as they are.
        source_affine: Affine (4, 4) in the orientation of the source.
        facts: What shows whether the values are in HU (see `hu_facts`), measured before padding
            became air.
        warnings: Remarks for the report.
    """

    volume: Volume
    source_affine: NDArray[np.float64]
    facts: Facts
    warnings: tuple[str, ...] = ()


def to_source_orientation(
    volume: Volume, source_affine: NDArray[np.float64]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Return a RAS volume in the axis order of `source_affine`, and the affine of that grid."""
    back = orientations.ornt_transform(RAS, orientations.io_orientation(source_affine))
    affine = volume.affine @ orientations.inv_ornt_aff(back, volume.shape)
    return from_ras(volume.array, source_affine), affine


def read_stack(stack: SliceStack, is_ct: bool = True) -> Scan:
    """Read the voxels of a checked stack with SimpleITK (GDCM), one slice after the other.

    Args:
        is_ct: Whether values are HU; others stay as they are.

    Raises:
        UserError: A file is truncated, damaged or compressed in a way that cannot be read.
    """
    if not is_ct:
        return _read_intensities(stack)
    rows, columns = stack.headers[0].size
    voxels = np.empty((len(stack.headers), rows, columns), np.int16)
    slices = []
    means = []
    for plane, header in zip(voxels, stack.headers, strict=True):
        values = read_values(header)
        padding = find_padding(values, header)
        plane[:] = replace_padding(values, padding)
        slices.append(hu_facts(np.where(padding, BELOW_AIR_HU, values)))
        means.append(float(plane.mean()))
    warnings = (*stack.warnings, *_alternation_warnings(np.array(means)))
    if not stack.is_even:
        voxels = _interpolate_evenly(voxels, stack)
    volume = to_ras(voxels.T, stack.affine())
    return Scan(volume, stack.affine(), _join_facts(slices), warnings)


def _read_intensities(stack: SliceStack) -> Scan:
    """Read a stack whose values are not HU; padding takes the lowest value of the scan."""
    planes = [read_values(header).astype(np.float32) for header in stack.headers]
    padded = np.stack(
        [find_padding(v, header) for v, header in zip(planes, stack.headers, strict=True)]
    )
    values = np.stack(planes)
    if padded.any() and not padded.all():
        values[padded] = values[~padded].min()
    voxels = as_small_integers(values)
    if not stack.is_even:
        voxels = _interpolate_evenly(voxels, stack)
    volume = to_ras(voxels.T, stack.affine())
    return Scan(volume, stack.affine(), hu_facts(volume.array), stack.warnings)


def as_small_integers(array: NDArray[np.number]) -> NDArray[np.number]:
    """Return whole numbers that fit into int16 as such, others as float32."""
    limits = np.iinfo(np.int16)
    fits = limits.min <= array.min() and array.max() <= limits.max
    is_whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    return array.astype(np.int16 if fits and is_whole else np.float32)


def _alternation_warnings(means: NDArray[np.float64]) -> list[str]:
    """Return a warning where every second slice is brighter, as in two interleaved acquisitions.

    Args:
        means: Mean HU of each slice, in order.
    """
    if len(means) < MIN_ALTERNATING_SLICES:
        return []
    # How far each slice lies above its neighbours; of a smooth series every second sign cancels.
    above = means[1:-1] - (means[:-2] + means[2:]) / 2
    alternating = float(abs(np.mean(above * (-1) ** np.arange(len(above)))))
    if alternating < MIN_ALTERNATION_HU or alternating < np.abs(above).mean() / 2:
        return []
    return [
        f"every second slice is brighter (by {alternating:.0f} HU on average): two acquisitions or "
        "reconstructions may be interleaved"
    ]


def _join_facts(slices: Sequence[Facts]) -> Facts:
    """Return the facts of a volume from those of its slices."""
    air = [value for facts in slices for value in facts["air_range"]]
    return {
        "low": min(facts["low"] for facts in slices),
        "high": max(facts["high"] for facts in slices),
        "finite": all(facts["finite"] for facts in slices),
        "air_share": float(np.mean([facts["air_share"] for facts in slices])),
        "air_range": [min(air), max(air)] if air else [],
        "lung_median": None,
    }


def replace_padding(hu: NDArray[np.number], padding: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Return a slice (rows, columns) as int16 in `HU_RANGE`, with air in place of padding."""
    whole = np.rint(hu) if hu.dtype.kind == "f" else hu
    clean = np.clip(whole, *HU_RANGE).astype(np.int16)
    clean[padding] = AIR_HU
    return clean


def find_padding(hu: NDArray[np.number], header: SliceHeader) -> NDArray[np.bool_]:
    """Return which voxels of a slice (rows, columns) are padding.

    A padding value that could also be tissue counts as padding only where it reaches the edge of
    the slice.
    """
    if header.padding is None:
        return np.zeros(hu.shape, bool)
    slope, intercept = header.rescale or (1.0, 0.0)  # a CT has both, see `stack_slices`
    low, high = sorted(value * slope + intercept for value in header.padding)
    padded = (hu >= low - 0.5) & (hu <= high + 0.5)
    if high >= HU_RANGE[0] and low <= HU_RANGE[1] and padded.any():
        parts, _ = ndimage.label(padded)
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        padded = np.isin(parts, edge[edge > 0])
    return np.asarray(padded)


def _interpolate_evenly(voxels: NDArray[Any], stack: SliceStack) -> NDArray[Any]:
    """Return slices at even steps, linear between the two neighbours; integers are rounded."""
    positions = stack.positions
    step = float(np.linalg.norm(stack.step))
    wanted = np.arange(positions[0], positions[-1] + step / 2, step)
    after = np.clip(np.searchsorted(positions, wanted, side="right"), 1, len(positions) - 1)
    before = positions[after - 1]
    weights = np.clip((wanted - before) / (positions[after] - before), 0, 1)
    even = np.empty((len(wanted), *voxels.shape[1:]), voxels.dtype)
    for plane, k, weight in zip(even, after, weights, strict=True):
        mixed = voxels[k - 1] * (1 - weight) + voxels[k] * weight
        plane[:] = np.rint(mixed) if voxels.dtype.kind == "i" else mixed
    return even


def clip_to_hu(array: NDArray[np.generic]) -> tuple[NDArray[np.int16], float]:
    """Return the voxels of a volume as int16 in `HU_RANGE`, and the lowest value before."""
    clipped = np.empty(array.shape, np.int16)
    lowest = 0.0
    for source, target in zip(array, clipped, strict=True):  # slab by slab needs little memory
        lowest = min(lowest, float(source.min()))
        target[:] = np.rint(np.clip(source, *HU_RANGE))
    return clipped, lowest
