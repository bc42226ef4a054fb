"""MONAI's own 3D diffusion U-Net: the mask as further channels, the row by cross-attention.

It predicts v on MONAI's DDPM schedule and samples with DDIM, on whole volumes. Set the length of
training with --minutes: of one processor core, or of the GPU's clock. It needs the package einops
(requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's packages
from benchmarks.standard.generators.cases import Hu, Request, StandardCase, read_cases
from benchmarks.standard.generators.design import Design
from benchmarks.standard.generators.stages import Predict, run_stage
from data.volumes import to_hu, to_unit
from util.files import read_json, write_json
from util.training.devices import make_device

WINDOW = (-1000.0, 400.0)
LABELS = 4  # background, lungs, airway
STEPS = 1000  # of the noise schedule
MULTIPLE = 4  # two downsamplings
SIZES = {"default": (32, 64, 64), "tiny": (8, 8, 8)}
WEIGHTS, RECORD = "unet.safetensors", "record.json"


def make_network(width: int, size: str) -> DiffusionModelUNet:
    """Build the network for rows of `width` numbers."""
    channels = SIZES[size]
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1 + LABELS,
        out_channels=1,
        channels=channels,
        attention_levels=(False, False, True),
        num_res_blocks=1,
        num_head_channels=channels[-1],
        norm_num_groups=8,
        with_conditioning=True,
        cross_attention_dim=width,
    )


def schedule_arguments() -> dict[str, Any]:
    """Return the arguments of both schedulers."""
    return {
        "num_train_timesteps": STEPS,
        "schedule": "scaled_linear_beta",
        "prediction_type": "v_prediction",
    }


def mask_channels(case: StandardCase, device: torch.device) -> Tensor:
    """Return the mask one-hot, padded to a multiple of the downsampling, `(1, K, X, Y, Z)`."""
    labels = case.chest.anatomy.labels
    one_hot = np.stack([labels == label for label in range(LABELS)]).astype(np.float32)
    return pad(torch.from_numpy(one_hot)[None]).to(device)


def pad(volume: Tensor) -> Tensor:
    """Repeat the last voxels until every side is a multiple of `MULTIPLE`."""
    pads: list[int] = []
    for side in reversed(volume.shape[2:]):
        pads += [0, -side % MULTIPLE]
    return torch.nn.functional.pad(volume, pads, mode="replicate") if any(pads) else volume


def train(folder: Path, work: Path, minutes: float, size: str, gpu_ids: str) -> None:
    """Train for some minutes, and save the weights."""
    device = make_device(gpu_ids)
    torch.manual_seed(0)
    cases = read_cases(folder)
    design = Design.from_cases(cases)
    rows = [torch.from_numpy(design(case.row)).float()[None, None].to(device) for case in cases]
    network = make_network(rows[0].shape[-1], size).to(device)
    scheduler = DDPMScheduler(**schedule_arguments())
    optimizer = torch.optim.AdamW(network.parameters(), 2e-4)
    images: dict[int, tuple[Tensor, Tensor]] = {}
    rng = np.random.default_rng(0)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start, step = clock(), 0
    while not step or clock() - start < 60 * minutes:
        number = int(rng.integers(len(cases)))
        if number not in images:
            unit = torch.from_numpy(to_unit(cases[number].scan(), WINDOW))[None, None].float()
            images[number] = (pad(unit).to(device), mask_channels(cases[number], device))
        image, mask = images[number]
        noise = torch.randn_like(image)
        t = torch.randint(STEPS, (1,), device=device)
        noisy = scheduler.add_noise(image, noise, t)
        output = network(torch.cat([noisy, mask], 1), t, context=rows[number])
        loss = (output - scheduler.get_velocity(image, noise, t)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, work / WEIGHTS)
    design.save(work)
    write_json(work / RECORD, {"steps": step, "size": size, "width": rows[0].shape[-1]})


def load(work: Path, sampling_steps: int, gpu_ids: str) -> Predict:
    """Return the generator of samples; rows of a case and draw share their noise."""
    device = make_device(gpu_ids)
    record, design = read_json(work / RECORD), Design.load(work)
    network = make_network(record["width"], record["size"])
    network.load_state_dict(load_file(work / WEIGHTS))
    network = network.to(device).eval()
    scheduler = DDIMScheduler(**schedule_arguments())
    scheduler.set_timesteps(sampling_steps)

    @torch.inference_mode()
    def predict(request: Request) -> Hu:
        mask = mask_channels(request.case, device)
        row = torch.from_numpy(design(request.row)).float()[None, None].to(device)
        noise = torch.Generator().manual_seed(request.seed)
        x = torch.randn((1, 1, *mask.shape[2:]), generator=noise).to(device)
        for t in scheduler.timesteps:
            time_step = torch.tensor([int(t)], device=device)
            output = network(torch.cat([x, mask], 1), time_step, context=row)
            x, _ = scheduler.step(output, int(t), x)
        shape = request.case.chest.lungs.shape
        volume = x[0, 0, : shape[0], : shape[1], : shape[2]].clamp(-1, 1).cpu().numpy()
        return to_hu(volume, WINDOW)

    return predict


def main(argv: Sequence[str] | None = None) -> None:
    """Train or generate."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--size", choices=tuple(SIZES), default="default")
    parser.add_argument("--sampling_steps", type=int, default=20)
    parser.add_argument("--gpu_ids", default="")
    o, stage = parser.parse_known_args(argv)
    run_stage(
        stage,
        __doc__ or "",
        lambda folder, work: train(folder, work, o.minutes, o.size, o.gpu_ids),
        lambda _, work: load(work, o.sampling_steps, o.gpu_ids),
    )


if __name__ == "__main__":
    main()
