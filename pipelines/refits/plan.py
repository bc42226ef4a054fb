"""The refits of a run: on resampled patients, on permuted columns, or without a fold."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.cohort import PROMPTS_FILE
from data.resampling import patients_of
from data.text.prompts import load_template
from models.inference import locate_text_encoder
from options.atlas_options import RefitOptions
from options.parser import from_dict
from options.train_options import TrainOptions
from pipelines import run_cohort
from pipelines.atlas.attributes import dependent_columns
from pipelines.atlas.statistics.cautions import MIN_PATIENTS
from pipelines.refits.cross_fitting import FOLDS, needs_folds
from util.cli import UserError, format_list, unique_names
from util.training import checkpoint, runs

log = logging.getLogger(__name__)

REFITS = "refits"  # folder below the run's
SEED_OFFSET = 1000  # refit k of a run of seed s trains with the seed s + 1000 + k


@dataclass(frozen=True)
class Refit:
    """One run to train.

    Attributes:
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
        options: Numbers of refits, and the columns to permute.
        folds: Folds k/K to leave out.

    Raises:
        UserError: A column to shuffle is not known to the run, or its prompts do not follow the
            rows.
    """
    run_seed = origin.options.run.seed
    seed = run_seed + SEED_OFFSET
    refits = [
        Refit(f"resampled_{k:03d}", "resampled", seed + k) for k in range(1, options.refits + 1)
    ]
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
