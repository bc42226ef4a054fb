"""Verdicts on contrasts: generated effects against real scans and permuted refits.

The false-discovery rate of the real scans' tests is controlled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from pipelines.atlas.statistics.adjustment import TOTAL
from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.intervals import MAX_PERMUTED_P, MIN_PERMUTED
from pipelines.atlas.statistics.outcomes import ALL_OUTCOMES, OUTCOMES
from pipelines.atlas.statistics.regional import SUBREGIONS, tested_regions
from pipelines.atlas.statistics.sentences import finding_sentence, not_found_sentence
from util.cli import counted

FDR = 0.05
NEXT_TO_NONE = 0.05  # share of a real effect: a generated one of less has no sign to speak of

TEST_COLUMNS = (
    "contrast",
    "column",
    "role",
    "kind",
    "from",
    "to",
    "outcome",
    "region",
    "tested",
    "generated",
    "refit_low",
    "refit_high",
    "permuted",
    "permuted_max",
    "permuted_p",
    "exceeds_permuted",
    "real_adjustment",
    "real_cases",
    "real",
    "real_low",
    "real_high",
    "real_p",
    "real_q",
    "total",
    "total_low",
    "total_high",
    "agreement",
    "verdict",
    "why",
)
FINDING_COLUMNS = (
    "rank",
    "contrast",
    "column",
    "role",
    "label",
    "outcome",
    "region",
    "generated",
    "strongest",
    "regions",
    "why",
    "sentence",
)
# Agreements with the real scans that exclude a finding, and why.
NO_FINDING = {
    "opposite sign": "the real scans show the opposite",
    "not generated": "the generated volumes do not show it",
}
# Columns of real.csv by their names in tests.csv.
REAL_NAMES = {
    "adjustment": "real_adjustment",
    "cases": "real_cases",
    "real": "real",
    "low": "real_low",
    "high": "real_high",
    "p": "real_p",
}
TOTAL_NAMES = {"real": "total", "low": "total_low", "high": "total_high"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """Rows of findings.csv and of not_found.csv."""

    found: list[Row]
    not_found: list[Row]


def classify_agreement(generated: float, low: float, high: float, negligible: float) -> str:
    """Compare a generated effect with the interval of the real one.

    "No effect in either" needs an interval within minus and plus `negligible`, because a wide one
    does not exclude an effect. "Not generated" is at most `NEXT_TO_NONE` of the real effect.
    """
    if not np.isfinite([generated, low, high]).all():
        return "cannot tell"
    is_inside = low <= generated <= high
    if low <= 0 <= high:
        is_small = abs(generated) <= (high - low) / 4
        is_narrow = max(-low, high) <= negligible
        return "no effect in either" if is_inside and is_small and is_narrow else "cannot tell"
    if is_inside:
        return "agrees"
    if abs(generated) <= NEXT_TO_NONE * abs(low + high) / 2:
        return "not generated"
    return "same sign" if np.sign(generated) == np.sign(low + high) else "opposite sign"


def judge_effects(
    effects: pd.DataFrame, real: pd.DataFrame, roles: Mapping[str, str], cautions: Sequence[Caution]
) -> pd.DataFrame:
    """Return tests.csv: every contrast, outcome and region with its verdict.

    The false-discovery rate is controlled over all of them together.

    Args:
        effects: Table effects.csv.
        real: Table real.csv.
        roles: Role by column.
        cautions: Those that forbid a claim come before any number.
    """
    main = real[real["primary"] == "yes"].rename(columns=REAL_NAMES)
    total = real[real["adjustment"] == TOTAL].rename(columns=TOTAL_NAMES)
    keys = ["contrast", "outcome", "region"]
    tests = effects.merge(main[[*keys, *REAL_NAMES.values()]], "left", keys)
    tests = tests.merge(total[[*keys, *TOTAL_NAMES.values()]], "left", keys)
    tests["role"] = tests["column"].map(roles)
    is_tested = tests["region"].isin(tested_regions(tests["region"].unique()))
    is_tested &= tests["kind"] != "slope"
    is_tested &= tests["outcome"].isin(list(OUTCOMES))
    tests["tested"] = np.where(is_tested, "yes", "no")
    tests["real_q"] = false_discovery(tests["real_p"].where(is_tested).astype(float))
    is_larger = tests["permuted_p"].astype(float) <= MAX_PERMUTED_P
    exceeds = np.where(is_larger, "yes", "no")
    tests["exceeds_permuted"] = np.where(tests["permuted"] > 0, exceeds, "")
    agreements = []
    verdicts = []
    reasons = []
    for row in tests.to_dict("records"):
        bounds = float(row["real_low"]), float(row["real_high"])
        negligible = ALL_OUTCOMES[row["outcome"]].negligible
        row["agreement"] = classify_agreement(row["generated"], *bounds, negligible)
        verdict, reason = reach_verdict(row, cautions)
        agreements.append(row["agreement"])
        verdicts.append(verdict)
        reasons.append(reason)
    tests = tests.assign(agreement=agreements, verdict=verdicts, why=reasons)
    return tests.reindex(columns=list(TEST_COLUMNS))


def false_discovery(p: pd.Series) -> pd.Series:
    """Return Benjamini and Hochberg's adjusted p values; NaN where there is no p value."""
    known = p.notna()
    q = pd.Series(np.nan, p.index, dtype=float)
    if known.any():
        q[known] = multipletests(p[known], method="fdr_bh")[1]
    return q


def reach_verdict(row: Mapping[Any, Any], cautions: Sequence[Caution]) -> tuple[str, str]:
    """Return finding, not found or not judged, and the reason ("" for a finding)."""
    if row["tested"] == "no":
        if row["kind"] == "slope":
            return "not judged", "judged by its quantiles"
        is_variant = row["outcome"] not in OUTCOMES
        return "not judged", "a variant of the mean" if is_variant else "a control region"
    for caution in cautions:
        if caution.forbids_claim(row["column"], row["outcome"]):
            return "not judged", caution.brief
    if pd.isna(row["real_p"]):
        return "not judged", "the real scans give no estimate"
    if row["permuted"] < MIN_PERMUTED:
        reason = (
            f"{counted(row['permuted'], 'permuted refit is', 'permuted refits are')} too few to "
            f"judge by (at least {MIN_PERMUTED})"
        )
        return "not judged", reason
    if not row["real_q"] <= FDR:
        reason = f"the real scans do not show it (false-discovery rate {row['real_q']:.2g})"
        return "not found", reason
    if row["exceeds_permuted"] == "no":
        unit = OUTCOMES[row["outcome"]].unit
        reason = (
            f"permuted refits reach {row['permuted_max']:.1f} {unit} in some region of the lungs "
            f"(p = {row['permuted_p']:.2g})"
        )
        return "not found", reason
    contrary = NO_FINDING.get(row["agreement"], "")
    return ("not found", contrary) if contrary else ("finding", "")


def rank_findings(
    tests: pd.DataFrame,
    labels: Mapping[str, str],
    controls: pd.DataFrame,
    scans: str = "the real scans",
) -> Findings:
    """Return the findings, and what is not one: a row per contrast and outcome.

    They are ranked by the change in their strongest region, in multiples of what is negligible in
    that outcome.

    Args:
        tests: Table of `judge_effects`.
        labels: Label by contrast.
        controls: Table controls.csv.
        scans: Name of the real scans in sentences; see `real_scans_name`.
    """
    found: list[Row] = []
    not_found: list[Row] = []
    is_tested = tests["tested"] == "yes"
    for (contrast, _), part in tests[is_tested].groupby(["contrast", "outcome"], sort=False):
        rows = {row["region"]: row for row in part.to_dict("records")}
        row = _finding_row(str(contrast), labels[str(contrast)], rows, controls, scans)
        (found if row["regions"] else not_found).append(row)
    for ranked in (found, not_found):
        ranked.sort(key=lambda row: -abs(row["strongest"]) / OUTCOMES[row["outcome"]].negligible)
        for rank, row in enumerate(ranked, 1):
            row["rank"] = rank
    return Findings(found, not_found)


def _finding_row(
    contrast: str,
    label: str,
    rows: Mapping[str, Mapping[Any, Any]],
    controls: pd.DataFrame,
    scans: str,
) -> Row:
    """Return the row of findings.csv of a contrast and an outcome, from its tests by region."""
    claimed = [region for region, row in rows.items() if row["verdict"] == "finding"]
    candidates = [region for region in SUBREGIONS if region in (claimed or rows)]
    strongest = max(
        candidates or claimed or rows, key=lambda region: abs(rows[region]["generated"])
    )
    first = rows.get("lungs") or next(iter(rows.values()))
    if claimed:
        shown = rows["lungs" if "lungs" in claimed else strongest]
        sentence = finding_sentence(label, shown, rows[strongest], controls, scans)
    else:
        sentence = not_found_sentence(label, first, scans)
    return {
        "contrast": contrast,
        "column": first["column"],
        "role": first["role"],
        "label": label,
        "outcome": first["outcome"],
        "region": strongest,
        "generated": first["generated"],
        "strongest": rows[strongest]["generated"],
        "regions": " | ".join(claimed),
        "why": "" if claimed else first["why"],
        "sentence": sentence,
    }
