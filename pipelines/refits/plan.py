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
from pipelines.training.fine_tuning import SourceRun
from util.cli import UserError, format_list, unique_names
from util.training import checkpoint, runs
from util.training.shared_runs import is_shared

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
            UserError: There is no run.
        """
        saved = runs.read_options(folder)
        options = from_dict(TrainOptions, saved, str(folder / runs.OPTIONS_FILE))
        state = checkpoint.load_state(checkpoint.find(folder / "latest"))
        data = replace(options.data, dataroot=dataroot or options.data.dataroot)
        options = replace(options, data=data, text=locate_text_encoder(options.text, folder))
        columns = tuple(state["columns"])
        return cls(folder, options, int(state["step"]), columns, state.get("data") or {})

    @property
    def source(self) -> str:
        """The run that it started from, as `--init_from` takes it from another folder, or ""."""
        name = self.options.run.init_from
        if not name or is_shared(name) or len(Path(name).parts) > 1:
            return name
        return str(self.folder.parent / name)


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


def check_independence(origin: OriginRun) -> None:
    """Check that refits do not start from weights that have seen their patients.

    Refits of a fine-tuned run start from its source, too. A shared source holds no digests of its
    scans, so that it cannot be compared.

    Raises:
        UserError: Source or global run were trained on scans of the run.
    """
    name, start = origin.folder.name, origin.options.optim.load_global
    if start:
        raise UserError(
            f"--name {name} started from --load_global {start}, which has seen all patients: its "
            "refits would not be independent. Refit the global run itself."
        )
    if not origin.source:
        return
    source = SourceRun.load(origin.source, "")
    theirs = _image_digests(source.state.get("data") or {})
    both = _image_digests(origin.data) & theirs
    if both:
        raise UserError(
            f"--name {name} started from --init_from {origin.options.run.init_from}, which used "
            f"{len(both)} of its scans: refits would start from weights that have seen their "
            "patients. Refit that run, or start from one of other patients."
        )
    if not theirs:
        log.warning(
            "%s started from --init_from %s, which does not tell its scans. Refits start from it "
            "too: they are independent if it was trained on other patients.",
            name,
            origin.options.run.init_from,
        )


def _image_digests(data: Mapping[str, Any]) -> set[str]:
    """Return the digests of the scans in a record of `data.fingerprints`."""
    return {files["image"] for files in data.get("files", {}).values() if "image" in files}


def planned_refits(
    origin: OriginRun, options: RefitOptions, folds: Sequence[str] = ()
) -> list[Refit]:
    """Return the refits that the options ask for.

    Args:
        options: Numbers of refits, and the columns to permute.
        folds: Folds k/K to leave out.

    Raises:
        UserError: A column to shuffle is not known to the run, or its prompts do not follow the
            rows; or see `check_independence`.
    """
    check_independence(origin)
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
