"""Generated against real: agreement, verdicts with the false-discovery rate controlled, findings
and what was not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from pipelines.atlas.statistics.cautions import Caution
from pipelines.atlas.statistics.intervals import MIN_PERMUTED
from pipelines.atlas.statistics.regional import LUNG_REGIONS, SUBREGIONS
from pipelines.atlas.statistics.sentences import finding_sentence, not_found_sentence

FDR = 0.05
# HU; a real interval that lies between minus and plus this shows that there is next to nothing
NEGLIGIBLE_HU = 10.0

TEST_COLUMNS = (
    "contrast",
    "column",
    "role",
    "kind",
    "from",
    "to",
    "region",
    "tested",
    "generated_hu",
    "refit_low_hu",
    "refit_high_hu",
    "permuted",
    "permuted_max_hu",
    "permuted_p",
    "exceeds_permuted",
    "real_adjustment",
    "real_cases",
    "real_hu",
    "real_low_hu",
    "real_high_hu",
    "real_p",
    "real_q",
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
    "region",
    "generated_hu",
    "strongest_hu",
    "regions",
    "why",
    "sentence",
)

Row = dict[str, Any]


def classify_agreement(generated: float, low: float, high: float) -> str:
    """How a generated effect stands to the interval of the real one.

    That neither shows an effect needs an interval that is narrow: one that is wide says nothing,
    whatever lies within.
    """
    if not np.isfinite([generated, low, high]).all():
        return "cannot tell"
    inside, excludes = low <= generated <= high, low > 0 or high < 0
    if not excludes:
        neither = inside and abs(generated) <= (high - low) / 4 and max(-low, high) <= NEGLIGIBLE_HU
        return "no effect in either" if neither else "cannot tell"
    if np.sign(generated) != np.sign(low + high):
        return "opposite sign"
    return "agrees" if inside else "same sign"


def judge_effects(
    effects: pd.DataFrame, real: pd.DataFrame, roles: Mapping[str, str], cautions: Sequence[Caution]
) -> pd.DataFrame:
    """tests.csv: every contrast and region with its verdict.

    Args:
        effects: effects.csv.
        real: real.csv.
        roles: Role by column.
        cautions: Those that forbid a claim decide before any figure does.
    """
    main = real[real["primary"] == "yes"].rename(
        columns={
            "adjustment": "real_adjustment",
            "cases": "real_cases",
            "low_hu": "real_low_hu",
            "high_hu": "real_high_hu",
            "p": "real_p",
        }
    )
    wanted = [
        "contrast",
        "region",
        "real_adjustment",
        "real_cases",
        "real_hu",
        "real_low_hu",
        "real_high_hu",
        "real_p",
    ]
    tests = effects.merge(main[wanted], "left", ["contrast", "region"])
    tests["role"] = tests["column"].map(roles)
    is_tested = tests["region"].isin(LUNG_REGIONS) & (tests["kind"] != "slope")
    tests["tested"] = np.where(is_tested, "yes", "no")
    tests["real_q"] = false_discovery(tests["real_p"].where(is_tested).astype(float))
    larger = tests["generated_hu"].abs() > tests["permuted_max_hu"].astype(float)
    tests["exceeds_permuted"] = np.where(tests["permuted"] > 0, np.where(larger, "yes", "no"), "")
    bounds = zip(
        tests["generated_hu"],
        tests["real_low_hu"].astype(float),
        tests["real_high_hu"].astype(float),
        strict=True,
    )
    tests["agreement"] = [classify_agreement(*values) for values in bounds]
    verdicts = [reach_verdict(row, cautions) for row in tests.to_dict("records")]
    tests["verdict"], tests["why"] = [v for v, _ in verdicts], [why for _, why in verdicts]
    return tests.reindex(columns=list(TEST_COLUMNS))


def false_discovery(p: pd.Series) -> pd.Series:
    """Benjamini and Hochberg's adjusted p values of those that are known."""
    known = p.notna()
    q = pd.Series(np.nan, p.index, dtype=float)
    if known.any():
        q[known] = multipletests(p[known], method="fdr_bh")[1]
    return q


def reach_verdict(row: Mapping[str, Any], cautions: Sequence[Caution]) -> tuple[str, str]:
    """finding, not found or not judged, and why it is none."""
    if row["tested"] == "no":
        return "not judged", "a control region" if row[
            "kind"
        ] != "slope" else "judged by its quantiles"
    if forbidding := [
        c for c in cautions if c.forbids and (not c.column or row["column"] in (c.column, c.other))
    ]:
        return "not judged", forbidding[0].text
    if pd.isna(row["real_p"]):
        return "not judged", "the real scans give no estimate"
    if row["permuted"] < MIN_PERMUTED:
        return (
            "not judged",
            f"{row['permuted']:.0f} permuted refits are too few to judge by (at least "
            f"{MIN_PERMUTED})",
        )
    if not row["real_q"] <= FDR:
        return (
            "not found",
            f"the real scans do not show it (false-discovery rate {row['real_q']:.2g})",
        )
    if row["exceeds_permuted"] == "no":
        return "not found", f"permuted refits reach {row['permuted_max_hu']:.1f} HU"
    if row["agreement"] == "opposite sign":
        return "not found", "the real scans show the opposite"
    return "finding", ""


def rank_findings(
    tests: pd.DataFrame,
    labels: Mapping[str, str],
    controls: pd.DataFrame,
) -> tuple[list[Row], list[Row]]:
    """The contrasts that are findings, ranked by their strongest region, and those that are none;
    each with a sentence.
    """
    found: list[Row] = []
    others: list[Row] = []
    for contrast, part in tests[tests["tested"] == "yes"].groupby("contrast", sort=False):
        rows = {row["region"]: row for row in part.to_dict("records")}
        claimed = [name for name, row in rows.items() if row["verdict"] == "finding"]
        places = [name for name in SUBREGIONS if name in (claimed or rows)] or claimed or list(rows)
        strongest = max(places, key=lambda name: abs(rows[name]["generated_hu"]))
        first = rows.get("lungs") or next(iter(rows.values()))
        made: Row = {
            "contrast": contrast,
            "column": first["column"],
            "role": first["role"],
            "label": labels[str(contrast)],
            "region": strongest,
            "generated_hu": first["generated_hu"],
            "strongest_hu": rows[strongest]["generated_hu"],
            "regions": " | ".join(claimed),
            "why": "" if claimed else first["why"],
            "judged": first["verdict"],
        }
        if claimed:
            shown = "lungs" if "lungs" in claimed else strongest
            made["sentence"] = finding_sentence(
                made["label"], rows[shown], rows[strongest], controls
            )
        else:
            made["sentence"] = not_found_sentence(made["label"], first)
        (found if claimed else others).append(made)
    for rows_of in (found, others):
        rows_of.sort(key=lambda row: -abs(row["strongest_hu"]))
        for rank, row in enumerate(rows_of, 1):
            row["rank"] = rank
    return found, others
