"""The mask of a scan: loaded, made by threshold, or made by a tool; always on the scan's grid."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.body import BodyLabel, add_body
from data.checks.masks import load_labels
from data.geometry import Volume, grids_match, resample, shrink
from data.preparation import lungs
from data.preparation.tools import segment_with_tool
from util.cli import UserError

WORKING_MM = 1.6  # smaller voxels are averaged to about this size for the threshold


@dataclass(frozen=True)
class MaskPlan:
    """Where a mask comes from.

    Attributes:
        kind: "load", "threshold", "lungmask" or "totalsegmentator".
        mask_file: The mask to load.
        airway_file: Mask of the airway, in place of the segmented one.
        tool_args: Further words for the tool's command line.
        tool_hours: The tool is stopped after this time.
    """

    kind: str
    mask_file: Path | None = None
    airway_file: Path | None = None
    tool_args: str = ""
    tool_hours: float = 2.0


def load_mask(path: Path, scan: Volume) -> Volume:
    """Load a mask as uint8.

    Raises:
        UserError: It does not lie on the grid of its scan, or its values are not labels.
    """
    mask = load_labels(path)
    if mask.shape != scan.shape or not grids_match(scan.shape, scan.affine, mask.affine):
        raise UserError(
            f"{path} does not lie on the grid of its scan: shape {mask.shape} and {scan.shape} (in "
            "RAS). Resample the mask onto the scan's grid (nearest neighbour)."
        )
    return mask


def threshold_lungs(scan: Volume) -> NDArray[np.uint8]:
    """Segment lungs and airway by threshold (see `lungs.segment_lungs`) on the scan's grid.

    Small voxels are averaged first.
    """
    spacing = scan.spacing
    factors = [max(1, int(WORKING_MM / size)) for size in spacing]
    coarse = shrink(scan.array, factors, average=True)
    x, y, z = (float(size * factor) for size, factor in zip(spacing, factors, strict=True))
    labels = lungs.segment_lungs(coarse.astype(np.float32, copy=False), (x, y, z))
    return _refine(labels, factors, scan.shape)


def _refine(
    labels: NDArray[np.uint8], factors: list[int], shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return labels on the fine grid; the outline is where the interpolated label is one half."""
    if max(factors) == 1:
        return labels
    fine = np.zeros(shape, np.uint8)
    x, y, z = shape
    for label in (lungs.LEFT, lungs.RIGHT, lungs.AIRWAY):
        share = np.where(labels == label, np.uint8(200), np.uint8(0))
        zoomed = ndimage.zoom(share, factors, order=1, mode="nearest", grid_mode=True)
        fine[zoomed[:x, :y, :z] >= 100] = label
    return fine


def make_mask(plan: MaskPlan, scan: Volume, grid: Volume) -> NDArray[np.uint8]:
    """Return the mask of a scan.

    A mask that is made here also labels the body; one that is loaded stays as it is.

    Args:
        plan: Where it comes from.
        scan: The scan as it was read.
        grid: The scan as it will be written; the mask lies on its grid.

    Raises:
        UserError: A mask file does not fit, or a tool fails.
    """
    if plan.kind == "load":
        if plan.mask_file is None:
            raise UserError(
                "It has no mask of its name. Add one (--mask_dir), or for chest CT make it with "
                "--masks threshold."
            )
        return _load_onto(plan.mask_file, scan, grid)
    labels = threshold_lungs(grid)
    if plan.kind != "threshold":
        labels = _segment_with_tool(plan, grid, labels == lungs.AIRWAY)
    if plan.airway_file is not None:
        labels[labels == lungs.AIRWAY] = 0
        labels[_load_onto(plan.airway_file, scan, grid) > 0] = lungs.AIRWAY
    if not labels.any():
        return labels
    body = BodyLabel(lungs.BODY, (lungs.LEFT, lungs.RIGHT))
    return add_body(Volume(labels, grid.affine), grid, body, "the mask").array


def _load_onto(path: Path, scan: Volume, grid: Volume) -> NDArray[np.uint8]:
    return resample(load_mask(path, scan), grid=(grid.shape, grid.affine), order=0).array


def _segment_with_tool(
    plan: MaskPlan, grid: Volume, airway: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return the tool's lungs; `airway` stands in where the tool makes none."""
    with tempfile.TemporaryDirectory(prefix="mask2ct_") as folder:
        image = Path(folder) / "ct.nii.gz"
        out = Path(folder) / "out"
        out.mkdir()
        nib.save(nib.Nifti1Image(grid.array, grid.affine), image)
        labels = segment_with_tool(plan.kind, image, out, plan.tool_args, plan.tool_hours)
    if labels.shape != grid.shape:
        raise UserError(
            f"--masks {plan.kind} made a mask of shape {labels.shape} for a scan of {grid.shape}."
        )
    if not (labels == lungs.AIRWAY).any():
        labels[airway] = lungs.AIRWAY
    return labels
