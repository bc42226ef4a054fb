"""Check the evaluation on phantoms.

Its metrics are compared with direct computations, ranked by growing damage, and tested with a shift
in HU and with planted copies. OUT/benchmark.json holds the figures.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.evaluation import EvaluateBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, EvaluateBenchmarkOptions, __doc__ or "")  # the imports below are slow


import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage
from tqdm import tqdm

from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume, write_like
from options.phantom_options import PhantomOptions
from pipelines.evaluation.baselines import ResamplingPlan
from pipelines.evaluation.density import density_metrics
from pipelines.evaluation.extractors import make_extractor
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.evaluation.realism import mean_distance, plane_distances, realism_metrics
from pipelines.evaluation.volume_measurer import ComparisonGrid, VolumeMeasurer
from pipelines.evaluation.volume_sets import (
    VolumeFile,
    VolumeSet,
    common_spacing,
    find_set,
    median_extent,
)
from util.cli import run_command
from util.files import write_json
from util.training.devices import make_device

log = logging.getLogger(__name__)

Hu = NDArray[np.floating]
LUNGS = (1, 2)


Transform = Callable[[Hu, NDArray[np.bool_], np.random.Generator], Hu]


def blur(sigma: float) -> Transform:
    """Return a Gaussian blur with sigma in voxels."""
    return lambda hu, lungs, rng: ndimage.gaussian_filter(hu, sigma)


def noise(sd: float) -> Transform:
    """Return the addition of white noise with SD in HU."""
    return lambda hu, lungs, rng: hu + rng.normal(0, sd, hu.shape)


def shift(by: float) -> Transform:
    """Return a shift of the lungs in HU."""
    return lambda hu, lungs, rng: hu + by * lungs


# Each damage in three steps of growing strength.
DAMAGE: dict[str, Sequence[tuple[str, Transform]]] = {
    "blur": [(f"{s:g} voxels", blur(s)) for s in (0.4, 0.7, 1.0)],
    "noise": [(f"{s:g} HU", noise(s)) for s in (10, 20, 40)],
    "lung shift": [(f"{s:+g} HU", shift(s)) for s in (10, 20, 30)],
}
# How planted copies are hidden.
DISGUISES: Sequence[Transform] = (shift(0), noise(20), shift(30), blur(0.5))


def transform_set(volumes: VolumeSet, out: Path, change: Transform) -> VolumeSet:
    """Write the changed volumes, unless they exist; return the set."""
    files = []
    for number, file in enumerate(volumes.files):
        path = out / f"{file.case}.nii.gz"
        assert file.mask is not None
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            lungs = np.isin(load_volume(file.mask).array, LUNGS)
            hu = load_volume(file.path).array.astype(np.float32)
            changed = change(hu, lungs, np.random.default_rng(number))
            write_like(path, changed, file.path, np.int16)
        files.append(VolumeFile(file.case, path, file.mask))
    return VolumeSet("--synthetic", out, tuple(files))


def measure_set(
    volumes: VolumeSet, measurer: VolumeMeasurer, prefix: str = ""
) -> list[VolumeMeasurements]:
    """Measure all volumes of a set; the prefix distinguishes cases of different cohorts."""
    files = tqdm(volumes.files, desc=volumes.root.name, leave=False)
    measurements = (measurer(file, resegment=False) for file in files)
    return [replace(m, case=prefix + m.case) for m in measurements]


def direct_distances(
    one: Sequence[VolumeMeasurements], two: Sequence[VolumeMeasurements]
) -> dict[str, float]:
    """Return FID, KID and MMD, computed pair by pair in float64, as means over the planes."""
    distances: dict[str, list[float]] = {"FID": [], "KID": [], "MMD": []}
    for plane in range(3):
        a, b = (_plane_features(group, plane) for group in (one, two))
        width = a.shape[-1]
        x, y = (v.reshape(-1, width) for v in (a, b))
        root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
        spread = np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)
        distances["FID"].append(float(np.square(x.mean(0) - y.mean(0)).sum() + spread))
        chosen = x[np.linspace(0, len(x) - 1, min(2000, len(x))).astype(int)]
        upper = np.triu_indices(len(chosen), 1)
        width2 = 2 * np.median(np.linalg.norm(chosen[upper[0]] - chosen[upper[1]], axis=1)) ** 2
        distances["KID"].append(_discrepancy(a, b, partial(_cubic, width=width)))
        distances["MMD"].append(_discrepancy(a, b, partial(_gaussian, width=width2)))
    return {k: float(np.mean(v)) for k, v in distances.items()}


def _plane_features(group: Sequence[VolumeMeasurements], plane: int) -> Hu:
    return np.stack([v.planes[0][plane] for v in group]).astype(np.float64)


def _cubic(p: Hu, q: Hu, width: float) -> Hu:
    return (p @ q.T / width + 1) ** 3


def _gaussian(p: Hu, q: Hu, width: float) -> Hu:
    return np.exp(-np.square(p[:, None] - q[None]).sum(-1) / width)


def _discrepancy(a: Hu, b: Hu, kernel: Callable[[Hu, Hu], Hu]) -> float:
    def mean(pairs: Iterable[tuple[Hu, Hu]]) -> float:
        return float(np.mean([kernel(p, q).mean() for p, q in pairs]))

    within = mean(itertools.permutations(a, 2)) + mean(itertools.permutations(b, 2))
    return within - 2 * mean(itertools.product(a, b))


def distances_by_size(
    real: Sequence[VolumeMeasurements], made: Sequence[VolumeMeasurements]
) -> dict[str, float]:
    """Return the evaluation's own metrics without resampling: FID, KID, MMD in 2.5D and 3D."""
    draws = ResamplingPlan.from_counts(len(real), len(made), 0, 0)
    figures = realism_metrics(real, made, draws, {"2D": ""}, {"3D": ""})
    return {
        f.name.split(",")[0].removeprefix("2.5D "): f.value for f in figures if f.group == "realism"
    }


def compare_with_direct(
    real: Sequence[VolumeMeasurements], fresh: Sequence[VolumeMeasurements]
) -> dict[str, Any]:
    """Return the relative differences from the direct computation.

    Also returns the distance of the real set from itself.
    """
    one, two = real[:12], fresh[:12]  # because the direct computation is slow
    draws = ResamplingPlan.from_counts(len(one), len(two), 0, 0)
    ours = {
        k: mean_distance(d)(draws.real, draws.synthetic)
        for k, d in plane_distances([*one, *two], 0, draws.real).items()
    }
    theirs = direct_distances(one, two)
    return {
        "direct": theirs,
        "relative": {k: abs(ours[k] / theirs[k] - 1) for k in theirs},
        "itself": distances_by_size(real, real),
    }


def rank_sets(
    real: Sequence[VolumeMeasurements],
    fresh: VolumeSet,
    base: Sequence[VolumeMeasurements],
    measurer: VolumeMeasurer,
    out: Path,
) -> dict[str, Any]:
    """Return every metric at each step of each damage to fresh phantoms.

    `right` tells whether each step has a larger distance than the one before.
    """
    by_damage: dict[str, Any] = {}
    undamaged = distances_by_size(real, base)
    for kind, steps in DAMAGE.items():
        folders = [out / f"{kind}_{i}".replace(" ", "_") for i in range(len(steps))]
        rows = [undamaged]
        for folder, (_, change) in zip(folders, steps, strict=True):
            damaged = transform_set(fresh, folder, change)
            rows.append(distances_by_size(real, measure_set(damaged, measurer, "fresh_")))
        values = {name: [row[name] for row in rows] for name in undamaged}
        by_damage[kind] = {
            "steps": ["none", *(name for name, _ in steps)],
            "values": values,
            "right": {name: bool(np.all(np.diff(v) > 0)) for name, v in values.items()},
        }
        log.info("%s: each step worse than the last: %s", kind, by_damage[kind]["right"])
    return by_damage


def measured_shift(
    base: Sequence[VolumeMeasurements], shifted: Sequence[VolumeMeasurements], draws: int
) -> dict[str, float]:
    """Return the HU metrics of volumes and the same volumes with +30 HU in the lungs."""
    figures = density_metrics(
        base, shifted, ResamplingPlan.from_counts(len(base), len(shifted), draws, 0)
    )
    return {f.name: f.value for f in figures}


def find_planted_copies(
    real: VolumeSet,
    train: Sequence[VolumeMeasurements],
    fresh: Sequence[VolumeMeasurements],
    measurer: VolumeMeasurer,
    out: Path,
    count: int,
) -> dict[str, Any]:
    """Count how many copies of training scans, and how many fresh phantoms, are called copies.

    Some copies are disguised.
    """
    measured_copies: list[VolumeMeasurements] = []
    for i, disguise in enumerate(DISGUISES):
        chosen = VolumeSet(real.flag, real.root, real.files[i : count : len(DISGUISES)])
        measured_copies += measure_set(
            transform_set(chosen, out / f"copies_{i}", disguise), measurer
        )
    check = CopyCheck.from_scans([v.case for v in train], *_arrays(train))
    # Other names, so that the sources of the copies are not known.
    copies = check(
        *_arrays(measured_copies), sources=[f"renamed_{v.case}" for v in measured_copies]
    )
    others = check(*_arrays(fresh), sources=[v.case for v in fresh])
    return {
        "planted": len(measured_copies),
        "found": sum(v.copy for v in copies),
        "right_scan": sum(
            v.image.case == m.case for v, m in zip(copies, measured_copies, strict=True)
        ),
        "fresh": len(fresh),
        "called_copies": sum(v.copy for v in others),
        "closer_than_real": sum(v.alarm for v in others),
        "threshold": check.image.threshold,
        "farthest_copy": max(v.image.distance for v in copies),
        "nearest_fresh": min(v.image.distance for v in others),
    }


def _arrays(group: Sequence[VolumeMeasurements]) -> tuple[Any, Any]:
    return np.stack([v.detail for v in group]), np.stack([v.whole[0] for v in group])


def run_benchmark(o: EvaluateBenchmarkOptions) -> dict[str, Any]:
    """Return all figures of the benchmark."""
    out = Path(o.OUT)
    sets = {}
    for name, seed in (("real", 1), ("fresh", 2)):
        options = PhantomOptions(
            OUT=str(out / name), cases=o.cases, size=o.size, seed=seed, test_cases=4, val_cases=0
        )
        sets[name] = find_set(f"--{name}", str(make_phantom_cohort(options)))
    x, y, z = map(float, median_extent(sets["real"]))
    grid = ComparisonGrid(
        common_spacing(sets["real"], sets["fresh"], False), (x, y, z), (-1000, 400), 24
    )
    device = make_device("-1")
    networks = [make_extractor(o.extractor, device)], [make_extractor("random", device, 3)]
    measurer = VolumeMeasurer(grid, *networks, out / "cache")
    real, fresh = (
        measure_set(sets[name], measurer, prefix)
        for name, prefix in (("real", ""), ("fresh", "fresh_"))
    )
    draws = ResamplingPlan.from_counts(len(real), len(fresh), o.draws, 0)
    baselines = {}
    for metric in realism_metrics(real, fresh, draws, {"2D": ""}, {"3D": ""}):
        if metric.group == "realism":
            row = metric.row()
            columns = ("value", "low", "high", "matched", "floor", "floor_high")
            baselines[metric.name] = {column: row[column] for column in columns}
    shifted = measure_set(
        transform_set(sets["fresh"], out / "lung_shift_2", shift(30)), measurer, "fresh_"
    )
    return {
        "network": networks[0][0].about,
        "digest": networks[0][0].digest,
        "floors": baselines,
        "agreement": compare_with_direct(real, fresh),
        "ranking": rank_sets(real, sets["fresh"], fresh, measurer, out),
        "hu_shift": measured_shift(fresh, shifted, o.draws),
        "memorisation": find_planted_copies(sets["real"], real, fresh, measurer, out, o.copies),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    o = parse(EvaluateBenchmarkOptions, __doc__ or "", argv)
    figures = run_benchmark(o)
    agreement = figures["agreement"]
    log.info("Relative to direct computation (at most 1e-3): %s", agreement["relative"])
    log.info("Real against itself (0): %s", agreement["itself"])
    log.info("+30 HU in the lungs (30): %s", figures["hu_shift"])
    log.info("Copies (all found, none of the fresh): %s", figures["memorisation"])
    write_json(Path(o.OUT) / "benchmark.json", figures)


if __name__ == "__main__":
    run_command(main)
