"""The sets of an evaluation and the attributes read from them, checked before anything is
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from data.table import find_table, read_table
from data.text.prompts import load_template
from options.evaluate_options import EvaluateOptions
from pipelines.evaluation.text_effect import PredictedAttribute, make_attribute
from pipelines.evaluation.volume_sets import VolumeSet, find_set, with_masks
from util.cli import UserError, format_list


def find_sets(options: EvaluateOptions) -> dict[str, VolumeSet]:
    """The sets named by the flags: real, synthetic, and where given train, shuffled, empty,
    again_<i>.

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
                "least two."
            )
    if o.train:
        split = o.train_split if (Path(o.train) / "splits.json").is_file() else "all"
        sets["train"] = find_set("--train", o.train, split=split)
        if len(sets["train"].files) < 2:
            raise UserError(
                f"--train {o.train} holds {len(sets['train'].files)} scan; the check for copies "
                "needs at least two."
            )
    given = {
        "shuffled": o.shuffled,
        "empty": o.empty,
        **{f"again_{i}": folder for i, folder in enumerate(o.again)},
    }
    for name, folder in given.items():
        if folder:
            sets[name] = with_masks(find_set(f"--{name.split('_')[0]}", folder, o.masks), synthetic)
            if not set(sets[name].cases) & set(synthetic.cases):
                raise UserError(
                    f"--{name.split('_')[0]} {folder} and --synthetic have no case in common "
                    f"(there: {format_list(sets[name].cases, 3)}; synthetic: "
                    f"{format_list(synthetic.cases, 3)}). Name files by case."
                )
    return sets


def read_attributes(
    options: EvaluateOptions, sets: Mapping[str, VolumeSet]
) -> tuple[list[PredictedAttribute], dict[str, str]]:
    """The attributes to read, and each case's patient."""
    m, root = options.measure, sets["real"].root
    path = find_table(root)
    if path is None:
        if m.column:
            raise UserError(
                f"--column needs a clinical.csv or clinical.xlsx in --real {root}; there is none."
            )
        return [], {}
    table = read_table(path, m.key_column)
    for column in (*m.column, *filter(None, [m.patient_column])):
        if column not in table.columns:
            raise UserError(
                f"{path} has no column {column!r}; it has: {format_list(list(table.columns), 30)}."
            )
    template = load_template(m.template, table.columns, m.key_column, m.patient_column)
    found, cases = [], sets["real"].cases
    if m.column and not set(cases) & set(sets["synthetic"].cases):
        made = format_list(sets["synthetic"].cases, 3)
        raise UserError(
            "--column reads the attribute of a case's row from its synthetic volume, but --real "
            f"and --synthetic have no case in common (real: {format_list(cases, 3)}; synthetic: "
            f"{made}). Name files by case."
        )
    for column in m.column:
        values = {
            case: template.format_value(table.rows[case], column)
            for case in cases
            if case in table.rows
        }
        numbers = pd.to_numeric(
            pd.Series([v for v in values.values() if v], dtype=object), errors="coerce"
        )
        number = bool(len(numbers) and numbers.notna().all() and numbers.nunique() > 5)
        found.append(make_attribute(column, values, number))
    patients = (
        {case: row[m.patient_column] for case, row in table.rows.items()}
        if m.patient_column
        else {}
    )
    return found, patients
