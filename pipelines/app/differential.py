"""The same patient with each value of an attribute, such as each diagnosis."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.text.counterfactuals import Variant
from pipelines.app.answer import AnswerDesk
from pipelines.app.differential_page import DifferentialContent, SimilarRow, write_page
from pipelines.app.progress import GenerationProgress, OnTile
from pipelines.app.question import Question
from pipelines.app.session import AppSession, AskedText
from pipelines.generation.case import effects_over_draws
from pipelines.generation.case_writer import Hu
from pipelines.run_cohort import warn_training_cases
from util.cli import UserError, digest_name
from util.metrics.contrast_summary import summarise_contrasts
from util.notices import collected_warnings

MAX_VALUES = 8


@dataclass(frozen=True)
class Differential:
    """The volumes of a patient under each value of a column.

    Attributes:
        volumes: HU on the model's grid by value; the first is the patient's own text.
        effects: Rows of effects.csv, each value against the own text.
        similar: Real cases that resemble each volume, and each text, by value.
        folder: Folder of its page.
        seconds: Time that it took.
    """

    volumes: Mapping[str, Hu]
    effects: Sequence[Mapping[str, Any]]
    similar: Mapping[str, SimilarRow]
    folder: Path
    seconds: float


def columns_of(session: AppSession) -> list[str]:
    """Return the columns that can be compared value by value: categories with several values."""
    return [
        column.name
        for column in session.columns.values()
        if not column.numeric and 1 < len(column.values) <= MAX_VALUES
    ]


def compare_values(
    desk: AnswerDesk, question: Question, column: str, progress: GenerationProgress
) -> Differential:
    """Generate the patient of a question with each value of a column, from one noise.

    Args:
        desk: The run and its network.
        question: The patient: A's text; what is changed in B is left out.
        progress: Shows the progress, and ends the generation.

    Raises:
        UserError: The column has no several known values, or the question does not fit the run.
        CancelledError: The user cancelled it.
    """
    session = desk.session
    if column not in columns_of(session):
        raise UserError(f"{column or 'No column'} has no values to compare. Choose another column.")
    with desk.lock:
        return _compare(desk, question, column, progress)


def _compare(
    desk: AnswerDesk, question: Question, column: str, progress: GenerationProgress
) -> Differential:
    start = time.monotonic()
    session = desk.session
    on_tile = progress.tile_counter()
    with collected_warnings() as collected:
        texts = _texts(session, question, column)
        variants = [
            Variant(text.b if value else text.a, column, value or "own text")
            for value, text in texts.items()
        ]
        opened = session.open_case(question.case)
        run = session.run
        run.generator.encoder.validate([v.prompt.texts for v in variants])
        warn_training_cases(run.folder, run.state, [opened.sample.case])
        plan = session.question_plan(question, on_tile)
        generated = plan.generate_all(opened.sample, [v.prompt for v in variants])
        volumes = {v.value: hu for v, hu in zip(variants, generated, strict=True)}
        draws = effects_over_draws(plan, opened.sample, variants, volumes, opened.regions)
        effects = [row for row in draws.rows if row["from"] == variants[0].value]
    similar, why_not = _similar(desk, question, variants, volumes, on_tile)
    notices = [n for text in texts.values() for n in desk.all_notices(collected, text)]
    content = DifferentialContent(
        question=question,
        column=column,
        sample=opened.sample,
        variants=variants,
        volumes=volumes,
        effects=effects,
        contrasts=summarise_contrasts(effects),
        notices=list(dict.fromkeys(notices)),
        similar=similar,
        similar_note=why_not,
        values={case.id: session.row(case.id)[column] for case in session.plan.cohort.cases},
        data=plan.data,
    )
    folder = desk.folder / digest_name(f"{question.query} {column}", "differential")
    write_page(folder, content)
    return Differential(volumes, effects, similar, folder, time.monotonic() - start)


def _texts(session: AppSession, question: Question, column: str) -> dict[str, AskedText]:
    """Return the texts of each value; "" is the patient's own text."""
    own = Question(question.case, question.factual, {}, question.text_a, "", question.seed)
    texts = {"": session.texts(own)}
    for value in session.columns[column].values:
        changed = Question(
            question.case, question.factual, {column: value}, question.text_a, "", question.seed
        )
        text = session.texts(changed)
        if text.differs:  # else it is the patient's own value
            session.warn_of_values(changed, text)
            texts[value] = text
    return texts


def _similar(
    desk: AnswerDesk,
    question: Question,
    variants: Sequence[Variant],
    volumes: Mapping[str, Hu],
    on_tile: OnTile,
) -> tuple[dict[str, SimilarRow], str]:
    """Return the similar cases of each value, or why there are none."""
    try:
        index = desk.index
    except UserError as error:
        return {}, str(error)
    index.fill(on_tile)
    sample = desk.session.open_case(question.case).sample
    rows = {}
    for variant in variants:
        by_image = index.embed(volumes[variant.value], sample.labels, sample.case.mask)
        texts = variant.prompt.texts
        rows[variant.value] = SimilarRow(
            index.nearest(by_image, question.case),
            index.nearest(index.embed_text(texts), question.case) if texts else [],
        )
    return rows, index.caution
