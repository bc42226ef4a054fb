"""Files of an answer to take away: volumes, pictures, animation, tables, and the page."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.volumes import strip_suffix, write_like
from options.checks import check_chest_ct
from pipelines.app.answer import Answer
from pipelines.generation.case_writer import DicomWriter, dicom_key, display_window
from util import __version__
from util.cli import UserError, safe_name
from util.files import atomic_folder, atomic_path, write_csv, write_json
from util.metrics.effects import EFFECT_COLUMNS
from util.web.figures import Panel, nice_limit, save_slices_png
from util.web.page_parts import CAUTIONS
from util.web.slice_sheet import SliceSheet, frame_slices, save_animation
from util.web.viewer_parts import MIN_LIMIT, largest_change

GENERATED = ("a", "b", "difference")  # volumes of an answer that are written; scans are not copied
RECORD = "question.json"
MAX_FRAMES = 30  # of an animation, each of which takes some tenths of a second


def export(answer: Answer, formats: Sequence[str], folder: Path) -> Path:
    """Write the files of an answer into one zip; return its path.

    Args:
        formats: Names in `FORMATS`.
        folder: Folder of the zip.

    Raises:
        UserError: No format is chosen or one is unknown, or the disk refuses a file.
    """
    if not formats:
        raise UserError("Choose at least one format to export.")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"There is no format {unknown[0]!r}; there are: {', '.join(FORMATS)}.")
    stem = safe_name(strip_suffix(answer.question.case))[:80]
    name = f"{stem}_{answer.question.key}"
    with atomic_folder(folder / name) as made:
        for format_name in dict.fromkeys(formats):
            FORMATS[format_name](answer, made)
        write_csv(made / "effects.csv", EFFECT_COLUMNS, answer.effects)
        write_json(made / RECORD, record(answer))
    path = folder / f"{name}.zip"
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for file in sorted((folder / name).rglob("*")):
            archive.write(file, f"{name}/{file.relative_to(folder / name)}")
    shutil.rmtree(folder / name)
    return path


def record(answer: Answer) -> dict[str, Any]:
    """Return the question, its texts and its warnings as plain values."""
    question = answer.question
    return {
        "version": __version__,
        "case": question.case,
        "seed": question.seed,
        "link": f"/?{question.query}",
        "text_a": answer.texts.a.sentence,
        "text_b": answer.texts.b.sentence,
        "warnings": [notice.text for notice in answer.notices],
        "cautions": list(CAUTIONS),
    }


def _generated(answer: Answer) -> Mapping[str, np.ndarray]:
    return {name: answer.volumes[name] for name in GENERATED if name in answer.volumes}


def _write_nifti(answer: Answer, folder: Path) -> None:
    """Write the generated volumes on the grid of the mask: int16 HU, or float32 differences."""
    for name, hu in _generated(answer).items():
        kind = np.float32 if name == "difference" else np.int16
        grid = answer.sample.to_source_grid(hu)
        window = None if name == "difference" else display_window(answer.plan.data)
        write_like(folder / f"{name}.nii.gz", grid, answer.sample.case.mask, kind, window)


def _write_dicom(answer: Answer, folder: Path) -> None:
    """Write A and B as CT series of one study, and the mask as a segmentation."""
    plan = answer.plan
    check_chest_ct(plan.data, "DICOM")
    writer = DicomWriter(answer.sample.case.mask, dicom_key(plan.options), plan.data)
    for name in ("a", "b"):
        if name in answer.volumes:
            grid = answer.sample.to_source_grid(answer.volumes[name])
            writer.write(folder / "dicom" / name, grid, f"volume {name.upper()}")


def _write_png(answer: Answer, folder: Path) -> None:
    """Write a picture of all volumes in three planes."""
    save_slices_png(folder / "slices.png", answer.panels, limit=_limit(answer.panels))


def _write_gif(answer: Answer, folder: Path) -> None:
    """Write an animation through the axial slices that hold the mask."""
    shown = [panel for panel in answer.panels if panel.kind != "mask"]
    sheet = SliceSheet(shown, "axial", answer.question.case, limit=_limit(answer.panels))
    slices = frame_slices(answer.sample.labels, "axial", MAX_FRAMES)
    save_animation(sheet, slices, folder / "slices.gif")


def _write_page(answer: Answer, folder: Path) -> None:
    """Copy the page, which opens from disk in any browser."""
    shutil.copytree(answer.folder, folder / "page")


def _limit(panels: Sequence[Panel]) -> float:
    changes = [panel.array for panel in panels if panel.kind == "difference"]
    return max(MIN_LIMIT, nice_limit(max(map(largest_change, changes), default=0.0)))


FORMATS: Mapping[str, Callable[[Answer, Path], None]] = {
    "NIfTI": _write_nifti,
    "DICOM": _write_dicom,
    "PNG": _write_png,
    "GIF": _write_gif,
    "Page": _write_page,
}
