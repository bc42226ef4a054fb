"""Flags of the benchmarks of what generators learn: effects, texture, wordings, few cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.benchmarks import common
from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import argument, flag, group, path_flag
from options.test_options import CaseOptions, ModelOptions

# Text encoder and further flags of train.py, by configuration of the effects benchmark.
CONFIGURATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("clip", ()),
    "adversarial weight 0": ("clip", ("--lambda_gan", "0")),
    "no discriminator": ("clip", ("--lambda_gan", "0", "--lambda_feat", "0")),
    "text kept from D": ("clip", ("--no-text_D",)),
    "text shown to D": ("clip", ("--text_D",)),
    "fusion none": ("clip", ("--fusion", "none")),
    "fusion concat": ("clip", ("--fusion", "concat")),
    "fusion affine": ("clip", ("--fusion", "affine")),
    "fusion attention": ("clip", ("--fusion", "attention")),
    "fusion both": ("clip", ("--fusion", "both")),
    "encoder table": ("table", ()),
    "encoder MiniLM": ("minilm", ()),
    "whole volumes": ("clip", ("--patch_size", "64,64,48", "--batch_size", "1")),
    "patches 32x32x24": ("clip", ("--patch_size", "32,32,24", "--batch_size", "8")),
}


@dataclass(frozen=True)
class DiffusionBenchmarkOptions:
    """What the diffusion benchmark measures."""

    OUT: str = flag("", "Folder for results and figures.json.")
    steps: tuple[int, ...] = flag(
        (15, 200),
        "Numbers of steps whose effects and texture are compared with those of the last number.",
        low=1,
    )
    columns: tuple[str, ...] = flag(
        (),
        "Column to vary; may be repeated (default: all).",
        choices=("SMOKING HISTORY", "DIAGNOSIS", "AGE", "RISK OCCUPATIONAL"),
    )


@dataclass(frozen=True)
class DiffusionBenchmarkCommand:
    """All flags of the command."""

    benchmark: DiffusionBenchmarkOptions = group(DiffusionBenchmarkOptions, "Benchmark")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling")
    edit: EditOptions = group(EditOptions, "Editing")


@dataclass(frozen=True)
class EffectsBenchmarkOptions:
    """Configurations and cohorts of the effects benchmark."""

    OUT: str = argument("Folder for cohorts, runs, results and figures.")
    configurations: tuple[str, ...] = flag(
        (),
        "A configuration to run; may be repeated (default: default).",
        choices=tuple(CONFIGURATIONS),
        old_names=("cells",),
    )
    cases: int = flag(96, "Training cases.", low=2)
    test_cases: int = flag(6, "Test cases.", low=2)
    size: tuple[int, int, int] = common.phantom_size((64, 64, 48))
    patient_sd: float = common.patient_sd(0.0)
    confounding: float = flag(
        0.0, "Probability that smoking history decides the diagnosis.", low=0, high=1
    )
    missing: float = flag(0.12, "Share of missing values in the training rows.", low=0, high=0.9)
    seeds: tuple[int, ...] = flag((1,), "Seeds of cohort and training, with commas between them.")
    max_steps: int = common.max_steps()
    clip_steps: int = flag(0, "Steps of CLIP pre-training (0: its default).", low=0)
    train_flags: str = common.train_flags()
    test_flags: str = flag(
        "", "More flags for test.py, in one text, such as --tile 0,0,0 for whole volumes at once."
    )
    text: bool = flag(
        True,
        "Also measure effects of phrase order, paraphrases and unseen ages, which doubles the "
        "time of the test.",
    )
    tag: str = flag("", "Suffix of the configurations' names, for trials.")


@dataclass(frozen=True)
class KindsBenchmarkOptions:
    """Cohorts and models of the benchmark of effects of every kind."""

    OUT: str = argument("Folder for cohorts, runs and figures.")
    groups: tuple[str, ...] = common.groups()
    models: tuple[str, ...] = flag(
        (), "A model; may be repeated (default: all).", choices=("pix2pixhd", "diffusion")
    )
    seeds: tuple[int, ...] = flag(
        (1, 2, 3), "Seeds of cohort and training, with commas between them."
    )
    locked: bool = flag(
        False, "Allow seeds 101, 102 and 103, which are kept for the final measurement."
    )
    cases: int = flag(96, "Patients, test cases included.", low=9)
    test_cases: int = flag(12, "Test cases.", low=1)
    size: tuple[int, int, int] = common.phantom_size((48, 48, 32))
    chests: tuple[str, ...] = flag(
        (),
        "Folder of scanned chests (img/, gtlung/); may be repeated. They are deformed into the "
        "cohort's patients in place of phantoms, and test patients come from other chests than "
        "training patients.",
    )
    spacing: float = flag(4.0, "Voxel side in mm of deformed chests.", low=0.5)
    patient_sd: float = common.patient_sd(0.0)
    draws: int = flag(3, "Noise draws that generated effects are averaged over.", low=1)
    text_encoder: str = common.text_encoder()
    max_steps: int = common.max_steps()
    train_flags: str = common.train_flags()
    test_flags: str = flag("", "More flags for test.py, in one text.")
    tag: str = flag("", "Suffix of the models' names, for trials.")


@dataclass(frozen=True)
class StandardBenchmarkOptions:
    """Generator and sets of the standard benchmark."""

    EXAMPLE: ClassVar[str] = (
        'bash benchmarks/standard/run.sh "python my_generator.py" OUT --groups sparse'
    )

    RUN_COMMAND: str = argument(
        "Command of the generator, in one text; it is called with train TRAIN WORK, and with "
        "generate TEST WORK VOLUMES."
    )
    OUT: str = argument("Folder for sets, volumes and scores.")
    name: str = flag("", "Name of the generator in tables (default: RUN_COMMAND).")
    groups: tuple[str, ...] = common.groups()
    chests: tuple[str, ...] = flag(
        (),
        "Folder of scanned chests (img/, gtlung/) for the sets in real anatomy; may be repeated.",
    )
    tiny: bool = flag(False, "Sets of seconds, to try a command; their scores mean nothing.")
    save_expected: bool = flag(
        False, "Add the scores to expected_scores.json, for maintainers of the benchmark."
    )


@dataclass(frozen=True)
class TextureBenchmarkOptions:
    """Chests and training of the texture benchmark."""

    OUT: str = argument("Folder for cohort, runs and figures.")
    chests: tuple[str, ...] = flag(
        (), "Folder of scanned chests (img/, gtlung/); may be repeated. Needed."
    )
    models: tuple[str, ...] = flag(
        (),
        "A model; may be repeated (default: all).",
        choices=("version 0.1", "default", "diffusion"),
    )
    seeds: tuple[int, ...] = flag((0,), "Seeds of split and training.")
    spacing: float = flag(2.0, "Voxel side in mm.", low=0.5)
    max_steps: int = common.max_steps()
    train_flags: str = common.train_flags()


@dataclass(frozen=True)
class ParaphrasesBenchmarkOptions:
    """The wordings, and the effect of which they should keep all."""

    vary: str = flag(
        "SMOKING HISTORY=Never smoker,Current smoker",
        'Effect, as "COLUMN=A,B"; the wordings are of B.',
    )
    listed: str = path_flag(
        "benchmarks/paraphrases/training.yaml", "Wordings that training may know.", kind="file"
    )
    held_out: str = path_flag(
        "benchmarks/paraphrases/held_out.yaml", "Wordings that no training knows.", kind="file"
    )
    json: str = flag("", "File for the figures as JSON.")


@dataclass(frozen=True)
class ParaphrasesBenchmarkCommand:
    """All flags of benchmarks/paraphrases.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name", "dataroot")

    paraphrases: ParaphrasesBenchmarkOptions = group(ParaphrasesBenchmarkOptions, "Wordings")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")


@dataclass(frozen=True)
class FineTuningBenchmarkOptions:
    """The source, and the small cohort that runs are trained on with and without it."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("work",)

    work: str = flag("", "Folder of cohorts and runs; finished ones are used again.")
    source_cases: int = flag(96, "Cases of the source.", low=20)
    cases: int = flag(12, "Training cases of the small cohort.", low=2)
    source_steps: int = flag(400, "Steps of the source.", low=1)
    steps: int = flag(100, "Steps of each run on the small cohort.", low=1)
    size: tuple[int, int, int] = flag((48, 48, 32), "Voxels of the phantoms.", low=24)
    seed: int = flag(0, "Seed of the small cohort's patients and of the runs.", low=0)
    json: str = flag("", "File for the figures as JSON.")
