"""Speed and memory on one GPU in minutes: steps, training, volumes, and effects read back.

OUT/figures.json is written after every part, so that a benchmark that is cut off still counts. It
holds the device; seconds, GiB and waiting for data of a step by preset, with and without
channels-last and compiling; a step of the reference's size (see `benchmarks/step.py`); volumes by
the GAN and by flows; a training of two minutes on phantoms, its effects against the planted ones;
and whether the same seed gives the same bytes twice. Parts that do not fit the memory say so.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import (
    GenerateBenchmarkOptions,
    GpuBenchmarkOptions,
    StepBenchmarkOptions,
)
from options.parser import answer_early, parse

answer_early(__name__, GpuBenchmarkOptions, __doc__ or "")  # the imports below are slow

import nibabel
import numpy as np
import torch

import test
from benchmarks import effects, generate, step
from benchmarks.common import flag_words
from benchmarks.report.planted_truth import compare_with_truth
from data.phantom.write import make_phantom_cohort
from options.benchmarks.effects import EffectsBenchmarkOptions
from options.phantom_options import PhantomOptions
from options.train_options import PRESETS, TrainOptions
from pipelines.training.components import make_trainer
from pipelines.training.dry_run import time_steps
from pipelines.training.fine_tuning import start_model
from pipelines.training.study import fix_labels, fix_text_texture, open_study
from util.cli import UserError, run_command
from util.files import write_json
from util.parallel import available_cores
from util.training.devices import device_name, make_accelerator, make_device

log = logging.getLogger(__name__)

CONFIGURATION = "encoder table"
POLL_SECONDS = 0.5
SEED = 1

Figures = dict[str, Any]
Words = tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        presets: Name of each, with further flags of train.py.
        settings: Names and flags with which their steps are measured again.
        phantom: Voxels of the phantoms that presets are measured on.
        steps: Steps of each measurement.
        volumes: Voxels of generated volumes.
        networks: Channels, halvings and blocks of the network that generates them.
        sampling_steps: Of the flow.
        training_seconds: Of the training whose effects are read back.
        training_cases: Phantoms of it.
        training_size: Their voxels.
        training_flags: Further flags of train.py for it.
        reference: Flags of the step of the reference's size.
    """

    presets: tuple[tuple[str, Words], ...] = (("24gb", ()), ("80gb", ()))
    settings: tuple[tuple[str, str], ...] = (
        ("not channels-last", "--no-channels_last"),
        ("compiled", "--compile"),
    )
    phantom: tuple[int, int, int] = (192, 192, 96)
    steps: int = 20
    volumes: tuple[tuple[int, int, int], ...] = (
        (256, 256, 128),
        (512, 512, 128),
        (512, 512, 256),
    )
    networks: tuple[int, int, int] = (32, 3, 4)  # ngf, halvings, blocks: those of 24gb
    sampling_steps: tuple[int, ...] = (15, 30)
    training_seconds: float = 120.0
    training_cases: int = 48
    training_size: tuple[int, int, int] = (64, 64, 48)
    training_flags: Words = ()
    reference: Words = ("--n_downsample_global", "2", "--steps", "10")


SMALL_NETWORK = tuple(
    flag_words(ngf=4, ndf=4, n_blocks_global=1, n_layers_D=2, num_D=1, batch_size=1)
    + flag_words(patch_size=(16, 16, 16), text_hidden=8)
)
TINY = Sizes(
    presets=(("cpu", SMALL_NETWORK),),
    settings=(("not channels-last", "--no-channels_last"),),  # a CPU compiles for minutes
    phantom=(24, 24, 16),
    steps=3,
    volumes=((16, 16, 16),),
    networks=(4, 2, 1),
    sampling_steps=(2,),
    training_seconds=0.5,
    training_cases=6,
    training_size=(24, 24, 16),
    training_flags=SMALL_NETWORK,
    reference=tuple(
        flag_words(ngf=4, n_downsample_global=2, n_blocks_global=1, patch_size=(16, 16, 16))
        + flag_words(steps=1, mode="fast")
    ),
)


def driver() -> Figures:
    """Return driver, memory and name of the GPUs by nvidia-smi; empty without it."""
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return {"gpus": lines} if (lines := nvidia_smi(query)) else {}


def nvidia_smi(words: Sequence[str]) -> list[str]:
    """Return the lines that nvidia-smi prints; none where it is absent or fails."""
    if not shutil.which("nvidia-smi"):
        return []
    process = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True)
    return process.stdout.strip().splitlines() if process.returncode == 0 else []


@contextlib.contextmanager
def utilisation() -> Iterator[list[float]]:
    """Yield a list that receives the GPU's utilisation in percent, twice a second."""
    shares: list[float] = []
    ended = threading.Event()

    def poll() -> None:
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not ended.wait(POLL_SECONDS):
            if lines := nvidia_smi(query):
                shares.append(float(lines[0]))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield shares
    finally:
        ended.set()
        thread.join()


class GpuBenchmark:
    """The parts of the benchmark.

    Args:
        o: Its options.
        sizes: What is measured.
    """

    def __init__(self, o: GpuBenchmarkOptions, sizes: Sizes) -> None:
        self.o, self.sizes = o, sizes
        self.out = Path(o.OUT)
        self.device = make_device(o.gpu_ids)
        self.start = time.monotonic()
        self.figures: Figures = {"machine": self.machine()}
        self.save()

    @property
    def device_flags(self) -> list[str]:
        """The flag of the device where one is named; some flags are split at spaces again."""
        return flag_words(gpu_ids=self.o.gpu_ids) if self.o.gpu_ids else []

    def save(self) -> None:
        """Write what is measured so far."""
        write_json(self.out / "figures.json", self.figures)

    def machine(self) -> Figures:
        """Return device and versions."""
        return {
            "device": device_name(self.device),
            "cores": available_cores(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "date": time.strftime("%Y-%m-%d"),
            **driver(),
        }

    def run(self) -> None:
        """Measure all parts."""
        sizes = self.sizes
        for preset, flags in sizes.presets:
            self.part(f"step {preset}", partial(self.preset_step, preset, flags))
        for volume in sizes.volumes:
            name = "x".join(map(str, volume))
            self.part(f"GAN {name}", partial(self.volume, volume))
            for count in sizes.sampling_steps:
                self.part(f"flow of {count} steps {name}", partial(self.volume, volume, count))
        self.part("training", self.training)
        self.part("same seed twice", self.same_seed)
        self.part("reference size", self.reference_step)
        for preset, flags in sizes.presets:
            for title, flag in sizes.settings:
                measure = partial(self.preset_step, preset, (*flags, flag))
                self.part(f"step {preset}, {title}", measure)

    def part(self, name: str, measure: Callable[[], Figures]) -> None:
        """Measure a part and save it; its failure, or that it came too late, is noted instead."""
        began = time.monotonic()
        if began - self.start > 60 * self.o.minutes:
            figures: Figures = {"left_out": f"{self.o.minutes:g} minutes were over"}
        else:
            try:
                figures = measure()
            except (UserError, RuntimeError, MemoryError) as error:
                figures = {"error": " ".join(str(error).split())[:500]}
            figures["part_s"] = time.monotonic() - began
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.figures[name] = figures
        self.save()
        shown = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
        log.info("%s: %s", name, ", ".join(f"{k} {number(v)}" for k, v in shown.items()))

    def preset_step(self, preset: str, flags: Words) -> Figures:
        """Return the time of a preset's step, with its data from the disk."""
        cohort = self.phantoms()
        words = ["--preset", preset, *flag_words(dataroot=cohort, name="step", template="aiib23")]
        words += [*flag_words(text_encoder="table", val_cases=0), *self.device_flags]
        options = parse(TrainOptions, "", [*words, *flags], PRESETS)
        study = open_study(options, self.out / "facts")
        options = fix_text_texture(fix_labels(options, study), study)
        accelerator = make_accelerator(options.optim.precision, self.o.gpu_ids)
        model = start_model(options, study, False)
        trainer = make_trainer(options, model, accelerator, len(study.training_cases))
        measured = time_steps(options, study, model, trainer, self.sizes.steps)
        return {
            "steps_per_s": 1 / measured.seconds,
            "waiting_for_data": measured.waiting / measured.seconds,
            "gib": measured.memory_gib,
            "flags": " ".join(flags),
        }

    def phantoms(self) -> Path:
        """Return the cohort that steps are measured on; it is made once."""
        folder = self.out / "phantoms"
        if not folder.is_dir():
            options = PhantomOptions(
                OUT=str(folder), cases=6, size=self.sizes.phantom, test_cases=1, val_cases=0
            )
            make_phantom_cohort(options)
        return folder

    def volume(self, size: tuple[int, int, int], sampling_steps: int = 0) -> Figures:
        """Return time and memory of a volume: by the GAN, or by a flow of so many steps."""
        ngf, halvings, blocks = self.sizes.networks
        options = GenerateBenchmarkOptions(
            model="diffusion" if sampling_steps else "pix2pixhd",
            sampling_steps=sampling_steps,
            size=size,
            ngf=ngf,
            n_downsample_global=halvings,
            n_blocks_global=blocks,
            prompts=1,
            gpu_ids=self.o.gpu_ids,
        )
        generate.measure(options)  # the first time, convolutions are chosen
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        figures = generate.measure(options)
        return {name: figures[name] for name in ("seconds", "gpu_gib") if name in figures}

    def effects_options(self, max_steps: int) -> EffectsBenchmarkOptions:
        """Return the options of the training whose effects are read back."""
        return EffectsBenchmarkOptions(
            OUT=str(self.out / "effects"),
            configurations=(CONFIGURATION,),
            cases=self.sizes.training_cases,
            test_cases=2,
            size=self.sizes.training_size,
            max_steps=max_steps,
            train_flags=" ".join([*self.device_flags, *self.sizes.training_flags]),
            test_flags=" ".join(self.device_flags),
            text=False,
            tag="_gpu",
        )

    def training(self) -> Figures:
        """Return what a training of some minutes reveals, and how busy the GPU is in it."""
        speed = self.preset_step("cpu", self.sizes.training_flags)["steps_per_s"]
        steps = max(3, round(self.sizes.training_seconds * speed))
        options = self.effects_options(steps)
        cohort = effects.make_cohort(options, SEED)
        with utilisation() as shares:
            seconds = effects.train_configuration(CONFIGURATION, options, SEED, cohort, "table")
        name = effects.configuration_key(CONFIGURATION, options, SEED)
        results = test.generate_cohort(effects.generation_options(name, options, cohort))
        measured = compare_with_truth(cohort, results)
        figures: Figures = {"steps": steps, "training_s": seconds, "steps_per_s_alone": speed}
        if shares:
            figures["gpu_utilisation"] = float(np.mean(shares))
        for column, regions in measured["effects"].items():
            if "slope" in regions.get("lungs", {}):
                figures[f"slope of {column}"] = regions["lungs"]["slope"]
        return figures | {"metrics": measured}

    def same_seed(self) -> Figures:
        """Return whether two runs of test.py with one seed write the same voxels."""
        options = self.effects_options(0)
        cohort = effects.make_cohort(options, SEED)
        name = effects.configuration_key(CONFIGURATION, options, SEED)
        volumes = []
        for number in (1, 2):
            words = effects.generation_options(name, options, cohort)
            source = replace(words.source, how_many=1)
            output = replace(words.output, results_dir=str(self.out / f"twice_{number}"))
            results = test.generate_cohort(replace(words, source=source, output=output))
            files = sorted(results.rglob("*.nii.gz"))
            volumes.append([np.asanyarray(nibabel.load(path).dataobj) for path in files])
        first, second = volumes
        equal = [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]
        return {"volumes": len(equal), "equal": sum(equal)}

    def reference_step(self) -> Figures:
        """Return the figures of a step of the reference's size, and of its own networks."""
        words = [*self.sizes.reference, *self.device_flags]
        if self.o.reference:
            words += flag_words(reference=self.o.reference)
        return step.run(parse(StepBenchmarkOptions, "", words), words)


def number(value: object) -> str:
    """Return a figure as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the figures."""
    o = parse(GpuBenchmarkOptions, __doc__ or "", argv)
    Path(o.OUT).mkdir(parents=True, exist_ok=True)
    GpuBenchmark(o, TINY if o.tiny else Sizes()).run()
    log.info("%s", Path(o.OUT) / "figures.json")


if __name__ == "__main__":
    run_command(main)
