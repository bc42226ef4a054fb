"""Flags of the benchmarks of the evaluation and of the anomaly map."""

from __future__ import annotations

from dataclasses import dataclass

from options.anomaly_options import MapOptions, RunsOptions
from options.benchmarks import common
from options.parser import argument, flag, group


@dataclass(frozen=True)
class EvaluateBenchmarkOptions:
    """Sets of the evaluation benchmark."""

    OUT: str = argument("Folder for phantoms and figures; existing phantoms are used again.")
    cases: int = flag(50, "Phantoms in the real set, and in the fresh set.", low=12)
    size: tuple[int, int, int] = common.phantom_size((64, 64, 48))
    copies: int = flag(12, "Training scans planted among the fresh ones.", low=4)
    draws: int = flag(100, "Random halves and bootstraps.", low=10)
    extractor: str = flag("random", "Network of the slices' features, as in scripts/evaluate.py.")


@dataclass(frozen=True)
class AnomalyBenchmarkOptions:
    """Phantoms and nodules of the anomaly benchmark."""

    OUT: str = argument("Folder for phantoms, comparisons and figures.")
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of a phantom; as in training.", low=16)
    patient_sd: float = flag(
        0.0, "SD in HU between patients for reasons outside the table, as in training.", low=0
    )
    calibration: int = flag(41, "Phantoms that calibrate the map.", low=2)
    phantoms: int = flag(20, "Phantoms that get a nodule.", low=1)
    nodule_hu: float = flag(200.0, "HU added in a nodule.")
    nodule_mm: float = flag(12.0, "Diameter of a nodule in mm.", low=1)
    cohort_seed: int = flag(77, "Seed of the phantoms and of the nodules' positions.", low=0)


@dataclass(frozen=True)
class AnomalyBenchmarkCommand:
    """All flags of the command."""

    benchmark: AnomalyBenchmarkOptions = group(AnomalyBenchmarkOptions, "Benchmark")
    runs: RunsOptions = group(RunsOptions, "Runs")
    map: MapOptions = group(MapOptions, "Map")
