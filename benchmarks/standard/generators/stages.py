"""The command of a generator: `train TRAIN WORK`, then `generate TEST WORK VOLUMES`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.standard.generators.cases import Hu, Request, read_requests, write_request

Train = Callable[[Path, Path], Any]  # of the training cases, and of a folder of its own
Predict = Callable[[Request], Hu]  # a volume on the grid of the mask
Load = Callable[[Path, Path], Predict]  # from the test cases and the folder of the training


def run_stage(argv: Sequence[str] | None, description: str, train: Train, load: Load) -> None:
    """Run the stage that the benchmark asks for: `train TRAIN WORK`, `generate TEST WORK OUT`.

    Args:
        argv: The words of the stage; by default those of the command line.
        description: What the generator is.
        load: Returns the trained generator, which is asked for every volume.
    """
    parser = argparse.ArgumentParser(description=description)
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, words in (("train", ("TRAIN", "WORK")), ("generate", ("TEST", "WORK", "VOLUMES"))):
        sub = stages.add_parser(stage)
        for word in words:
            sub.add_argument(word, type=Path)
    options = parser.parse_args(argv)
    if options.stage == "train":
        train(options.TRAIN, options.WORK)
        return
    predict = load(options.TEST, options.WORK)
    for request in read_requests(options.TEST):
        write_request(options.VOLUMES, request, predict(request))
