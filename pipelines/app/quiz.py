"""A quiz on a run: what was changed in a chest, and where? Case sets that a teacher can edit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models.text.relevance import column_relevance
from options.checks import check_chest_ct
from pipelines.app.answer import Answer
from pipelines.app.question import Question, parse_seed
from pipelines.app.session import AppSession, KnownColumn
from pipelines.atlas.statistics.zones import MIN_CHANGE_HU, MIN_SHARE, zone_masks
from util.cli import UserError, format_list
from util.files import atomic_path
from util.phrasing import LOW_RELEVANCE
from util.yaml_files import parse_yaml

CASES_FILE = "cases.yaml"
SHOWN = ("generated", "real")
SUGGESTED = 8  # items of a set that is made for a start
CHOICES = 4  # attributes to choose from
HEADER = """\
# A case set of the quiz (scripts/app.py --teach --case_set FOLDER). Edit it freely.
#   case     a case of the cohort
#   column   the attribute that is changed; from and to are its values
#   shown    generated: both pictures are generated; real: the scan, and the scan with the change
#            (from is then the case's own value)
#   seed     noise of the pictures
#   note     a sentence that is shown with the solution (may be left out)
"""


@dataclass(frozen=True)
class QuizItem:
    """One question of a quiz.

    Attributes:
        column: The attribute that is changed.
        start: Its value in the first picture.
        end: Its value in the second picture.
        shown: Whether pictures are generated, or the real scan and the scan with the difference.
        seed: Seed of the noise.
        note: A sentence of the teacher, shown with the solution.
    """

    case: str
    column: str
    start: str
    end: str
    shown: str = "generated"
    seed: int = 0
    note: str = ""

    @property
    def question(self) -> Question:
        """The two volumes of the item."""
        return Question(
            self.case, {self.column: self.start}, {self.column: self.end}, seed=self.seed
        )


@dataclass(frozen=True)
class CaseSet:
    """The questions of a quiz, with the title of the set."""

    title: str
    items: tuple[QuizItem, ...]


@dataclass(frozen=True)
class Judgement:
    """How an answer is judged.

    Attributes:
        points: 0 to 2: one for the attribute, one for the place.
        texts: What was right, and what would have been.
    """

    points: int
    texts: tuple[str, ...]


def open_case_set(session: AppSession, folder: str) -> CaseSet:
    """Return the case set of a folder, or one made for the run.

    Args:
        session: The run and its cases.
        folder: Folder with `cases.yaml`, which is written where it is missing; "" for none.

    Raises:
        UserError: The file is malformed or does not fit the run, or there is nothing to ask.
    """
    check_chest_ct(session.plan.data, "the quiz")
    if not folder:
        return suggest_case_set(session)
    path = Path(folder) / CASES_FILE
    if not path.is_file():
        write_case_set(path, suggest_case_set(session))
    return read_case_set(path, session)


def write_case_set(path: Path, case_set: CaseSet) -> None:
    """Write a case set for a teacher to edit; raise `UserError` where the disk refuses it."""
    items = [
        {"case": item.case, "column": item.column, "from": item.start, "to": item.end}
        | {"shown": item.shown, "seed": item.seed, "note": item.note}
        for item in case_set.items
    ]
    content = {"title": case_set.title, "cases": items}
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        temporary.write_text(HEADER + text, encoding="utf-8")


def read_case_set(path: Path, session: AppSession) -> CaseSet:
    """Read `cases.yaml`.

    Raises:
        UserError: The file is malformed, or names a case, column or value that the run lacks.
    """
    try:
        raw = parse_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Correct it.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("cases"), list) or not raw["cases"]:
        raise UserError(
            f"{path} must hold `cases`, a list of questions. Move it away for a new one."
        )
    items = [_read_item(f"{path}, case {k}", entry) for k, entry in enumerate(raw["cases"], 1)]
    for number, item in enumerate(items, 1):
        _check_item(f"{path}, case {number}", item, session)
    return CaseSet(str(raw.get("title", path.parent.name)), tuple(items))


def _read_item(where: str, entry: Any) -> QuizItem:
    names = {"from": "start", "to": "end"}
    known = {field.name for field in fields(QuizItem)}
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a mapping with case, column, from and to.")
    values = {names.get(str(key), str(key)): value for key, value in entry.items()}
    if missing := [key for key in ("case", "column", "from", "to") if key not in entry]:
        raise UserError(f"{where} lacks {missing[0]!r}. Add it.")
    if unknown := sorted(set(values) - known):
        raise UserError(f"{where} holds {unknown[0]!r}, which no question has. Remove it.")
    try:
        seed = parse_seed(values.get("seed", 0))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    texts = {
        key: str(value) for key, value in values.items() if key != "seed" and value is not None
    }
    return QuizItem(**texts, seed=seed)  # type: ignore[arg-type]


def _check_item(where: str, item: QuizItem, session: AppSession) -> None:
    try:
        case = session.case(item.case)
        texts = session.texts(item.question)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if item.shown not in SHOWN:
        raise UserError(f"{where}: shown is {item.shown!r}; it must be {' or '.join(SHOWN)}.")
    if not texts.columns:
        raise UserError(f"{where}: from and to are the same value of {item.column}. Change one.")
    if item.shown == "real":
        own = session.row(item.case)[item.column]
        if case.image is None:
            raise UserError(f"{where}: {item.case} has no scan. Use shown: generated.")
        if own != texts.columns[item.column][0]:
            raise UserError(
                f"{where}: shown: real needs the case's own value as `from`, which is "
                f"{own or 'not known'}. Correct it, or use shown: generated."
            )


def suggest_case_set(session: AppSession) -> CaseSet:
    """Return a set of questions on the columns that the training scans determine best.

    Raises:
        UserError: The cohort has no case, or the run no column with two values.
    """
    cohort = session.plan.cohort
    splits = cohort.splits
    order = [*splits.get("test", ()), *splits.get("val", ()), *(case.id for case in cohort.cases)]
    cases = list(dict.fromkeys(order))
    columns = _askable_columns(session)
    if not cases or not columns:
        raise UserError(
            "The quiz has nothing to ask: it needs cases (--dataroot) and a column with two values."
        )
    items = []
    for number in range(SUGGESTED):
        column = columns[number % len(columns)]
        case = cases[number % len(cases)]
        own = session.row(case)[column.name]
        start, end = _two_values(column)
        real = number % 2 == 1 and own in (start, end) and cohort[case].image is not None
        if own == end:
            start, end = end, start
        shown = "real" if real else "generated"
        items.append(QuizItem(case, column.name, start, end, shown, seed=number))
    return CaseSet(f"What does {session.run.folder.name} show?", tuple(items))


def _askable_columns(session: AppSession) -> list[KnownColumn]:
    """Return the columns with two values, those of the highest relevance first."""
    prompts = [prompt.annotated for prompt in session.plan.prompts.values()]
    relevance = column_relevance(session.run.generator.encoder, prompts)
    columns = [c for c in session.columns.values() if len(c.values) > 1 and c.role != "acquisition"]
    known = [c for c in columns if relevance.get(c.name, 1.0) >= LOW_RELEVANCE]
    return sorted(known or columns, key=lambda c: -relevance.get(c.name, 1.0))


def _two_values(column: KnownColumn) -> tuple[str, str]:
    """Return the ends of a range, or the two most frequent categories."""
    if column.numeric or len(column.patients) < 2:
        return column.values[0], column.values[-1]
    frequent = sorted(column.patients, key=lambda value: -column.patients[value])
    return frequent[0], frequent[1]


def choices(item: QuizItem, session: AppSession) -> list[str]:
    """Return the attributes to choose from, in an order that the item decides."""
    rng = random.Random(f"{item.case} {item.column} {item.seed}")
    others = [c.name for c in session.columns.values() if c.name != item.column and c.values]
    chosen = [item.column, *rng.sample(others, min(CHOICES - 1, len(others)))]
    rng.shuffle(chosen)
    return chosen


def pictures(item: QuizItem, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Return the two pictures of an item, HU; a scan gets the difference of the volumes."""
    if item.shown == "real":
        low, high = answer.plan.data.hu_window
        real = answer.volumes["real"]
        return real, np.clip(real + answer.volumes["difference"], low, high)
    return answer.volumes["a"], answer.volumes["b"]


def zone_changes(answer: Answer, session: AppSession) -> dict[str, float]:
    """Return the mean change of each zone of the lungs, HU."""
    zones = zone_masks(session.open_case(answer.question.case).regions)
    return {name: float(answer.volumes["difference"][mask].mean()) for name, mask in zones.items()}


def judge(
    item: QuizItem, answer: Answer, session: AppSession, column: str, voxel: Sequence[int] | None
) -> Judgement:
    """Judge an answer: the attribute, and a voxel in a zone that changes.

    A zone is right if its mean change is at least half of the strongest zone's.

    Raises:
        UserError: Nothing is chosen, or the voxel lies outside the volume.
    """
    if not column:
        raise UserError("Choose the attribute that was changed.")
    texts = [
        f"{column} is right."
        if column == item.column
        else f"It was {item.column}: {item.start} became {item.end}."
    ]
    changes = zone_changes(answer, session)
    where, is_place = _judge_place(changes, answer, session, voxel)
    texts.append(where)
    if item.note:
        texts.append(item.note)
    return Judgement(int(column == item.column) + int(is_place), tuple(texts))


def _judge_place(
    changes: Mapping[str, float], answer: Answer, session: AppSession, voxel: Sequence[int] | None
) -> tuple[str, bool]:
    """Return what is said of the place, and whether it is right."""
    largest = max(map(abs, changes.values()), default=0.0)
    right = [name for name, change in changes.items() if abs(change) >= MIN_SHARE * largest]
    right.sort(key=lambda name: -abs(changes[name]))
    if largest < MIN_CHANGE_HU:
        return "Nothing changes in the lungs by more than 1 HU: no place would be right.", False
    solution = f"It changes most in: {format_list([_with_change(n, changes) for n in right], 3)}."
    if voxel is None:
        return f"No place was clicked. {solution}", False
    zones = zone_masks(session.open_case(answer.question.case).regions)
    shape = answer.sample.labels.shape
    if len(voxel) != 3 or any(not 0 <= k < n for k, n in zip(voxel, shape, strict=True)):
        raise UserError("The place lies outside the volume. Click on the second picture again.")
    clicked = next((name for name, mask in zones.items() if mask[tuple(voxel)]), "")
    if not clicked:
        return f"The place lies outside the lungs. {solution}", False
    if clicked in right:
        return f"The place is right: {_with_change(clicked, changes)}. {solution}", True
    return f"The place changes less: {_with_change(clicked, changes)}. {solution}", False


def _with_change(name: str, changes: Mapping[str, float]) -> str:
    return f"{name} ({changes[name]:+.0f} HU)".replace("-", "−")
