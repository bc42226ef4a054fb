"""The results folder of test.py: volumes, tables and the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.text.counterfactuals import describe_removed
from data.volume_dataset import VolumeSample
from data.volumes import strip_suffix
from options.base_options import DataOptions
from options.parser import group_from_dict, to_dict
from options.test_options import TestOptions
from options.train_options import TrainOptions
from pipelines.generation.case_writer import (
    VOLUME_COLUMNS,
    CaseWriter,
    DicomWriter,
    Row,
    VolumeNames,
    dicom_key,
    display_window,
)
from util.cli import UserError, format_list, safe_name
from util.files import claim_folder, read_json, write_csv, write_json
from util.metrics.effects import EFFECT_COLUMNS
from util.metrics.fidelity import METRIC_COLUMNS
from util.notices import Notice
from util.training import runs
from util.web.attribute_list import AttributeFacts
from util.web.figures import Panel
from util.web.page_links import LinkedPage, link_pages
from util.web.results_page import ResultsPage, ResultsReport

RESULTS_FILE = "results.json"  # the run and the flags that a results folder belongs to
ATLAS_RECORD = "atlas.json"  # of an atlas beside the results
# How the run reads a cohort, which results record for commands that read the same scans.
READING = (
    "modality",
    "intensity_window",
    "percentiles",
    "mask_folder",
    "lung_labels",
    "airway_label",
    "lesion_labels",
    "hu_window",
)


def results_folder(options: TestOptions) -> Path:
    """Return the folder of these results; raise `UserError` where the names lead elsewhere."""
    model, source = options.model, options.source
    runs.find_run(model.checkpoints_dir, model.name)
    if safe_name(model.which_epoch) != model.which_epoch or model.which_epoch.startswith("."):
        raise UserError(
            f"--which_epoch is {model.which_epoch!r}; it must be latest, or the number of an epoch."
        )
    cases = safe_name(strip_suffix(Path(source.mask).name)) if source.mask else source.split
    return Path(options.output.results_dir) / model.title / f"{cases}_{model.which_epoch}"


def results_data(folder: Path) -> DataOptions | None:
    """Return how the run of a results folder reads a cohort, as far as `READING` goes.

    None where the folder holds no results, or those of earlier versions, which are of chest CT.

    Raises:
        UserError: The record is damaged.
    """
    path = folder / RESULTS_FILE
    record = read_json(path) if path.is_file() else {}
    if isinstance(record, dict) and "data" not in record:
        return None
    data = record["data"] if isinstance(record, dict) else None
    options: DataOptions = group_from_dict(DataOptions, data, str(path))
    return options


def check_results_folder(folder: Path, options: TestOptions) -> None:
    """Raise `UserError` where the folder holds something that must not be replaced."""
    claim_folder(
        folder,
        [RESULTS_FILE],
        options.output.overwrite,
        "--results_dir",
        "choose another --results_dir",
    )


@dataclass(frozen=True)
class DroppedColumns:
    """Columns that a change removed from a text, because they contradict it.

    Attributes:
        column: The attribute varied; "" for `--set`.
    """

    columns: tuple[str, ...]
    column: str = ""
    value: str = ""

    @property
    def change(self) -> str:
        """The change in words."""
        return f"{self.column} = {self.value}" if self.column else "--set"


@dataclass(frozen=True)
class CaseResult:
    """Everything that one case adds to the tables and the page.

    Attributes:
        volumes: Rows of volumes.csv.
        effects: Rows of effects.csv.
        metrics: Rows of metrics.csv.
        prompt: The factual prompt as a sentence.
        notes: Sentences for the page on the case as a whole.
        panels: Panels of the page, in order.
        dropped: Columns that a change of one attribute removed from the text.
    """

    volumes: Sequence[Row]
    effects: Sequence[Row]
    metrics: Sequence[Row]
    prompt: str
    notes: Sequence[str]
    panels: Sequence[Panel]
    dropped: Sequence[DroppedColumns] = ()


def _dropped_notices(results: Sequence[CaseResult]) -> list[Notice]:
    """Return one notice for each change that removed columns from the text, with its cases."""
    cases: dict[DroppedColumns, list[str]] = {}
    for result in results:
        for dropped in result.dropped:
            cases.setdefault(dropped, []).append(str(result.volumes[0]["case"]))
    return [
        Notice(
            f"{describe_removed(dropped.change, dropped.columns)} Cases: {format_list(names)}.",
            "phrases dropped",
            dropped.column,
            dropped.value,
            tuple(names),
        )
        for dropped, names in cases.items()
    ]


@dataclass(frozen=True)
class PageContext:
    """What the page of a results folder says beside the volumes.

    Attributes:
        patients: Patient of each case.
        facts: What decides whether an attribute shows, by attribute.
        notices: What a reader has to know before judging the volumes.
        editing: How real scans were edited; "" for generated volumes.
        other_text: Whether edited scans have another text than their own (`--set`, `--prompt`).
    """

    patients: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, AttributeFacts] = field(default_factory=dict)
    notices: Sequence[Notice] = ()
    editing: str = ""
    other_text: bool = False


class ResultsWriter:
    """Writer of a results folder.

    An existing folder, which `results_folder` has checked, is replaced.

    Args:
        folder: The results folder.
        options: The flags of the test.
        run_options: The options of the run, for the page.
        step: The step of the run's checkpoint.
    """

    def __init__(
        self, folder: Path, options: TestOptions, run_options: TrainOptions, step: int
    ) -> None:
        self.folder = folder
        self.options = options
        self.run_options = run_options
        self.results: list[CaseResult] = []
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        model = options.model
        data = run_options.data
        record = {
            "run": model.title,
            "step": step,
            "options": to_dict(options),
            "data": {name: getattr(data, name) for name in READING},
        }
        write_json(folder / RESULTS_FILE, record)
        cases = Path(options.source.mask).name or options.source.split
        cases += ", real scans edited" if options.edit.edit_real else ""
        title = f"{model.title}: {cases}, {model.which_epoch} (step {step})"
        self.page = None
        if options.output.page:
            self.page = ResultsPage(folder, title, data.hu_window, terms=data.terms)

    def case_writer(self, sample: VolumeSample, names: VolumeNames) -> CaseWriter:
        """Return the writer of a case's volumes."""
        dicom = None
        if self.options.output.dicom:
            key = dicom_key(self.options)
            dicom = DicomWriter(sample.case.mask, key, self.run_options.data)
        window = display_window(self.run_options.data)
        return CaseWriter(self.folder, sample, self.options.arms.seed, names, dicom, window)

    def add(self, case: str, result: CaseResult) -> None:
        """Add a case to the tables and the page."""
        self.results.append(result)
        if self.page is not None:
            self.page.add_case(
                case, result.prompt or "(nothing known)", result.notes, result.panels
            )

    def save(self, context: PageContext | None = None) -> Path:
        """Write tables and page, and return the file to look at."""
        context = context or PageContext()
        volumes: list[Row] = []
        effects: list[Row] = []
        metrics: list[Row] = []
        terms = self.run_options.data.terms
        notices = [*context.notices, *_dropped_notices(self.results)]
        for result in self.results:
            volumes += result.volumes
            effects += result.effects
            metrics += result.metrics
        write_csv(self.folder / "volumes.csv", VOLUME_COLUMNS, terms.rows(volumes))
        write_csv(self.folder / "effects.csv", terms.columns(EFFECT_COLUMNS), terms.rows(effects))
        write_csv(self.folder / "metrics.csv", METRIC_COLUMNS, terms.rows(metrics))
        if self.page is None:
            return self.folder / "volumes.csv"
        flags: Row = {}
        for group in to_dict(self.options).values():
            flags.update(group)
        shown = {"test.py": flags, **to_dict(self.run_options)}
        tables = ["volumes.csv", *(["effects.csv"] if effects else []), "metrics.csv"]
        report = ResultsReport(
            effects,
            metrics,
            context.patients,
            context.facts,
            notices,
            links={name: name for name in tables},
            editing=context.editing,
            other_text=context.other_text,
        )
        page = self.page.save(shown, report)
        self._link(page)
        return page

    def _link(self, page: Path) -> None:
        """Let the page and those of the run's training and atlases link to each other."""
        model = self.options.model
        here = LinkedPage(f"Volumes {self.folder.name}", page)
        link_pages(here, training_page(runs.find_run(model.checkpoints_dir, model.name)))
        for record in sorted(self.folder.parent.glob(f"*/{ATLAS_RECORD}")):
            link_pages(here, atlas_page(record.parent))


def training_page(run: Path) -> LinkedPage:
    """Return the page of a run's training."""
    return LinkedPage(f"Training of {run.name}", run / "web" / "index.html", "")


def atlas_page(folder: Path) -> LinkedPage:
    """Return the first page of an atlas."""
    return LinkedPage(f"Atlas {folder.resolve().name}", folder / "index.html")
