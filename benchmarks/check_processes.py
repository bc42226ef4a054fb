"""Several processes against one with the same global batch: their gradients and weights must agree
(gloo, CPU, fp32).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project's packages

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from benchmarks.check_resume import SMALL
from data.phantom.write import make_phantom_cohort
from models.base_model import MODELS
from models.text.relevance import MIN_SCANS
from options.benchmark_options import ProcessCheckCommand, ProcessCheckOptions
from options.parser import parse
from options.phantom_options import PhantomOptions
from pipelines import training
from util.cli import UserError, run_command
from util.files import write_json
from util.training.devices import make_accelerator, shutdown_distributed
from util.training.trainer import Trainer

log = logging.getLogger(__name__)


class DifferentWeights(UserError):
    """Several processes ended elsewhere than one."""

    code = 1


class Recorder:
    """Keeps, after the first and after the last step, every network's gradients and weights as one
    vector each.
    """

    def __init__(self, trainer: Trainer, last: int) -> None:
        self.trainer, self.last = trainer, last
        self.found: dict[str, Tensor] = {}
        for name, optimizer in trainer.optimizers.items():
            optimizer.optimizer.register_step_pre_hook(partial(self._before, name))

    def _wanted(self, step: int) -> bool:
        return step in (1, self.last)

    def _before(self, name: str, *_: Any) -> None:
        step = self.trainer.step + 1
        if self._wanted(step):
            grads = [
                p.grad for p in self.trainer.model.raw[name].parameters() if p.grad is not None
            ]
            self.found[f"step {step}: {name} gradients"] = torch.cat([g.flatten() for g in grads])

    def __call__(self, step: int, terms: Mapping[str, Tensor]) -> None:
        if self._wanted(step):
            for name, network in self.trainer.model.raw.items():
                weights = [p.detach().flatten() for p in network.parameters()]
                self.found[f"step {step}: {name} weights"] = torch.cat(weights).clone()


def train_words(options: ProcessCheckOptions, work: Path) -> list[str]:
    """The flags of training."""
    return [
        "--dataroot",
        str(work / "cohort"),
        "--name",
        "processes",
        *SMALL,
        "--cache_dir",
        str(work / "cache"),
        "--model",
        options.model,
        "--n_local_enhancers",
        "1" if options.model == "pix2pixhd" else "0",
        "--n_downsample_global",
        "1",
        "--fusion",
        "both",
        "--max_steps",
        str(options.steps),
        "--batch_size",
        str(options.batch_size),
    ]


def record_training(options: ProcessCheckOptions, work: Path) -> None:
    """Trains as `train.py` does, without writing a run; the main process writes what was
    measured.
    """
    settings = train.read_options(train_words(options, work))
    accelerator = make_accelerator(settings.optim.precision, settings.run.gpu_ids)
    torch.manual_seed(settings.run.seed)
    study = training.open_study(settings, None)
    cases = study.cohort.split("train")
    model = MODELS[settings.generator.model](
        settings, len(study.cohort.labels), study.encoder.width
    )
    trainer = training.make_trainer(settings, model, accelerator, len(cases))
    with accelerator.main_process_first():
        dataset = training.make_dataset(settings, study, cases, work / "cache", model)
    study = training.weigh_by_relevance(settings, study, work / "cache")
    recorder = Recorder(trainer, options.steps)
    recorder.found["step 0: weights of cases"] = torch.tensor(
        [study.weights[case.id] for case in cases]
    )
    trainer.fit(
        training.batches(settings, dataset, trainer),
        partial(training.embed, study, accelerator.device),
        recorder,
    )
    if accelerator.is_main_process:
        save_file(recorder.found, options.record)
    shutdown_distributed(accelerator)


def measure_processes(options: ProcessCheckOptions, work: Path, processes: int) -> dict[str, Tensor]:
    """What so many processes find; raises `UserError` with what they said if they fail."""
    file = work / f"{processes}.safetensors"
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes > 1
        else []
    )
    flags = [f"--{k}={getattr(options, k)}" for k in ("steps", "batch_size", "model")]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *flags, f"--work={work}", f"--record={file}"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise UserError(
            f"{processes} processes ended with code {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return load_file(file)


def check_processes(options: ProcessCheckOptions, work: Path) -> dict[str, float]:
    """Relative L2 difference of each vector; raises `NotEqual` above the tolerance."""
    make_phantom_cohort(
        PhantomOptions(
            OUT=str(work / "cohort"),
            cases=MIN_SCANS + 2,
            size=(24, 24, 16),
            test_cases=1,
            val_cases=1,
        )
    )
    one, several = (measure_processes(options, work, n) for n in (1, options.processes))
    order = sorted(one, key=lambda k: int(k.split()[1].rstrip(":")))
    found = {k: float((one[k] - several[k]).norm() / one[k].norm()) for k in order}
    for what, difference in found.items():
        log.info("%-24s %.1e", what, difference)
    if options.out:
        write_json(Path(options.out), {"processes": options.processes, "relative_l2": found})
    worst = max(found, key=lambda k: found[k])
    if found.keys() != several.keys() or not found[worst] <= options.tolerance:
        raise DifferentWeights(
            f"{options.processes} processes differ from one by {found[worst]:.1e} ({worst}); "
            f"allowed is {options.tolerance:g}."
        )
    log.info("%d processes equal one within %.1e (relative L2).", options.processes, found[worst])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Compares in a folder that is removed afterwards, or in `--work`."""
    options = parse(ProcessCheckCommand, __doc__ or "", argv).check
    if options.batch_size % options.processes:
        raise UserError(
            f"--batch_size is {options.batch_size}; it must be a multiple of --processes "
            f"{options.processes}."
        )
    with ExitStack() as stack:
        work = Path(
            options.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="processes_"))
        )
        if options.record:
            record_training(options, work)
        else:
            check_processes(options, work)


if __name__ == "__main__":
    run_command(main)
