"""Refits of a run on resampled patients, permuted columns or folds."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.cache import cache_folder
from data.cohort import PROMPTS_FILE
from data.text.prompts import load_template
from options.atlas_options import RefitOptions
from options.parser import command_line, from_dict
from options.train_options import TrainOptions
from pipelines.atlas.attributes import dependent_columns
from util import cli
from util.cli import UserError, format_list, safe_name
from util.files import read_json, write_json
from util.training import checkpoint, runs

ROOT = Path(__file__).resolve().parents[1]

log = logging.getLogger(__name__)

REFITS = "refits"  # folder below the run's

CLIP_RECORD = "clip.json"  # marks an encoder that was trained on a cohort

SEED_OFFSET = 1000  # refit k of a run of seed s trains with the seed s + 1000 + k


@dataclass(frozen=True)
class Refit:
    """One run to train: `kind` is resampled, permuted or fold."""

    name: str
    kind: str
    seed: int
    permuted: tuple[str, ...] = ()
    fold: str = ""

    def record(self, folder: Path) -> Path:
        """The file that says that it is finished."""
        return folder / REFITS / f"{self.name}.json"


@dataclass(frozen=True)
class OriginRun:
    """The run that is trained again."""

    folder: Path
    options: TrainOptions
    step: int
    columns: tuple[str, ...]

    @staticmethod
    def load(folder: Path, dataroot: str = "") -> OriginRun:
        """Reads a run; raises `UserError` where it is none, or started from another run's
        weights.
        """
        options = from_dict(
            TrainOptions, runs.saved_options(folder), str(folder / runs.OPTIONS_FILE)
        )
        state = checkpoint.load_state(checkpoint.find(folder / "latest"))
        if options.optim.load_global:
            raise UserError(
                f"--name {folder.name} started from --load_global {options.optim.load_global}, "
                "which has seen all patients: its refits would not be independent. Refit the "
                "global run itself."
            )
        data = replace(options.data, dataroot=dataroot or options.data.dataroot)
        return OriginRun(
            folder, replace(options, data=data), int(state["step"]), tuple(state["columns"])
        )


def planned_refits(origin: OriginRun, o: RefitOptions, folds: Sequence[str] = ()) -> list[Refit]:
    """The refits that the options ask for.

    Raises:
        UserError: A column to shuffle that the run does not know, or prompts that do not follow the
            rows.
    """
    seed, made = origin.options.run.seed + SEED_OFFSET, []
    made += [Refit(f"resampled_{k:03d}", "resampled", seed + k) for k in range(1, o.refits + 1)]
    if o.permutations:
        columns = permuted_columns(origin, o.permute)
        name = "_".join(["permuted", *(safe_name(c) for c in o.permute)])
        made += [
            Refit(f"{name}_{k:03d}", "permuted", seed + k, columns)
            for k in range(1, o.permutations + 1)
        ]
    for fold in folds:
        number, _, count = fold.partition("/")
        made.append(Refit(f"fold_{number}_of_{count}", "fold", origin.options.run.seed, fold=fold))
    return made


def permuted_columns(origin: OriginRun, named: Sequence[str]) -> tuple[str, ...]:
    """The columns to shuffle: those named with what hangs on them, else every column that the text
    can tell.
    """
    data = origin.options.data
    template = load_template(data.template, origin.columns, data.key_column, data.patient_column)
    there = template.attributes(origin.columns)
    if strange := [c for c in named if c not in there]:
        raise UserError(
            f"--permute: the run {origin.folder.name} knows no column {strange[0]!r}; it has: "
            f"{format_list(there, 40)}."
        )
    if (Path(data.dataroot) / PROMPTS_FILE).is_file():
        raise UserError(
            f"--permutations: {Path(data.dataroot) / PROMPTS_FILE} gives texts that do not follow "
            "the table's rows, so shuffling columns changes nothing. Use a cohort without that "
            "file."
        )
    hanging = dependent_columns(template)
    chosen = [c for name in named for c in (name, *hanging.get(name, ())) if c in there]
    return tuple(dict.fromkeys(chosen)) if named else tuple(there)


def is_finished(origin: OriginRun, refit: Refit, steps: int) -> bool:
    """Whether a refit of this very run is there."""
    path = refit.record(origin.folder)
    return path.is_file() and read_json(path) == refit_record(origin, refit, steps)


def refit_record(origin: OriginRun, refit: Refit, steps: int) -> dict[str, Any]:
    return {
        "name": refit.name,
        "kind": refit.kind,
        "seed": refit.seed,
        "permuted": list(refit.permuted),
        "fold": refit.fold,
        "run_step": origin.step,
        "steps": steps or origin.step,
    }


def train_arguments(origin: OriginRun, refit: Refit, o: RefitOptions, gpu: str) -> list[str]:
    """The command line of train.py for a refit."""
    options, home = origin.options, origin.folder / REFITS
    cache = options.data.cache_dir or str(cache_folder(options.data, origin.folder))
    data = replace(
        options.data,
        cache_dir=cache,
        permute=refit.permuted,
        resample=refit.kind == "resampled",
        fold=refit.fold,
        splits=_splits(origin),
    )
    steps = (
        o.refit_steps or origin.step
    )  # a run that was made longer has more steps than its options say
    gpu = gpu or options.run.gpu_ids
    if _begun(home / refit.name):
        return [
            "--name",
            refit.name,
            "--checkpoints_dir",
            str(home),
            "--continue_train",
            "--max_steps",
            str(steps),
            f"--gpu_ids={gpu}",
        ]
    run = replace(
        options.run,
        name=refit.name,
        checkpoints_dir=str(home),
        seed=refit.seed,
        gpu_ids=gpu,
        overwrite=True,
        continue_train=False,
        dry_run=False,
        val_cases=0,
        save_epoch_freq=0,
    )
    optim = replace(options.optim, max_steps=steps)
    text = options.text
    if not o.reuse_encoder and (Path(text.text_encoder) / CLIP_RECORD).is_file():
        text = replace(text, text_encoder="cohort")
    lines = command_line(replace(options, run=run, data=data, optim=optim, text=text))
    return [word for line in lines.values() for word in shlex.split(line)]


def _begun(folder: Path) -> bool:
    """Whether a stopped refit has a checkpoint to go on from."""
    try:
        return checkpoint.find(folder / "latest").is_dir()
    except UserError:
        return False


def _splits(origin: OriginRun) -> str:
    """The run's own splits, where the dataroot has none and they are not simply everyone in all of
    them.
    """
    own = origin.folder / runs.SPLITS_FILE
    if (
        origin.options.data.splits
        or (Path(origin.options.data.dataroot) / runs.SPLITS_FILE).is_file()
        or not own.is_file()
    ):
        return origin.options.data.splits
    every = [case for cases in read_json(own).values() for case in cases]
    return str(own) if len(set(every)) == len(every) else ""


def train_refits(origin: OriginRun, o: RefitOptions, refits: Sequence[Refit]) -> None:
    """Trains what is not finished, side by side on `--gpus`; raises `UserError` with the message of
    one that fails.
    """
    missing = [refit for refit in refits if not is_finished(origin, refit, o.refit_steps)]
    if not missing:
        return
    (origin.folder / REFITS).mkdir(parents=True, exist_ok=True)
    gpus: queue.Queue[str] = queue.Queue()
    for gpu in [g.strip() for g in o.gpus.split(",")]:
        gpus.put(gpu)
    places = gpus.qsize()

    def job(refit: Refit) -> None:
        gpu = gpus.get()
        try:
            train_refit(origin, refit, o, gpu, places)
        finally:
            gpus.put(gpu)

    with ThreadPoolExecutor(places) as pool:
        jobs = [pool.submit(job, refit) for refit in missing]
        bar = tqdm(as_completed(jobs), "Refits", len(jobs), disable=not cli.is_main_process())
        try:
            for done in bar:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_refit(origin: OriginRun, refit: Refit, o: RefitOptions, gpu: str, places: int) -> None:
    """One refit, in a process of its own; its messages go to NAME.log beside it."""
    path = origin.folder / REFITS / f"{refit.name}.log"
    log.info("Training %s (%s, seed %d); messages in %s", refit.name, refit.kind, refit.seed, path)
    if refit.record(
        origin.folder
    ).is_file():  # finished for another state of the run, or with other steps
        shutil.rmtree(origin.folder / REFITS / refit.name, ignore_errors=True)
        refit.record(origin.folder).unlink()
    command = [sys.executable, str(ROOT / "train.py"), *train_arguments(origin, refit, o, gpu)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // places))
    with path.open("w") as file:
        code = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        ).returncode
    if code:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        said = [line.partition(" ERROR ")[2] for line in lines if " ERROR " in line] or lines[-1:]
        raise UserError(
            f"The refit {refit.name} ended with exit code {code}: "
            f"{' '.join(said)[-400:] or 'it said nothing'} (see {path}). What is finished is kept; "
            "run the command again to go on."
        )
    write_json(refit.record(origin.folder), refit_record(origin, refit, o.refit_steps))


def finished_refits(folder: Path) -> list[Mapping[str, Any]]:
    """The finished refits of a run, by name; those of another state of the run are left out with a
    warning.
    """
    found = [read_json(path) for path in sorted((folder / REFITS).glob("*.json"))]
    step = int(checkpoint.load_state(checkpoint.find(folder / "latest"))["step"])
    if stale := [r["name"] for r in found if r["run_step"] != step]:
        log.warning(
            "Refits of another state of the run are not used: %s. Run scripts/refit.py again.",
            format_list(stale),
        )
    return [r for r in found if r["run_step"] == step]
