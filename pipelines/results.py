"""The results folder of test.py: volumes, tables and the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.cohort import Cohort
from data.dicom_export import DicomStudy, chest_segments
from data.text.counterfactuals import Variant, describe_removed
from data.volume_dataset import VolumeSample
from data.volumes import strip_suffix, write_like
from options.base_options import DataOptions
from options.parser import group_from_dict, to_dict
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.cli import UserError, digest_name, format_list, safe_name, unique_names
from util.files import claim_folder, read_json, write_csv, write_json
from util.metrics.effects import EFFECT_COLUMNS
from util.metrics.fidelity import METRIC_COLUMNS
from util.notices import Notice
from util.training import runs
from util.web.attribute_list import AttributeFacts
from util.web.figures import LUNG, Kind, Panel, Window
from util.web.page_links import LinkedPage, link_pages
from util.web.results_page import ResultsPage, ResultsReport

VOLUME_COLUMNS = ("file", "case", "kind", "column", "value", "from", "to", "prompt", "seed")
RESULTS_FILE = "results.json"  # the run and the flags that a results folder belongs to
DICOM_FOLDER = "dicom"  # of a results folder
ATLAS_RECORD = "atlas.json"  # of an atlas beside the results
# How the run reads a cohort, which results record for commands that read the same scans.
READING = (
    "modality",
    "intensity_window",
    "percentiles",
    "mask_folder",
    "lung_labels",
    "airway_label",
    "hu_window",
)

Row = dict[str, Any]
Hu = NDArray[np.floating]


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
class VolumeNames:
    """Names of volume files, of which no two are alike.

    Attributes:
        cases: Name of each case of the cohort.
        columns: Name of each column that is varied.
        values: Name of each value, by column.
    """

    cases: Mapping[str, str]
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]

    @classmethod
    def from_cohort(cls, cohort: Cohort, values: Mapping[str, Sequence[str]]) -> VolumeNames:
        """Name the files of a cohort whose columns are set to these values.

        A case has the same name whatever split is generated.
        """
        by_column = {column: _value_names(texts) for column, texts in values.items()}
        return cls(cohort.file_names, unique_names(values), by_column)

    def variant(self, column: str, value: str) -> str:
        """Return the part of a file name that tells a variant from the factual volume."""
        return f"__{self.columns[column]}={self.values[column][value]}"

    def difference(self, column: str, start: str, end: str) -> str:
        """Return the part of a file name that names a difference."""
        names = self.values[column]
        return f"__{self.columns[column]}={names[start]}_to_{names[end]}"


def _value_names(values: Sequence[str]) -> dict[str, str]:
    """Return a name per value that is neither another's nor that of two values' difference."""
    names = unique_names(values)
    pairs = {f"{start}_to_{end}".casefold() for start, end in permutations(names.values(), 2)}
    return {
        value: digest_name(value, name) if name.casefold() in pairs else name
        for value, name in names.items()
    }


class DicomWriter:
    """Writer of one case's volumes as DICOM series of one study.

    Args:
        mask: The case's mask file.
        key: Run and seed, which tell studies of one mask apart.
        data: Labels of lungs, airways and body.
    """

    def __init__(self, mask: Path, key: str, data: DataOptions) -> None:
        self.study = DicomStudy.from_mask(mask, key)
        self.segments = chest_segments(data.lung_labels, data.airway_label, data.body_number)
        self._count = 0

    def write(self, folder: Path, hu: Hu, description: str) -> None:
        """Write a series, and beside the first one the mask as `<folder>_mask.dcm`."""
        self._count += 1
        self.study.write_series(folder, hu, description, self._count)
        if self._count == 1 and self.study.labels.any():
            mask = folder.with_name(f"{folder.name}_mask.dcm")
            self.study.write_segmentation(mask, folder, self.segments)


def display_window(options: DataOptions) -> Window:
    """Return the values that viewers show as black and white: those of lungs for CT."""
    return LUNG if options.terms.is_ct else options.hu_window


class CaseWriter:
    """Writer of one case's volumes, on the grid of the mask's file.

    Args:
        folder: The results folder; volumes go to `folder/volumes/`.
        sample: The case.
        seed: Seed of the noise, for the table.
        names: Names of the files.
        dicom: Writes the volumes as DICOM as well; None for NIfTI alone.
        window: Values that viewers show as black and white.

    Attributes:
        rows: Rows of volumes.csv, one per volume written.
        panels: The volumes as panels of a page.
    """

    def __init__(
        self,
        folder: Path,
        sample: VolumeSample,
        seed: int,
        names: VolumeNames,
        dicom: DicomWriter | None = None,
        window: Window = LUNG,
    ) -> None:
        self.folder = folder
        self.sample = sample
        self.seed = seed
        self.names = names
        self.dicom = dicom
        self.window = window
        self.rows: list[Row] = []
        self.panels: list[Panel] = []
        self._variants: dict[tuple[str, str], Panel] = {}  # by column and value

    def write_factual(self, hu: Hu, title: str, texts: Sequence[str] = (), **values: str) -> None:
        """Write the volume of the factual prompt.

        Args:
            hu: The volume.
            title: Title of its panel.
            texts: Phrases of the prompt.
            values: Columns of its row in volumes.csv.
        """
        self._write_ct(hu, "", title, {"kind": "own", **values})
        panel = self.panel(title, "ct", hu, self.rows[-1]["file"])
        self.panels.append(replace(panel, role="generated", phrases=tuple(texts)))

    def write_variant(self, hu: Hu, variant: Variant, title: str = "") -> None:
        """Write the volume of a counterfactual variant."""
        name = self.names.variant(variant.column, variant.value)
        values = {
            "kind": "varied",
            "column": variant.column,
            "value": variant.value,
            "prompt": variant.prompt.sentence,
        }
        title = title or f"{variant.column} = {variant.value}"
        self._write_ct(hu, name, title, values)
        panel = replace(
            self.panel(title, "ct", hu, self.rows[-1]["file"]),
            attribute=variant.column,
            values=(variant.value,),
            phrases=tuple(variant.prompt.texts),
        )
        self.panels.append(panel)
        self._variants[variant.column, variant.value] = panel

    def write_control(self, hu: Hu, value: str, prompt: str) -> None:
        """Write the factual volume under another condition, such as other noise."""
        name = f"__{safe_name(value)}"
        self._write_ct(hu, name, value, {"kind": "control", "value": value, "prompt": prompt})
        self.panels.append(self.panel(value, "ct", hu, self.rows[-1]["file"]))

    def write_difference(self, hu: Hu, first: Variant, second: Variant) -> None:
        """Write the difference of two variants, `second` minus `first`."""
        name = self.names.difference(first.column, first.value, second.value)
        values = {
            "kind": "difference",
            "column": first.column,
            "from": first.value,
            "to": second.value,
        }
        self._write(self.sample.to_source_grid(hu), name, values, np.float32)
        panel = self._difference_panel(hu, first, second)
        before = self._variants.get((first.column, first.value))
        self.panels.append(replace(panel, file=self.rows[-1]["file"], before=before))

    def add_noise_control(self, hu: Hu, first: Variant, second: Variant) -> None:
        """Add the difference of two variants under another noise to the page, not to the files."""
        panel = self._difference_panel(hu, first, second)
        caption = "the same with other noise"
        self.panels.append(replace(panel, caption=caption, role="control"))

    def _difference_panel(self, hu: Hu, first: Variant, second: Variant) -> Panel:
        title = f"{first.column}: {second.value} minus {first.value}"
        values = (first.value, second.value)
        phrases = (*first.prompt.texts, *second.prompt.texts)
        panel = self.panel(title, "difference", hu)
        return replace(panel, attribute=first.column, values=values, phrases=phrases)

    def panel(self, title: str, kind: Kind, array: NDArray[Any], file: str | None = None) -> Panel:
        """Return a volume of the case as a panel of a page."""
        return Panel(title, kind, array, voxel_sizes(self.sample.affine), file)

    def _write_ct(self, hu: Hu, name: str, title: str, values: Mapping[str, str]) -> None:
        """Write HU on the model's grid as NIfTI, and as DICOM where it is asked for."""
        on_file = self.sample.to_source_grid(hu)
        self._write(on_file, name, values, np.int16, self.window)
        if self.dicom is not None:
            stem = f"{self.names.cases[self.sample.case.id]}{name}"
            self.dicom.write(self.folder / DICOM_FOLDER / stem, on_file, title)

    def _write(
        self,
        on_file: Hu,
        name: str,
        values: Mapping[str, str],
        dtype: Any,
        window: tuple[float, float] | None = None,
    ) -> None:
        case = self.sample.case
        file = f"volumes/{self.names.cases[case.id]}{name}.nii.gz"
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(
                f"{path} would be written twice, the second time for case {case.id!r}. Rename the "
                "case, or the column or value that is varied."
            )
        write_like(path, on_file, case.mask, dtype, window)
        row = dict.fromkeys(VOLUME_COLUMNS, "")
        row.update(file=file, case=case.id, seed=str(self.seed))
        row.update(values)
        self.rows.append(row)


@dataclass(frozen=True)
class DroppedColumns:
    """Columns that a change removed from a text, because they contradict it.

    Attributes:
        columns: The columns.
        column: The attribute varied; "" for `--set`.
        value: Its value.
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
    """

    patients: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, AttributeFacts] = field(default_factory=dict)
    notices: Sequence[Notice] = ()


def dicom_key(options: TestOptions) -> str:
    """Return what tells the DICOM studies of one mask apart: run, checkpoint and seed."""
    model = options.model
    return f"{model.title}, {model.which_epoch}, seed {options.arms.seed}"


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
