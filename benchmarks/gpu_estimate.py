"""Estimate time and memory of a training step on GPUs that are not there, by arithmetic.

A step of each preset runs on tensors without data, in which operations of matrix products and
convolutions are counted, and the bytes that are kept for the backward pass. Time is then

    s = F / (e f) + n K / b

with F operations, f the GPU's dense bf16 peak, e the share of it that convolutions reach, K kept
bytes, b memory bandwidth, and n the times that each is moved (written, read by what follows, read
and accumulated in the backward pass). GPU memory is K, weights with gradients, Adam and average,
and a margin for workspaces. All of it is an extrapolation; `benchmarks/gpu.sh` measures.
"""

from __future__ import annotations

import logging
import math
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import GpuEstimateOptions
from options.parser import answer_early, parse

answer_early(__name__, GpuEstimateOptions, __doc__ or "")  # the imports below are slow

import pandas as pd
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import N_LABELS, random_batch
from models.base_model import MODELS, BatchText
from models.text.base_encoder import TextEmbedding
from options.train_options import PRESETS, TrainOptions
from util.cli import run_command
from util.files import write_json
from util.markdown import markdown_table

log = logging.getLogger(__name__)

EFFICIENCY = 0.25  # e; a quarter of the peak is usual for 3D convolutions
MOVES = 6  # n
MARGIN = 1.2  # workspaces of convolutions, gradients of features, fragments
WEIGHT_BYTES = 20  # weights, gradients, two moments of Adam and the moving average, float32
TEXT_WIDTH = 128
PHRASES = 8
PREPARED_BYTES = 3  # a voxel: int16 HU and a label
CHEST_MM = (350.0, 350.0, 326.0)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its maker's data sheet.

    Attributes:
        name: Name.
        peak: Dense bf16 operations per second.
        bandwidth: Bytes per second of its memory.
        gib: Its memory.
    """

    name: str
    peak: float
    bandwidth: float
    gib: float


GPUS = (
    Gpu("RTX 4090", 165e12, 1.0e12, 24),
    Gpu("A100 80 GB", 312e12, 2.0e12, 80),
    Gpu("H100 80 GB", 989e12, 3.35e12, 80),
    Gpu("H200", 989e12, 4.8e12, 141),
)


@dataclass(frozen=True)
class Step:
    """What a training step takes.

    Attributes:
        operations: F, of matrix products and convolutions.
        kept_bytes: K, the most that is kept for backward passes at once.
        parameters: Of all networks.
    """

    operations: float
    kept_bytes: float
    parameters: int

    @property
    def gib(self) -> float:
        """GPU memory."""
        return (MARGIN * self.kept_bytes + WEIGHT_BYTES * self.parameters) / 2**30

    def seconds(self, gpu: Gpu) -> float:
        """Return the time on a GPU."""
        return self.operations / (EFFICIENCY * gpu.peak) + MOVES * self.kept_bytes / gpu.bandwidth


class KeptTensors:
    """Counts the bytes of tensors that wait for a backward pass; storages count once."""

    def __init__(self) -> None:
        self.peak = 0
        self._held: dict[int, list[int]] = {}  # count and bytes by storage

    def pack(self, tensor: Tensor) -> Any:
        """Hold a tensor until the backward pass has used it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        held = self._held.setdefault(key, [0, storage.nbytes()])
        held[0] += 1
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        kept = _Kept(tensor)
        weakref.finalize(kept, self._release, key)
        return kept

    def unpack(self, kept: Any) -> Tensor:
        """Return a held tensor."""
        tensor: Tensor = kept.tensor
        return tensor

    def _release(self, key: int) -> None:
        self._held[key][0] -= 1
        if not self._held[key][0]:
            del self._held[key]


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def count_step(options: TrainOptions) -> Step:
    """Return what a training step of these options takes, without computing it."""
    # Its sort in NumPy needs values; its tensors are a block's quantiles and hardly count.
    options = replace(options, loss=replace(options.loss, lambda_quantile=0.0))
    kept = KeptTensors()
    # Only the networks' own constants are real tensors.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model = MODELS[options.generator.model](options, N_LABELS, TEXT_WIDTH)
        batch = random_batch(options, model.draws * model.noise_channels)
        batch["draws"] = torch.rand(options.optim.batch_size, 4)  # of diffusion: times, drop-out
        tokens = torch.zeros(options.optim.batch_size, PHRASES, TEXT_WIDTH)
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool)
        text = TextEmbedding(tokens, valid, tokens.sum(1))
        hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
        with FlopCounterMode(display=False) as counter, hooks, torch.autocast("cpu"):
            for _, loss, _ in model.training_step(batch, BatchText(text, text)):
                loss.backward()
        parameters = sum(p.numel() for n in model.raw.values() for p in n.parameters())
    return Step(counter.get_total_flops(), kept.peak, parameters)


def estimates(o: GpuEstimateOptions) -> list[dict[str, Any]]:
    """Return a row for each preset, model and GPU that it fits."""
    rows = []
    for preset in o.presets or tuple(name for name in PRESETS if name != "cpu"):
        for model in ("pix2pixhd", "diffusion"):
            words = ["--preset", preset, "--model", model, *o.train_flags.split()]
            options = parse(TrainOptions, "", words, PRESETS)
            step, optim = count_step(options), options.optim
            per_epoch = math.ceil(o.scans / optim.batch_size)
            steps = optim.max_steps or (optim.niter + optim.niter_decay) * per_epoch
            for gpu in GPUS:
                fits = step.gib <= gpu.gib
                seconds = step.seconds(gpu)
                rows.append(
                    {
                        "preset": preset,
                        "model": model,
                        "GPU": gpu.name,
                        "TFLOP a step": f"{step.operations / 1e12:.1f}",
                        "GiB": f"{step.gib:.0f}",
                        "s a step": round(seconds, 3) if fits else "does not fit",
                        f"hours, {o.scans} scans": f"{seconds * steps / 3600:.1f}" if fits else "",
                    }
                )
    return rows


def prepared_gb(scans: int, spacing: float) -> float:
    """Return the disk space of prepared chests at a spacing in mm, in GB, not compressed."""
    voxels = math.prod(round(side / spacing) for side in CHEST_MM)
    return scans * voxels * PREPARED_BYTES / 1e9


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write it."""
    o = parse(GpuEstimateOptions, __doc__ or "", argv)
    rows = estimates(o)
    disk = [{"spacing, mm": s, "GB on disk": f"{prepared_gb(o.scans, s):.0f}"} for s in o.spacing]
    log.info("\n%s", markdown_table(pd.DataFrame(rows)))
    log.info("\n%s", markdown_table(pd.DataFrame(disk)))
    if o.out:
        write_json(Path(o.out), {"steps": rows, "disk": disk})


if __name__ == "__main__":
    run_command(main)
