"""Inputs of an evaluation: sets of volumes and predicted attributes, checked before measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.table import find_table, match_table, read_table
from data.text.prompts import Row, Template, load_template
from options.evaluate_options import EvaluateOptions
from pipelines.evaluation.text_effect import PredictedAttribute, are_numbers
from pipelines.evaluation.volume_sets import VolumeSet, find_set, with_masks
from util.cli import UserError, format_list


def find_sets(options: EvaluateOptions) -> dict[str, VolumeSet]:
    """Return the sets that the flags name.

    Returns:
        Sets by name: real, synthetic, and where the flag is used train, shuffled, empty, again_<i>.

    Raises:
        UserError: A folder without volumes, fewer than two volumes, or no case in common where one
            is needed.
    """
    o = options.sets
    real = find_set("--real", o.real, o.real_masks, o.real_split)
    synthetic = with_masks(find_set("--synthetic", o.synthetic, o.masks), real)
    sets = {"real": real, "synthetic": synthetic}
    for volumes in sets.values():
        if len(volumes.files) < 2:
            raise UserError(
                f"{volumes.flag} {volumes.root} holds {len(volumes.files)} volume; a set needs at "
                "least two. Give a folder with more."
            )
    if o.train:
        split = o.train_split if (Path(o.train) / "splits.json").is_file() else "all"
        sets["train"] = find_set("--train", o.train, split=split)
        if len(sets["train"].files) < 2:
            raise UserError(
                f"--train {o.train} holds {len(sets['train'].files)} scan; the check for copies "
                "needs at least two. Give all training scans, or leave --train out."
            )
    controls = {"shuffled": ("--shuffled", o.shuffled), "empty": ("--empty", o.empty)}
    for i, folder in enumerate(o.again):
        controls[f"again_{i}"] = ("--again", folder)
    for name, (flag, folder) in controls.items():
        if folder:
            sets[name] = _control_set(flag, folder, o.masks, synthetic)
    return sets


def _control_set(flag: str, folder: str, masks: str, synthetic: VolumeSet) -> VolumeSet:
    volumes = with_masks(find_set(flag, folder, masks), synthetic)
    if not set(volumes.cases) & set(synthetic.cases):
        raise UserError(
            f"{flag} {folder} and --synthetic have no case in common (there: "
            f"{format_list(volumes.cases, 3)}; synthetic: {format_list(synthetic.cases, 3)}). Name "
            "files by case."
        )
    return volumes


@dataclass(frozen=True)
class TableValues:
    """Values of the real scans' table.

    Attributes:
        attributes: The attributes to predict.
        patients: The patient of each case; empty where they are not known.
        rows: Raw rows by case, with `template` that reads them; empty without a table.
    """

    attributes: list[PredictedAttribute] = field(default_factory=list)
    patients: dict[str, str] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(default_factory=dict)
    template: Template | None = None


def read_table_values(
    options: EvaluateOptions, sets: Mapping[str, VolumeSet], need_rows: bool = False
) -> TableValues:
    """Read the attributes to predict, and each case's patient, from the real scans' table.

    Args:
        options: The command's options.
        sets: The sets by name.
        need_rows: Whether rows are needed though no column is named.

    Raises:
        UserError: No table or column, no case in common, or too few values.
    """
    m = options.measure
    root = sets["real"].root
    path = find_table(root)
    if path is None:
        if m.column:
            raise UserError(
                f"--column needs a clinical.csv or clinical.xlsx in --real {root}; there is none. "
                "Add it, or leave --column out."
            )
        return TableValues()
    table = read_table(path, m.key_column)
    columns = [*m.column, m.patient_column] if m.patient_column else list(m.column)
    for column in columns:
        if column not in table.columns:
            raise UserError(
                f"{path} has no column {column!r}; it has: {format_list(list(table.columns), 30)}. "
                "Choose one of them."
            )
    cases = sets["real"].cases
    if m.column and not set(cases) & set(sets["synthetic"].cases):
        raise UserError(
            "--column reads the attribute of a case's row from its synthetic volume, but --real "
            f"and --synthetic have no case in common (real: {format_list(cases, 3)}; synthetic: "
            f"{format_list(sets['synthetic'].cases, 3)}). Name files by case."
        )
    if columns or need_rows:
        table = match_table(table, cases, path, m.key_column)
    template = load_template(m.template, table.columns, m.key_column, m.patient_column)
    rows = {case: table.rows[case] for case in cases if case in table.rows}
    attributes = []
    for column in m.column:
        values = {case: template.format_value(row, column) for case, row in rows.items()}
        attributes.append(PredictedAttribute.from_values(column, values, are_numbers(values)))
    patients = {}
    if m.patient_column:
        patients = {case: row[m.patient_column] for case, row in table.rows.items()}
    return TableValues(attributes, patients, rows, template)
