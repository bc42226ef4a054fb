"""Training of the autoencoder of latent diffusion."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from monai.networks.nets import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.patch_dataset import PatchDataset, PatchSettings, patch_loader
from models.networks.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder, config_file
from options.autoencoder_options import AutoencoderCommand, AutoencoderOptions
from options.base_options import TextOptions
from util.cli import UserError, is_main_process
from util.files import atomic_path, claim_file, write_json
from util.training.devices import make_accelerator

log = logging.getLogger(__name__)

MEASURED = 16  # batches from which the latents' mean and SD, and the error, are taken


def describe(options: AutoencoderCommand) -> AutoencoderConfig:
    """What is built; raises `UserError` for patches that it cannot halve often enough."""
    o = options.autoencoder
    factor = 2 ** (len(o.channels) - 1)
    if any(s % factor for s in options.patch.patch_size):
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


def batches(
    options: AutoencoderCommand, cohort: Cohort, cache: Path
) -> Iterator[dict[str, Tensor]]:
    """Training patches for all steps and the measurement after them."""
    o, cases = options.autoencoder, cohort.split("train")
    if missing := [case.id for case in cases if case.image is None]:
        raise UserError(f"Case {missing[0]} has no scan; an autoencoder learns from scans.")
    dataset = PatchDataset(
        cases,
        {case.id: [] for case in cases},
        cohort.labels,
        PatchSettings(options.data, options.patch, TextOptions(), o.seed),
        cache,
    )
    count = (o.max_steps + MEASURED) * o.batch_size
    return iter(patch_loader(dataset, 0, count, o.batch_size, workers=options.patch.num_workers))


def loss_of(network: AutoencoderKL, batch: dict[str, Tensor], o: AutoencoderOptions) -> Tensor:
    """Absolute error, labelled voxels weighted, and the Kullback-Leibler term."""
    made, mean, sd = network(batch["image"])
    weight = 1 + (o.label_weight - 1) * (1 - batch["mask"][:, :1])  # background is the first label
    divergence = (
        0.5 * (mean.square() + sd.square() - 2 * sd.clamp_min(1e-6).log() - 1).sum(1).mean()
    )
    return ((made - batch["image"]).abs() * weight).mean() + o.kl * divergence


def fit(
    network: AutoencoderKL,
    feed: Iterator[dict[str, Tensor]],
    o: AutoencoderOptions,
    accelerator: Accelerator,
) -> None:
    """Trains in place."""
    optimiser = torch.optim.Adam(network.parameters(), lr=o.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, o.lr, total_steps=o.max_steps, pct_start=0.1
    )
    for step in (
        bar := tqdm(range(o.max_steps), desc="Training autoencoder", disable=not is_main_process())
    ):
        batch = {
            k: v.to(accelerator.device) for k, v in next(feed).items() if isinstance(v, Tensor)
        }
        with accelerator.autocast():
            loss = loss_of(network, batch, o)
        if not torch.isfinite(loss):
            raise UserError(
                f"The loss is {loss.item()} in step {step + 1}; lower --lr, or use --precision "
                "fp32."
            )
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


@torch.no_grad()
def measure(
    network: AutoencoderKL,
    description: AutoencoderConfig,
    feed: Iterator[dict[str, Tensor]],
    device: torch.device,
) -> tuple[AutoencoderConfig, float]:
    """The description with the latents' mean and SD, and the mean absolute error in labelled
    voxels, HU.
    """
    plain = Autoencoder(network, description, description.hu_window).to(device)
    latents, errors = [], []
    for batch in feed:
        image, labelled = batch["image"].to(device), batch["mask"].to(device)[:, :1] == 0
        latents.append(plain.encode(image))
        errors.append((plain.decode(latents[-1]) - image)[labelled].abs())
    found = torch.cat(latents).float()
    low, high = description.hu_window
    mean, std = found.mean((0, 2, 3, 4)).tolist(), found.std((0, 2, 3, 4)).clamp_min(1e-6).tolist()
    whole = AutoencoderConfig(**{**asdict(description), "mean": tuple(mean), "std": tuple(std)})
    return whole, float(torch.cat(errors).mean()) * (high - low) / 2


def save(network: AutoencoderKL, description: AutoencoderConfig, out: Path) -> None:
    """Writes both files, each whole or not at all; the weights come last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    write_json(config_file(out), asdict(description))
    with atomic_path(out) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, part)


def train(options: AutoencoderCommand) -> Path:
    """Trains and saves what the options describe; returns the file, for `--autoencoder`.

    Raises:
        UserError: A bad cohort, a file that is there already, sizes that do not fit.
    """
    o = options.autoencoder
    out = Path(o.OUT)
    if out.suffix != ".safetensors":
        raise UserError(f"OUT is {o.OUT!r}; it must name a file that ends in .safetensors.")
    for file in (out, config_file(out)):
        claim_file(file, o.overwrite, "OUT")
    description = describe(options)
    cohort = load_cohort(options.data, seed=o.seed)
    accelerator = make_accelerator(o.precision, o.gpu_ids)
    torch.manual_seed(o.seed)
    network = build_autoencoder(description).to(accelerator.device)
    with ExitStack() as stack:
        cache = options.data.cache_dir or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="autoencoder_")
        )
        feed = batches(options, cohort, Path(cache))
        fit(network, feed, o, accelerator)
        description, error = measure(network, description, feed, accelerator.device)
    save(network, description, out)
    log.info(
        "Lungs and airways of training patches come back within %.1f HU (mean absolute error); "
        "saved %s. Use it with --model latent_diffusion --autoencoder %s",
        error,
        out,
        out,
    )
    return out
