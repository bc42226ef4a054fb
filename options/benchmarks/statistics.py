"""Flags of the benchmarks of the atlas and its statistics."""

from __future__ import annotations

from dataclasses import dataclass

from options.benchmarks import common
from options.parser import argument, flag


@dataclass(frozen=True)
class AtlasBenchmarkOptions:
    """Studies, cohorts and fits of the atlas benchmark."""

    OUT: str = argument("Folder for cohorts, runs, atlases and figures.")
    studies: tuple[str, ...] = flag(
        (),
        "A study to run; may be repeated (default: all).",
        choices=("coverage", "permuted", "ties", "spike"),
    )
    cohorts: int = flag(10, "Cohorts of the coverage study.", low=1)
    refits: int = flag(6, "Refits of each run on resampled patients.", low=3)
    permutations: int = flag(40, "Permuted fits.", low=5)
    cases: int = flag(96, "Training cases.", low=8)
    test_cases: int = flag(6, "Test cases.", low=1)
    size: tuple[int, int, int] = common.phantom_size((32, 32, 24))
    patient_sd: float = common.patient_sd(20.0)
    planted_hu: float = flag(
        20.0,
        "Effect in HU planted in the lower thirds by the spike study.",
        low=5,
        old_names=("spike_hu",),
    )
    planted_cohorts: int = flag(
        3,
        "Cohorts of the spike study, each with the effect in its own random half.",
        low=1,
        old_names=("spikes",),
    )
    max_steps: int = common.max_steps()
    text_encoder: str = flag(
        "cohort", "As in train.py; minilm is MiniLM, which needs no pre-training."
    )
    gpus: str = common.refit_gpus()
    train_flags: str = common.train_flags()


@dataclass(frozen=True)
class RealScansBenchmarkOptions:
    """Simulated cohorts of the benchmark of regressions of real scans."""

    OUT: str = argument("Folder for figures.")
    studies: tuple[str, ...] = flag(
        (),
        "A study to run; may be repeated (default: all).",
        choices=("missing", "coverage", "permuted"),
    )
    cohorts: int = flag(40, "Simulated cohorts of each study.", low=2)
    cases: int = flag(150, "Patients of a cohort.", low=40)
    patient_sd: float = common.patient_sd(15.0)


@dataclass(frozen=True)
class CoverageBenchmarkOptions:
    """Cohorts and runs of the benchmark of intervals."""

    OUT: str = argument("Folder for cohorts, runs, atlases and figures.")
    groups: tuple[str, ...] = flag(
        ("texture", "sparse"),
        "Groups of planted columns, see benchmarks/kinds.py.",
        choices=common.GROUPS,
    )
    seeds: tuple[int, ...] = flag((1, 2, 3), "Seeds of cohort and training.")
    side: str = flag(
        "both",
        "What is measured: regressions of the real scans (no training), or the generator.",
        choices=("both", "scans", "generator"),
    )
    part: str = flag("1/1", "This process's share of the pieces, as k/K.")
    refits: int = flag(6, "Refits of each run on resampled patients.", low=3)
    cases: int = flag(108, "Patients, test cases included.", low=9)
    test_cases: int = flag(12, "Test cases.", low=1)
    size: tuple[int, int, int] = common.phantom_size((48, 48, 32))
    patient_sd: float = common.patient_sd(20.0)
    text_encoder: str = common.text_encoder()
    max_steps: int = common.max_steps()
    gpus: str = common.refit_gpus()
    train_flags: str = common.train_flags()


@dataclass(frozen=True)
class AcquisitionBenchmarkOptions:
    """Cohorts whose kernel is tied to the diagnosis, or not."""

    OUT: str = argument("Folder for the figures.")
    cohorts: int = flag(10, "Cohorts of each kind.", low=1)
    cases: int = flag(60, "Scans of a cohort.", low=30)
    size: tuple[int, int, int] = common.phantom_size((40, 32, 28))
    tied: float = flag(
        0.9, "Probability of the sharp kernel in IPF where it is tied; of the others, one minus it."
    )
    noise: float = flag(1.5, "Noise of the sharp kernel, times that of the soft one.", low=1)
    sharpness: float = flag(
        0.8, "Unsharp masking by the sharp kernel: weight of the difference to the blurred scan."
    )
