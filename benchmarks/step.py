"""Time and memory of a training step: the project's fast settings against plain ones.

Fast: bf16, channels-last, fused Adam, memory kept, phrases embedded once. Plain: fp32, contiguous,
Adam and memory by default, the prompt encoded by the language model in every step. Each is measured
in its own process.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import StepBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, StepBenchmarkOptions, __doc__ or "")  # the imports below are slow


import torch
from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

from benchmarks.common import minilm_folder
from models.base_model import MODELS, BatchText
from models.networks import generator
from models.networks.filters import tube_noise
from models.text.encoders import LanguagePhrases, build_text_encoder
from options.base_options import TextOptions
from options.train_options import GeneratorOptions, OptimOptions, TrainOptions
from util.cli import UserError, run_command
from util.files import read_json, write_json
from util.training import devices
from util.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)

N_LABELS = 4
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
MISMATCHED_PROMPT = [phrase.replace("IPF", "HP").replace("76", "51") for phrase in PROMPT]


def language_model(folder: Path) -> str:
    """Return the folder of MiniLM, or of a BERT of its size with random weights."""
    try:
        return minilm_folder()
    except UserError as error:
        log.info("A BERT with random weights is used: %s", error)
    text = " ".join([*PROMPT, *MISMATCHED_PROMPT]).lower()
    words = sorted(set(text.replace(":", " :").replace(".", " .").split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=len(vocabulary),
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def total_steps(o: StepBenchmarkOptions) -> int:
    """Return the number of steps: a first one, those measured, and those measured in parts."""
    return 1 + o.steps * (1 + o.parts)


def make_trainer(o: StepBenchmarkOptions, fast: bool, text_width: int) -> Trainer:
    """Return the trainer of a pix2pixHD model with fast or plain settings."""
    architecture = GeneratorOptions(
        ngf=o.ngf, n_downsample_global=o.n_downsample_global, n_blocks_global=o.n_blocks_global
    )
    options = TrainOptions(generator=architecture, optim=OptimOptions(batch_size=o.batch_size))
    torch.manual_seed(0)
    model = MODELS["pix2pixhd"](options, N_LABELS, text_width)
    with contextlib.nullcontext() if fast else patch.object(devices, "tune_malloc"):
        accelerator = devices.make_accelerator("bf16" if fast else "fp32", o.gpu_ids)
    steps = total_steps(o)
    config = TrainerConfig(
        steps=steps, constant_steps=steps - 1, steps_per_epoch=1, channels_last=fast
    )
    trainer = Trainer(model, accelerator, config)
    if not fast:
        for optimizer in trainer.optimizers.values():
            for group in optimizer.param_groups:
                group.update(fused=None, foreach=None)  # PyTorch's own choice
    return trainer


class PartsClock:
    """Processor seconds of the parts of a step; a part within another counts in both.

    Attributes:
        seconds: By part, over all steps.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        start = time.process_time()
        yield
        self.seconds[part] += time.process_time() - start

    def wrap(self, parts: Iterator[str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its time to the next of these parts."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(next(parts)):
                return function(*args, **kwargs)

        return timed

    def attach(self, trainer: Trainer) -> None:
        """Measure the parts of a pix2pixHD trainer's steps from now on."""
        model: Any = trainer.model
        for name, network in model.raw.items():
            network.forward = self.wrap(repeat(f"forward {name}"), network.forward)
        model._score_terms = self.wrap(repeat("scores"), model._score_terms)
        vars(generator)["tube_noise"] = self.wrap(repeat("tubes"), tube_noise)
        order = cycle(["backward D", "backward G and scores"])
        accelerator = trainer.accelerator
        vars(accelerator)["backward"] = self.wrap(order, accelerator.backward)
        for name, optimizer in trainer.optimizers.items():
            optimizer.step = self.wrap(repeat(f"optimiser {name}"), optimizer.step)


def random_batch(o: StepBenchmarkOptions, noise_channels: int) -> dict[str, Any]:
    """Return a batch of random volumes and masks."""
    labels = torch.randint(N_LABELS, (o.batch_size, *o.patch_size))
    return {
        "image": torch.rand(o.batch_size, 1, *o.patch_size) * 2 - 1,
        "coords": torch.rand(o.batch_size, 3, *o.patch_size),
        "mask": torch.nn.functional.one_hot(labels, N_LABELS).movedim(-1, 1).float(),
        "noise": torch.randn(o.batch_size, noise_channels, *o.patch_size),
    }


def measure_step(o: StepBenchmarkOptions, fast: bool, folder: Path) -> dict[str, Any]:
    """Return median seconds and peak GiB of a step in this process."""
    source = TextOptions(text_encoder=o.text_encoder or language_model(folder))
    encoder = build_text_encoder(source)
    assert isinstance(encoder, LanguagePhrases)
    encoder.fit([PROMPT, MISMATCHED_PROMPT])
    trainer = make_trainer(o, fast, encoder.width)
    model, device = trainer.model, trainer.accelerator.device
    batch = random_batch(o, model.draws * model.noise_channels)  # type: ignore[attr-defined]
    seconds = []
    clock = PartsClock()
    total = total_steps(o)
    for number, parts in enumerate(trainer.iterate([batch] * total, until=total)):
        if number == o.steps + 1:
            clock.attach(trainer)
        start = time.perf_counter()
        if not fast:
            encoder.embedded.clear()  # outputs of the language model
            encoder.set_phrase_weights({})  # also forgets the embeddings of phrases
        matched, mismatched = (
            encoder.encode([prompt] * o.batch_size).to(device)
            for prompt in (PROMPT, MISMATCHED_PROMPT)
        )
        with clock.timed("all"):
            trainer.step([(part, BatchText(matched, mismatched)) for part in parts])
        seconds.append(time.perf_counter() - start)
        if number == o.steps:
            clock.seconds.clear()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parameters = {}
    for name, network in model.raw.items():
        parameters[name] = sum(p.numel() for p in network.parameters()) / 1e6
    return {
        "median_s": statistics.median(seconds[1 : o.steps + 1]),
        "all_s": seconds[1 : o.steps + 1],
        "parts_s": {name: value / o.steps for name, value in clock.seconds.items()},
        "peak_gib": peak,
        "parameters_m": parameters,
    }


def measure_in_process(words: Sequence[str], mode: str, folder: Path) -> dict[str, Any]:
    """Measure one mode in its own process."""
    out = folder / f"{mode}.json"
    command = [sys.executable, __file__, *words, "--mode", mode, "--out", str(out)]
    subprocess.run(command, check=True)
    return dict(read_json(out))


def main() -> None:
    """Measure the modes that are asked for."""
    o = parse(StepBenchmarkOptions, __doc__ or "")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if o.mode == "both":
            plain, fast = (measure_in_process(sys.argv[1:], m, folder) for m in ("plain", "fast"))
            ratio = plain["median_s"] / fast["median_s"]
            settings = vars(replace(o, out=""))
            figures = {"plain": plain, "fast": fast, "times_faster": ratio, "settings": settings}
            message = "Fast is %.2f times as fast as plain (%.2f against %.2f s per step)."
            log.info(message, ratio, fast["median_s"], plain["median_s"])
        else:
            figures = measure_step(o, o.mode == "fast", folder)
            message = "%s: median %.2f s per step, %.1f GiB."
            log.info(message, o.mode, figures["median_s"], figures["peak_gib"])
            for part, value in figures["parts_s"].items():
                log.info("%s: %.3f processor seconds per step.", part, value)
    if o.out:
        write_json(Path(o.out), figures)


if __name__ == "__main__":
    run_command(main)
