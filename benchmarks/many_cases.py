"""Measure how fast a cohort of many tiny cases opens: table, checks, splits, start of a training.

The cases are twelve phantoms of 24x24x16 voxels, repeated with two voxels changed so that all files
differ. OUT holds the cohorts, which are used again, and figures.json. Every part is a process of
its own; its seconds are those of the clock and of all processors, imports included.
"""

from __future__ import annotations

import logging
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import ManyCasesOptions
from options.parser import answer_early, parse

answer_early(__name__, ManyCasesOptions, __doc__ or "")  # the imports below are slow

import nibabel as nib
import numpy as np
import pandas as pd

from data.cohort import IMAGES, MASKS
from data.phantom.write import TABLE_FILE, make_phantom_cohort
from data.splits import draw_splits, split_changes
from options.phantom_options import PhantomOptions
from util.cli import run_command
from util.files import read_frame, write_frame, write_json
from util.parallel import available_cores

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
KEY, PATIENT = "File Name", "Patient"
# Opens a cohort in a process of its own; the words are its folder, that of the facts, and "check".
OPEN = """
import pathlib, sys
from data.load_cohort import load_cohort
from options.base_options import DataOptions
options = DataOptions(dataroot=sys.argv[1], template="aiib23", patient_column="Patient")
load_cohort(options, cache=pathlib.Path(sys.argv[2]), check=sys.argv[3] == "check")
"""
SMALL_RUN = shlex.split(
    "--template aiib23 --patient_column Patient --text_encoder table --patch_size 16,16,8 --ngf 4 "
    "--ndf 4 --n_blocks_global 1 --n_layers_D 2 --num_D 1 --text_hidden 8 --max_steps 1 "
    "--val_cases 0 --gpu_ids -1"
)


def make_cohort(out: Path, cases: int) -> Path:
    """Write a cohort of so many cases, unless it is there; return its folder."""
    folder = out / f"cohort_{cases}"
    if (folder / TABLE_FILE).is_file():
        return folder
    base = make_phantom_cohort(
        PhantomOptions(OUT=str(out / "phantoms"), cases=12, size=(24, 24, 16), test_cases=2)
    )
    names = sorted(path.name for path in (base / IMAGES).iterdir())
    scans = [nib.load(base / IMAGES / name) for name in names]
    masks = [nib.load(base / MASKS / name) for name in names]
    table = read_frame(base / TABLE_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    for name in (IMAGES, MASKS):
        (folder / name).mkdir(parents=True)
    for k in range(cases):
        scan, mask = scans[k % len(scans)], masks[k % len(masks)]
        hu = np.asarray(scan.dataobj).copy()
        hu.flat[:2] = divmod(k, 1000)
        name = f"case_{k:05d}.nii.gz"
        nib.save(nib.Nifti1Image(hu, scan.affine, scan.header), folder / IMAGES / name)
        nib.save(
            nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine, mask.header),
            folder / MASKS / name,
        )
    rows = table.iloc[np.arange(cases) % len(table)].reset_index(drop=True)
    rows[KEY] = [f"case_{k:05d}" for k in range(cases)]
    rows[PATIENT] = [f"P{k:05d}" for k in range(cases)]
    write_frame(folder / TABLE_FILE, pd.DataFrame(rows))
    return folder


def seconds_of(*words: str | Path) -> dict[str, float]:
    """Run Python with these words; return the seconds of the clock and of all processors."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"clock": round(time.perf_counter() - start, 2), "processors": round(processor, 2)}


def measure(out: Path, cases: int) -> dict[str, dict[str, float]]:
    """Measure one cohort; return seconds by part."""
    cohort = make_cohort(out, cases)
    facts = out / f"facts_{cases}"
    shutil.rmtree(facts, ignore_errors=True)
    checkpoints = out / f"checkpoints_{cases}"
    shutil.rmtree(checkpoints, ignore_errors=True)
    train: list[str | Path] = [
        "train.py",
        "--dataroot",
        cohort,
        "--checkpoints_dir",
        checkpoints,
        "--cache_dir",
    ]
    seconds = {
        "imports": seconds_of("-c", "import data.load_cohort"),
        "open": seconds_of("-c", OPEN, cohort, facts, "open"),
        "checks, first": seconds_of("-c", OPEN, cohort, facts, "check"),
        "checks, again": seconds_of("-c", OPEN, cohort, facts, "check"),
        "help": seconds_of("train.py", "--help"),
        "training of a step, first": seconds_of(*train, facts, "--name", "a", *SMALL_RUN),
        "training of a step, again": seconds_of(*train, facts, "--name", "b", *SMALL_RUN),
    }
    ids = [f"case_{k:05d}" for k in range(cases)]
    start = time.perf_counter()
    splits = draw_splits(ids, 0, {case: case for case in ids})
    split_changes(splits, splits)
    seconds["splits"] = {"clock": round(time.perf_counter() - start, 3)}
    return seconds


def main() -> None:
    """Measure every size, and write the figures."""
    options = parse(ManyCasesOptions, __doc__ or "")
    out = Path(options.OUT)
    figures: dict[str, Any] = {"cores": available_cores()}
    for cases in options.cases:
        figures[str(cases)] = measure(out, cases)
        write_json(out / "figures.json", figures)
        log.info("%d cases: %s", cases, figures[str(cases)])


if __name__ == "__main__":
    run_command(main)
