"""Others' weights as the autoencoder of latent diffusion: from the model hub or a local file."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import HfApi, hf_hub_download
from monai.networks.nets import AutoencoderKL

from data.cohort import Cohort
from data.load_cohort import load_cohort
from data.volume_dataset import VolumeDataset
from models.diffusion.latent_space import LatentSpace
from models.networks.autoencoder import AutoencoderConfig, build_autoencoder
from models.sliding_window import SlidingWindow
from models.weights import read_weights
from options.autoencoder_options import FetchCommand, FetchOptions
from options.parser import to_dict
from pipelines.autoencoder.check import reconstructions, report_check, write_check_page
from pipelines.autoencoder.training import (
    EVALUATION_BATCHES,
    BatchPlan,
    check_out_file,
    evaluate_autoencoder,
    load_batches,
    save_autoencoder,
)
from util.cli import UserError, counted, format_list
from util.files import claim_folder, write_frame
from util.training.checkpoint import weight_differences
from util.training.devices import make_device

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")
RECORD = "metrics.csv"


def describe_repository(info: Any, file: str) -> str:
    """Return licence and size of a file of the model hub in words.

    Args:
        info: What `HfApi.model_info` says, with the metadata of files.

    Raises:
        UserError: The repository does not hold the file.
    """
    sizes = {item.rfilename: item.size for item in info.siblings or ()}
    if file not in sizes:
        weights = [name for name in sizes if name.endswith(WEIGHT_SUFFIXES)]
        held = format_list(sorted(weights)) or "no files of weights"
        raise UserError(
            f"--repo_file: {info.id} does not hold {file}; it holds: {held}. Give one of them."
        )
    card = info.card_data or {}
    licence = card.get("license_name") or card.get("license") or "not stated"
    if link := card.get("license_link"):
        licence = f"{licence} ({link})"
    size = sizes[file]
    amount = f"{size / 1e6:.1f} MB" if size else "size not stated"
    return f"{info.id}, revision {info.sha}: {file}, {amount}. Licence: {licence}."


def download(options: FetchOptions) -> Path:
    """Download the weights, and log licence and size before.

    Raises:
        UserError: The hub cannot be reached, or does not hold the file.
    """
    try:
        info = HfApi().model_info(
            options.repo, revision=options.revision or None, files_metadata=True
        )
        log.info("%s", describe_repository(info, options.repo_file))
        return Path(hf_hub_download(options.repo, options.repo_file, revision=info.sha))
    except UserError:
        raise
    except Exception as error:  # the hub's client, its network library and the system have theirs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--repo {options.repo} cannot be taken from the model hub ({reason}). On a machine "
            f"with network: hf download {options.repo} {options.repo_file} --local-dir . ; copy "
            "the file here and give it with --file."
        ) from None


def describe_network(options: FetchOptions) -> AutoencoderConfig:
    """Return the description of the network that the options name.

    Raises:
        UserError: Numbers that do not go together.
    """
    o = options
    if len(o.res_blocks) != len(o.channels):
        raise UserError(
            f"--res_blocks has {counted(len(o.res_blocks), 'number')} and --channels "
            f"{len(o.channels)}; each resolution needs one of both."
        )
    if bad := [c for c in o.channels if c % o.norm_groups]:
        raise UserError(
            f"--channels has {bad[0]}, which --norm_groups {o.norm_groups} does not divide. Give "
            "the numbers that the weights were trained with."
        )
    for name in ("trained_window", "input_range"):
        low, high = getattr(o, name)
        if low >= high:
            raise UserError(f"--{name} is {low:g},{high:g}; the first must be below the second.")
    config = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "num_res_blocks": list(o.res_blocks),
        "num_channels": list(o.channels),
        "attention_levels": [False] * len(o.channels),
        "latent_channels": o.latent_channels,
        "norm_num_groups": o.norm_groups,
        "norm_eps": 1e-6,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "use_convtranspose": False,
        "norm_float16": False,  # MAISI's True is for autocast on a GPU
        "num_splits": 1,  # tiles bound the memory instead
        "dim_split": 1,
        "save_mem": False,
    }
    return AutoencoderConfig(
        "AutoencoderKlMaisi", config, hu_window=o.trained_window, input_range=o.input_range
    )


def load_network(file: Path, config: AutoencoderConfig, source: str) -> AutoencoderKL:
    """Build the network and load the weights, which must fit exactly.

    Args:
        file: A file of `torch.save` or safetensors.
        config: Description of the network.
        source: The flag and its value, which begin messages.

    Raises:
        UserError: Damaged files, or weights of another network.
    """
    network = build_autoencoder(config)
    weights = {k: v.float() for k, v in read_weights(file, source).items()}
    if differences := weight_differences(network.state_dict(), weights):
        raise UserError(
            f"{source} holds the weights of another network than an AutoencoderKlMaisi of "
            f"--channels {','.join(map(str, config.config['num_channels']))} "
            f"({'; '.join(differences)}). Give the numbers that it was trained with."
        )
    network.load_state_dict(weights)
    return network.eval()


def standardise(
    command: FetchCommand,
    network: AutoencoderKL,
    config: AutoencoderConfig,
    cohort: Cohort,
    device: torch.device,
) -> AutoencoderConfig:
    """Return the config with mean and SD of the latents of training patches."""
    data = command.data
    plan = BatchPlan(data, command.patch, EVALUATION_BATCHES, 1, command.fetch.seed)
    with ExitStack() as stack:
        cache = data.cache_dir or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="autoencoder_")
        )
        batches = load_batches(plan, cohort, Path(cache), device)
        return evaluate_autoencoder(network, config, data.hu_window, batches, device)[0]


def fetch_autoencoder(command: FetchCommand) -> Path:
    """Fetch weights, save them as `train.py --autoencoder` takes them, and check them on scans.

    Returns:
        The file of weights.

    Raises:
        UserError: A bad cohort or option, a hub that cannot be reached, damaged or other weights.
    """
    o, data = command.fetch, command.data
    out = Path(o.OUT)
    check_out_file(out, o.overwrite)
    folder = out.with_suffix("")
    claim_folder(folder, [RECORD], overwrite=o.overwrite)
    config = describe_network(o)
    factor = 2 ** (len(o.channels) - 1)
    window = SlidingWindow(o.tile, factor, overlap=o.overlap, batch=1)
    if any(side % factor for side in command.patch.patch_size):
        size = ",".join(map(str, command.patch.patch_size))
        raise UserError(
            f"--patch_size is {size}; with {len(o.channels)} resolutions (--channels) every side "
            f"must be a multiple of {factor}."
        )
    cohort = load_cohort(data, seed=o.seed)
    device = make_device(o.gpu_ids)
    if o.file:
        file, source = Path(o.file), f"--file {o.file}"
        log.info(
            "%s: %.1f MB. Its licence is that of its source; read it before you use or share a "
            "run with these weights.",
            file,
            file.stat().st_size / 1e6,
        )
    else:
        file, source = download(o), f"--repo {o.repo}"
    network = load_network(file, config, source).to(device)
    config = standardise(command, network, config, cohort, device)
    save_autoencoder(network, config, out)
    cases = [case for case in cohort.split("train") if case.image is not None][: o.check_cases]
    samples = VolumeDataset(cases, cohort.labels, data, multiple=[factor] * 3)
    space = LatentSpace(out, data.hu_window)
    check = write_check_page(
        folder,
        f"Autoencoder {out.name}",
        reconstructions(space, samples, window, device),
        data,
        to_dict(command),
    )
    write_frame(folder / RECORD, pd.DataFrame(data.terms.rows(check.rows)))
    report_check(check, data.terms)
    log.info(
        "Saved %s; see %s. Use it with --model latent_diffusion --autoencoder %s",
        out,
        folder / "index.html",
        out,
    )
    return out
