"""Rules between flags, checked once, before any long work starts."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from options.base_options import PERCENTILES, DataOptions
from options.diffusion_options import (
    FLOW_SAMPLERS,
    SCHEDULE_SAMPLERS,
    DiffusionOptions,
    SamplingOptions,
)
from options.train_options import TrainOptions
from util.cli import UserError, world_size


def check_train_options(options: TrainOptions) -> None:
    """Raise `UserError` where flags of train.py do not go together."""
    if "diffusion" in options.generator.model:
        check_diffusion(options)
    check_patch_size(options)
    if not options.run.continue_train:  # runs of earlier versions go on as they began
        _check_data(options.data)
    _check_optimisation(options)
    if len(options.run.val_effect) > 1:
        raise UserError(
            f"--val_effect is given {len(options.run.val_effect)} times; the effect of one "
            "attribute can be tracked. Give it once."
        )
    _check_losses(options)
    if options.data.paraphrases and options.text.text_mode == "sentence":
        raise UserError(
            "--paraphrases gives other words for phrases, and --text_mode sentence reads whole "
            "texts. Use --text_mode phrases."
        )
    if options.run.freeze and not options.run.init_from:
        raise UserError(
            "--freeze keeps parts of a trained network as they are; give the run to start from "
            "with --init_from."
        )


def check_chest_ct(options: DataOptions, purpose: str) -> None:
    """Raise `UserError` where a command that is made for chest CT gets other volumes.

    Args:
        options: How the cohort is read.
        purpose: What the command does, such as "planting effects".
    """
    if not options.terms.is_ct:
        raise UserError(
            f"--modality is {options.modality}, and {purpose} works on chest CT in HU with "
            "labelled lungs. train.py, test.py and scripts/build_atlas.py take other volumes."
        )


def check_patch_size(options: TrainOptions, factor: int = 1) -> None:
    """Raise `UserError` where the network cannot halve patches, or tiles half a patch apart.

    Args:
        options: Patch size and number of halvings.
        factor: Voxels along one side of a latent of the autoencoder.
    """
    g = options.generator
    size = options.patch.patch_size
    # Tiles overlap by half, and each must start on a multiple of the network's stride.
    multiple = 2 * factor * 2 ** (g.n_downsample_global + g.n_local_enhancers)
    if all(side % multiple == 0 for side in size):
        return
    good = ",".join(str(max(multiple, round(side / multiple) * multiple)) for side in size)
    causes = [f"{g.n_downsample_global} halvings", f"{g.n_local_enhancers} local enhancers"]
    if factor > 1:
        causes[1] = f"an autoencoder that makes {factor} voxels one"
    raise UserError(
        f"--patch_size is {','.join(map(str, size))}; with {causes[0]} and {causes[1]} every side "
        f"must be a multiple of {multiple}, so that half of it can be halved as often. The nearest "
        f"that works: --patch_size {good}."
    )


def _check_data(data: DataOptions) -> None:
    """Raise `UserError` where no labels of lungs are valid, or a flag would have no effect."""
    lungs = data.lung_labels
    listed = ",".join(map(str, lungs))
    if len(set(lungs)) < len(lungs) or min(lungs) < 1:
        raise UserError(
            f"--lung_labels is {listed}; labels are above 0, and each is named once. Where one "
            f"label is both lungs, name it alone (--lung_labels {max(lungs)})."
        )
    if data.airway_label in lungs:
        raise UserError(
            f"--airway_label is {data.airway_label}, which --lung_labels names as a lung. Give the "
            "label of the airways, or one that no mask holds."
        )
    if data.percentiles != PERCENTILES and (data.terms.is_ct or data.intensity_window):
        scale = "--modality ct, whose volumes are in HU" if data.terms.is_ct else "a window"
        raise UserError(
            f"--percentiles is given with {scale}. Leave it out; it scales --modality mr without "
            "--intensity_window."
        )


def _check_optimisation(options: TrainOptions) -> None:
    optim = options.optim
    world = world_size()
    if optim.batch_size % (world * optim.gradient_accumulation):
        raise UserError(
            f"--batch_size is {optim.batch_size}; it must be a multiple of processes x "
            f"--gradient_accumulation, {world} x {optim.gradient_accumulation}."
        )
    if optim.max_steps == 0 and optim.niter + optim.niter_decay == 0:
        raise UserError("--niter, --niter_decay and --max_steps are all 0; give one of them.")
    if optim.load_global and not options.generator.n_local_enhancers:
        raise UserError(
            "--load_global is for local enhancers; give --n_local_enhancers 1 or more with it."
        )


def _check_losses(options: TrainOptions) -> None:
    loss = options.loss
    weights = {f.name: getattr(loss, f.name) for f in fields(loss) if f.name.startswith("lambda_")}
    if not any(weights.values()):
        names = ", ".join(f"--{name}" for name in weights)
        raise UserError(f"All loss weights ({names}) are 0; give one of them.")
    file = loss.perceptual_weights
    if loss.lambda_perceptual and file and not Path(file).is_file():
        raise UserError(
            f"--perceptual_weights is {file}, which is not there. Give the file of torchvision's "
            "VGG19 weights, or set --lambda_perceptual 0."
        )


def check_diffusion(options: TrainOptions) -> None:
    """Raise `UserError` where flags of a diffusion model do not go together."""
    g = options.generator
    d = options.diffusion
    if g.n_local_enhancers:
        raise UserError(
            f"--n_local_enhancers is {g.n_local_enhancers}; they belong to --model pix2pixhd. Use "
            "0."
        )
    if d.diffusion_target == "noise" and d.zero_snr:
        raise UserError(
            "--diffusion_target noise cannot be learnt where nothing but noise is left, and "
            "--zero_snr lets the schedule end there. Use --diffusion_target v or flow, or "
            "--no-zero_snr."
        )
    if g.model == "diffusion" and d.autoencoder:
        raise UserError(
            "--autoencoder is for --model latent_diffusion; --model diffusion works on voxels. "
            "Leave the flag out, or choose the other model."
        )
    if g.model == "latent_diffusion" and not Path(d.autoencoder).is_file():
        problem = f"{d.autoencoder}, which is not there" if d.autoencoder else "not given"
        raise UserError(
            f"--autoencoder is {problem}; --model latent_diffusion needs the file of weights that "
            "scripts/train_autoencoder.py wrote, or one of your own."
        )
    check_sampling(d, options.sampling)


def check_sampling(diffusion: DiffusionOptions, sampling: SamplingOptions) -> None:
    """Raise `UserError` where a diffusion model cannot sample with these settings.

    Args:
        diffusion: The run's training; its model decides which settings work.
        sampling: The settings; None stands for a default, which always works.
    """
    flow = diffusion.diffusion_target == "flow"
    samplers = FLOW_SAMPLERS if flow else SCHEDULE_SAMPLERS
    if sampling.sampler is not None and sampling.sampler not in samplers:
        raise UserError(
            f"--sampler is {sampling.sampler}; with --diffusion_target "
            f"{diffusion.diffusion_target} it must be one of: {', '.join(samplers)}."
        )
    if (sampling.sampling_steps or 0) > diffusion.diffusion_steps:
        raise UserError(
            f"--sampling_steps is {sampling.sampling_steps}; the run's schedule has "
            f"{diffusion.diffusion_steps} (--diffusion_steps). Use at most so many."
        )
    for option, scale, part, dropout in (
        ("guidance", sampling.guidance, "text", diffusion.text_dropout),
        ("guidance_mask", sampling.guidance_mask, "mask", diffusion.mask_dropout),
    ):
        if scale is not None and scale != 1 and not dropout:
            raise UserError(
                f"--{option} is {scale:g}, but training had --{part}_dropout 0, so the model has "
                f"not learnt to work without the {part}. Use --{option} 1, or train with "
                f"--{part}_dropout 0.1."
            )
