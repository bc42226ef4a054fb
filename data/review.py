"""Marks of the preparation report: cases that a person rejected are left out of a cohort."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.text.values import match_ids
from data.volumes import strip_suffix
from util.cli import UserError, counted, format_list
from util.files import read_csv, unescape_cell

log = logging.getLogger(__name__)

REVIEW_FILE = "review.csv"  # of a dataroot
REVIEW_COLUMNS = ("case", "mark", "note")

Mark = Literal["accept", "reject"]
MARKS: tuple[Mark, ...] = ("accept", "reject")


@dataclass(frozen=True)
class Review:
    """What a person decided on a case, and why."""

    mark: Mark
    note: str = ""


def read_review(root: Path) -> dict[str, Review]:
    """Return the reviews of a dataroot by case as written; none where there is no `review.csv`.

    Raises:
        UserError: The file is damaged, has another mark than accept and reject, or names a case
            twice.
    """
    path = root / REVIEW_FILE
    if not path.exists():
        return {}
    fix = "Save it again from report.html, correct it, or remove it."
    try:
        rows = read_csv(path, REVIEW_COLUMNS)
    except UserError as error:
        raise UserError(f"{error} {fix}") from None
    reviews: dict[str, Review] = {}
    for number, row in enumerate(rows, 2):
        case = strip_suffix(unescape_cell(row["case"]).strip())
        mark = row["mark"].strip().lower()
        if not case or mark not in MARKS:
            raise UserError(
                f"{path}, row {number}, has the case {case!r} and the mark {row['mark']!r}; a mark "
                f"is accept or reject. {fix}"
            )
        if case in reviews:
            raise UserError(f"{path} names case {case!r} twice. {fix}")
        reviews[case] = Review(mark, unescape_cell(row["note"]))
    return reviews


def rejected_cases(root: Path, cases: Sequence[str]) -> dict[str, str]:
    """Return the notes of the cases of a dataroot that were rejected, and log them.

    Raises:
        UserError: See `read_review`; or it names a case that is not there, or rejects every case.
    """
    reviews = read_review(root)
    path = root / REVIEW_FILE
    ids = match_ids(reviews, cases, str(path))
    if unknown := [case for case in reviews if case not in ids]:
        raise UserError(
            f"{path} names cases that have no files: {format_list(unknown)}. Correct the names or "
            "remove the rows."
        )
    rejected = {ids[case]: review.note for case, review in reviews.items() if _is_reject(review)}
    if rejected and len(rejected) == len(set(cases)):
        raise UserError(f"{path} rejects every case ({len(rejected)}), so that none is left.")
    if rejected:
        log.warning("%s", rejection_sentence(rejected))
    return rejected


def _is_reject(review: Review) -> bool:
    return review.mark == "reject"


def rejection_sentence(rejected: Mapping[str, str]) -> str:
    """Return a sentence that names the rejected cases, with their notes."""
    names = [f"{case} ({note})" if note else case for case, note in rejected.items()]
    cases = counted(len(rejected), "case is", "cases are")
    return f"{cases} rejected in {REVIEW_FILE} and left out: {format_list(names)}"
