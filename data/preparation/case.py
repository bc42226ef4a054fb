"""One case from its source to its files: read, resample, mask, measure, write; the record of it
comes last.
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

from data.checks import image_facts, image_problems
from data.cohort import IMAGES, MASKS
from data.geometry import Volume, resample, voxel_sizes
from data.preparation.headers import ACQUISITION
from data.preparation.lungs import LEFT, RIGHT
from data.preparation.masks import MaskPlan, make
from data.preparation.pixels import Scan, as_scanned, clipped, read_stack
from data.preparation.quality import measure, warnings
from data.preparation.series import stack
from data.preparation.sources import Source
from data.volumes import load_volume, read_header
from util.cli import UserError
from util.files import atomic_path, file_fingerprint, json_digest, write_json
from util.web.outlines import outlined

VERSION = 1  # raised where a case would be made otherwise than before, so that it is made again
RECORDS, PAGES = ".prepared", "report"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

Record = dict[str, Any]


class DiskRefuses(UserError):
    """The disk takes no more: no further case can be written either."""


@dataclass(frozen=True)
class Task:
    """A case to make: its id, its source, and all that decides what its files look like.

    `columns` are the header's facts that may be kept; nothing else of a header is written.
    """

    case: str
    source: Source
    out: Path
    plan: MaskPlan
    spacing: tuple[float, float, float] | None = None
    uneven: str = "error"
    columns: tuple[str, ...] = ACQUISITION

    def paths(self) -> tuple[Path, Path, Path, Path]:
        """Scan, mask, picture and record."""
        return (
            self.out / IMAGES / f"{self.case}.nii.gz",
            self.out / MASKS / f"{self.case}.nii.gz",
            self.out / PAGES / f"{self.case}.png",
            self.out / RECORDS / f"{self.case}.json",
        )

    def fingerprint(self) -> str:
        """Changes where a source file or a setting does, without reading voxels."""
        plan = (self.plan.kind, self.plan.tool_args, str(self.plan.given), str(self.plan.airway))
        files = [
            [str(path), *file_fingerprint(path)[1:]]
            for path in [*self.source.files(), *self._masks()]
        ]
        return json_digest([VERSION, self.spacing, self.uneven, self.columns, plan, files])

    def _masks(self) -> list[Path]:
        return [p for p in (self.plan.given, self.plan.airway) if p is not None]


def finished(task: Task) -> Record | None:
    """The record of a case that is there already and would be made the same; else None."""
    *files, kept = task.paths()
    try:
        record: Record = json.loads(kept.read_text(encoding="utf-8"))
        same = record["fingerprint"] == task.fingerprint() and record["sizes"] == [
            f.stat().st_size for f in files
        ]
    except (OSError, ValueError, KeyError):
        return None
    return record if same else None


def prepare(task: Task) -> Record:
    """Makes the files of a case and returns its record.

    Raises:
        UserError: What makes the source no case; nothing of it is left behind.
        DiskRefuses: The disk is full or read-only.
    """
    start = time.monotonic()
    try:
        record = _prepare(task)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        record |= {"seconds": round(time.monotonic() - start, 1), "peak_mb": round(peak)}
        write_json(task.paths()[3], record)
    except BaseException as error:
        for path in task.paths():
            path.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise DiskRefuses(str(error)) from None
        raise
    return record


def _prepare(task: Task) -> Record:
    scan = _read(task)
    grid = _regrid(scan.volume, task.spacing)
    mask = make(task.plan, scan.volume, grid)
    if not mask.any():
        raise UserError(
            "Its mask is empty. Correct the mask or remove the scan."
            if task.plan.kind == "given"
            else "No lungs were found: it shows no chest, is not in HU, or the lungs are filled. "
            "Look at it, or give a mask."
        )
    found = measure(grid, mask)
    ours = task.plan.kind != "given" or {LEFT, RIGHT} <= set(found["labels"]) <= {0, 1, 2, 3}
    image, labels, picture, _ = task.paths()
    write_volume(image, grid, scan.source_affine)
    write_volume(labels, Volume(mask, grid.affine), scan.source_affine)
    with atomic_path(picture) as temporary:
        temporary.write_bytes(outlined(grid.array, mask, found["spacing_mm"]))
    header = dict(task.source.series.first.row) if task.source.series else {}
    row = {name: header.get(name, "") for name in task.columns}
    return {
        "case": task.case,
        "fingerprint": task.fingerprint(),
        "sizes": [p.stat().st_size for p in (image, labels, picture)],
        "masks": task.plan.kind,
        "row": row,
        "measures": found,
        "warnings": [*scan.warnings, *warnings(found, ours)],
        "notes": list(task.source.notes),
        "left_out": [list(pair) for pair in task.source.left_out],
        "slices": len(task.source.series.headers) if task.source.series else 0,
    }


def _read(task: Task) -> Scan:
    if task.source.problem:
        raise UserError(task.source.problem)
    if task.source.series is not None:
        return read_stack(stack(task.source.series, task.uneven))
    path = task.source.volume
    assert path is not None
    if problems := image_problems(path, image_facts(path)):
        raise UserError(problems[0])
    volume = load_volume(path)
    array, said = clipped(volume.array)
    return Scan(Volume(array, volume.affine), read_header(path).source_affine, tuple(said))


def _regrid(volume: Volume, spacing: Sequence[float] | None) -> Volume:
    """Int16 HU on another voxel size; axes that become coarser are smoothed first, so that noise
    does not alias.
    """
    if spacing is None:
        return volume
    array = volume.array
    for axis, factor in enumerate(np.asarray(spacing) / voxel_sizes(volume.affine)):
        if factor > 1.01:
            array = _smoothed(
                array, axis, float(np.sqrt(factor**2 - 1) / 2.355)
            )  # half width: a new voxel
    made = resample(Volume(array, volume.affine), spacing=spacing)
    if made.array.dtype == np.int16:
        return made
    return Volume(clipped(made.array)[0], made.affine)


def _smoothed(array: NDArray[np.int16], axis: int, sigma: float) -> NDArray[np.int16]:
    """Slab by slab, which needs little memory."""
    out = np.empty_like(array)
    other = 0 if axis else 1
    for slab in np.array_split(np.arange(array.shape[other]), max(1, array.shape[other] // 32)):
        at = (slice(None),) * other + (slice(slab[0], slab[-1] + 1),)
        out[at] = np.rint(
            ndimage.gaussian_filter1d(
                array[at].astype(np.float32), sigma, axis=axis, mode="nearest"
            )
        )
    return out


def write_volume(path: Path, volume: Volume, source_affine: NDArray[np.float64]) -> None:
    """Writes a RAS volume as NIfTI in the orientation of its source; the header holds the grid and
    nothing else.
    """
    array, affine = as_scanned(volume, source_affine)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
