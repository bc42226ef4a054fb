"""The mask of a scan: given, made here, or made by a tool, always on the scan's grid."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.checks import label_problems
from data.geometry import Volume, grids_match, resample, voxel_sizes
from data.preparation import lungs, tools
from data.volumes import load_volume
from util.cli import UserError
from util.web.web_data import shrink

WORK_MM = (
    1.6  # the classic segmentation works on voxels of about this size where the scan's are smaller
)


@dataclass(frozen=True)
class MaskPlan:
    """Where a mask comes from: `kind` given, classic, lungmask or totalsegmentator; `given` and
    `airway` are files.
    """

    kind: str
    given: Path | None = None
    airway: Path | None = None
    tool_args: str = ""
    tool_hours: float = 2.0


def load_mask(path: Path, scan: Volume) -> Volume:
    """A mask file as uint8 on the grid of its scan; raises `UserError` for another grid or values
    that are no labels.
    """
    mask = load_volume(path)
    if mask.shape != scan.shape or not grids_match(scan.shape, scan.affine, mask.affine):
        raise UserError(
            f"{path} does not lie on the grid of its scan: shape {mask.shape} and {scan.shape} (in "
            "RAS). Resample the mask onto the scan's grid (nearest neighbour)."
        )
    if problems := label_problems(path, np.unique(mask.array).tolist()):
        raise UserError(problems[0])
    return Volume(mask.array.astype(np.uint8), mask.affine)


def threshold_lungs(scan: Volume) -> NDArray[np.uint8]:
    """The classic segmentation (see `lungs.segment`) on the scan's grid; works on means over voxels
    where they are small.
    """
    spacing = voxel_sizes(scan.affine)
    factors = [max(1, int(WORK_MM / s)) for s in spacing]
    coarse = shrink(scan.array, factors, average=True)
    x, y, z = (float(s * f) for s, f in zip(spacing, factors, strict=True))
    labels = lungs.segment(coarse.astype(np.float32, copy=False), (x, y, z))
    return _magnified(labels, factors, scan.shape)


def _magnified(
    labels: NDArray[np.uint8], factors: list[int], shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Labels on the fine grid, with smooth outlines: each label's share is interpolated, and half
    of it is the edge.
    """
    if max(factors) == 1:
        return labels
    fine = np.zeros(shape, np.uint8)
    x, y, z = shape
    for label in (lungs.LEFT, lungs.RIGHT, lungs.AIRWAY):
        share = np.where(labels == label, np.uint8(200), np.uint8(0))
        wide = ndimage.zoom(share, factors, order=1, mode="nearest", grid_mode=True)[:x, :y, :z]
        fine[wide >= 100] = label
    return fine


def make(plan: MaskPlan, scan: Volume, grid: Volume) -> NDArray[np.uint8]:
    """The mask on the grid of `grid`, the scan as it will be written; `scan` is as it was read.

    Raises:
        UserError: A given mask that does not fit, or a tool that fails.
    """
    if plan.kind == "given":
        if plan.given is None:
            raise UserError("It has no mask of its name. Add one, or make it with --masks classic.")
        return resample(load_mask(plan.given, scan), grid=(grid.shape, grid.affine), order=0).array
    labels = threshold_lungs(grid)
    if plan.kind != "classic":
        labels = _by_tool(plan, grid, labels)
    if plan.airway is not None:
        airway = resample(
            load_mask(plan.airway, scan), grid=(grid.shape, grid.affine), order=0
        ).array
        labels[labels == lungs.AIRWAY] = 0
        labels[airway > 0] = lungs.AIRWAY
    return labels


def _by_tool(plan: MaskPlan, grid: Volume, own: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tool's lungs; where it makes no airway, our own."""
    with tempfile.TemporaryDirectory(prefix="mask2ct_") as folder:
        image, out = Path(folder) / "ct.nii.gz", Path(folder) / "out"
        out.mkdir()
        nib.save(nib.Nifti1Image(grid.array, grid.affine), image)
        labels = tools.segment(plan.kind, image, out, plan.tool_args, plan.tool_hours)
    if labels.shape != grid.shape:
        raise UserError(
            f"--masks {plan.kind} made a mask of shape {labels.shape} for a scan of {grid.shape}."
        )
    if not (labels == lungs.AIRWAY).any():
        labels[own == lungs.AIRWAY] = lungs.AIRWAY
    return labels
