"""Account of a synthetic cohort: its outcome in a sentence, its README.md, and its limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from data.provenance import CHANGE, EDITS_FILE, RUN, SEED, SOURCE
from pipelines.synthesis.planning.planned_case import PlannedCase, Values
from util.cli import counted
from util.markdown import code, escape_text, markdown_table
from util.notices import Notice

NOT_KNOWN = "(not known)"
LIMITS = (
    "Not for diagnosis, treatment or any other clinical decision, and not to test a product for "
    "the clinic.",
    "Train with these volumes if you like; test on real scans alone. All are in the split train "
    "for that reason.",
    "They hold what the generator learned, with its errors and the biases of its training cohort. "
    "A rare group rests on the few real patients of that group; many volumes of few patients are "
    "not new patients.",
    "A mask comes from a real patient, or is drawn from the shapes of real patients. Keep volumes "
    "made from test patients' masks out of training: the source is named.",
    "The search for copies finds close ones; it is not a proof of privacy. Treat the volumes as "
    "you treat the scans.",
    "Say in every publication that the data are synthetic, and how they were made.",
)
EDIT_LIMITS = (
    *LIMITS[:2],
    "An edit is a real patient's scan with one finding added or removed: treat it as you treat the "
    "scan, and keep it on the same side of every split as its source.",
    "The change is what the generator learned of the attribute, with its errors and the biases of "
    "its training cohort; everything else is the patient's own, so many edits of few patients are "
    "not new patients.",
    "A difference of generated volumes adds a focal finding where the generator puts it. It cannot "
    "remove the patient's own nodule: look at edits that take a finding away before you use them.",
    LIMITS[-1],
)
MASKS_IN_WORDS = {
    "deform": "those of cases of {source}, varied by smooth deformation",
    "given": "**those of patients** of {source}, as they stand",
    "shape": "drawn for each row from a statistical shape model of the masks of {source}; "
    "`copies.csv` has the nearest training mask of each, which is farther than a copy would be",
}
RETRIEVED_IN_WORDS = {
    "none": "",
    "row": ", each of the case with the most similar row unless the table named one",
    "text": ", each of the case with the most similar text unless the table named one",
}
HOW_IN_WORDS = {
    "residual": "the scan plus the difference of two generated volumes of the same noise, one with "
    "the text of its own row and one with the changed text",
    "edit": "inverted to noise by the diffusion model with the text of its own row, and sampled "
    "again with the changed text",
}


@dataclass(frozen=True)
class CohortReport:
    """Content of the account of a synthetic cohort.

    Attributes:
        source: Name of the real cohort.
        run: Name of the run.
        step: Step of its checkpoint.
        how: How the cases were made, as `--how`.
        masks: Where generated cases have their masks from, as `--masks`.
        retrieve: What decided whose masks they have, as `--retrieve`.
        columns: The balanced columns, or words; empty for none.
        checked: Whether copies of training scans were searched for.
        records: Records of all cases, those left out, too.
        written: The cases that were written.
        options: The command's options.
        notices: Warnings of the command.
    """

    source: str
    run: str
    step: int
    how: str
    masks: str
    retrieve: str
    columns: Sequence[str]
    checked: bool
    records: Sequence[Mapping[str, Any]]
    written: Sequence[PlannedCase]
    options: Mapping[str, Mapping[str, Any]]
    notices: Sequence[Notice] = ()

    @property
    def edits(self) -> bool:
        """Whether the cases are edited scans."""
        return self.how != "generate"

    @property
    def mask_origin(self) -> str:
        """Where generated cases have their masks from, in a few words."""
        similar = "" if self.retrieve == "none" else f" of the most similar {self.retrieve}"
        return f"{self.masks}{similar}"

    @property
    def limits(self) -> tuple[str, ...]:
        """Cautions of page and README."""
        return EDIT_LIMITS if self.edits else LIMITS

    @property
    def by_values(self) -> dict[Values, list[PlannedCase]]:
        """The written cases by their values of the balanced columns, or wording, sorted."""
        groups: dict[Values, list[PlannedCase]] = defaultdict(list)
        for case in self.written:
            values = tuple(case.row.get(column, "") for column in self.columns)
            groups[(case.wording,) if case.wording else values].append(case)
        return dict(sorted(groups.items()))

    @property
    def counts(self) -> dict[Values, int]:
        """Number of written cases by their values of the balanced columns."""
        return {values: len(cases) for values, cases in self.by_values.items()}

    def count(self, entry: str) -> int:
        """Return the sum of a number in the records of all cases."""
        return sum(int(record[entry]) for record in self.records)


def describe_changes(case: PlannedCase) -> str:
    """Return the changed cells of a case's row in words, such as "SEX: Male to Female"."""
    changes = case.changes.items()
    return "; ".join(f"{c}: {a or NOT_KNOWN} to {b or NOT_KNOWN}" for c, (a, b) in changes)


def cohort_sentence(report: CohortReport) -> str:
    """Return what was made, from what, and how far it is from real scans."""
    sources = len({case.source.id for case in report.written})
    if report.edits:
        text = f"{counted(len(report.written), 'edited scan')} of "
        text += f"{counted(sources, 'training case')} of {report.source}"
        text += f" by {report.run} (step {report.step})"
    else:
        origin = f"from the masks of {counted(sources, 'case')} of {report.source}"
        if report.masks == "shape":
            origin = f"with masks drawn from the shapes of {report.source}, which are no patient's"
        text = (
            f"{counted(len(report.written), 'synthetic case')} by {report.run} "
            f"(step {report.step}), {origin}"
        )
    if report.columns:
        counts = [f"{_name(values)} {n}" for values, n in report.counts.items()]
        text += f"; {' and '.join(report.columns)}: {', '.join(counts)}"
    return f"{text}. {_edit_outcome(report) if report.edits else _copy_outcome(report)}"


def _name(values: Values) -> str:
    return " and ".join(value or NOT_KNOWN for value in values)


def _used_of_source(report: CohortReport) -> str:
    return "row and grid" if report.masks == "shape" else "mask"


def _edit_outcome(report: CohortReport) -> str:
    changes = [float(record["mean_absolute_change_hu"]) for record in report.records]
    if not changes:
        return "No case was edited."
    bounds = dict.fromkeys(f"{change:.1f}" for change in (min(changes), max(changes)))
    return (
        f"Each is a real patient's scan, {HOW_IN_WORDS[report.how]}; the lungs change by "
        f"{' to '.join(bounds)} HU on average over voxels."
    )


def _copy_outcome(report: CohortReport) -> str:
    """Return how close generated cases are to training scans and masks, and what was left out."""
    return f"{_scan_outcome(report)}{_mask_outcome(report)}"


def _scan_outcome(report: CohortReport) -> str:
    if not report.checked:
        return "Copies of training scans were not searched for."
    copies = sum(record["reason"] == "copy" for record in report.records)
    redrawn = report.count("redrawn")
    text = "No volume was too close to a training scan"
    if redrawn or copies:
        text = (
            f"{counted(redrawn, 'draw')} too close to a training scan and drawn again, "
            f"{counted(copies, 'case')} left out"
        )
    kept = [r for r in report.records if not r["left_out"] and r["nearest_training_case"]]
    if not kept:
        return f"{text}."
    nearest = min(kept, key=lambda record: record["distance"])
    return (
        f"{text}; the nearest, {nearest['case']}, is at distance {nearest['distance']:.2f} from "
        f"{nearest['nearest_training_case']} (copy below {nearest['threshold']:.2f})."
    )


def _mask_outcome(report: CohortReport) -> str:
    """Return how close drawn masks are to training masks; "" for masks of patients."""
    if report.masks != "shape":
        return ""
    implausible = sum(r["reason"] not in ("", "copy") for r in report.records)
    text = ""
    if implausible:
        cases = counted(implausible, "case")
        text = f" {cases} left out, because no plausible mask was drawn."
    kept = [r for r in report.records if not r["left_out"]]
    if kept:
        nearest = min(kept, key=lambda record: record["mask_distance"])
        text += (
            f" The mask nearest to a patient's, that of {nearest['case']}, has a distance of "
            f"{nearest['mask_distance']:.2f} (1 - Dice) from that of {nearest['nearest_mask']} "
            f"(copy below {nearest['mask_threshold']:.2f})."
        )
    return text


def cohort_readme(report: CohortReport) -> str:
    """Return the README.md of a synthetic cohort: its origin, its limits, and the warnings.

    Names and values of users are escaped, so that none becomes markup.
    """
    made_by = f"Mask2CT (run {code(report.run)}, step {report.step})"
    if report.edits:
        lines = [
            "# Edited chest CT",
            "",
            f"{len(report.written)} **real scans of patients**, each changed by {made_by}.",
            "",
            f"Each is a scan of the training split of {code(report.source)}: "
            f"{HOW_IN_WORDS[report.how]}. Its mask is the scan's own. `{EDITS_FILE}`",
            f"names for each case the scan (`source`) and what was changed; `clinical.csv` has the "
            f"same in `{SOURCE}` and `{CHANGE}`.",
        ]
    else:
        lines = [
            "# Synthetic chest CT",
            "",
            f"{counted(len(report.written), 'volume')} generated by {made_by}. **Nobody's scans.**",
            "",
            f"Masks are {MASKS_IN_WORDS[report.masks].format(source=code(report.source))}"
            f"{RETRIEVED_IN_WORDS[report.retrieve]}. In `clinical.csv` the column `{SOURCE}`",
            f"names the case whose {_used_of_source(report)} was used, `{SEED}` the seed and "
            f"`{RUN}` the generator; `copies.csv` holds the nearest training scan.",
        ]
    lines += ["", *_count_table(report)]
    if not report.edits:
        lines += [_copies_line(report), ""]
    lines += ["## Research use only", "", *(f"- {text}" for text in report.limits), ""]
    if report.notices:
        warnings = [f"- {escape_text(notice.text)}" for notice in report.notices]
        lines += ["## Read before use", "", *warnings, ""]
    return "\n".join(lines)


def _count_table(report: CohortReport) -> list[str]:
    if not report.columns:
        return []
    rows = [
        [*(escape_text(value) or NOT_KNOWN for value in values), n]
        for values, n in report.counts.items()
    ]
    names = [escape_text(column) for column in report.columns]
    return [markdown_table(pd.DataFrame(rows, columns=[*names, "cases"])), ""]


def _copies_line(report: CohortReport) -> str:
    if not report.checked:
        return "Copies: **not searched for** (`--no-check_copies`)."
    return (
        f"Copies: {counted(report.count('redrawn'), 'draw')} too close to a training scan and made "
        f"again; {counted(report.count('left_out'), 'case')} left out, for the `reason` in "
        "`copies.csv`."
    )
