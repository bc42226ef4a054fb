"""Does `unusual.py` find what was planted? Nodules of known place in fresh phantoms, and the same
phantoms without them.

Fresh patients are drawn (no training scan among them), some to calibrate the map, some to be looked
at: as they are, and
with one ball of higher density each, somewhere inside the lungs. OUT/figures.json holds the
figures.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from data.phantom.write import make_phantom_cohort
from options.anomaly_options import AnomalyCommand as UnusualOptions
from options.anomaly_options import ScanOptions
from options.benchmark_options import AnomalyBenchmarkCommand
from options.parser import parse
from options.phantom_options import PhantomOptions
from pipelines.anomaly.findings import top_regions
from pipelines.anomaly.normal_model import Calibration, LazyScans, ScanComparison
from pipelines.anomaly.run import ExpectationModel, open_runs
from util.cli import UserError, run_command
from util.files import write_json
from util.metrics.regions import chest_regions

log = logging.getLogger(__name__)

INSIDE_MM = 2.0  # the ball lies at least so far from everything that is no lung
FINE = 5  # points along each side of a voxel that decide which share of it the ball fills


def nodule_share(
    scan: ScanComparison, diameter: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The share of each voxel `(X, Y, Z)` that a ball somewhere inside the lungs fills."""
    spacing = np.asarray(scan.spacing)
    depth = ndimage.distance_transform_edt(scan.lungs, sampling=scan.spacing)
    places = np.argwhere(depth > diameter / 2 + INSIDE_MM)
    if not len(places):
        raise UserError(f"--nodule_mm {diameter:g} does not fit into the lungs of {scan.case}.")
    centre = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)
    offsets = (np.arange(FINE) + 0.5) / FINE - 0.5
    share = np.zeros(scan.lungs.shape)
    for index in np.argwhere(np.ones([2 * int(np.ceil(diameter / s)) + 1 for s in spacing])):
        voxel = np.rint(centre).astype(int) + index - [int(np.ceil(diameter / s)) for s in spacing]
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
    """One phantom without and with its nodule: strong regions of the one, the nodule's rank in the
    other.
    """
    where = chest_regions(np.where(scan.lungs, 1, 0), scan.spacing, (1,))
    clean = top_regions(
        calibration.deviation_map(scan), where, calibration.threshold, o.map.regions
    )
    planted = replace(
        scan, real=scan.real + np.float32(o.benchmark.nodule_hu) * share.astype(np.float32)
    )
    found = top_regions(
        calibration.deviation_map(planted), where, calibration.threshold, o.map.regions
    )
    ranks = [number for number, f in enumerate(found, start=1) if (share[f.voxels] > 0.25).any()]
    return {
        "case": scan.case,
        "rank": ranks[0] if ranks else None,
        "strong": bool(ranks and found[ranks[0] - 1].strong),
        "peaks": [round(f.peak, 2) for f in found],
        "clean_strong": sum(f.strong for f in clean),
        "clean_peaks": [round(f.peak, 2) for f in clean],
    }


def measure_detection(o: AnomalyBenchmarkCommand) -> dict[str, Any]:
    """All figures."""
    b, out = o.benchmark, Path(o.benchmark.OUT)
    cohort = make_phantom_cohort(
        PhantomOptions(
            OUT=str(out / "phantoms"),
            cases=1 + b.calibration + b.phantoms,
            size=b.size,
            seed=b.cohort_seed,
            missing=0,
            val_cases=b.calibration,
            test_cases=b.phantoms,
            patient_sd=b.patient_sd,
        )
    )
    options = UnusualOptions(ScanOptions(dataroot=str(cohort), out=str(out)), o.runs, o.map)
    generator = ExpectationModel(options, open_runs(options), str(cohort), out / "compared")
    clean, cases = generator.cohort.split("val"), generator.cohort.split("test")
    for case in tqdm([*clean, *cases], "generating", unit="scan"):
        generator(case)
    calibration = Calibration.from_scans(
        LazyScans(clean, generator), o.map.size_mm, o.map.false_alarms
    )
    rng = np.random.default_rng(b.cohort_seed)
    rows = []
    for case in tqdm(cases, "looking", unit="scan"):
        scan = generator(case)
        rows.append(rank_nodule(scan, calibration, nodule_share(scan, b.nodule_mm, rng), o))
    return summarise(rows, calibration, o.map.regions)


def summarise(
    rows: Sequence[dict[str, Any]], calibration: Calibration, regions_shown: int
) -> dict[str, Any]:
    """The figures of a benchmark's rows."""
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
    o = parse(AnomalyBenchmarkCommand, __doc__ or "")
    found = measure_detection(o)
    write_json(Path(o.benchmark.OUT) / "figures.json", found)
    log.info("%s", "\n".join(f"{k}: {v}" for k, v in found.items() if k != "rows"))


if __name__ == "__main__":
    run_command(main)
