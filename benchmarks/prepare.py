"""Figures of preparing real scans: voxels against SimpleITK's reader, order, gaps, Dice of the
lungs, time and memory.

What is not given is left out. Prints a line a figure, and writes all of them as JSON with --json.
"""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from data.geometry import resample
from data.preparation.case import RECORDS
from data.preparation.masks import threshold_lungs
from data.preparation.pixels import HU, Scan, read_stack
from data.preparation.series import stack
from data.preparation.sources import discover
from data.volumes import load_volume
from options.benchmark_options import PrepareBenchmarkCommand
from options.parser import parse
from options.prepare_options import SeriesOptions
from util.cli import UserError, run_command
from util.files import read_json, write_json

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]


def read_folder(folder: Path) -> Scan:
    """The scan that preparing would read from a folder of one study."""
    source = discover(folder, "dicom", SeriesOptions()).sources[0]
    if source.series is None or source.problem:
        raise UserError(source.problem)
    return read_stack(stack(source.series))


def reference_voxels(folder: Path) -> NDArray[np.integer]:
    """SimpleITK's own series reader, padding clamped, (Z, Y, X)."""
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    voxels: NDArray[np.integer] = sitk.GetArrayFromImage(sitk.ReadImage(files))
    return voxels.clip(*HU)


def same_voxels(scan: Scan, voxels: NDArray[np.integer]) -> bool:
    """Whether a scan holds the voxels of SimpleITK's reader, each at its place (here: axes to left,
    back and head).
    """
    return bool(np.array_equal(scan.volume.array[::-1, ::-1].T, voxels))


def series_metrics(folder: Path, scratch: Path) -> dict[str, Any]:
    """Reading: the same as SimpleITK, in any order, gaps seen, two series told apart."""
    files = sorted(folder.glob("*.dcm"))
    scan = read_folder(folder)
    found: dict[str, Any] = {
        "slices": len(files),
        "spacing_mm": [
            round(float(s), 4) for s in np.linalg.norm(scan.source_affine[:3, :3], axis=0)
        ],
        "equal_to_simpleitk": same_voxels(scan, reference_voxels(folder)),
    }
    order = random.Random(1).sample(files, len(files))
    for i, file in enumerate(order):
        target = scratch / "shuffled" / f"{i % 7}" / f"{i:05d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    again = read_folder(scratch / "shuffled")
    found["equal_shuffled"] = bool(
        np.array_equal(again.volume.array, scan.volume.array)
        and np.allclose(again.volume.affine, scan.volume.affine)
    )
    (scratch / "shuffled" / "3" / "00045").unlink()
    try:
        read_folder(scratch / "shuffled")
        found["removed_slice"] = "not seen"
    except UserError as error:
        found["removed_slice"] = str(error)
    found["mixed"] = _mixed(files, scratch / "mixed")
    return found


def _mixed(files: Sequence[Path], folder: Path) -> list[str]:
    """A second series (every other slice, its own UID) between the files of the first."""
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    uid = generate_uid()
    for file in files[::2]:
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID, header.SeriesNumber, header.SOPInstanceUID = (
            uid,
            "2",
            generate_uid(),
        )
        header.save_as(folder / f"a{file.name}")
    source = discover(folder, "dicom", SeriesOptions()).sources[0]
    assert source.series is not None
    return [
        f"taken: {source.series.name()}",
        *(f"left out: {name}, {reason}" for name, reason in source.left_out),
    ]


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice's coefficient."""
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))


def mask_metrics(root: Path, every: int = 1) -> dict[str, dict[str, float]]:
    """The classic segmentation of every case of a dataroot against its masks, and against
    `nodules/` where they are.
    """
    found = {}
    for image in sorted((root / "img").glob("*.nii.gz"))[::every]:
        made, asked = (
            threshold_lungs(load_volume(image)),
            load_volume(root / "gtlung" / image.name).array,
        )
        one = {
            name: dice(made == k, asked == k)
            for name, k in (("left", 1), ("right", 2), ("airway", 3))
        }
        one |= {
            "left_as_right": dice(made == 1, asked == 2),
            "right_as_left": dice(made == 2, asked == 1),
        }
        if (nodules := root / "nodules" / image.name).is_file():
            inside = load_volume(nodules).array > 0
            one["nodules_inside"] = float(np.isin(made, (1, 2))[inside].mean())
        found[image.name] = {k: round(v, 4) for k, v in one.items()}
        log.info("%s: %s", image.name, found[image.name])
    return found


def command_metrics(folder: Path, scratch: Path, *words: str) -> dict[str, Any]:
    """Seconds and peak memory of a case prepared by the command, in a process of its own."""
    out = scratch / f"out{len(list(scratch.glob('out*')))}"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "prepare_data.py"),
        str(folder),
        str(out),
        "--jobs",
        "1",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"prepare_data.py failed: {done.stderr[-500:]}")
    record = read_json(next((out / RECORDS).glob("*.json")))
    return {
        "seconds": record["seconds"],
        "peak_mb": record["peak_mb"],
        "shape": record["measures"]["shape"],
        "warnings": record["warnings"],
    }


def write_synthetic_series(folder: Path, like: Path, count: int) -> None:
    """Writes a series of `count` slices 512x512: the given one, resampled along the body."""
    files = sorted(like.glob("*.dcm"))
    scan = read_folder(like)
    spacing = np.linalg.norm(scan.volume.affine[:3, :3], axis=0)
    thin = float(spacing[2] * scan.volume.shape[2] / count)
    wide = resample(scan.volume, spacing=(float(spacing[0]), float(spacing[1]), thin)).array
    folder.mkdir()
    header = pydicom.dcmread(files[0])
    for k in range(count):
        stored = (wide[::-1, ::-1, min(k, wide.shape[2] - 1)].T + 1024).astype(np.int16)
        header.SOPInstanceUID, header.InstanceNumber = generate_uid(), k + 1
        header.ImagePositionPatient = [*header.ImagePositionPatient[:2], round(k * thin, 6)]
        header.PixelData = stored.tobytes()
        header.save_as(folder / f"{k:04d}.dcm")


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(PrepareBenchmarkCommand, __doc__ or "", argv).benchmark
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mask2ct_") as name:
        scratch = Path(name)
        if o.dicom:
            found["series"] = series_metrics(Path(o.dicom), scratch)
            log.info("Reading: %s", found["series"])
            found["case"] = command_metrics(Path(o.dicom), scratch)
            log.info("A case: %s", found["case"])
        if o.slices:
            if not o.dicom:
                raise UserError("--slices makes a long series from that of --dicom. Give both.")
            write_synthetic_series(scratch / "long", Path(o.dicom), o.slices)
            found["long"] = command_metrics(scratch / "long", scratch)
            log.info("%d slices: %s", o.slices, found["long"])
    if o.real:
        found["real"] = mask_metrics(Path(o.real))
    if o.phantoms:
        found["phantoms"] = mask_metrics(Path(o.phantoms), o.every)
        for name in ("left", "right"):
            values = [one[name] for one in found["phantoms"].values()]
            log.info(
                "Phantoms, %s lung: mean Dice %.4f, lowest %.4f (%d)",
                name,
                np.mean(values),
                min(values),
                len(values),
            )
    if o.json:
        write_json(Path(o.json), found)


if __name__ == "__main__":
    run_command(main)
