"""Time and memory of generating a volume by the GAN or by diffusion.

The network has random weights, and the labels are two lungs in a body. Processor seconds are
reported as ratios: of tiles to the whole volume at once (--whole), and of several prompts to one.
Memory is the process's peak beyond what it held with the network alone, per voxel.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import GenerateBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, GenerateBenchmarkOptions, __doc__ or "")  # the imports below are slow


import psutil
import torch
from torch import Tensor

from models.base_model import MODELS, Condition, GenerativeModel
from models.inference import VARIANTS_AT_ONCE
from models.sliding_window import SlidingWindow
from models.text.base_encoder import TextEmbedding
from options.diffusion_options import SamplingOptions
from options.train_options import GeneratorOptions, TrainOptions
from util.cli import UserError, run_command
from util.files import write_json
from util.seeding import noise_key
from util.training.devices import device_name, make_device
from util.volume_inputs import CoordinateInput, LabelInput, NoiseInput, whole

log = logging.getLogger(__name__)

N_LABELS = 4
N_PHRASES = 8
TEXT_WIDTH = 128
HU = 700  # of one unit in [-1, 1]


def chest(size: Sequence[int]) -> Tensor:
    """Return labels uint8 (X, Y, Z): background 0, two lungs 1 and 2, and a body 3."""
    x, y, z = (torch.linspace(-1, 1, n) for n in size)
    x, y, z = x[:, None, None], y[:, None], z
    labels = torch.zeros(*size, dtype=torch.uint8)
    labels[((x / 0.95) ** 2 + (y / 0.75) ** 2 + 0 * z) < 1] = 3
    for label, side in ((1, -0.45), (2, 0.45)):
        inside = ((x - side) / 0.38) ** 2 + (y / 0.55) ** 2 + (z / 0.85) ** 2 < 1
        labels[inside] = label
    return labels


def random_prompts(count: int) -> TextEmbedding:
    """Return embeddings of random phrases."""
    tokens = torch.randn(count, N_PHRASES, TEXT_WIDTH)
    return TextEmbedding(tokens, torch.ones(count, N_PHRASES, dtype=torch.bool), tokens.sum(1))


def build(o: GenerateBenchmarkOptions, device: torch.device) -> GenerativeModel:
    """Return a model in which text and noise matter."""
    torch.manual_seed(0)
    options = TrainOptions(
        generator=GeneratorOptions(
            model=o.model,
            ngf=o.ngf,
            n_downsample_global=o.n_downsample_global,
            n_blocks_global=o.n_blocks_global,
        ),
        sampling=SamplingOptions(sampling_steps=o.sampling_steps or None),
    )
    model = MODELS[o.model](options, N_LABELS, TEXT_WIDTH, training=False)
    for parameter in model.inference_network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.inference_network.to(device).eval()
    return model


def measure(o: GenerateBenchmarkOptions) -> dict[str, Any]:
    """Return the figures of one network and size."""
    device = make_device(o.gpu_ids)
    model = build(o, device)
    if bad := [side for side in o.size if side % model.size_multiple]:
        raise UserError(f"--size has a side of {bad[0]}; use multiples of {model.size_multiple}.")
    process = psutil.Process()
    before = process.memory_info().rss
    labels = chest(o.size)
    mask: Any = LabelInput(labels, N_LABELS, device)
    coords: Any = CoordinateInput(o.size, (0, 0, 0), o.size, device)
    noise: Any = NoiseInput(noise_key(0, "case"), model.noise_channels, o.size, device)
    if not model.boxed_inputs:
        mask, coords, noise = whole(mask), whole(coords), whole(noise)
    tiled = SlidingWindow(o.tile or o.size, model.size_multiple, by_memory=not o.tile)

    def generate(window: SlidingWindow, prompts: int) -> Tensor:
        torch.manual_seed(1)
        condition = Condition(mask, coords, random_prompts(prompts).to(device))
        with torch.inference_mode():
            return model.generate_variants(condition, noise, window)

    figures: dict[str, Any] = {"device": device_name(device), "settings": vars(o)}
    one, seconds = timed(lambda: generate(tiled, 1), device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    voxels = labels.numel()
    figures |= {
        "seconds": seconds,
        "bytes_per_voxel": (peak - before) / voxels,
        "peak_gib": peak / 2**30,
        "organ_share": float(((labels == 1) | (labels == 2)).float().mean()),
    }
    if device.type == "cuda":
        figures["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    log.info(
        "%s voxels on %s: %.1f s, %.1f bytes a voxel beside the network, peak %.2f GiB.",
        "x".join(map(str, o.size)),
        figures["device"],
        seconds,
        figures["bytes_per_voxel"],
        figures["peak_gib"],
    )
    if o.prompts > 1:
        _, together = timed(lambda: generate(tiled, min(o.prompts, VARIANTS_AT_ONCE)), device)
        figures["prompts_over_one_s"] = together / seconds
        log.info("%d prompts take %.2f times as long as one.", o.prompts, together / seconds)
    if o.whole:
        at_once, whole_seconds = timed(
            lambda: generate(SlidingWindow((), model.size_multiple), 1), device
        )
        figures["tiles_over_whole_s"] = seconds / whole_seconds
        figures["largest_hu"] = float((one - at_once).abs().max()) * HU
        log.info(
            "Tiles take %.2f times as long as the whole volume, and differ by at most %.4f HU.",
            seconds / whole_seconds,
            figures["largest_hu"],
        )
    return figures


def timed(function: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """Return a result and its processor seconds, or wall seconds on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, clock() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the figures."""
    o = parse(GenerateBenchmarkOptions, __doc__ or "", argv)
    figures = measure(o)
    if o.out:
        write_json(Path(o.out), figures)


if __name__ == "__main__":
    run_command(main)
