"""One case from its source to its files: read, resample, mask, measure, write.

Its record is written last, so that a case without one is not finished.
"""

from __future__ import annotations

import errno
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.checks.intensities import (
    LUNG_MEDIAN_HU,
    constant_air_problems,
    hu_fact_problems,
    hu_facts,
    intensity_problems,
)
from data.cohort import IMAGES, MASKS
from data.fact_store import Facts
from data.geometry import Volume, resample
from data.intensity import IntensityScale
from data.preparation.headers import ACQUISITION
from data.preparation.lungs import AIRWAY, BODY, LEFT, RIGHT
from data.preparation.masks import MaskPlan, make_mask
from data.preparation.pictures import CaseView, draw_montage, remove_slices, write_slices
from data.preparation.pixels import (
    AIR_HU,
    Scan,
    as_small_integers,
    clip_to_hu,
    read_stack,
    to_source_orientation,
)
from data.preparation.quality import measure_case, measure_labels, quality_warnings
from data.preparation.series import stack_slices
from data.preparation.sources import Source
from data.volumes import load_volume, read_header
from options.prepare_options import OLD_MASK_KINDS
from util.cli import UserError
from util.files import atomic_path, file_fingerprint, json_digest, write_json
from util.modality import MODALITIES, UNIT_WINDOW
from util.web.figures import LUNG

# Raised where a case would come out differently, so that it is prepared again: for masks that are
# made here (2: they label the body), for masks that are given, and for other modalities than CT (2:
# resampled intensities are neither cut to HU nor rounded where they have fractions).
VERSION_MADE = 2
VERSION_GIVEN = 1
VERSION_OTHER = 2
RECORDS = ".prepared"  # folders of a dataroot
REPORT_FOLDER = "report"
VOXELS_FOLDER = "voxels"  # within it: the slices of the report's viewer

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

PICTURE_SCALE = IntensityScale(None, (0.5, 99.5))  # of pictures whose values are not HU

SLAB = 32  # planes that are smoothed at a time
MIN_COARSENING = 1.01  # smaller ones are not smoothed
FWHM_PER_SIGMA = 2.355

Record = dict[str, Any]


class DiskFullError(UserError):
    """The disk takes no more, so that no further case can be written either."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case in a dataroot; `voxels` is the report's folder of all cases' slices."""

    image: Path
    mask: Path
    picture: Path
    record: Path
    voxels: Path

    @classmethod
    def in_dataroot(cls, root: Path, case: str) -> CaseFiles:
        """Name the files of a case."""
        return cls(
            image=root / IMAGES / f"{case}.nii.gz",
            mask=root / MASKS / f"{case}.nii.gz",
            picture=root / REPORT_FOLDER / f"{case}.png",
            record=root / RECORDS / f"{case}.json",
            voxels=root / REPORT_FOLDER / VOXELS_FOLDER,
        )

    def sizes(self) -> list[int]:
        """Return the sizes in bytes of all files but the record."""
        return [path.stat().st_size for path in (self.image, self.mask, self.picture)]

    def remove(self) -> None:
        """Remove the case from the dataroot, its record first."""
        for path in (self.record, self.picture, self.mask, self.image):
            path.unlink(missing_ok=True)
        remove_slices(self.voxels, self.record.stem)


@dataclass(frozen=True)
class CaseTask:
    """A case to prepare, with everything that decides what its files look like.

    Attributes:
        case: Id of the case.
        source: Where it comes from.
        out: The dataroot.
        masks: Where its mask comes from.
        spacing: Voxel size in mm, None as scanned.
        uneven: "error" or "resample" for slices at uneven steps.
        columns: Columns that may be taken from its header; nothing else of a header is written.
        slices: Whether the report shows every slice.
        modality: What the scan is.
    """

    case: str
    source: Source
    out: Path
    masks: MaskPlan
    spacing: tuple[float, float, float] | None = None
    uneven: str = "error"
    columns: tuple[str, ...] = ACQUISITION
    slices: bool = True
    modality: str = "ct"

    @property
    def is_ct(self) -> bool:
        """Whether the scan is a chest CT in HU."""
        return MODALITIES[self.modality].is_ct

    @property
    def files(self) -> CaseFiles:
        """Its files."""
        return CaseFiles.in_dataroot(self.out, self.case)

    def fingerprint(self) -> str:
        """Return a digest that changes with the source files and settings; voxels are not read."""
        # Records hold the kind of mask as it was called first, so that they stay valid.
        first_names = {new: old for old, new in OLD_MASK_KINDS.items()}
        plan = (
            first_names.get(self.masks.kind, self.masks.kind),
            self.masks.tool_args,
            str(self.masks.mask_file),
            str(self.masks.airway_file),
        )
        masks = [p for p in (self.masks.mask_file, self.masks.airway_file) if p is not None]
        files = [
            [str(path), *file_fingerprint(path)[1:]] for path in [*self.source.files(), *masks]
        ]
        version = VERSION_GIVEN if self.masks.kind == "load" else VERSION_MADE
        values = [version, self.spacing, self.uneven, self.columns, plan, files]
        return json_digest(values if self.is_ct else [*values, self.modality, VERSION_OTHER])


def read_finished_record(task: CaseTask) -> Record | None:
    """Return the record of a case that exists and would come out the same, else None."""
    try:
        record: Record = json.loads(task.files.record.read_text(encoding="utf-8"))
        is_same = record["fingerprint"] == task.fingerprint()
        is_complete = record["sizes"] == task.files.sizes()
        is_checked = _is_in_hu(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if is_same and is_complete and is_checked else None


def _is_in_hu(record: Record) -> bool:
    """Return whether a record was checked for HU, or its lungs pass; earlier ones were not."""
    low, high = LUNG_MEDIAN_HU
    median = record["measures"]["lung_hu_median"]
    return "hu" in record or median is None or low <= median <= high


def prepare_case(task: CaseTask) -> Record:
    """Write the files of a case and return its record.

    Raises:
        UserError: The source cannot become a case; nothing of it is left behind.
        DiskFullError: The disk is full or read-only.
    """
    start = time.monotonic()
    try:
        record = _write_case(task)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        record |= {"seconds": round(time.monotonic() - start, 1), "peak_mb": round(peak)}
        write_json(task.files.record, record)
    except BaseException as error:
        task.files.remove()
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            raise DiskFullError(str(error)) from None
        raise
    return record


def _write_case(task: CaseTask) -> Record:
    scan = _read_scan(task)
    grid = _resample_scan(scan.volume, task.spacing)
    mask = make_mask(task.masks, scan.volume, grid)
    loaded = task.masks.kind == "load"
    if not mask.any():
        raise UserError(
            "Its mask is empty. Correct the mask or remove the scan."
            if loaded
            else "No lungs were found: it shows no chest, is not in HU, or the lungs are filled. "
            "Look at it, or give a mask."
        )
    labels = set(np.unique(mask).tolist())
    lungs_labelled = not loaded or {LEFT, RIGHT} <= labels <= {0, LEFT, RIGHT, AIRWAY, BODY}
    lungs_labelled = lungs_labelled and task.is_ct
    if task.is_ct:
        measures = measure_case(grid, mask, lungs_labelled)
    else:
        measures = measure_labels(grid, mask)
    facts = dict(scan.facts)
    if lungs_labelled:
        facts["lung_median"] = measures["lung_hu_median"]
    _check_values(task, facts)
    write_volume(task.files.image, grid, scan.source_affine)
    write_volume(task.files.mask, Volume(mask, grid.affine), scan.source_affine)
    view = draw_case(task, grid, mask)
    series = task.source.series
    header = dict(series.first.row) if series else {}
    return {
        "case": task.case,
        "fingerprint": task.fingerprint(),
        "sizes": task.files.sizes(),
        "view": view,
        "masks": task.masks.kind,
        "row": {name: header.get(name, "") for name in task.columns},
        "measures": measures,
        "hu": facts,
        "modality": task.modality,
        "warnings": [
            *task.source.warnings,
            *scan.warnings,
            *quality_warnings(measures, lungs_labelled),
        ],
        "notes": list(task.source.notes),
        "left_out": [list(pair) for pair in task.source.left_out],
        "slices": len(series.headers) if series else 0,
    }


def draw_case(task: CaseTask, scan: Volume, mask: NDArray[Any]) -> dict[str, Any] | None:
    """Write the montage of a case, and its slices where the report shows them; return their view.

    Args:
        scan: HU in RAS.
        mask: Labels on the same grid.
    """
    window = LUNG
    if not task.is_ct:
        scan, window = PICTURE_SCALE(scan), UNIT_WINDOW
    draw_montage(task.files.picture, scan, mask, window)
    if not task.slices:
        return None
    return write_slices(task.files.voxels, task.case, scan, mask).as_record()


def is_drawn(task: CaseTask, record: Record) -> bool:
    """Return whether a finished case has the pictures of this report; earlier ones had others."""
    if "view" not in record or (task.slices and record["view"] is None):
        return False
    view = CaseView.from_record(record, task.files.record)
    if view is None:
        return True
    return all((task.files.voxels / f"{key}.0.js").is_file() for key in view.volumes)


def redraw_case(task: CaseTask) -> Record:
    """Draw the pictures of a finished case from its files, and return its record.

    Raises:
        UserError: A file of the case cannot be read.
    """
    record: Record = json.loads(task.files.record.read_text(encoding="utf-8"))
    scan = load_volume(task.files.image)
    mask = load_volume(task.files.mask).array.astype(np.int16)
    view = draw_case(task, scan, mask)
    record |= {"view": view, "sizes": task.files.sizes()}
    write_json(task.files.record, record)
    return record


def _read_scan(task: CaseTask) -> Scan:
    if task.source.problem:
        raise UserError(task.source.problem)
    if task.source.series is not None:
        stack = stack_slices(task.source.series, task.uneven, task.is_ct)
        return read_stack(stack, task.is_ct)
    path = task.source.volume
    assert path is not None
    volume = load_volume(path)
    facts = hu_facts(volume.array)
    _check_values(task, facts)
    if not task.is_ct:
        whole = Volume(as_small_integers(volume.array), volume.affine)
        return Scan(whole, read_header(path).source_affine, facts)
    array, lowest = clip_to_hu(volume.array)
    warnings: tuple[str, ...] = ()
    if lowest < AIR_HU:
        warnings = (f"values down to {lowest:.0f} HU were padding and became {AIR_HU}",)
    return Scan(Volume(array, volume.affine), read_header(path).source_affine, facts, warnings)


def _check_values(task: CaseTask, facts: Facts) -> None:
    """Raise `UserError` where a scan is not in HU; one of another modality where it is constant."""
    problems = hu_fact_problems(facts) if task.is_ct else intensity_problems(facts, PICTURE_SCALE)
    if task.is_ct and task.masks.kind != "load":  # else the lungs decide
        problems += constant_air_problems(facts)
    if problems:
        series = task.source.series
        name = series.title if series else str(task.source.volume)
        raise UserError(f"{name} {problems[0]}")


def _resample_scan(volume: Volume, spacing: Sequence[float] | None) -> Volume:
    """Return a scan on another voxel size; whole numbers stay whole.

    Axes that become coarser are smoothed first, so that noise does not alias.
    """
    if spacing is None:
        return volume
    array = volume.array
    for axis, factor in enumerate(np.asarray(spacing) / volume.spacing):
        if factor > MIN_COARSENING:
            # As wide at half its height as a new voxel, together with the old voxel.
            array = _smooth(array, axis, float(np.sqrt(factor**2 - 1) / FWHM_PER_SIGMA))
    resampled = resample(Volume(array, volume.affine), spacing=spacing)
    if array.dtype.kind == "i":
        return Volume(np.rint(resampled.array).astype(array.dtype), resampled.affine)
    return resampled


def _smooth(array: NDArray[Any], axis: int, sigma: float) -> NDArray[Any]:
    """Smooth along one axis with a Gaussian, slab by slab, which needs little memory."""
    smoothed = np.empty_like(array)
    slab_axis = 0 if axis else 1
    slabs = max(1, array.shape[slab_axis] // SLAB)
    sources = np.array_split(array, slabs, slab_axis)
    targets = np.array_split(smoothed, slabs, slab_axis)
    for source, target in zip(sources, targets, strict=True):
        floats = source.astype(np.float32)
        smooth = ndimage.gaussian_filter1d(floats, sigma, axis, mode="nearest")
        target[:] = np.rint(smooth) if array.dtype.kind == "i" else smooth
    return smoothed


def write_volume(path: Path, volume: Volume, source_affine: NDArray[np.float64]) -> None:
    """Write a RAS volume as NIfTI in the orientation of its source.

    The header holds the grid and nothing else.
    """
    array, affine = to_source_orientation(volume, source_affine)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
