"""Flags of train.py, in groups; a component is handed its own group, never the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from options.base_options import DataOptions, PatchOptions, TextOptions
from options.diffusion_options import DiffusionOptions, SamplingOptions
from options.parser import flag, group, path_flag


@dataclass(frozen=True)
class RunOptions:
    """The run's folder and what it writes when."""

    name: str = flag("", "Name of the run: its folder below --checkpoints_dir.")
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    continue_train: bool = flag(False, "Resume the run from its latest checkpoint.")
    accept_changes: bool = flag(
        False,
        "With --continue_train: go on although scans, masks, rows, splits or fixed options are not "
        "those that the run was trained with.",
    )
    init_from: str = path_flag(
        "",
        "Start from the weights and options of another run (its name or folder, or an exported zip "
        "or folder); labels and phrases are mapped, what it does not know starts without effect.",
        kind="source",
    )
    freeze: tuple[str, ...] = flag(
        (),
        "With --init_from: leave a part of the network as it is; anatomy (all but what the text "
        "enters by), text, or encoder (what sees the mask alone). May be repeated.",
    )
    overwrite: bool = flag(False, "Replace a run of this name.")
    dry_run: bool = flag(
        False, "Check all input, print options, sizes, memory and time per step, and stop."
    )
    gpu_ids: str = flag(
        "",
        "GPUs to use, such as 0 or 0,1 (under torchrun); -1 for the CPU; default: a GPU if "
        "available.",
    )
    seed: int = flag(0, "Seed of weights, data order, crops and noise.", low=0)
    log_freq: int = flag(10, "Steps between lines of log.jsonl.", low=1)
    save_latest_freq: int = flag(500, "Steps between saves of latest/.", low=1)
    save_epoch_freq: int = flag(0, "Epochs between saves of <epoch>/ (0: never).", low=0)
    val_freq: int = flag(0, "Steps between validations and pictures (0: ten times per run).", low=0)
    val_share: float = flag(
        0.1,
        "Largest share of the time that validations take; they are postponed where they would take "
        "more, but for the one after the last step.",
        low=0.0,
        high=1.0,
    )
    val_cases: int = flag(2, "Cases of the validation split that each validation generates.", low=0)
    val_effect: tuple[str, ...] = flag(
        (), 'Attribute whose effect is tracked in validation, as "COLUMN=A,B".'
    )


@dataclass(frozen=True)
class GeneratorOptions:
    """The generator of pix2pixHD in 3D, and how text enters it."""

    ABSENT: ClassVar[Mapping[str, Any]] = {
        "noise_at": "decoder",
        "noise_by_place": False,
        "noise_tubes": False,
        "noise_around": False,
        "text_noise": False,
        "text_effect": False,
        "text_texture": False,
        "text_linear": False,
    }

    model: str = flag(
        "pix2pixhd", "Kind of generative model: pix2pixhd, diffusion or latent_diffusion."
    )
    ngf: int = flag(32, "Channels at full resolution.", low=1)
    n_downsample_global: int = flag(
        2, "Halvings of the resolution in the global generator.", low=1, high=6
    )
    n_blocks_global: int = flag(
        4, "Residual blocks at the coarsest scale of the global generator.", low=0
    )
    n_local_enhancers: int = flag(
        0,
        "Local enhancers around the global generator, each doubling the resolution.",
        low=0,
        high=3,
    )
    n_blocks_local: int = flag(2, "Residual blocks in each local enhancer.", low=0)
    skip: bool = flag(True, "U-Net connections from the encoder's scales to the decoder's.")
    norm: str = flag(
        "layer",
        "Normalisation; layer and rms normalise the channels of each voxel, so that tiles agree.",
        choices=("layer", "rms", "group", "instance", "batch", "none"),
    )
    padding: Literal["zeros", "reflect", "replicate"] = flag(
        "zeros",
        "Padding of convolutions at the border.",
        choices=("zeros", "reflect", "replicate"),
    )
    noise_channels: int = flag(
        4, "Channels of input noise, which give texture (0: none).", low=0, high=16
    )
    noise_at: str = flag(
        "all",
        "Scales that receive noise: those of the decoder, or also the coarsest, where focal "
        "lesions find a place.",
        choices=("decoder", "all"),
    )
    noise_by_place: bool = flag(
        True,
        "Generate with noise that depends on the place, in tiles that equal the whole volume; runs "
        "of earlier versions have one field per volume, and blended tiles.",
    )
    noise_tubes: bool = flag(
        True,
        "Give the organs' finest scale noise of thin tubes too, of which vessels are made (needs "
        "--text_noise and at least two noise channels).",
    )
    noise_around: bool = flag(
        True,
        "Noise around the organs has strengths of its own, 0 at first, so that soft tissue and air "
        "are no rougher than they should be.",
    )
    text_noise: bool = flag(
        True, "Let the text make the noise of every channel stronger or weaker."
    )
    coord_channels: bool = flag(True, "Add each voxel's position in the whole volume to the input.")
    fusion: str = flag(
        "both",
        "Fusion units: none, concat, affine, additive, attention, or both (attention and affine).",
    )
    fusion_at: str = flag(
        "all",
        "Place of the fusion units: the coarsest features, all scales, or the output, where "
        "the text adds a residual to the volume.",
        choices=("bottleneck", "all", "output"),
    )
    text_effect: bool = flag(
        True,
        "Add the mean effect of the text to the volume, as a residual in which effects of phrases "
        "add up; units at other places then serve texture and combinations.",
    )
    text_texture: bool = flag(
        True,
        "Let text and place set the strength of random texture at the output, and how many voxels "
        "are replaced by dark or dense material; part of the text's effect on the volume.",
    )
    text_region: Literal["labels", "everywhere"] = flag(
        "labels",
        "Where text may change the volume: in labelled voxels of the mask, or also in the "
        "background.",
        choices=("labels", "everywhere"),
    )
    text_position: bool = flag(
        True,
        "Condition the text's residual on each voxel's label, "
        "position in the volume and depth in the mask.",
        old_names=("text_place",),
    )
    text_linear: bool = flag(
        True,
        "Let label, position and depth also set the text's mean effect directly, so that where an "
        "effect is found in few steps (needs --text_position).",
    )
    attention_heads: int = flag(4, "Heads of cross-attention.", low=1)
    text_hidden: int = flag(
        0, "Hidden width of the text's perceptrons (0: affine units are linear in the text).", low=0
    )
    checkpoint_activations: bool = flag(
        False, "Recompute activations in the backward pass, which saves memory and costs time."
    )


@dataclass(frozen=True)
class DiscriminatorOptions:
    """PatchGANs at several scales of the input, conditioned on mask and text."""

    ndf: int = flag(32, "Channels of the first layer.", low=1)
    num_D: int = flag(
        2, "Discriminators; each works at half the resolution of the one before.", low=1, high=4
    )
    n_layers_D: int = flag(3, "Strided layers of each discriminator.", low=1, high=6)
    norm_D: str = flag(
        "layer",
        "Normalisation in the discriminators.",
        choices=("layer", "rms", "group", "instance", "none"),
    )
    text_D: bool = flag(
        True, "Condition the discriminators on the text, with mismatched text as negatives."
    )


@dataclass(frozen=True)
class LossOptions:
    """Terms of the generator's loss; a weight of 0 switches a term off and costs nothing."""

    ABSENT: ClassVar[Mapping[str, Any]] = {
        "lambda_mean": 0.0,
        "lambda_patch": 0.0,
        "lambda_quantile": 0.0,
    }

    gan_mode: str = flag("hinge", "Adversarial loss.", choices=("lsgan", "hinge"))
    lambda_gan: float = flag(3.0, "Weight of the adversarial loss.", low=0)
    lambda_feat: float = flag(2.0, "Weight of discriminator feature matching.", low=0)
    lambda_mean: float = flag(
        80.0, "Weight of the squared error of the mean volume, estimated from two draws.", low=0
    )
    lambda_patch: float = flag(
        20.0, "Weight of the energy score of small patches of two draws, at three scales.", low=0
    )
    lambda_quantile: float = flag(
        60.0,
        "Weight of the energy score of the distribution of HU and detail in blocks of two draws.",
        low=0,
    )
    lambda_l1: float = flag(
        0.0, "Weight of the voxel-wise absolute error; it makes volumes smooth.", low=0
    )
    smooth_l1_beta: float = flag(
        0.1,
        "Voxel-wise errors below this (in [-1, 1]) count quadratically (0: pure absolute error).",
        low=0,
        old_names=("l1_smooth",),
    )
    label_weight: float = flag(
        8.0,
        "Weight of voxel-wise errors where the mask has a label; 1 weighs all voxels alike.",
        low=1,
        old_names=("l1_labels",),
    )
    lambda_perceptual: float = flag(
        0.0, "Weight of the perceptual loss on slices of three planes.", low=0
    )
    perceptual_weights: str = flag(
        "",
        "File of torchvision's VGG19 weights for the perceptual loss (empty: torch's own cache).",
    )


@dataclass(frozen=True)
class OptimOptions:
    """Optimisers, schedule, precision."""

    batch_size: int = flag(1, "Patches per step, over all processes.", low=1)
    gradient_accumulation: int = flag(
        1,
        "Gradient-accumulation steps.",
        low=1,
        old_names=("accumulate",),
    )
    lr: float = flag(2e-4, "Learning rate of the generator.", low=0)
    lr_D: float = flag(2e-4, "Learning rate of the discriminators.", low=0)
    lr_text: float = flag(
        3.0,
        "Learning rate of all that the text enters by in pix2pixhd, as a multiple of --lr.",
        low=0,
    )
    beta1: float = flag(0.5, "Adam's first decay rate.", low=0, high=1)
    beta2: float = flag(0.999, "Adam's second decay rate.", low=0, high=1)
    grad_clip: float = flag(
        1.0, "Largest gradient norm (0: no clipping).", low=0, old_names=("clip",)
    )
    ema: float = flag(
        0.999,
        "Decay of the moving average of the generator's weights, which test.py uses (0: none).",
        low=0,
        high=1,
    )
    niter: int = flag(100, "Epochs at the full learning rate.", low=0)
    niter_decay: int = flag(100, "Epochs of linear decay to zero after those.", low=0)
    max_steps: int = flag(
        0,
        "Total number of steps, instead of epochs; the share of decay stays (0: by epochs).",
        low=0,
    )
    niter_fix_global: int = flag(0, "Epochs in which only the local enhancers are trained.", low=0)
    load_global: str = path_flag(
        "",
        "Run whose trained global generator initialises that of the local enhancers.",
        kind="run",
    )
    precision: str = flag(
        "fp32",
        "Arithmetic of training; auto: bf16 where the processor has it natively, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    channels_last: bool = flag(True, "Use the memory format in which convolutions are fastest.")
    compile: bool = flag(False, "Compile the networks with torch.compile.")


@dataclass(frozen=True)
class TrainOptions:
    """All flags of train.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("name", "dataroot")
    EXAMPLE: ClassVar[str] = (
        "python train.py --dataroot phantoms --template aiib23 --name run1 --preset cpu"
    )

    run: RunOptions = group(RunOptions, "Run")
    data: DataOptions = group(DataOptions, "Cohort")
    patch: PatchOptions = group(PatchOptions, "Patches")
    text: TextOptions = group(TextOptions, "Text")
    generator: GeneratorOptions = group(GeneratorOptions, "Generator")
    discriminator: DiscriminatorOptions = group(DiscriminatorOptions, "Discriminator")
    loss: LossOptions = group(LossOptions, "Losses")
    diffusion: DiffusionOptions = group(DiffusionOptions, "Diffusion")
    sampling: SamplingOptions = group(SamplingOptions, "Sampling of diffusion models")
    optim: OptimOptions = group(OptimOptions, "Optimisation")


# Options that a run is continued with as it began; what the text encoder is, it checks itself.
FIXED_OPTIONS: dict[str, tuple[str, ...]] = {
    "run": ("seed",),
    "data": (
        "template",
        "lung_labels",
        "airway_label",
        "body_label",
        "spacing",
        "hu_window",
        "modality",
        "intensity_window",
        "percentiles",
        "permute",
        "resample",
        "fold",
    ),
    "text": ("text_mode", "whitening", "number_tokens"),
}


def fixed_options(options: TrainOptions) -> dict[str, Any]:
    """Return the values of the options that must not change when a run is continued."""
    values: dict[str, Any] = {}
    for name, fields in FIXED_OPTIONS.items():
        values |= {field: getattr(getattr(options, name), field) for field in fields}
    return values


# Each preset holds only what differs from the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "ngf": 16,
        "n_downsample_global": 2,
        "n_blocks_global": 3,
        "ndf": 16,
        "n_layers_D": 2,
        "patch_size": (32, 32, 24),
        "batch_size": 4,
        "max_steps": 1200,
        "precision": "auto",
        "lr": 1e-3,
        "lr_D": 5e-4,
    },
    "24gb": {
        "ngf": 32,
        "n_downsample_global": 3,
        "n_blocks_global": 4,
        "patch_size": (128, 128, 64),
        "batch_size": 2,
        "precision": "auto",
    },
    "80gb": {
        "ngf": 64,
        "n_downsample_global": 3,
        "n_blocks_global": 4,
        "ndf": 64,
        "patch_size": (160, 160, 96),
        "batch_size": 2,
        "precision": "auto",
    },
}

# What a model needs otherwise. A step of diffusion takes a third of the GAN's time, and texture
# follows the text only after some 2000 steps.
MODEL_PRESETS: dict[str, dict[str, dict[str, Any]]] = {"diffusion": {"cpu": {"max_steps": 3000}}}


def model_presets(model: str) -> dict[str, dict[str, Any]]:
    """Return the presets with their values for a kind of model."""
    changes = MODEL_PRESETS.get(model, {})
    return {name: {**values, **changes.get(name, {})} for name, values in PRESETS.items()}
