"""Training of refits, side by side.

Every refit is a run of `train.py` in `checkpoints/RUN/refits/`. A few processes train them one
after the other (see `pipelines.refits.worker`), so that packages are imported, volumes prepared and
files checked once. A finished refit has a record beside its folder.
"""

from __future__ import annotations

import logging
import queue
import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data.cache import cache_folder
from data.fingerprints import refuse_changes
from data.load_cohort import load_cohort
from data.splits import read_run_splits
from options.atlas_options import RefitOptions
from options.parser import command_line
from pipelines import run_cohort
from pipelines.refits.plan import REFITS, OriginRun, Refit
from pipelines.refits.records import is_finished, refit_record
from pipelines.refits.worker import RefitWorker, make_workers
from util import cli
from util.cli import UserError
from util.files import write_json
from util.locks import locked_folder
from util.progress import RemainingTime
from util.training import checkpoint, runs

log = logging.getLogger(__name__)

CLIP_RECORD = "clip.json"  # marks an encoder that was trained on a cohort
MAX_MESSAGE = 400  # characters of a failed process's messages that are shown


def train_arguments(origin: OriginRun, refit: Refit, options: RefitOptions, gpu: str) -> list[str]:
    """Return the command line of train.py for a refit, new or resumed.

    Args:
        options: How refits are trained.
        gpu: The GPU; "" for that of the run.
    """
    trained, home = origin.options, origin.folder / REFITS
    steps = options.refit_steps or origin.step  # a continued run has more than its options say
    gpu = gpu or trained.run.gpu_ids
    if _has_checkpoint(home / refit.name):
        return [
            "--continue_train",
            f"--name={refit.name}",
            f"--checkpoints_dir={home}",
            f"--max_steps={steps}",
            f"--gpu_ids={gpu}",
        ]
    text = trained.text
    if not options.reuse_encoder and (Path(text.text_encoder) / CLIP_RECORD).is_file():
        text = replace(text, text_encoder="cohort")
    run = replace(
        trained.run,
        name=refit.name,
        checkpoints_dir=str(home),
        init_from=origin.source,
        seed=refit.seed,
        gpu_ids=gpu,
        overwrite=True,
        continue_train=False,
        accept_changes=False,
        dry_run=False,
        val_cases=0,
        save_epoch_freq=0,
    )
    data = replace(
        trained.data,
        cache_dir=trained.data.cache_dir or str(cache_folder(trained.data, origin.folder)),
        permute=refit.permuted,
        resample=refit.kind == "resampled",
        fold=refit.fold,
        splits=_splits_file(origin),
    )
    optim = replace(trained.optim, max_steps=steps)
    words = []
    for line in command_line(replace(trained, run=run, data=data, optim=optim, text=text)).values():
        words += shlex.split(line)
    return words


def _has_checkpoint(folder: Path) -> bool:
    """Return whether a stopped refit has a checkpoint to resume from."""
    try:
        return checkpoint.find(folder / "latest").is_dir()
    except UserError:
        return False


def _splits_file(origin: OriginRun) -> str:
    """Return the file of the run's own splits, or what the run was given where they overlap."""
    saved = origin.folder / runs.SPLITS_FILE
    splits = read_run_splits(saved)
    case_ids = [case for members in (splits or {}).values() for case in members]
    is_disjoint = bool(case_ids) and len(set(case_ids)) == len(case_ids)
    return str(saved) if is_disjoint else origin.options.data.splits


def train_refits(origin: OriginRun, options: RefitOptions, refits: Sequence[Refit]) -> None:
    """Train the refits that are not finished, side by side (see `make_workers`).

    Raises:
        UserError: A refit failed; the message contains that of its process.
    """
    missing = [refit for refit in refits if not is_finished(origin, refit, options.refit_steps)]
    if not missing:
        return
    check_data(origin)
    with locked_folder(origin.folder, "--name"):
        _train_side_by_side(origin, options, missing)


def check_data(origin: OriginRun) -> None:
    """Raise `UserError` where scans, masks or rows are not those that the run was trained with."""
    refuse_changes(
        changed_data(origin),
        "Refits on other data say nothing about the run: restore the data, or train the run anew.",
    )


def changed_data(origin: OriginRun) -> list[str]:
    """Return which scans, masks and rows changed since the run was trained, in words.

    The list is empty for a run of a version that did not record its data.
    """
    if not origin.data:
        return []
    options = origin.options.data
    cohort = load_cohort(options, seed=origin.options.run.seed, check=False, need_images=False)
    return run_cohort.changed_data(origin.folder, options, cohort, origin.data)


def _train_side_by_side(origin: OriginRun, options: RefitOptions, missing: Sequence[Refit]) -> None:
    (origin.folder / REFITS).mkdir(parents=True, exist_ok=True)
    workers = make_workers(options.gpus, origin.options.run.gpu_ids, len(missing))
    free: queue.Queue[RefitWorker] = queue.Queue()
    for worker in workers:
        free.put(worker)

    def train_when_free(refit: Refit) -> None:
        worker = free.get()
        try:
            train_refit(origin, refit, options, worker)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        jobs = [pool.submit(train_when_free, refit) for refit in missing]
        progress = tqdm(as_completed(jobs), "Refits", len(jobs), disable=not cli.is_main_process())
        remaining = RemainingTime(len(jobs), "refits")
        try:
            for job in progress:
                job.result()
                remaining.step()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for worker in workers:
                worker.close()


def train_refit(
    origin: OriginRun, refit: Refit, options: RefitOptions, worker: RefitWorker
) -> None:
    """Train one refit, whose messages go to NAME.log beside it.

    Raises:
        UserError: The training failed.
    """
    home = origin.folder / REFITS
    home.mkdir(parents=True, exist_ok=True)
    log_path = home / f"{refit.name}.log"
    record_path = refit.record_path(origin.folder)
    log.info(
        "Training %s (%s, seed %d); messages in %s", refit.name, refit.kind, refit.seed, log_path
    )
    if record_path.is_file():  # of another state of the run, or with other steps
        shutil.rmtree(home / refit.name, ignore_errors=True)
        record_path.unlink()
    code = worker.train(train_arguments(origin, refit, options, worker.gpu), log_path)
    if code:
        raise UserError(
            f"The refit {refit.name} ended with exit code {code}: {_last_messages(log_path)} (see "
            f"{log_path}). Finished refits are kept; run the command again to resume."
        )
    write_json(record_path, refit_record(origin, refit, options.refit_steps))


def _last_messages(log_path: Path) -> str:
    """Return the error messages of a process, or its last line."""
    lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.partition(" ERROR ")[2] for line in lines if " ERROR " in line]
    return " ".join(errors or lines[-1:])[-MAX_MESSAGE:] or "it wrote no message"
