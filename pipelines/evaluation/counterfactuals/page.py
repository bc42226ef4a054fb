"""Section of the evaluation page on changed volumes: the axioms of counterfactuals by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipelines.evaluation.counterfactuals.axiom_rows import (
    CHANGED,
    DIVERGENCE,
    FID,
    LUNGS,
    MEAN_CHANGE,
    OTHER,
    OUTSIDE,
    PREDICTION_SHIFT,
    CounterfactualReport,
)
from pipelines.evaluation.counterfactuals.regression_baseline import BASELINE
from util.metrics.regions import region_name
from util.web import page_parts

INTRODUCTION = (
    "Each method changes one attribute of a case. Effectiveness comes first: the other axioms are "
    "met without effort where nothing changes, as the row “scan, unchanged” shows."
)
EXPLANATIONS = (
    "Effectiveness: a predictor fitted to real scans, which knows nothing of the generator, reads "
    "the new value from the volume. An AUC of 0.5 or a correlation of 0 is chance; real scans show "
    "what the predictor can reach. Every other attribute should be read as before the change. "
    "Attributes that act on the same density are not independent in the predictor either: "
    "compare with the baseline, which adds nothing but the effect.",
    "Composition: a change of nothing, against the patient's own scan. A volume generated from "
    "mask and row does not contain the scan, so that its distance is that of another patient with "
    "the same mask.",
    "Reversibility: the attribute changed, changed back, and compared with the start. Values that "
    "a change removed from the text (pack-years of a never smoker) do not come back.",
    "Minimality: no more than the change needs. The lungs should change by what the attribute "
    "does, the rest not at all; the divergence (0 to 1, smaller is better) compares the change "
    "with the differences between patients.",
    "Realism: the distance to the real scans (FID), beside that of the same volumes before the "
    "change.",
    f"“{BASELINE}” adds regression coefficients of the real scans to the scan. It is smooth, and "
    "the same for all patients; its composition and reversibility are 0 by construction. A "
    "generator earns its place where it is as effective, and more realistic or more individual.",
)


def add_counterfactuals(report: CounterfactualReport) -> None:
    """Add the card with a table per changed attribute, and every row folded away."""
    frame = report.frame
    with page_parts.card("Counterfactuals: do changed volumes keep the axioms?", "wide evidence"):
        page_parts.note(INTRODUCTION)
        composition = frame[frame["axiom"] == "composition"]
        for column in dict.fromkeys(frame.loc[frame["column"] != "", "column"]):
            page_parts.note(f"Changed: {column}")
            page_parts.frame_table(axiom_table(frame[frame["column"] == column], composition))
        others = frame[frame["of"].str.startswith(OTHER)]
        if len(others):
            with page_parts.fold("Every other attribute: is it read as before the change?"):
                page_parts.frame_table(other_table(others))
        with page_parts.fold("What the axioms mean"):
            page_parts.bullet_list(EXPLANATIONS)
        with page_parts.fold("All measurements"):
            page_parts.frame_table(frame)


def axiom_table(rows: pd.DataFrame, composition: pd.DataFrame) -> pd.DataFrame:
    """Return one column per method for one changed attribute.

    Args:
        rows: Rows of counterfactuals.csv of the attribute.
        composition: Rows of the composition, which belongs to no attribute.
    """
    table = []
    for method in dict.fromkeys(rows["method"]):
        of_method = rows[rows["method"] == method]
        cells: dict[str, str] = {"method": method}
        changed = of_method[of_method["of"] == CHANGED]
        for row in changed.to_dict("records"):
            text = f"{_value(row)} (real scans {row['reference']:.2f})"
            cells[f"effectiveness, {row['measure']}"] = text
        shifts = of_method[of_method["measure"].str.startswith(PREDICTION_SHIFT)]
        if len(shifts):
            worst = shifts.loc[shifts["value"].idxmax()]
            name = str(worst["of"]).removeprefix(f"{OTHER}: ")
            cells["most changed other attribute"] = f"{name}: {worst['value']:.2f}"
        null = composition[composition["method"] == method]
        for axiom, source in (
            ("composition", null),
            ("reversibility", of_method),
            ("minimality", of_method),
        ):
            for region in (LUNGS, OUTSIDE):
                found = source[
                    (source["axiom"] == axiom)
                    & (source["of"] == region)
                    & (source["measure"] == MEAN_CHANGE)
                ]
                if len(found):
                    cells[f"{axiom}, {region_name(region)} (HU)"] = _value(found.iloc[0].to_dict())
        for measure, title in ((DIVERGENCE, "minimality, divergence"), (FID, "realism, FID")):
            found = of_method[of_method["measure"] == measure]
            if len(found):
                row = found.iloc[0]
                text = _value(row.to_dict())
                before = f" (before {row['reference']:.3g})" if measure == FID else ""
                cells[title] = text + before
        table.append(cells)
    frame = pd.DataFrame(table).fillna("not measured").set_index("method")
    return frame.T.rename_axis(columns=None).reset_index(names="measure")


def other_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how every other attribute is read after each change."""
    return pd.DataFrame(
        {
            "changed": rows["column"],
            "method": rows["method"],
            "read": rows["of"].str.removeprefix(f"{OTHER}: "),
            "measure": rows["measure"],
            "after the change": [_value(row) for row in rows.to_dict("records")],
            "reference": rows["reference"],
            "of": rows["reference_is"],
            "volumes": rows["volumes"],
        }
    )


def _value(row: Mapping[Any, Any]) -> str:
    """Return value and interval as text."""
    text = page_parts.typeset(f"{row['value']:.3g}")
    if pd.isna(row["low"]) or row["low"] == row["high"]:
        return text
    return page_parts.typeset(f"{text} [{row['low']:.3g}, {row['high']:.3g}]")
