"""Measure whether scripts/find_anomalies.py finds nodules planted in fresh phantoms.

The phantoms are fresh patients, none of them a training scan. Some calibrate the map; the others
are compared without and with one ball of higher density inside the lungs. OUT/figures.json holds
the figures.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.evaluation import AnomalyBenchmarkCommand
from options.parser import answer_early, parse

answer_early(__name__, AnomalyBenchmarkCommand, __doc__ or "")  # the imports below are slow


import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from data.phantom.write import make_phantom_cohort
from options.anomaly_options import AnomalyCommand, ScanOptions
from options.phantom_options import PhantomOptions
from pipelines.anomaly.findings import top_regions
from pipelines.anomaly.normal_model import Calibration, LazyScans, ScanComparison
from pipelines.anomaly.run import ExpectationModel, open_runs
from util.cli import UserError, run_command
from util.files import write_json
from util.metrics.regions import chest_regions

log = logging.getLogger(__name__)

MIN_DEPTH_MM = 2.0  # smallest distance of the ball from the border of the lungs
POINTS = 5  # sampling points along each side of a voxel, for the share that the ball fills


def nodule_share(
    scan: ScanComparison, diameter: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the share of each voxel `(X, Y, Z)` that a ball inside the lungs fills."""
    spacing = np.asarray(scan.spacing)
    depth = ndimage.distance_transform_edt(scan.lungs, sampling=scan.spacing)
    places = np.argwhere(depth > diameter / 2 + MIN_DEPTH_MM)
    if not len(places):
        raise UserError(f"--nodule_mm {diameter:g} does not fit into the lungs of {scan.case}.")
    centre = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)
    offsets = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    share = np.zeros(scan.lungs.shape)
    reach = np.ceil(diameter / spacing).astype(int)
    for index in np.ndindex(*(2 * reach + 1)):
        voxel = np.rint(centre).astype(int) + index - reach
        if (voxel < 0).any() or (voxel >= share.shape).any():
            continue
        axes = [(voxel[a] + offsets - centre[a]) * spacing[a] for a in range(3)]
        distance = np.square(np.stack(np.meshgrid(*axes, indexing="ij"))).sum(0)
        share[tuple(voxel)] = (distance <= (diameter / 2) ** 2).mean()
    return share


def rank_nodule(
    scan: ScanComparison,
    calibration: Calibration,
    share: NDArray[np.float64],
    o: AnomalyBenchmarkCommand,
) -> dict[str, Any]:
    """Return the strong regions of a phantom without its nodule, and the nodule's rank with it."""
    masks = chest_regions(np.where(scan.lungs, 1, 0), scan.spacing, (1,))
    clean = top_regions(
        calibration.deviation_map(scan), masks, calibration.threshold, o.map.regions
    )
    planted = replace(
        scan, real=scan.real + np.float32(o.benchmark.nodule_hu) * share.astype(np.float32)
    )
    regions = top_regions(
        calibration.deviation_map(planted), masks, calibration.threshold, o.map.regions
    )
    hits = [n for n, f in enumerate(regions, start=1) if (share[f.voxels] > 0.25).any()]
    return {
        "case": scan.case,
        "rank": hits[0] if hits else None,
        "strong": bool(hits and regions[hits[0] - 1].strong),
        "peaks": [round(f.peak, 2) for f in regions],
        "clean_strong": sum(f.strong for f in clean),
        "clean_peaks": [round(f.peak, 2) for f in clean],
    }


def measure_detection(o: AnomalyBenchmarkCommand) -> dict[str, Any]:
    """Return the figures of the benchmark, from phantoms to detected nodules."""
    b, out = o.benchmark, Path(o.benchmark.OUT)
    phantoms = PhantomOptions(
        OUT=str(out / "phantoms"),
        cases=1 + b.calibration + b.phantoms,
        size=b.size,
        seed=b.cohort_seed,
        missing=0,
        val_cases=b.calibration,
        test_cases=b.phantoms,
        patient_sd=b.patient_sd,
    )
    cohort = str(make_phantom_cohort(phantoms))
    command = AnomalyCommand(ScanOptions(dataroot=cohort, out=str(out)), o.runs, o.map)
    model = ExpectationModel(command, open_runs(command), cohort, out / "compared")
    clean, cases = model.cohort.split("val"), model.cohort.split("test")
    for case in tqdm([*clean, *cases], "generating", unit="scan"):
        model(case)
    scans = LazyScans(clean, model)
    calibration = Calibration.from_scans(scans, o.map.size_mm, o.map.false_alarms)
    rng = np.random.default_rng(b.cohort_seed)
    rows = []
    for case in tqdm(cases, "comparing", unit="scan"):
        scan = model(case)
        rows.append(rank_nodule(scan, calibration, nodule_share(scan, b.nodule_mm, rng), o))
    return summarise(rows, calibration, o.map.regions)


def summarise(
    rows: Sequence[dict[str, Any]], calibration: Calibration, regions_shown: int
) -> dict[str, Any]:
    """Return the figures of all phantoms."""
    return {
        "phantoms": len(rows),
        f"nodules_in_{regions_shown}_strongest": sum(r["rank"] is not None for r in rows),
        "nodules_first": sum(r["rank"] == 1 for r in rows),
        "nodules_strong": sum(r["strong"] for r in rows),
        "most_strong_regions_in_a_clean_phantom": max(r["clean_strong"] for r in rows),
        "clean_phantoms_with_a_strong_region": sum(r["clean_strong"] > 0 for r in rows),
        "threshold_spreads": calibration.threshold,
        "calibration_scans": len(calibration.highest),
        "false_alarm_rate_of_calibration": calibration.false_alarm_rate(),
        "rows": list(rows),
    }


def main() -> None:
    """Measure and write the figures."""
    o = parse(AnomalyBenchmarkCommand, __doc__ or "")
    figures = measure_detection(o)
    write_json(Path(o.benchmark.OUT) / "figures.json", figures)
    log.info("%s", "\n".join(f"{k}: {v}" for k, v in figures.items() if k != "rows"))


if __name__ == "__main__":
    run_command(main)
