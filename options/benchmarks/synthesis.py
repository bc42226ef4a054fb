"""Flags of the benchmarks of synthetic cohorts and drawn masks."""

from __future__ import annotations

from dataclasses import dataclass

from options.benchmarks import common
from options.parser import argument, flag, group
from options.utility_options import ClassifierOptions


@dataclass(frozen=True)
class ExpandBenchmarkOptions:
    """Cohorts and repetitions of the synthesis benchmark."""

    OUT: str = argument("Folder for cohorts, runs and figures.")
    group: str = flag(
        "sparse",
        "Group of planted columns, see benchmarks/kinds.py.",
        choices=("texture", "sparse"),
    )
    column: str = flag("NODULES", "Column of the group whose value Yes is rare.")
    cases: int = flag(100, "Training scans.", low=8)
    rare: int = flag(8, "Training scans with the rare value.", low=2)
    tests: int = flag(60, "Test scans, half of them with the rare value.", low=4)
    size: tuple[int, int, int] = common.phantom_size((48, 48, 32))
    patient_sd: float = common.patient_sd(20.0)
    n: int = flag(
        100,
        "Synthetic cases of each kind, half of them of the rare value. With one value alone, a "
        "classifier learns that synthetic means that value.",
        low=2,
    )
    run: str = flag("", "Folder of a trained run; by default one is trained on each cohort.")
    diffusion_run: str = flag(
        "", "Folder of a trained diffusion run, which adds scans edited by inversion."
    )
    extractor_3d: str = flag(
        "",
        "3D network, as in scripts/evaluate.py: linear probes on its features beside the DenseNet.",
    )
    check_copies: bool = flag(True, "As in scripts/expand.py.")
    text_encoder: str = common.text_encoder()
    max_steps: int = flag(1000, "Steps of a generator that is trained.", low=1)
    train_flags: str = common.train_flags()
    seeds: tuple[int, ...] = flag((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), "Repetitions.", low=0)
    classifiers: int = flag(3, "Classifiers of each repetition and arm.", low=1)
    grid: tuple[int, int, int] = flag(
        (24, 24, 16), "Cells of the box around the lungs that a classifier gets.", low=4
    )
    part: str = flag("1/1", "This process's share of the repetitions, as k/K.")


@dataclass(frozen=True)
class ExpandBenchmarkCommand:
    """All flags of the command."""

    benchmark: ExpandBenchmarkOptions = group(ExpandBenchmarkOptions, "Benchmark")
    classifier: ClassifierOptions = group(ClassifierOptions, "Classifier")


@dataclass(frozen=True)
class MaskShapesOptions:
    """Cohorts of the benchmark of drawn masks."""

    OUT: str = argument("Folder for figures.json and table.md.")
    cases: int = flag(60, "Training masks.", low=10)
    size: tuple[int, int, int] = common.phantom_size((56, 48, 40))
    patient_sd: float = flag(
        0.08, "SD of the logarithm of lung volume between patients of one row.", low=0
    )
    draws: int = flag(20, "Masks drawn for each sex and height; 0: none.", low=0)
    retrieved: int = flag(40, "Masks retrieved for each sex and height.", low=1)
    seeds: tuple[int, ...] = flag((1, 2, 3), "Seeds of cohorts and draws.", low=0)
