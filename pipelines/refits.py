"""Refits: retraining a run on resampled patients, on permuted columns, or without a fold.

Every refit is a run of `train.py` in `checkpoints/RUN/refits/`. A few processes train them one
after the other (see `pipelines.refit_worker`), so that packages are imported, volumes prepared and
files checked once. A finished refit has a record beside its folder.
"""

from __future__ import annotations

import logging
import queue
import shlex
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.cache import cache_folder
from data.cohort import PROMPTS_FILE
from data.fingerprints import refuse_changes
from data.load_cohort import load_cohort
from data.resampling import patients_of
from data.splits import read_run_splits
from data.text.prompts import load_template
from models.inference import locate_text_encoder
from options.atlas_options import RefitCommand, RefitOptions
from options.parser import command_line, from_dict
from options.train_options import TrainOptions
from pipelines import run_cohort
from pipelines.atlas.attributes import dependent_columns
from pipelines.atlas.statistics.cautions import MIN_PATIENTS
from pipelines.cross_fitting import FOLDS, needs_folds
from pipelines.refit_worker import RefitWorker, make_workers
from util import cli
from util.cli import UserError, format_list, unique_names
from util.files import write_json
from util.locks import locked_folder
from util.progress import RemainingTime
from util.records import read_record
from util.training import checkpoint, runs

REFITS = "refits"  # folder below the run's
RECORD_TYPES = {  # of a finished refit
    "name": str,
    "kind": str,
    "seed": int,
    "run_step": int,
    "steps": int | None,
    "permuted": list[str] | None,
    "fold": str | None,
}
CLIP_RECORD = "clip.json"  # marks an encoder that was trained on a cohort
SEED_OFFSET = 1000  # refit k of a run of seed s trains with the seed s + 1000 + k
MAX_MESSAGE = 400  # characters of a failed process's messages that are shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refit:
    """One run to train.

    Attributes:
        name: Its name.
        kind: `resampled`, `permuted` or `fold`.
        seed: Seed of its training.
        permuted: Columns that are shuffled.
        fold: Fold k/K whose patients are left out.
    """

    name: str
    kind: str
    seed: int
    permuted: tuple[str, ...] = ()
    fold: str = ""

    def record_path(self, folder: Path) -> Path:
        """Return the file that marks it as finished, for a run's folder."""
        return folder / REFITS / f"{self.name}.json"


@dataclass(frozen=True)
class OriginRun:
    """The run that is trained again.

    Attributes:
        folder: Its folder.
        options: Its options.
        step: The step it was trained to.
        columns: Columns of its clinical table.
        data: Digests of what it was trained on (see `data.fingerprints`), empty in older runs.
    """

    folder: Path
    options: TrainOptions
    step: int
    columns: tuple[str, ...]
    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, dataroot: str = "") -> OriginRun:
        """Read a run.

        Args:
            folder: The run's folder.
            dataroot: The cohort, if it was moved since training.

        Raises:
            UserError: There is no run, or it started from another run's weights.
        """
        saved = runs.read_options(folder)
        options = from_dict(TrainOptions, saved, str(folder / runs.OPTIONS_FILE))
        state = checkpoint.load_state(checkpoint.find(folder / "latest"))
        if options.optim.load_global:
            raise UserError(
                f"--name {folder.name} started from --load_global {options.optim.load_global}, "
                "which has seen all patients: its refits would not be independent. Refit the "
                "global run itself."
            )
        data = replace(options.data, dataroot=dataroot or options.data.dataroot)
        options = replace(options, data=data, text=locate_text_encoder(options.text, folder))
        columns = tuple(state["columns"])
        return cls(folder, options, int(state["step"]), columns, state.get("data") or {})


def refit_run(options: RefitCommand) -> None:
    """Train the refits that `scripts/refit.py` asks for.

    Raises:
        UserError: Nothing is asked for, the run cannot be refitted, or a refit fails.
    """
    wanted, name = options.refit, options.run.name
    folds = options.run.folds or 0
    if not (wanted.refits or wanted.permutations or folds):
        raise UserError("Nothing to train: give --refits, --permutations or --folds.")
    if folds == 1:
        raise UserError("--folds is 1; leaving one part of one out leaves nobody. Give at least 2.")
    folder = runs.run_folder(options.run.checkpoints_dir, name)
    origin = OriginRun.load(folder, options.run.dataroot)
    if options.run.folds is None:
        folds = default_folds(origin)
    refits = planned_refits(origin, wanted, [f"{k}/{folds}" for k in range(1, folds + 1)])
    if wanted.refit_steps not in (0, origin.step):
        log.warning(
            "--refit_steps is %d, the run was trained for %d: their intervals are not those of the "
            "run, and the atlas will claim nothing.",
            wanted.refit_steps,
            origin.step,
        )
    train_refits(origin, wanted, refits)
    log.info(
        "%d refits of %s are finished; use them with scripts/build_atlas.py --name %s.",
        len(refits),
        name,
        name,
    )


def default_folds(origin: OriginRun) -> int:
    """Return the number of folds that findings of this run need, 0 for none."""
    options = origin.options.data
    cohort = run_cohort.load_run_cohort(
        origin.folder, options, options.dataroot, origin.options.run.seed, need_images=False
    )
    if not needs_folds(cohort, patients_of(cohort, options.patient_column)):
        return 0
    log.info(
        "Fewer than %d patients are outside the training split. %d more refits are trained, each "
        "without a %dth of the patients, for cross-fitting (--folds 0: none).",
        MIN_PATIENTS,
        FOLDS,
        FOLDS,
    )
    return FOLDS


def planned_refits(
    origin: OriginRun, options: RefitOptions, folds: Sequence[str] = ()
) -> list[Refit]:
    """Return the refits that the options ask for.

    Args:
        origin: The run.
        options: Numbers of refits, and the columns to permute.
        folds: Folds k/K to leave out.

    Raises:
        UserError: A column to shuffle is not known to the run, or its prompts do not follow the
            rows.
    """
    run_seed = origin.options.run.seed
    seed = run_seed + SEED_OFFSET
    refits = []
    for k in range(1, options.refits + 1):
        refits.append(Refit(f"resampled_{k:03d}", "resampled", seed + k))
    if options.permutations:
        columns = permuted_columns(origin, options.permute)
        names = unique_names(origin.columns)
        name = "_".join(["permuted", *(names[column] for column in options.permute)])
        for k in range(1, options.permutations + 1):
            refits.append(Refit(f"{name}_{k:03d}", "permuted", seed + k, columns))
    for fold in folds:
        number, _, count = fold.partition("/")
        refits.append(Refit(f"fold_{number}_of_{count}", "fold", run_seed, fold=fold))
    return refits


def permuted_columns(origin: OriginRun, named: Sequence[str]) -> tuple[str, ...]:
    """Return the columns to shuffle.

    Args:
        origin: The run.
        named: Columns asked for, which are shuffled with those that depend on them; all columns
            of the text where empty.

    Raises:
        UserError: See `planned_refits`.
    """
    data = origin.options.data
    template = load_template(data.template, origin.columns, data.key_column, data.patient_column)
    available = template.attributes(origin.columns)
    unknown = [column for column in named if column not in available]
    if unknown:
        raise UserError(
            f"--permute: the run {origin.folder.name} was trained without a column {unknown[0]!r}. "
            f"Choose from: {format_list(available, 40)}."
        )
    prompts = Path(data.dataroot) / PROMPTS_FILE
    if prompts.is_file():
        raise UserError(
            f"--permutations: {prompts} gives texts that do not follow the table's rows, so "
            "shuffling columns changes nothing. Use a cohort without that file."
        )
    if not named:
        return tuple(available)
    dependent = dependent_columns(template)
    chosen: list[str] = []
    for name in named:
        chosen += [name, *(column for column in dependent.get(name, ()) if column in available)]
    return tuple(dict.fromkeys(chosen))


def is_finished(origin: OriginRun, refit: Refit, steps: int) -> bool:
    """Return whether a refit of this state of the run is finished.

    Args:
        origin: The run.
        refit: The refit.
        steps: Steps of the refit (0: those of the run).
    """
    path = refit.record_path(origin.folder)
    if not path.is_file():
        return False
    record = read_record(path, RECORD_TYPES, f"{refit.name} is finished again")
    return bool(record == refit_record(origin, refit, steps))


def refit_record(origin: OriginRun, refit: Refit, steps: int) -> dict[str, Any]:
    """Return the record of a finished refit; for the arguments see `is_finished`."""
    return {
        **asdict(refit),
        "permuted": list(refit.permuted),
        "run_step": origin.step,
        "steps": steps or origin.step,
    }


def train_arguments(origin: OriginRun, refit: Refit, options: RefitOptions, gpu: str) -> list[str]:
    """Return the command line of train.py for a refit, new or resumed.

    Args:
        origin: The run.
        refit: The refit.
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

    Args:
        origin: The run.
        refit: The refit.
        options: How refits are trained.
        worker: The process that trains it.

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


def finished_refits(folder: Path) -> list[Mapping[str, Any]]:
    """Return the records of a run's finished refits, by name.

    Those of another state of the run are left out with a warning.
    """
    records = []
    for path in sorted((folder / REFITS).glob("*.json")):
        fix = f"{path.stem} is not used. Run scripts/refit.py again"
        if (record := read_record(path, RECORD_TYPES, fix)) is not None:
            records.append(record)
    step = int(checkpoint.load_state(checkpoint.find(folder / "latest"))["step"])
    stale = [record["name"] for record in records if record["run_step"] != step]
    if stale:
        log.warning(
            "Refits of another state of the run are not used: %s. Run scripts/refit.py again.",
            format_list(stale),
        )
    return [record for record in records if record["run_step"] == step]
