"""What a cohort cannot tell: few cases, tied attributes, effects through the mask, outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.associations import (
    LATER_ROLES,
    MIN_ASSOCIATION_CASES,
    ambiguous_columns,
)
from pipelines.atlas.statistics.contrasts import AtlasAttribute
from pipelines.atlas.statistics.intervals import MIN_PERMUTED, MIN_REFITS
from pipelines.atlas.statistics.regression import (
    INSEPARABLE,
    MIN_LEVEL_CASES,
    Design,
    RealScans,
    Roles,
)
from util.phrasing import LOW_RELEVANCE

MIN_LEVEL_PATIENTS = 10  # training cases of a value
MIN_PATIENTS = 20  # training patients or patients with a real scan
MIN_ASSOCIATION = 0.3
MAX_VIF = 5.0
MAX_MISSING = 0.3
THROUGH_MASK_P = 0.01


CAUTION_COLUMNS = ("kind", "column", "other", "value", "forbids", "text")


@dataclass(frozen=True)
class Caution:
    """A warning; `forbids` a claim where it is strong enough."""

    kind: str
    text: str
    column: str = ""
    other: str = ""
    value: float | str = ""
    forbids: bool = False

    def row(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "column": self.column,
            "other": self.other,
            "value": self.value,
            "forbids": "yes" if self.forbids else "no",
            "text": self.text,
        }


def association_cautions(
    pairs: Sequence[Mapping[str, Any]], roles: Mapping[str, str]
) -> list[Caution]:
    """Warnings of attributes that go together; both are named, and a strong tie forbids claims (see
    `pipelines.atlas.statistics.associations`).
    """
    made = []
    for row in pairs:
        if row["value"] < MIN_ASSOCIATION or row["cases"] < MIN_ASSOCIATION_CASES:
            continue
        pair, what = (row["column"], row["other"]), "part of one's effect may be the other's"
        doubtful = ambiguous_columns(row, roles)
        if len(doubtful) == 2:
            what = "their effects cannot be told apart, neither is claimed, and intervals reach as far as the tie allows"
        elif doubtful:
            pair = (doubtful[0], "")
            what = f"{doubtful[0]}, which comes after, is not claimed, and its intervals reach as far as the tie allows"
        made.append(
            Caution(
                "tied",
                f"{row['column']} and {row['other']} go together ({row['measure']} "
                f"{row['value']:.2f} in {row['cases']} cases): {what}.",
                *pair,
                row["value"],
                bool(doubtful),
            )
        )
    return made


def count_cautions(
    attributes: Sequence[AtlasAttribute], table: pd.DataFrame, patient: pd.Series
) -> list[Caution]:
    """Warnings of values that few training patients have, of values in two spellings, and of many
    empty cells.

    Args:
        attributes: What is studied.
        table: The training rows as the text says them.
        patient: Who each row is of.
    """
    made = []
    for a in attributes:
        if a.kind == "category":
            have = patient.groupby(table[a.column]).nunique()
            few = {v: int(have.get(v, 0)) for v in a.counts if have.get(v, 0) < MIN_LEVEL_PATIENTS}
            made += [
                Caution(
                    "few cases",
                    f"{a.column}: training patients with {v}: only "
                    f"{n}{'' if v in a.values else '; it is not looked at'}.",
                    a.column,
                    v,
                    n,
                )
                for v, n in few.items()
            ]
            spelt: dict[str, list[str]] = {}
            for v in a.counts:
                spelt.setdefault(_letters(v), []).append(v)
            made += [
                Caution(
                    "spelling",
                    f"{a.column}: {' and '.join(map(repr, same))} differ in nothing but their "
                    "spelling, and count as different values. Write them alike.",
                    a.column,
                )
                for same in spelt.values()
                if len(same) > 1
            ]
        missing = 1 - sum(a.counts.values()) / max(len(table), 1)
        if missing >= MAX_MISSING:
            made.append(
                Caution(
                    "missing",
                    f"{a.column} is empty in {missing:.0%} of the training cases.",
                    a.column,
                    "",
                    round(missing, 3),
                )
            )
    return made


def _letters(value: str) -> str:
    return "".join(c for c in value.casefold() if c.isalnum() or c in "<>+-=.")


ROLE_TEXTS = {
    "outcome": "{c} is an outcome: it comes after the scan. Its difference shows how scans of "
    "those who had it look, not "
    "what it does.",
    "mediator": "{c} is a mediator: it lies between an exposure and the picture. Its difference "
    "is part of the exposure's.",
}


def role_cautions(attributes: Sequence[AtlasAttribute]) -> list[Caution]:
    """Warnings of outcomes and mediators."""
    return [
        Caution(a.role, ROLE_TEXTS[a.role].format(c=a.column), a.column)
        for a in attributes
        if a.role in LATER_ROLES
    ]


def size_cautions(training: int, real: int, seen: int) -> list[Caution]:
    """Warnings of a cohort that is too small to conclude anything, and of scans that training has
    seen.

    Args:
        training: Patients that the run was trained on.
        real: Patients with a scan to compare with.
        seen: Those that are both.
    """
    made = []
    if training < MIN_PATIENTS or real < MIN_PATIENTS:
        made.append(
            Caution(
                "cohort too small",
                f"The cohort is too small to conclude anything: {training} training patients and "
                f"{real} patients with a scan to compare with; at least {MIN_PATIENTS} of each are "
                "needed.",
                value=min(training, real),
                forbids=True,
            )
        )
    if seen:
        made.append(
            Caution(
                "seen",
                f"The model was trained on scans of {seen} of the {real} patients that it is "
                "compared with: that they agree shows that it learnt them, not that it would hold "
                "for new patients. Compare with --fold, or --real_split test.",
                value=seen,
            )
        )
    return made


def refit_cautions(refits: Sequence[Mapping[str, Any]], steps: int) -> list[Caution]:
    """Warnings that there are no intervals, or no negative controls, or such as were trained
    otherwise than the run.

    Args:
        refits: Their records.
        steps: Those of the run as it generates.
    """
    made, kinds = [], [r["kind"] for r in refits]
    if others := sorted({int(r["steps"]) for r in refits} - {steps}):
        made.append(
            Caution(
                "other steps",
                f"Refits were trained for {', '.join(map(str, others))} steps, the run that "
                f"generates for {steps}: what they say of chance and of uncertainty does not hold "
                "for it. Train them alike (no --refit_steps, --which_epoch latest).",
                value=others[0],
                forbids=True,
            )
        )
    if kinds.count("resampled") < MIN_REFITS:
        made.append(
            Caution(
                "no refits",
                f"There are {kinds.count('resampled')} refits on resampled patients, too few for "
                f"intervals (at least {MIN_REFITS}; scripts/refit.py --refits 20): the spread "
                "over patients is not the uncertainty.",
                value=kinds.count("resampled"),
            )
        )
    if kinds.count("permuted") < MIN_PERMUTED:
        made.append(
            Caution(
                "no permuted refits",
                f"There are {kinds.count('permuted')} permuted refits, too few to call anything a "
                f"finding (at least {MIN_PERMUTED}; scripts/refit.py --permutations 20).",
                value=kinds.count("permuted"),
            )
        )
    return made


def built_in_cautions(text_region: str, text_mode: str) -> list[Caution]:
    """Warnings of controls that the way of training passes by itself: they prove nothing."""
    made = []
    if text_region == "labels":
        made.append(
            Caution(
                "built in",
                "Text can hardly change what the mask does not label (--text_region labels), so "
                "that little change outside the lungs is built in and proves nothing.",
            )
        )
    if text_mode == "phrases":
        made.append(
            Caution(
                "built in",
                "Phrases have no order, and those that differ from phrases of training in "
                "punctuation, capitals or "
                '"is" are read as these (--text_mode phrases), so that the two controls of the '
                "prompt are built in. What synonyms would change is not measured.",
            )
        )
    return made


def low_relevance_cautions(loudness: Mapping[str, float], studied: Sequence[str]) -> list[Caution]:
    """Warnings of columns that the run hardly listens to; `loudness` by column, 0 to 1 (see
    `--text_relevance`).
    """
    return [
        Caution(
            "silent",
            f"The training scans hardly tell what {column} does to the lungs "
            f"({loudness[column]:.2f} of 1), so that the run hardly listens to it: a difference "
            "near 0 HU is what the run took for granted, no evidence of no effect. Look at the "
            "interval of the real scans.",
            column,
            "",
            round(loudness[column], 3),
        )
        for column in studied
        if loudness.get(column, 1.0) < LOW_RELEVANCE
    ]


def pooled_cautions(pooled: Mapping[str, AtlasAttribute]) -> list[Caution]:
    """Warnings of columns with so many values that real scans can be adjusted for the common ones
    alone.
    """
    return [
        Caution(
            "pooled",
            f"{c} ({a.role}) holds {len(a.counts)} different values; the real scans are adjusted "
            f"for those that at least {MIN_LEVEL_CASES} cases have, all others taken together.",
            c,
        )
        for c, a in pooled.items()
    ]


def guessed_cautions(roles: Mapping[str, str]) -> list[Caution]:
    """A warning of roles that are guessed from the columns' names; `roles` by column."""
    if not roles:
        return []
    said = ", ".join(f"{column} {role}" for column, role in roles.items())
    return [
        Caution(
            "roles guessed",
            f"No template says what these columns are; by their names: {said}. Real scans are "
            "adjusted accordingly. Give --template of train.py a YAML file where that is wrong.",
        )
    ]


def mask_cautions(
    scans: RealScans, attributes: Sequence[AtlasAttribute], roles: Roles
) -> list[Caution]:
    """Warnings of attributes that go with the lungs' volume: that part cannot show while the mask
    is held fixed.
    """
    made = []
    logged = np.log(scans.volume.clip(lower=1e-6))
    for a in attributes:
        base = roles.adjustments(a.column)["base"]
        design = Design.from_scans(scans, a, base, volume=False)
        fit = design.fit(logged, scans.patient) if design.terms else None
        if fit is None:
            continue
        p = float(fit.f_test(np.eye(len(fit.params))[1 : 1 + len(design.terms)]).pvalue)
        if not p < THROUGH_MASK_P:
            continue
        name = max(design.terms, key=lambda t: abs(fit.tvalues[t]))
        span = float(a.values[-1]) - float(a.values[0]) if a.kind == "number" else 1.0
        change = float(np.expm1(span * fit.params[name]))
        what = (
            f"{a.values[-1]} against {a.values[0]}"
            if a.kind == "number"
            else f"{name} against {a.reference}"
        )
        made.append(
            Caution(
                "through the mask",
                f"{a.column} goes with the size of the lungs ({what}: {change:+.0%}, p = {p:.2g}, "
                "adjusted). What it does through their size cannot show here, for the mask is "
                "held fixed.",
                a.column,
                "",
                round(change, 4),
            )
        )
    return made


def collinear_cautions(real: pd.DataFrame, columns: Mapping[str, str]) -> list[Caution]:
    """Warnings of attributes whose regression is inflated by the others; `columns` maps contrasts
    to columns.
    """
    made = []
    main = real[(real["primary"] == "yes") & (real["region"] == "lungs")]
    made += [
        Caution("collinear", f"{c} {INSEPARABLE}; it is not claimed.", c, forbids=True)
        for c in dict.fromkeys(main.loc[main["reason"] == INSEPARABLE, "contrast"].map(columns))
    ]
    largest: dict[str, float] = {}
    for contrast, factor in zip(main["contrast"], main["vif"].fillna(0), strict=True):
        largest[columns[contrast]] = max(largest.get(columns[contrast], 0.0), float(factor))
    for column, factor in largest.items():
        if factor >= MAX_VIF:
            made.append(
                Caution(
                    "collinear",
                    f"{column} can hardly be told apart from the other columns together (variance "
                    f"inflation {factor:.1f}); it is not claimed.",
                    column,
                    "",
                    factor,
                    True,
                )
            )
    return made
