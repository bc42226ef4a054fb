"""Files of the volumes of a case: NIfTI, DICOM, their names and rows of volumes.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.cohort import Cohort
from data.dicom_export import DicomStudy, chest_segments
from data.text.counterfactuals import Variant
from data.volume_dataset import VolumeSample
from data.volumes import write_like
from options.base_options import DataOptions
from options.test_options import TestOptions
from util.cli import UserError, digest_name, safe_name, unique_names
from util.web.figures import LUNG, Kind, Panel, Window

VOLUME_COLUMNS = ("file", "case", "kind", "column", "value", "from", "to", "prompt", "seed")
DICOM_FOLDER = "dicom"  # of a results folder
Row = dict[str, Any]
Hu = NDArray[np.floating]


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
        self.segments = chest_segments(
            self.study.labels, data.lung_labels, data.airway_label, data.body_number
        )
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
        return Panel(title, kind, array, self.sample.spacing, file)

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


def dicom_key(options: TestOptions) -> str:
    """Return what tells the DICOM studies of one mask apart: run, checkpoint and seed."""
    model = options.model
    return f"{model.title}, {model.which_epoch}, seed {options.arms.seed}"
