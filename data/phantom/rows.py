"""Clinical rows of the phantom cohort, with the columns and the wording of the AIIB23 table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Row = dict[str, str]

KEY = "File Name"
PATIENT = "Mapping ID"
COLUMNS = (
    KEY, PATIENT, "DIAGNOSIS", "label", "AGE", "SEX", "TYPE CTD", "SMOKING HISTORY",
    "CTD DIAG DATE", "PACK-YEARS", "SMOKING HISTORY STOP DATE", "RISK OCCUPATIONAL",
    "RISK ENVIRONMENTAL", "RISK PRECIPITINS", "FAMILIAL PF AND/OR RARE VARIANT", "TYPE CTD OTHER",
)  # fmt: skip
YES_NO = ("No", "Yes")
SMOKING = "SMOKING HISTORY"
DIAGNOSIS = "DIAGNOSIS"
LEVELS: dict[str, tuple[str, ...]] = {
    SMOKING: ("Never smoker", "Ex smoker", "Current smoker"),
    DIAGNOSIS: ("HP", "CTD-ILD", "IPF"),
    "label": ("1", "0"),
    "SEX": ("Male", "Female"),
    "RISK OCCUPATIONAL": YES_NO,
    "RISK ENVIRONMENTAL": YES_NO,
    "RISK PRECIPITINS": YES_NO,
    "FAMILIAL PF AND/OR RARE VARIANT": YES_NO,
    "TYPE CTD": ("Rheumatoid arthritis", "Systemic sclerosis", "Myositis", "Other"),
}
NUMBERS = ("AGE", "PACK-YEARS")
OTHER_CTD = ("Sjogren syndrome", "Mixed connective tissue disease")
AGES = (40, 90)
YEAR = 365  # days; dates are days relative to the scan, as in AIIB23
# The diagnosis that confounding gives to a smoking history.
CONFOUNDED_DIAGNOSIS = dict(zip(LEVELS[SMOKING], LEVELS[DIAGNOSIS], strict=True))


def draw_rows(cases: Sequence[str], seed: int, confounding: float) -> dict[str, Row]:
    """Draw complete rows; attributes are independent, and their levels equally frequent.

    Args:
        cases: Ids, one row each.
        seed: Seed of the draw.
        confounding: Probability, 0 to 1, that smoking history decides the diagnosis (never HP, ex
            CTD-ILD, current IPF) instead of chance. Cramer's V of the two columns is about this
            number.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = {}
    for column, levels in LEVELS.items():
        if column != "TYPE CTD":
            drawn[column] = rng.permutation(np.resize(levels, len(cases)))
    ages = rng.integers(AGES[0], AGES[1] + 1, len(cases))
    confounded = rng.random(len(cases)) < confounding
    rows = {}
    for i, case in enumerate(cases):
        row = dict.fromkeys(COLUMNS, "")
        row.update({column: str(values[i]) for column, values in drawn.items()})
        row[KEY] = case
        row[PATIENT] = f"P{i + 1:04d}"
        row["AGE"] = str(ages[i])
        if confounded[i]:
            row[DIAGNOSIS] = CONFOUNDED_DIAGNOSIS[row[SMOKING]]
        row.update(_draw_details(row, np.random.default_rng([seed, 2, i])))
        rows[case] = row
    return rows


def _draw_details(row: Row, rng: np.random.Generator) -> Row:
    """Draw the cells that exist only for some patients."""
    cells: Row = {}
    age = int(row["AGE"])
    if row[SMOKING] != "Never smoker":
        cells["PACK-YEARS"] = str(rng.integers(2, min(60, age - 15) + 1))
    if row[SMOKING] == "Ex smoker":
        cells["SMOKING HISTORY STOP DATE"] = str(-YEAR * rng.integers(1, age - 30))
    if row[DIAGNOSIS] == "CTD-ILD":
        cells["TYPE CTD"] = str(rng.choice(LEVELS["TYPE CTD"]))
        cells["CTD DIAG DATE"] = str(-YEAR * rng.integers(1, 20))
        if cells["TYPE CTD"] == "Other":
            cells["TYPE CTD OTHER"] = str(rng.choice(OTHER_CTD))
    return cells


def hide_cells(rows: dict[str, Row], share: float, seed: int) -> dict[str, Row]:
    """Return the rows with a share of their filled cells emptied at random; the ids stay."""
    rng = np.random.default_rng([seed, 3])
    filled = []
    for case, row in rows.items():
        filled += [(case, c) for c in COLUMNS if c not in (KEY, PATIENT) and row[c]]
    hidden = {case: dict(row) for case, row in rows.items()}
    for i in rng.permutation(len(filled))[: round(share * len(filled))]:
        case, column = filled[i]
        hidden[case][column] = ""
    return hidden
