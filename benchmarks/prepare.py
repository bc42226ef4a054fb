"""Benchmark of the preparation of real scans.

It compares voxels with SimpleITK's reader, also for shuffled, missing and mixed slices, measures
Dice of the lungs, and time and memory. Inputs that are not given are left out. Every result is
logged; --json writes all of them.
"""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import PrepareBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, PrepareBenchmarkOptions, __doc__ or "")  # the imports below are slow


import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from data.geometry import resample
from data.preparation.case import RECORDS
from data.preparation.masks import threshold_lungs
from data.preparation.pixels import HU_RANGE, Scan, read_stack
from data.preparation.series import stack_slices
from data.preparation.sources import Source, discover_sources
from data.volumes import load_volume
from options.prepare_options import SeriesOptions
from util.cli import UserError, run_command
from util.files import read_json, write_json

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
REMOVED_SLICE = 45
SHUFFLED_FOLDERS = 7


def read_folder(folder: Path) -> Scan:
    """Return the scan that preparation reads from a folder of one study."""
    source = _only_source(folder)
    if source.series is None or source.problem:
        raise UserError(source.problem)
    return read_stack(stack_slices(source.series))


def _only_source(folder: Path) -> Source:
    return discover_sources(folder, "dicom", SeriesOptions()).sources[0]


def matches_simpleitk(scan: Scan, folder: Path) -> bool:
    """Return whether a scan holds the voxels of SimpleITK's series reader, with padding clamped.

    The axes of the series have to point left, back and to the head.
    """
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(files)).clip(*HU_RANGE)
    return bool(np.array_equal(scan.volume.array[::-1, ::-1].T, voxels))


def measure_reading(folder: Path, scratch: Path) -> dict[str, Any]:
    """Compare the reading of a series with SimpleITK and with shuffled, missing, mixed slices."""
    files = sorted(folder.glob("*.dcm"))
    scan = read_folder(folder)
    spacing = np.linalg.norm(scan.source_affine[:3, :3], axis=0)
    shuffled_folder = scratch / "shuffled"
    _copy_shuffled(files, shuffled_folder)
    shuffled = read_folder(shuffled_folder).volume
    same_voxels = np.array_equal(shuffled.array, scan.volume.array)
    same_affine = np.allclose(shuffled.affine, scan.volume.affine)
    (shuffled_folder / str(REMOVED_SLICE % SHUFFLED_FOLDERS) / f"{REMOVED_SLICE:05d}").unlink()
    try:
        read_folder(shuffled_folder)
        removed_slice = "not seen"
    except UserError as error:
        removed_slice = str(error)
    return {
        "slices": len(files),
        "spacing_mm": [round(float(size), 4) for size in spacing],
        "equal_to_simpleitk": matches_simpleitk(scan, folder),
        "equal_shuffled": bool(same_voxels and same_affine),
        "removed_slice": removed_slice,
        "mixed": _describe_mixed(files, scratch / "mixed"),
    }


def _copy_shuffled(files: Sequence[Path], folder: Path) -> None:
    order = random.Random(1).sample(files, len(files))
    for i, file in enumerate(order):
        target = folder / f"{i % SHUFFLED_FOLDERS}" / f"{i:05d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _describe_mixed(files: Sequence[Path], folder: Path) -> list[str]:
    """Mix the files with a second series of every other slice, and describe the choice."""
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    series = generate_uid()
    for file in files[::2]:
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = series
        dataset.SeriesNumber = "2"
        dataset.SOPInstanceUID = generate_uid()
        dataset.save_as(folder / f"a{file.name}")
    source = _only_source(folder)
    assert source.series is not None
    left_out = [f"left out: {title}, {reason}" for title, reason in source.left_out]
    return [f"taken: {source.series.title}", *left_out]


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return Dice's coefficient; 0 for two empty masks."""
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))


def measure_masks(root: Path, every: int = 1) -> dict[str, dict[str, float]]:
    """Compare the threshold segmentation of a dataroot's cases with their masks.

    Args:
        root: The dataroot; `nodules/` may hold masks of nodules.
        every: Measure every n-th case.
    """
    metrics = {}
    for image in sorted((root / "img").glob("*.nii.gz"))[::every]:
        segmented = threshold_lungs(load_volume(image))
        expected = load_volume(root / "gtlung" / image.name).array
        values = {
            "left": dice(segmented == 1, expected == 1),
            "right": dice(segmented == 2, expected == 2),
            "airway": dice(segmented == 3, expected == 3),
            "left_as_right": dice(segmented == 1, expected == 2),
            "right_as_left": dice(segmented == 2, expected == 1),
        }
        if (nodules := root / "nodules" / image.name).is_file():
            is_nodule = load_volume(nodules).array > 0
            values["nodules_inside"] = float(np.isin(segmented, (1, 2))[is_nodule].mean())
        metrics[image.name] = {name: round(value, 4) for name, value in values.items()}
        log.info("%s: %s", image.name, metrics[image.name])
    return metrics


def measure_command(folder: Path, scratch: Path) -> dict[str, Any]:
    """Return seconds and peak memory of one case that the command prepares."""
    out = scratch / f"out_{folder.name}"
    script = str(ROOT / "scripts" / "prepare_data.py")
    command = [sys.executable, script, str(folder), str(out), "--jobs", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(f"prepare_data.py failed: {finished.stderr[-500:]}")
    record = read_json(next((out / RECORDS).glob("*.json")))
    return {
        "seconds": record["seconds"],
        "peak_mb": record["peak_mb"],
        "shape": record["measures"]["shape"],
        "warnings": record["warnings"],
    }


def write_long_series(folder: Path, like: Path, count: int) -> None:
    """Write a series of `count` slices: the series of `like`, resampled along the body."""
    volume = read_folder(like).volume
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    step = float(spacing[2] * volume.shape[2] / count)
    hu = resample(volume, spacing=(float(spacing[0]), float(spacing[1]), step)).array
    folder.mkdir()
    dataset = pydicom.dcmread(min(like.glob("*.dcm")))
    for k in range(count):
        stored = (hu[::-1, ::-1, min(k, hu.shape[2] - 1)].T + 1024).astype(np.int16)
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], round(k * step, 6)]
        dataset.PixelData = stored.tobytes()
        dataset.save_as(folder / f"{k:04d}.dcm")


def _log_phantom_dice(metrics: Mapping[str, Mapping[str, float]]) -> None:
    for name in ("left", "right"):
        values = [case[name] for case in metrics.values()]
        log.info(
            "Phantoms, %s lung: mean Dice %.4f, lowest %.4f (%d)",
            name,
            np.mean(values),
            min(values),
            len(values),
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(PrepareBenchmarkOptions, __doc__ or "", argv)
    if options.slices and not options.dicom:
        raise UserError("--slices makes a long series from that of --dicom. Give both.")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mask2ct_") as name:
        scratch = Path(name)
        if options.dicom:
            results["series"] = measure_reading(Path(options.dicom), scratch)
            log.info("Reading: %s", results["series"])
            results["case"] = measure_command(Path(options.dicom), scratch)
            log.info("One case: %s", results["case"])
        if options.slices:
            write_long_series(scratch / "long", Path(options.dicom), options.slices)
            results["long"] = measure_command(scratch / "long", scratch)
            log.info("%d slices: %s", options.slices, results["long"])
    if options.real:
        results["real"] = measure_masks(Path(options.real))
    if options.phantoms:
        results["phantoms"] = measure_masks(Path(options.phantoms), options.every)
        _log_phantom_dice(results["phantoms"])
    if options.json:
        write_json(Path(options.json), results)


if __name__ == "__main__":
    run_command(main)
