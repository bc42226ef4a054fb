"""Cautions: limits of a cohort and its refits, such as few cases or associated columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.associations import (
    MIN_ASSOCIATION_CASES,
    Association,
    ambiguous_columns,
)
from pipelines.atlas.statistics.contrasts import LATER_ROLES, WORDING, AtlasAttribute, Contrast
from pipelines.atlas.statistics.imputation import MIN_LEVEL_CASES, is_number_column
from pipelines.atlas.statistics.intervals import MAX_PERMUTED_P, MIN_PERMUTED, MIN_REFITS
from pipelines.atlas.statistics.least_squares import ALL
from pipelines.atlas.statistics.outcomes import MEAN, MEAN_WITHOUT_VESSELS, OUTCOMES
from pipelines.atlas.statistics.regression import (
    INSEPARABLE,
    AttributeTables,
    RealScans,
)
from pipelines.atlas.statistics.sensitivity import sensitivity_ranges
from pipelines.atlas.statistics.sentences import region_place
from util.cli import counted
from util.phrasing import LOW_RELEVANCE

MIN_LEVEL_PATIENTS = 10  # training patients of a value
MIN_PATIENTS = 20  # training patients, and patients with a real scan
MIN_ASSOCIATION = 0.3
MAX_VIF = 5.0
MAX_MISSING = 0.3
MAX_UNKNOWN = 0.8  # share of empty cells from which nothing is claimed
THROUGH_MASK_P = 0.01
MAX_VESSEL_HU = 5.0  # by which means with and without vessels may differ
MIN_REVERSAL_HU = 1.0  # by which they differ at least where another sign matters

CAUTION_COLUMNS = ("kind", "column", "other", "value", "forbids", "outcomes", "text")


@dataclass(frozen=True)
class Caution:
    """A warning about an atlas.

    Attributes:
        kind: Its kind, as in cautions.csv.
        text: A sentence for readers.
        column: The column it is about; "" for the whole atlas.
        other: A second column, or a value of the first.
        value: A number that belongs to it.
        forbids: Whether it forbids a claim.
        outcomes: Outcomes whose claims it forbids; empty for all.
    """

    kind: str
    text: str
    column: str = ""
    other: str = ""
    value: float | str = ""
    forbids: bool = False
    outcomes: tuple[str, ...] = ()

    @property
    def brief(self) -> str:
        """What stands before the first colon or full stop, as a reason beside other results."""
        return f"{re.split(r'[:.](?= |$)', self.text)[0]}."

    def to_row(self) -> dict[str, Any]:
        """Return the row of cautions.csv."""
        outcomes = " | ".join(self.outcomes)
        return {**asdict(self), "forbids": "yes" if self.forbids else "no", "outcomes": outcomes}

    def forbids_claim(self, column: str, outcome: str) -> bool:
        """Return whether it forbids a claim on an outcome of a column."""
        is_about_column = not self.column or column in (self.column, self.other)
        is_about_outcome = not self.outcomes or outcome in self.outcomes
        return self.forbids and is_about_column and is_about_outcome


def association_cautions(
    pairs: Sequence[Association], roles: Mapping[str, str], studied: Collection[str]
) -> list[Caution]:
    """Warn of associated attributes; a strong association forbids claims.

    See `pipelines.atlas.statistics.associations`. Intervals are wider where both are `studied`.
    """
    cautions = []
    for pair in pairs:
        if pair.value < MIN_ASSOCIATION or pair.cases < MIN_ASSOCIATION_CASES:
            continue
        column, other = pair.column, pair.other
        ambiguous = ambiguous_columns(pair, roles)
        consequence = "part of one's effect may be the other's"
        if len(ambiguous) == 2:
            consequence = "their effects cannot be told apart, neither is claimed"
        elif ambiguous:
            column, other = ambiguous[0], ""
            consequence = f"{column}, which comes after, is not claimed"
        absent = [name for name in (pair.column, pair.other) if name not in studied]
        if ambiguous and absent:
            consequence += f", and intervals do not show it, because {absent[0]} is not studied"
        elif ambiguous:
            consequence += ", and intervals reach as far as the association allows"
        text = (
            f"{pair.column} and {pair.other} are associated ({pair.measure} {pair.value:.2f} in "
            f"{counted(pair.cases, 'case')}): {consequence}."
        )
        cautions.append(Caution("tied", text, column, other, pair.value, bool(ambiguous)))
    return cautions


def count_cautions(
    attributes: Sequence[AtlasAttribute], table: pd.DataFrame, patient: pd.Series
) -> list[Caution]:
    """Warn of values with few training patients or two spellings, and of many empty cells."""
    cautions = []
    for attribute in attributes:
        if attribute.kind == "category":
            cautions += _few_cases(attribute, table[attribute.column], patient)
            cautions += _spellings(attribute)
        missing = 1 - sum(attribute.counts.values()) / max(len(table), 1)
        if missing >= MAX_MISSING:
            forbids = missing >= MAX_UNKNOWN
            state = "in none of its wordings" if attribute.role == WORDING else "empty"
            text = f"{attribute.column} is {state} in {missing:.0%} of the training cases."
            if forbids:
                text += " The few that are known may be a selection, so it is not claimed."
            value = round(missing, 3)
            cautions.append(Caution("missing", text, attribute.column, "", value, forbids))
    return cautions


def _few_cases(attribute: AtlasAttribute, values: pd.Series, patient: pd.Series) -> list[Caution]:
    patients = patient.groupby(values).nunique()
    cautions = []
    for value in attribute.counts:
        count = int(patients.get(value, 0))
        if count >= MIN_LEVEL_PATIENTS:
            continue
        ending = "" if value in attribute.values else "; it is not studied"
        text = f"{attribute.column}: training patients with {value}: only {count}{ending}."
        cautions.append(Caution("few cases", text, attribute.column, value, count))
    return cautions


def _spellings(attribute: AtlasAttribute) -> list[Caution]:
    groups: dict[str, list[str]] = {}
    for value in attribute.counts:
        letters = "".join(c for c in value.casefold() if c.isalnum() or c in "<>+-=.")
        groups.setdefault(letters, []).append(value)
    cautions = []
    for values in groups.values():
        if len(values) > 1:
            text = (
                f"{attribute.column}: {' and '.join(map(repr, values))} differ in nothing but "
                "their spelling, and count as different values. Write them alike."
            )
            cautions.append(Caution("spelling", text, attribute.column))
    return cautions


ROLE_TEXTS = {
    "outcome": "{c} is an outcome: it comes after the scan. Its difference shows how scans of "
    "those who had it look, not what it does.",
    "mediator": "{c} is a mediator: it lies between an exposure and the picture. Its difference "
    "is part of the exposure's.",
    WORDING: "{c} is a change of words: its difference is what the generator makes of these words, "
    "while the rest of the text stays. Real scans are compared by whether their text holds them.",
}


def role_cautions(attributes: Sequence[AtlasAttribute]) -> list[Caution]:
    """Warn of outcomes, mediators and changes of words."""
    cautions = []
    for attribute in attributes:
        if attribute.role in LATER_ROLES:
            text = ROLE_TEXTS[attribute.role].format(c=attribute.column)
            cautions.append(Caution(attribute.role, text, attribute.column))
    return cautions


@dataclass(frozen=True)
class NextCommands:
    """Command lines that cautions advise.

    Attributes:
        refit: Trains the refits that are missing.
        cross_fit: Builds the atlas so that no network has seen the scans it is compared with.
        cross_fit_cost: What that trains, in words.
    """

    refit: str = "scripts/refit.py --refits 20 --permutations 19"
    cross_fit: str = "scripts/build_atlas.py --fold all/5"
    cross_fit_cost: str = "5 refits"


def size_cautions(
    training: int, real: int, seen: int, commands: NextCommands | None = None
) -> list[Caution]:
    """Forbid claims of a cohort that is too small, and of scans seen in training.

    Args:
        training: Patients that the run was trained on.
        real: Patients with a scan to compare with.
        seen: Patients that are both.
        commands: Commands to advise.
    """
    commands = commands or NextCommands()
    cautions = []
    if training < MIN_PATIENTS or real < MIN_PATIENTS:
        text = (
            f"The cohort is too small to conclude anything: "
            f"{counted(training, 'training patient')} and {counted(real, 'patient')} with a scan "
            f"to compare with; at least {MIN_PATIENTS} of each are needed."
        )
        smaller = min(training, real)
        cautions.append(Caution("cohort too small", text, value=smaller, forbids=True))
    if seen:
        text = (
            f"The model was trained on scans of {seen} of {counted(real, 'patient')} that it is "
            "compared with: agreement then shows fit to the training scans only, and nothing about "
            "new patients, so nothing is claimed. Scans that no network has seen are compared "
            f"where there are at least {MIN_PATIENTS} such patients, or with cross-fitting, which "
            f"trains {commands.cross_fit_cost} where they are not finished: {commands.cross_fit}"
        )
        cautions.append(Caution("seen", text, value=seen, forbids=True))
    return cautions


def refit_cautions(
    refits: Sequence[Mapping[str, Any]], steps: int, commands: NextCommands | None = None
) -> list[Caution]:
    """Warn of missing intervals and null distributions, and of refits trained otherwise."""
    commands = commands or NextCommands()
    cautions = []
    kinds = [refit["kind"] for refit in refits]
    other_steps = sorted({int(refit["steps"]) for refit in refits} - {steps})
    if other_steps:
        text = (
            f"Refits were trained for {', '.join(map(str, other_steps))} steps, the run that "
            f"generates for {steps}: their intervals and null distributions do not hold for it. "
            "Train them alike (no --refit_steps, --which_epoch latest)."
        )
        cautions.append(Caution("other steps", text, value=other_steps[0], forbids=True))
    resampled = kinds.count("resampled")
    if resampled < MIN_REFITS:
        text = (
            f"{counted(resampled, 'refit')} on resampled patients: too few for intervals (at least "
            f"{MIN_REFITS}); the spread over patients is not the uncertainty. To train them: "
            f"{commands.refit}"
        )
        cautions.append(Caution("no refits", text, value=resampled))
    permuted = kinds.count("permuted")
    if permuted < MIN_PERMUTED:
        text = (
            f"{counted(permuted, 'permuted refit')}: too few to call anything a finding (at least "
            f"{MIN_PERMUTED}, because {MIN_PERMUTED - 1} cannot give a p value of "
            f"{MAX_PERMUTED_P:g}). To train them: {commands.refit}"
        )
        cautions.append(Caution("no permuted refits", text, value=permuted))
    return cautions


def changed_data_cautions(changes: Sequence[str]) -> list[Caution]:
    """Warn of data that changed since the run was trained, in words."""
    if not changes:
        return []
    text = (
        f"Changed since the run was trained: {'; '.join(changes)}. The networks have learned from "
        "the earlier data, and the real scans and rows are those of today. Restore the data, or "
        "train the run anew."
    )
    return [Caution("changed data", text)]


def built_in_cautions(text_region: str, text_mode: str) -> list[Caution]:
    """Warn of controls that hold by the way the run was trained, and so prove nothing."""
    cautions = []
    if text_region == "labels":
        text = (
            "Text can hardly change what the mask does not label (--text_region labels), so that "
            "little change outside the lungs is built in and proves nothing."
        )
        cautions.append(Caution("built in", text))
    if text_mode == "phrases":
        text = (
            "Phrases have no order, and those that differ from phrases of training in "
            'punctuation, capitals or "is" are read as these (--text_mode phrases), so that the '
            "two controls of the prompt are built in. What synonyms would change is not measured."
        )
        cautions.append(Caution("built in", text))
    return cautions


def low_relevance_cautions(relevance: Mapping[str, float], columns: Sequence[str]) -> list[Caution]:
    """Warn of studied columns with low relevance (0 to 1, see `--text_relevance`)."""
    cautions = []
    for column in columns:
        value = relevance.get(column, 1.0)
        if value >= LOW_RELEVANCE:
            continue
        text = (
            f"The training scans hardly determine the effect of {column} on the lungs "
            f"({value:.2f} of 1), so the run gives it little weight: a difference near 0 HU is an "
            "assumption of the run, not evidence of no effect. Look at the interval of the real "
            "scans."
        )
        cautions.append(Caution("silent", text, column, value=round(value, 3)))
    return cautions


def pooled_cautions(pooled: Mapping[str, AtlasAttribute]) -> list[Caution]:
    """Warn of columns with many values: real scans are adjusted for the common ones alone."""
    cautions = []
    for column, attribute in pooled.items():
        if is_number_column(pd.Series(list(attribute.counts), dtype=object)):
            continue  # adjusted for as the number that it is
        text = (
            f"{column} ({attribute.role}) holds {len(attribute.counts)} different values; the real "
            f"scans are adjusted for those that at least {MIN_LEVEL_CASES} cases have, all others "
            "taken together."
        )
        cautions.append(Caution("pooled", text, column))
    return cautions


def guessed_cautions(roles: Mapping[str, str]) -> list[Caution]:
    """Warn of roles that are guessed from the columns' names; `roles` by column."""
    if not roles:
        return []
    listed = ", ".join(f"{column} {role}" for column, role in roles.items())
    text = (
        f"The template does not contain these columns; their roles are guessed by name: {listed}. "
        "Real scans are adjusted accordingly. Give --template of train.py a YAML file where that "
        "is wrong."
    )
    return [Caution("roles guessed", text)]


def imputation_cautions(
    scans: RealScans, missing: pd.DataFrame, columns: Mapping[str, str]
) -> list[Caution]:
    """State the assumption on unknown cells, and what it decides.

    Args:
        missing: Table of `sensitivity.missing_sensitivity`.
        columns: Column by contrast.
    """
    cautions = []
    completed = scans.completed
    if completed.imputed:
        shares = (f"{column} {share:.0%}" for column, share in completed.imputed.items())
        text = (
            f"Unknown cells of the rows of real scans ({', '.join(shares)}) are imputed, assuming "
            "that they are missing at random: that whether a cell is known depends only on what is "
            "known of the case. Cases whose own value is unknown are left out. See the table of "
            "other assumptions."
        )
        cautions.append(Caution("imputed", text, value=max(completed.imputed.values())))
    for column, share in completed.not_imputed.items():
        text = (
            f"{column} is not known in {share:.0%} of the real scans, too many to impute, so that "
            "no estimate is adjusted for it. Whether it explains a difference cannot be concluded."
        )
        cautions.append(Caution("not adjusted", text, column, value=round(share, 3)))
    for row in sensitivity_ranges(missing).to_dict("records"):
        is_shown = row["low"] > 0 or row["high"] < 0
        matters = is_shown or abs(row["at_random"]) > OUTCOMES[MEAN].negligible
        if row["least"] < 0 < row["most"] and matters:
            column = columns[row["contrast"]]
            text = (
                f"{column}: the sign of the {row['effect']} effect in the real scans depends on "
                f"what unknown cells hold ({row['least']:+.0f} to {row['most']:+.0f} HU), so "
                "it is not claimed."
            )
            value = round(row["at_random"], 3)
            cautions.append(Caution("not at random", text, column, "", value, forbids=True))
    return cautions


def additivity_cautions(sentences: Mapping[str, Sequence[str]]) -> list[Caution]:
    """Warn of columns that an additive model does not fit; sentences by column."""
    cautions = []
    for column, texts in sentences.items():
        for text in texts:
            advice = f"{text} An average over patients hides that."
            cautions.append(Caution("not additive", advice, column))
    return cautions


def mask_cautions(
    scans: RealScans, attributes: Sequence[AtlasAttribute], roles: Roles
) -> list[Caution]:
    """Warn of attributes associated with the lung volume: the mask, and so that part, is fixed."""
    cautions = []
    for attribute in attributes:
        caution = _mask_caution(scans, attribute, roles)
        if caution is not None:
            cautions.append(caution)
    return cautions


def _mask_caution(scans: RealScans, attribute: AtlasAttribute, roles: Roles) -> Caution | None:
    covariates = scans.covariates_known(roles.total(attribute.column))
    design = AttributeTables.from_scans(scans, attribute).designs(covariates).designs[0]
    fit = design.fit(scans.log_volume.to_frame(), scans.patient)[0] if design.terms else None
    if fit is None:
        return None
    p = fit.wald_p(ALL)
    if not p < THROUGH_MASK_P:
        return None
    index = int(np.abs(fit.values / fit.errors).argmax())
    name = design.terms[index]
    first, last = attribute.values[0], attribute.values[-1]
    if attribute.kind == "number":
        span = float(last) - float(first)
        compared = f"{last} against {first}"
    else:
        span = 1.0
        compared = f"{name} against {attribute.reference}"
    change = float(np.expm1(span * fit.values[index]))
    text = (
        f"{attribute.column} is associated with the size of the lungs ({compared}: {change:+.0%}, "
        f"p = {p:.2g}, adjusted). What it does through their size cannot show here, because the "
        "mask is held fixed."
    )
    return Caution("through the mask", text, attribute.column, value=round(change, 4))


def collinear_cautions(real: pd.DataFrame, columns: Mapping[str, str]) -> list[Caution]:
    """Warn of attributes whose regression is inflated by the other columns.

    Args:
        real: Table of `regression.estimate_contrasts`.
        columns: Column by contrast.
    """
    is_main = (real["primary"] == "yes") & (real["outcome"] == MEAN)
    main = real[is_main & (real["region"] == "lungs")]
    inseparable = main.loc[main["reason"] == INSEPARABLE, "contrast"].map(columns)
    cautions = []
    for column in inseparable.unique():
        text = f"{column} {INSEPARABLE}; it is not claimed."
        cautions.append(Caution("collinear", text, column, forbids=True))
    factors = main["vif"].fillna(0).astype(float)
    for column, vif in factors.groupby(main["contrast"].map(columns), sort=False).max().items():
        if vif >= MAX_VIF:
            text = (
                f"{column} can hardly be told apart from the other columns together (variance "
                f"inflation {vif:.1f}); it is not claimed."
            )
            cautions.append(Caution("collinear", text, str(column), value=float(vif), forbids=True))
    return cautions


def vessel_cautions(real: pd.DataFrame, contrasts: Sequence[Contrast]) -> list[Caution]:
    """Warn of contrasts whose mean depends on whether vessels count.

    Args:
        real: Table real.csv; without means without vessels, there is nothing to warn of.
        contrasts: The contrasts; slopes are left out.
    """
    keys = ["contrast", "region"]
    main = real[real["primary"] == "yes"]
    kept = main[main["outcome"] == MEAN]
    without = main[main["outcome"] == MEAN_WITHOUT_VESSELS]
    both = kept.merge(without, on=keys, suffixes=("", "_without"))
    cautions = []
    for contrast in contrasts:
        rows = both[both["contrast"] == contrast.id]
        change = (rows["real"] - rows["real_without"]).abs()
        is_reversed = (rows["real"] * rows["real_without"] < 0) & (change > MIN_REVERSAL_HU)
        rows = rows[(change > MAX_VESSEL_HU) | is_reversed]
        if contrast.kind == "slope" or not len(rows):
            continue
        worst = rows.loc[change[rows.index].idxmax()]
        text = (
            f"{contrast.label}: the difference in the real scans depends on whether vessels count. "
            f"It is {worst['real']:+.1f} HU {region_place(str(worst['region']))} with them, and "
            f"{worst['real_without']:+.1f} HU without."
        )
        value = round(float(change[rows.index].max()), 3)
        cautions.append(Caution("vessels", text, contrast.column, value=value))
    return cautions
