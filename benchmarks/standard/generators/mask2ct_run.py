"""This project's GAN or diffusion model: train.py with the preset cpu, and its generator.

Further flags go to train.py, such as --max_steps 600 or --text_encoder table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's packages
from benchmarks.common import flag_words, generate_row, minilm_folder, train_run
from benchmarks.standard.generators.cases import Hu, Request, effects_outside_lungs
from benchmarks.standard.generators.stages import Predict, run_stage
from options.parser import parse
from options.test_options import TestOptions
from pipelines.generation.plan import open_plan, open_run
from util.cli import run_command

RUN = "standard"


def train(folder: Path, work: Path, model: str, flags: Sequence[str]) -> None:
    """Train a run."""
    words = flag_words(dataroot=folder, preset="cpu", template="auto", val_cases=0, seed=1)
    words += flag_words(model=model, cache_dir=work / "cache")
    if "--text_encoder" not in flags:
        words += flag_words(text_encoder=minilm_folder())
    if effects_outside_lungs(folder):
        words += flag_words(text_region="everywhere")
    train_run(work / RUN, (), [*words, *flags])


def load(folder: Path, work: Path) -> Predict:
    """Return the generator of a trained run."""
    words = flag_words(dataroot=folder, name=RUN, checkpoints_dir=work, split="all", tile=(0, 0, 0))
    options = parse(TestOptions, "", words)
    plan = open_plan(options, open_run(options))
    samples = {sample.name: sample for sample in plan.samples}

    def predict(request: Request) -> Hu:
        sample = samples[request.case.name]
        return sample.to_source_grid(generate_row(plan, sample, request.row, request.draw))

    return predict


def main(argv: Sequence[str] | None = None) -> None:
    """Train or generate."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", choices=("pix2pixhd", "diffusion"), default="pix2pixhd")
    o, words = parser.parse_known_args(argv)
    place = next(i for i, word in enumerate(words) if word in ("train", "generate"))
    flags, stage = words[:place], words[place:]
    run_stage(stage, __doc__ or "", lambda folder, work: train(folder, work, o.model, flags), load)


if __name__ == "__main__":
    run_command(main)
