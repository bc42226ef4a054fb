"""Check that several processes train as one: equal gradients and weights (gloo, CPU, fp32)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project's packages

from options.benchmarks.checks import ProcessCheckOptions
from options.parser import answer_early, parse

answer_early(__name__, ProcessCheckOptions, __doc__ or "")  # the imports below are slow

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from benchmarks.check_resume import SMALL_RUN
from benchmarks.common import flag_words
from data.phantom.write import make_phantom_cohort
from models.base_model import MODELS
from models.text.relevance import MIN_SCANS
from options.phantom_options import PhantomOptions
from pipelines.training.components import make_dataset, make_loader, make_trainer
from pipelines.training.study import open_study, weigh_by_relevance
from util.cli import UserError, run_command
from util.files import write_json
from util.training.devices import make_accelerator, shutdown_distributed
from util.training.trainer import Trainer

log = logging.getLogger(__name__)


class DifferentWeights(UserError):
    """Several processes gave other gradients or weights than one."""

    code = 1


class Recorder:
    """Gradients and weights of every network, as one vector each, of the first and last step."""

    def __init__(self, trainer: Trainer, last: int) -> None:
        self.trainer = trainer
        self.steps = (1, last)
        self.vectors: dict[str, Tensor] = {}
        for name, optimizer in trainer.optimizers.items():
            optimizer.optimizer.register_step_pre_hook(partial(self._record_gradients, name))

    def _record_gradients(self, name: str, *_: Any) -> None:
        step = self.trainer.steps_done + 1
        if step in self.steps:
            parameters = self.trainer.model.raw[name].parameters()
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            self.vectors[f"step {step}: {name} gradients"] = torch.cat(gradients)

    def record_weights(self) -> None:
        """Record the weights after a step."""
        step = self.trainer.steps_done
        if step in self.steps:
            for name, network in self.trainer.model.raw.items():
                weights = [p.detach().flatten() for p in network.parameters()]
                self.vectors[f"step {step}: {name} weights"] = torch.cat(weights).clone()


def train_words(options: ProcessCheckOptions, work: Path) -> list[str]:
    """Return the flags of train.py."""
    flags = SMALL_RUN | {
        "dataroot": work / "cohort",
        "name": "processes",
        "cache_dir": work / "cache",
        "model": options.model,
        "n_local_enhancers": 1 if options.model == "pix2pixhd" else 0,
        "n_downsample_global": 1,
        "fusion": "both",
        "text_texture": options.at_output,
        "text_linear": options.at_output,
        "max_steps": options.steps,
        "batch_size": options.batch_size,
    }
    return flag_words(**flags)


def record_training(options: ProcessCheckOptions, work: Path) -> None:
    """Train as train.py does, without a run's folder; the main process writes the vectors."""
    settings = train.read_options(train_words(options, work))
    accelerator = make_accelerator(settings.optim.precision, settings.run.gpu_ids)
    torch.manual_seed(settings.run.seed)
    study = open_study(settings, None)
    cases = study.training_cases
    n_labels = len(study.cohort.labels)
    model = MODELS[settings.generator.model](settings, n_labels, study.encoder.width)
    trainer = make_trainer(settings, model, accelerator, len(cases))
    cache = work / "cache"
    with accelerator.main_process_first():
        dataset = make_dataset(settings, study, model, cases, cache)
    study = weigh_by_relevance(settings, study, cache)
    recorder = Recorder(trainer, options.steps)
    weights = [study.case_weights[case.id] for case in cases]
    recorder.vectors["step 0: weights of cases"] = torch.tensor(weights)
    loader = make_loader(settings, dataset, trainer)
    for parts in trainer.iterate(loader, prepare=dataset.inputs):
        trainer.step([(part, study.embed(part, accelerator.device)) for part in parts])
        recorder.record_weights()
    if accelerator.is_main_process:
        save_file(recorder.vectors, options.record)
    shutdown_distributed(accelerator)


def measure_processes(
    options: ProcessCheckOptions, work: Path, processes: int
) -> dict[str, Tensor]:
    """Return the vectors of a training in this many processes; raise `UserError` if it fails."""
    file = work / f"{processes}.safetensors"
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    settings = asdict(options) | {"work": work, "record": file}
    del settings["out"]
    command += [__file__, *flag_words(**settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment)
    if done.returncode:
        raise UserError(
            f"{processes} processes ended with code {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return load_file(file)


def check_processes(options: ProcessCheckOptions, work: Path) -> dict[str, float]:
    """Return the relative L2 difference of each vector.

    Raises:
        DifferentWeights: A difference is larger than the tolerance.
    """
    cohort = PhantomOptions(
        OUT=str(work / "cohort"), cases=MIN_SCANS + 2, size=(24, 24, 16), test_cases=1, val_cases=1
    )
    make_phantom_cohort(cohort)
    one = measure_processes(options, work, 1)
    several = measure_processes(options, work, options.processes)
    differences = {}
    for name in sorted(one, key=lambda name: int(name.split()[1].rstrip(":"))):
        differences[name] = float((one[name] - several[name]).norm() / one[name].norm())
        log.info("%-24s %.1e", name, differences[name])
    if options.out:
        figures = {"processes": options.processes, "relative_l2": differences}
        write_json(Path(options.out), figures)
    worst = max(differences, key=lambda name: differences[name])
    largest = differences[worst]
    if differences.keys() != several.keys() or not largest <= options.tolerance:
        raise DifferentWeights(
            f"{options.processes} processes differ from one by {largest:.1e} ({worst}); "
            f"allowed is {options.tolerance:g}."
        )
    log.info("%d processes equal one within %.1e (relative L2).", options.processes, largest)
    return differences


def main(argv: Sequence[str] | None = None) -> None:
    """Compare in a temporary folder, or in `--work`."""
    options = parse(ProcessCheckOptions, __doc__ or "", argv)
    if options.batch_size % options.processes:
        raise UserError(
            f"--batch_size is {options.batch_size}; it must be a multiple of --processes "
            f"{options.processes}."
        )
    with ExitStack() as stack:
        work = options.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="processes_"))
        if options.record:
            record_training(options, Path(work))
        else:
            check_processes(options, Path(work))


if __name__ == "__main__":
    run_command(main)
