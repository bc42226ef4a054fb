"""Time and memory of a training step: the project's fast settings against plain ones.

Fast: bf16 where the processor computes it, channels-last, fused Adam, memory kept, phrases embedded
once. Plain: fp32, contiguous, Adam and memory by default, the prompt encoded by the language model
in every step. With --reference, steps of the published reference's own networks are measured
beside, with one draw as it has, and with two. Each is measured in its own process; seconds are
those of all processors, or of the wall on a GPU.
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

from benchmarks.common import flag_words, minilm_folder
from models.base_model import MODELS, BatchText
from models.networks import generator
from models.networks.filters import tube_noise
from models.text.encoders import LanguagePhrases, build_text_encoder
from options.base_options import TextOptions
from options.train_options import TrainOptions
from util.cli import UserError, run_command
from util.files import read_json, write_json
from util.training import devices
from util.training.devices import make_device
from util.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)

N_LABELS = 4
REFERENCE_STEP = Path(__file__).with_name("reference_step.py")
REFERENCE_FORMS = ("attention", "affine")
REFERENCE_DEPTH = (2, 9)  # halvings and blocks
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


def train_options(o: StepBenchmarkOptions) -> TrainOptions:
    """Return the options of the networks and their training."""
    words = flag_words(
        ngf=o.ngf,
        n_downsample_global=o.n_downsample_global,
        n_blocks_global=o.n_blocks_global,
        patch_size=o.patch_size,
        batch_size=o.batch_size,
    )
    if o.draws == 1:
        words += flag_words(lambda_mean=0, lambda_patch=0, lambda_quantile=0, lambda_l1=10)
    return parse(TrainOptions, "", words)


def make_trainer(
    options: TrainOptions, steps: int, text_width: int, gpu_ids: str, fast: bool = True
) -> Trainer:
    """Return the trainer of a model with fast or plain settings."""
    torch.manual_seed(0)
    model = MODELS[options.generator.model](options, N_LABELS, text_width)
    with contextlib.nullcontext() if fast else patch.object(devices, "tune_malloc"):
        accelerator = devices.make_accelerator("auto" if fast else "fp32", gpu_ids)
    config = TrainerConfig(
        steps=steps,
        constant_steps=steps - 1,
        steps_per_epoch=1,
        channels_last=fast and options.optim.channels_last,
        compiled=options.optim.compile,
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


def random_batch(options: TrainOptions, noise_channels: int) -> dict[str, Any]:
    """Return a batch of random volumes and masks."""
    batch, size = options.optim.batch_size, options.patch.patch_size
    labels = torch.randint(N_LABELS, (batch, *size))
    return {
        "image": torch.rand(batch, 1, *size) * 2 - 1,
        "coords": torch.rand(batch, 3, *size),
        "mask": torch.nn.functional.one_hot(labels, N_LABELS).movedim(-1, 1).float(),
        "noise": torch.randn(batch, noise_channels, *size),
    }


def measure_step(o: StepBenchmarkOptions, fast: bool, folder: Path) -> dict[str, Any]:
    """Return median seconds and peak GiB of a step in this process."""
    source = TextOptions(text_encoder=o.text_encoder or language_model(folder))
    encoder = build_text_encoder(source)
    assert isinstance(encoder, LanguagePhrases)
    encoder.fit([PROMPT, MISMATCHED_PROMPT])
    options, total = train_options(o), total_steps(o)
    trainer = make_trainer(options, total, encoder.width, o.gpu_ids, fast)
    model, device = trainer.model, trainer.accelerator.device
    batch = random_batch(options, model.draws * model.noise_channels)  # type: ignore[attr-defined]
    seconds = []
    clock, now = PartsClock(), step_clock(device)
    for number, parts in enumerate(trainer.iterate([batch] * total, until=total)):
        if number == o.steps + 1:
            clock.attach(trainer)
        start = now()
        if not fast:
            encoder.embedded.clear()  # outputs of the language model
            encoder.set_phrase_weights({})  # also forgets the embeddings of phrases
        matched, mismatched = (
            encoder.encode([prompt] * o.batch_size).to(device)
            for prompt in (PROMPT, MISMATCHED_PROMPT)
        )
        with clock.timed("all"):
            trainer.step([(part, BatchText(matched, mismatched)) for part in parts])
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - start)
        if number == o.steps:
            clock.seconds.clear()
    return {
        "median_s": statistics.median(seconds[1 : o.steps + 1]),
        "all_s": seconds[1 : o.steps + 1],
        "parts_s": {name: value / o.steps for name, value in clock.seconds.items()},
        "peak_gib": peak_gib(device),
        "parameters_m": {
            name: sum(p.numel() for p in network.parameters()) / 1e6
            for name, network in model.raw.items()
        },
    }


def step_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of a step: that of the wall for a GPU, else of all processors.

    Other programs of the machine hardly change seconds of processors.
    """
    return time.perf_counter if device.type == "cuda" else time.process_time


def peak_gib(device: torch.device) -> float:
    """Return the most memory so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_in_process(
    words: Sequence[str], mode: str, folder: Path, draws: int = 2
) -> dict[str, Any]:
    """Measure one mode in its own process."""
    out = folder / f"{mode}_{draws}.json"
    command = [sys.executable, __file__, *words, "--mode", mode, "--draws", str(draws)]
    subprocess.run([*command, "--out", str(out)], check=True)
    return dict(read_json(out))


def measure_reference(o: StepBenchmarkOptions, form: str, folder: Path) -> dict[str, Any]:
    """Measure a form of the reference in its own process: its packages have the project's names.

    Raises:
        UserError: It ends with an error.
    """
    out = folder / f"{form}.json"
    device = make_device(o.gpu_ids)
    words = flag_words(form=form, ngf=o.ngf, steps=o.steps, device=device, out=out)
    words += ["--batch", ",".join(map(str, (o.batch_size, *o.patch_size)))]
    command = [sys.executable, str(REFERENCE_STEP), o.reference, *words]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"The reference's step ({form}) failed: {reason}. --reference must be a clone of "
            "github.com/junzhin/DGM-VLC; its affine form is made for --ngf 64."
        )
    return dict(read_json(out))


def compare(o: StepBenchmarkOptions, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the figures of all modes, each beside the fast one."""
    plain, fast = (measure_in_process(words, mode, folder) for mode in ("plain", "fast"))
    figures = {
        "plain": plain,
        "fast": fast,
        "times_faster": plain["median_s"] / fast["median_s"],
        "settings": vars(replace(o, out="")),
    }
    message = "Fast is %.2f times as fast as plain (%.2f against %.2f s per step)."
    log.info(message, figures["times_faster"], fast["median_s"], plain["median_s"])
    if o.reference:
        ours = {"two draws": fast, "one draw": measure_in_process(words, "fast", folder, draws=1)}
        figures["one draw"] = ours["one draw"]
        for form in REFERENCE_FORMS:
            theirs = figures[f"reference, {form}"] = measure_reference(o, form, folder)
            for draws, own in ours.items():
                log.info(
                    "%s: %.2f times as fast as the reference's %s form (%.2f against %.2f s per "
                    "step), %.2f times its memory (%.2f against %.2f GiB).",
                    draws.capitalize(),
                    theirs["median_s"] / own["median_s"],
                    form,
                    own["median_s"],
                    theirs["median_s"],
                    own["peak_gib"] / theirs["peak_gib"],
                    own["peak_gib"],
                    theirs["peak_gib"],
                )
    return figures


def check_reference(o: StepBenchmarkOptions) -> None:
    """Raise `UserError` where the reference cannot be measured beside these networks."""
    if not o.reference:
        return
    if not (Path(o.reference) / "models" / "model_helper.py").is_file():
        raise UserError(
            f"--reference {o.reference} holds no models/model_helper.py. Clone "
            "github.com/junzhin/DGM-VLC, and give its folder."
        )
    depth = o.n_downsample_global, o.n_blocks_global
    if depth != REFERENCE_DEPTH:
        raise UserError(
            "The reference has 2 halvings and 9 blocks. Give --n_downsample_global 2 "
            f"--n_blocks_global 9 (now {depth[0]} and {depth[1]})."
        )


def run(o: StepBenchmarkOptions, words: Sequence[str]) -> dict[str, Any]:
    """Measure the modes that are asked for, by options or the words that they were read from."""
    check_reference(o)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if o.mode == "both":
            return compare(o, words, folder)
        figures = measure_step(o, o.mode == "fast", folder)
        message = "%s: median %.2f s per step, %.1f GiB."
        log.info(message, o.mode, figures["median_s"], figures["peak_gib"])
        for part, value in figures["parts_s"].items():
            log.info("%s: %.3f processor seconds per step.", part, value)
        return figures


def main() -> None:
    """Measure, and write the figures."""
    o = parse(StepBenchmarkOptions, __doc__ or "")
    figures = run(o, sys.argv[1:])
    if o.out:
        write_json(Path(o.out), figures)


if __name__ == "__main__":
    run_command(main)
