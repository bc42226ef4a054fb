"""The results folder of test.py: volumes, tables and the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.cohort import Cohort
from data.text.counterfactuals import Variant
from data.volume_dataset import VolumeSample
from data.volumes import strip_suffix, write_like
from options.parser import to_dict
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.cli import UserError, digest_name, safe_name, unique_names
from util.files import claim_folder, write_csv, write_json
from util.metrics.effects import EFFECT_COLUMNS
from util.metrics.fidelity import METRIC_COLUMNS
from util.training import runs
from util.web.figures import Kind, Panel
from util.web.results_page import ResultsPage

VOLUME_COLUMNS = ("file", "case", "kind", "column", "value", "from", "to", "prompt", "seed")
RESULTS_FILE = "results.json"  # the run and the flags that a results folder belongs to

Row = dict[str, Any]
Hu = NDArray[np.floating]


def results_folder(options: TestOptions) -> Path:
    """Return the folder of these results; raise `UserError` where the names lead elsewhere."""
    model, source = options.model, options.source
    runs.run_folder(model.checkpoints_dir, model.name)
    if safe_name(model.which_epoch) != model.which_epoch or model.which_epoch.startswith("."):
        raise UserError(
            f"--which_epoch is {model.which_epoch!r}; it must be latest, or the number of an epoch."
        )
    cases = safe_name(strip_suffix(Path(source.mask).name)) if source.mask else source.split
    return Path(options.output.results_dir) / model.name / f"{cases}_{model.which_epoch}"


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


class CaseWriter:
    """Writer of one case's volumes, on the grid of the mask's file.

    Args:
        folder: The results folder; volumes go to `folder/volumes/`.
        sample: The case.
        seed: Seed of the noise, for the table.
        names: Names of the files.

    Attributes:
        rows: Rows of volumes.csv, one per volume written.
        panels: The volumes as panels of a page.
    """

    def __init__(self, folder: Path, sample: VolumeSample, seed: int, names: VolumeNames) -> None:
        self.folder = folder
        self.sample = sample
        self.seed = seed
        self.names = names
        self.rows: list[Row] = []
        self.panels: list[Panel] = []
        self._variants: dict[tuple[str, str], Panel] = {}  # by column and value

    def write_factual(self, hu: Hu, title: str, **values: str) -> None:
        """Write the volume of the factual prompt; `values` are columns of its row."""
        self._write(hu, "", {"kind": "own", **values}, np.int16)
        self.add_panel(title, "ct", hu, self.rows[-1]["file"])

    def write_variant(self, hu: Hu, variant: Variant, title: str = "") -> None:
        """Write the volume of a counterfactual variant."""
        name = self.names.variant(variant.column, variant.value)
        values = {
            "kind": "varied",
            "column": variant.column,
            "value": variant.value,
            "prompt": variant.prompt.sentence,
        }
        self._write(hu, name, values, np.int16)
        title = title or f"{variant.column} = {variant.value}"
        panel = self.add_panel(title, "ct", hu, self.rows[-1]["file"])
        self._variants[variant.column, variant.value] = panel

    def write_control(self, hu: Hu, value: str, prompt: str) -> None:
        """Write the factual volume under another condition, such as other noise."""
        name = f"__{safe_name(value)}"
        self._write(hu, name, {"kind": "control", "value": value, "prompt": prompt}, np.int16)
        self.add_panel(value, "ct", hu, self.rows[-1]["file"])

    def write_difference(self, hu: Hu, first: Variant, second: Variant) -> None:
        """Write the difference of two variants, `second` minus `first`."""
        name = self.names.difference(first.column, first.value, second.value)
        values = {
            "kind": "difference",
            "column": first.column,
            "from": first.value,
            "to": second.value,
        }
        self._write(hu, name, values, np.float32)
        title = f"{first.column}: {second.value} minus {first.value}"
        before = self._variants.get((first.column, first.value))
        self.add_panel(title, "difference", hu, self.rows[-1]["file"], before)

    def add_panel(
        self,
        title: str,
        kind: Kind,
        array: NDArray[Any],
        file: str | None = None,
        before: Panel | None = None,
    ) -> Panel:
        """Add a panel for the page, and return it; `before` is what a difference is laid on."""
        spacing = voxel_sizes(self.sample.affine)
        panel = Panel(title, kind, array, spacing, file, before=before)
        self.panels.append(panel)
        return panel

    def _write(self, hu: Hu, name: str, values: Mapping[str, str], dtype: Any) -> None:
        case = self.sample.case
        file = f"volumes/{self.names.cases[case.id]}{name}.nii.gz"
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(
                f"{path} would be written twice, the second time for case {case.id!r}. Rename the "
                "case, or the column or value that is varied."
            )
        write_like(path, self.sample.to_source_grid(hu), case.mask, dtype)
        row = dict.fromkeys(VOLUME_COLUMNS, "")
        row.update(file=file, case=case.id, seed=str(self.seed))
        row.update(values)
        self.rows.append(row)


@dataclass(frozen=True)
class CaseResult:
    """Everything that one case adds to the tables and the page.

    Attributes:
        volumes: Rows of volumes.csv.
        effects: Rows of effects.csv.
        metrics: Rows of metrics.csv.
        prompt: The factual prompt as a sentence.
        notes: Sentences for the page, such as columns that were removed from the text.
        panels: Panels of the page, in order.
    """

    volumes: Sequence[Row]
    effects: Sequence[Row]
    metrics: Sequence[Row]
    prompt: str
    notes: Sequence[str]
    panels: Sequence[Panel]


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
        record = {"run": model.name, "step": step, "options": to_dict(options)}
        write_json(folder / RESULTS_FILE, record)
        cases = Path(options.source.mask).name or options.source.split
        title = f"{model.name}: {cases}, {model.which_epoch} (step {step})"
        self.page = None
        if options.output.page:
            self.page = ResultsPage(folder, title, run_options.data.hu_window)

    def case_writer(self, sample: VolumeSample, names: VolumeNames) -> CaseWriter:
        """Return the writer of a case's volumes."""
        return CaseWriter(self.folder, sample, self.options.arms.seed, names)

    def add(self, case: str, result: CaseResult) -> None:
        """Add a case to the tables and the page."""
        self.results.append(result)
        if self.page is not None:
            self.page.add_case(
                case, result.prompt or "(nothing known)", result.notes, result.panels
            )

    def save(self, warnings: Sequence[str] = ()) -> Path:
        """Write tables and page, and return the file to look at.

        Args:
            warnings: What a reader of the page has to know before judging the volumes.
        """
        volumes: list[Row] = []
        effects: list[Row] = []
        metrics: list[Row] = []
        for result in self.results:
            volumes += result.volumes
            effects += result.effects
            metrics += result.metrics
        write_csv(self.folder / "volumes.csv", VOLUME_COLUMNS, volumes)
        write_csv(self.folder / "effects.csv", EFFECT_COLUMNS, effects)
        write_csv(self.folder / "metrics.csv", METRIC_COLUMNS, metrics)
        if self.page is None:
            return self.folder / "volumes.csv"
        flags: Row = {}
        for group in to_dict(self.options).values():
            flags.update(group)
        shown = {"test.py": flags, **to_dict(self.run_options)}
        return self.page.save(shown, effects, metrics, warnings=warnings)
