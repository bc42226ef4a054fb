"""Training of the autoencoder of latent diffusion."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from monai.networks.nets import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.patch_dataset import PatchDataset, PatchSettings, choose_workers, patch_loader
from models.networks.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    build_autoencoder,
    config_file,
)
from models.networks.condition import organ_region
from options.autoencoder_options import AutoencoderCommand, AutoencoderOptions
from options.base_options import DataOptions, PatchOptions, TextOptions
from util.cli import UserError
from util.files import atomic_path, claim_file, write_json
from util.progress import progress_bar
from util.training.devices import make_accelerator
from util.training.schedule import one_cycle

log = logging.getLogger(__name__)

EVALUATION_BATCHES = 16  # for mean and SD of the latents, and for the error
MIN_STD = 1e-6

Batch = Mapping[str, Any]


def make_config(options: AutoencoderCommand) -> AutoencoderConfig:
    """Describe the network that the options ask for.

    Raises:
        UserError: The sides of a patch are not multiples of the downsampling factor.
    """
    o = options.autoencoder
    factor = 2 ** (len(o.channels) - 1)
    if any(side % factor for side in options.patch.patch_size):
        size = ",".join(map(str, options.patch.patch_size))
        raise UserError(
            f"--patch_size is {size}; with {len(o.channels)} resolutions (--channels) every side "
            f"must be a multiple of {factor}."
        )
    config = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "num_res_blocks": [o.res_blocks] * len(o.channels),
        "channels": list(o.channels),
        "attention_levels": [False] * len(o.channels),
        "latent_channels": o.latent_channels,
        "norm_num_groups": 1,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }
    return AutoencoderConfig("AutoencoderKL", config, options.data.hu_window, channel_norm=True)


@dataclass(frozen=True)
class BatchPlan:
    """Which patches are drawn.

    Attributes:
        data: How the cohort is read.
        patch: How patches are cut.
        steps: Batches.
        batch_size: Patches of each.
        seed: Seed of order and crops.
    """

    data: DataOptions
    patch: PatchOptions
    steps: int
    batch_size: int
    seed: int


def load_batches(
    plan: BatchPlan, cohort: Cohort, cache: Path, device: torch.device
) -> Iterator[Batch]:
    """Return patches of the training cases: `image` `(B, 1, X, Y, Z)` in [-1, 1], and `organs`.

    `organs` `(B, 1, X, Y, Z)` is 1 where the mask has a label other than the body's.

    Raises:
        UserError: A training case without a scan.
    """
    cases = cohort.split("train")
    if missing := [case.id for case in cases if case.image is None]:
        raise UserError(f"Case {missing[0]} has no scan; an autoencoder learns from scans.")
    prompts: dict[str, list[str]] = {case.id: [] for case in cases}
    settings = PatchSettings(plan.data, plan.patch, TextOptions(), plan.seed)
    dataset = PatchDataset(cases, prompts, cohort.labels, settings, cache)
    workers = choose_workers(plan.patch.num_workers, device)
    loader = patch_loader(
        dataset, 0, plan.steps * plan.batch_size, plan.batch_size, workers=workers
    )

    body = None if cohort.body_label is None else len(cohort.labels) - 1  # the last channel

    def to_inputs(batch: Batch) -> Batch:
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        inputs = dataset.inputs(moved)
        return {"image": inputs["image"], "organs": organ_region(inputs["mask"], body)}

    return map(to_inputs, loader)


def autoencoder_loss(
    network: AutoencoderKL, image: Tensor, organs: Tensor, options: AutoencoderOptions
) -> Tensor:
    """Absolute error, with voxels of organs weighted, and the Kullback-Leibler term.

    Args:
        network: Returns the reconstruction, and mean mu and SD sigma of the latents.
        image: `(B, 1, X, Y, Z)` in [-1, 1].
        organs: `(B, 1, X, Y, Z)`, see `load_batches`.
        options: Weights of organs and of the Kullback-Leibler term.
    """
    reconstruction, mu, sigma = network(image)
    weight = 1 + (options.label_weight - 1) * organs
    error = ((reconstruction - image).abs() * weight).mean()
    # KL(N(mu, sigma^2) || N(0, 1)), Kingma & Welling 2014, appendix B.
    kl = 0.5 * (mu.square() + sigma.square() - 2 * sigma.clamp_min(1e-6).log() - 1)
    return error + options.kl * kl.sum(1).mean()


def fit_autoencoder(
    network: AutoencoderKL,
    batches: Iterator[Batch],
    options: AutoencoderOptions,
    accelerator: Accelerator,
) -> None:
    """Train in place.

    Raises:
        UserError: The loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    schedule = one_cycle(optimizer, options.lr, options.max_steps)
    steps = progress_bar(range(options.max_steps), "Training autoencoder", "step")
    for step in steps:
        batch = next(batches)
        with accelerator.autocast():
            loss = autoencoder_loss(network, batch["image"], batch["organs"], options)
        if not torch.isfinite(loss):
            raise UserError(
                f"The loss is {loss.item()} in step {step + 1}; lower --lr, or use --precision "
                "fp32."
            )
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        steps.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


@torch.no_grad()
def evaluate_autoencoder(
    network: AutoencoderKL,
    config: AutoencoderConfig,
    window: tuple[float, float],
    batches: Iterator[Batch],
    device: torch.device,
) -> tuple[AutoencoderConfig, float]:
    """Measure the latents and the error of the reconstruction.

    Args:
        config: Its description.
        window: HU that -1 and 1 stand for in the patches.
        batches: Patches.
        device: Where to run.

    Returns:
        The config with mean and SD of each latent channel, and the mean absolute error in voxels of
        organs, in HU.
    """
    autoencoder = Autoencoder(network, config, window).to(device)
    latents = []
    errors = []
    for batch in batches:
        image = batch["image"]
        z = autoencoder.encode(image)
        latents.append(z)
        errors.append((autoencoder.decode(z) - image)[batch["organs"] > 0].abs())
    z = torch.cat(latents).float()
    mean = z.mean((0, 2, 3, 4)).tolist()
    std = z.std((0, 2, 3, 4)).clamp_min(MIN_STD).tolist()
    low, high = window
    error_hu = float(torch.cat(errors).mean()) * (high - low) / 2
    return replace(config, mean=tuple(mean), std=tuple(std)), error_hu


def check_out_file(out: Path, overwrite: bool) -> None:
    """Raise `UserError` unless weights and .json may be written at `out`."""
    if out.suffix != ".safetensors":
        raise UserError(f"OUT is {str(out)!r}; it must name a file that ends in .safetensors.")
    for file in (out, config_file(out)):
        claim_file(file, overwrite, "OUT")


def save_autoencoder(network: AutoencoderKL, config: AutoencoderConfig, out: Path) -> None:
    """Write both files; the weights come last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    write_json(config_file(out), asdict(config))
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with atomic_path(out) as temporary:
        save_file(weights, temporary)


def train_autoencoder(options: AutoencoderCommand) -> Path:
    """Train and save the autoencoder that the options describe.

    Returns:
        The file of weights, for `--autoencoder`.

    Raises:
        UserError: A bad cohort, a file that exists already, or sizes that do not fit.
    """
    o = options.autoencoder
    out = Path(o.OUT)
    check_out_file(out, o.overwrite)
    config = make_config(options)
    cohort = load_cohort(options.data, seed=o.seed)
    accelerator = make_accelerator(o.precision, o.gpu_ids)
    torch.manual_seed(o.seed)
    network = build_autoencoder(config).to(accelerator.device)
    with ExitStack() as stack:
        cache = options.data.cache_dir or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="autoencoder_")
        )
        steps = o.max_steps + EVALUATION_BATCHES
        plan = BatchPlan(options.data, options.patch, steps, o.batch_size, o.seed)
        batches = load_batches(plan, cohort, Path(cache), accelerator.device)
        fit_autoencoder(network, batches, o, accelerator)
        config, error_hu = evaluate_autoencoder(
            network, config, config.hu_window, batches, accelerator.device
        )
    save_autoencoder(network, config, out)
    log.info(
        "The mean absolute error in the organs of training patches is %.1f HU. Saved %s; use "
        "it with --model latent_diffusion --autoencoder %s",
        error_hu,
        out,
        out,
    )
    return out
