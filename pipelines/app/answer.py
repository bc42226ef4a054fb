"""The answer to a question: volumes from one noise, their difference, effects by region."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.text.counterfactuals import Intervention, Variant
from data.volume_dataset import VolumeSample
from pipelines.app.answer_page import PageContent, write_answer_page
from pipelines.app.progress import GenerationProgress
from pipelines.app.question import Question
from pipelines.app.session import AppSession, AskedText, OpenCase
from pipelines.app.similar_cases import CaseIndex
from pipelines.evidence import attribute_facts
from pipelines.generation.case import effects_over_draws
from pipelines.generation.case_writer import Hu
from pipelines.generation.plan import GenerationPlan
from pipelines.run_cohort import warn_training_cases
from util.cli import UserError
from util.metrics.contrast_summary import ContrastSummary, summarise_contrasts
from util.notices import Notice, collected_warnings
from util.web.figures import Panel

log = logging.getLogger(__name__)

KEPT_ANSWERS = 6  # whose volumes and pages are kept


@dataclass(frozen=True)
class Answer:
    """Volumes and effects of a question.

    Attributes:
        plan: The run with the noise of the question.
        texts: Its prompts.
        sample: The case on the model's grid.
        volumes: Volumes in HU on the model's grid by name: "real" where there is a scan, "a", and
            where the prompts differ "b" and "difference".
        panels: The same as panels of a page, with the mask.
        effects: Rows of effects.csv; empty where the prompts are alike.
        notices: What a reader has to know.
        folder: Folder of its page.
        seconds: Time that it took.
    """

    question: Question
    plan: GenerationPlan
    texts: AskedText
    sample: VolumeSample
    volumes: Mapping[str, Hu]
    panels: Sequence[Panel]
    effects: Sequence[Mapping[str, Any]]
    contrasts: Sequence[ContrastSummary]
    notices: Sequence[Notice]
    folder: Path
    seconds: float


class AnswerDesk:
    """Answers questions one after the other, and keeps the last answers.

    Attributes:
        lock: Held while the network generates.
    """

    def __init__(self, session: AppSession, folder: Path) -> None:
        self.session = session
        self.folder = folder
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._by_phrase: list[Notice] = []  # warned of once in the life of the encoder
        self.lock = threading.Lock()  # one network, one generation at a time

    def answer(self, question: Question, progress: GenerationProgress) -> Answer:
        """Return the answer to a question; a known one is not generated again.

        Args:
            progress: Shows the progress, and ends the generation.

        Raises:
            UserError: The question does not fit the run.
            CancelledError: The user cancelled it.
        """
        with self.lock:
            if question.key in self._answers:
                self._answers.move_to_end(question.key)
                return self._answers[question.key]
            folder = self.folder / question.key
            try:
                answer = self._generate(question, folder, progress)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._answers[question.key] = answer
            while len(self._answers) > KEPT_ANSWERS:
                _, old = self._answers.popitem(last=False)
                shutil.rmtree(old.folder, ignore_errors=True)
            return answer

    @cached_property
    def index(self) -> CaseIndex:
        """The cohort's scans by similarity; raises `UserError` where the run has no CLIP."""
        return CaseIndex(self.session)

    def known(self, question: Question) -> Answer:
        """Return an answer that was given; raise `UserError` where it was not, or is forgotten."""
        if question.key not in self._answers:
            raise UserError(
                "The form has changed since the last volume was generated, or many were since. "
                "Click on Generate first."
            )
        return self._answers[question.key]

    def _generate(self, question: Question, folder: Path, progress: GenerationProgress) -> Answer:
        start = time.monotonic()
        progress.report(0.0, "Reading the case")
        with collected_warnings() as collected:
            texts = self.session.texts(question)
            self.session.warn_of_values(question, texts)
            opened = self.session.open_case(question.case)
            self._check_texts(texts)
            run = self.session.run
            warn_training_cases(run.folder, run.state, [opened.sample.case])
            plan = self.session.question_plan(question, progress.tile_counter())
            volumes, effects, control = _volumes(plan, opened, texts)
        progress.report(0.95, "Writing the page")
        notices = self.all_notices(collected, texts)
        contrasts = summarise_contrasts(effects)
        panels = _panels(opened.sample, volumes, texts, control)
        content = PageContent(
            question=question,
            texts=texts,
            panels=panels,
            effects=effects,
            contrasts=contrasts,
            notices=notices,
            facts=attribute_facts(
                run,
                plan.template,
                _interventions(texts),
                [
                    *(p.annotated for p in plan.prompts.values()),
                    texts.a.annotated,
                    texts.b.annotated,
                ],
            ),
            data=plan.data,
            run_name=run.folder.name,
        )
        write_answer_page(folder, content)
        seconds = time.monotonic() - start
        return Answer(
            question,
            plan,
            texts,
            opened.sample,
            volumes,
            panels,
            effects,
            contrasts,
            notices,
            folder,
            seconds,
        )

    def _check_texts(self, texts: AskedText) -> None:
        self.session.run.generator.encoder.validate([texts.a.texts, texts.b.texts])

    def all_notices(self, collected: Sequence[Notice], texts: AskedText) -> list[Notice]:
        """Return all warnings of an answer, also those that the encoder gives only once."""
        self._by_phrase += [n for n in collected if n.phrases and n not in self._by_phrase]
        phrases = {*texts.a.texts, *texts.b.texts}
        repeated = [n for n in self._by_phrase if phrases & set(n.phrases)]
        every = [*self.session.notices, *texts.notices, *collected, *repeated]
        return list(dict.fromkeys(every))


def _volumes(
    plan: GenerationPlan, opened: OpenCase, texts: AskedText
) -> tuple[dict[str, Hu], list[dict[str, Any]], Hu | None]:
    """Return the volumes by name, the rows of effects, and the difference of another noise."""
    sample = opened.sample
    volumes: dict[str, Hu] = {}
    if sample.image is not None:
        volumes["real"] = sample.to_hu(sample.image[0])
    if not texts.differs:
        volumes["a"] = plan.generate(sample, texts.a)
        return volumes, [], None
    column, before, after = texts.contrast
    group = [Variant(texts.a, column, before), Variant(texts.b, column, after)]
    if before == after:  # two free texts that a table would call alike
        raise UserError(f"{column} is {before} in A and in B. Change one of them.")
    a, b = plan.generate_all(sample, [texts.a, texts.b])
    volumes |= {"a": a, "b": b, "difference": (b - a).astype(np.float32)}
    draws = effects_over_draws(plan, sample, group, {before: a, after: b}, opened.regions)
    other = draws.other_noise
    control = (other[after] - other[before]).astype(np.float32) if other else None
    return volumes, draws.rows, control


def _interventions(texts: AskedText) -> list[Intervention]:
    return [
        Intervention(column, tuple(dict.fromkeys(value for value in pair if value)))
        for column, pair in texts.columns.items()
        if any(pair)
    ]


def _panels(
    sample: VolumeSample, volumes: Mapping[str, Hu], texts: AskedText, control: Hu | None
) -> list[Panel]:
    """Return the volumes as a page shows them."""
    spacing = sample.spacing
    column, before, after = texts.contrast
    panels = []
    if "real" in volumes:
        panels.append(Panel("real scan", "ct", volumes["real"], spacing, role="real"))
    caption = f"{column}: {before}" if texts.differs else ""
    a = Panel("A", "ct", volumes["a"], spacing, caption=caption, phrases=tuple(texts.a.texts))
    panels.append(a)
    if "b" in volumes:
        phrases = tuple(texts.b.texts)
        caption = f"{column}: {after}"
        panels.append(Panel("B", "ct", volumes["b"], spacing, caption=caption, phrases=phrases))
        panels.append(Panel("B minus A", "difference", volumes["difference"], spacing, before=a))
    if control is not None:
        panels.append(
            Panel(
                "B minus A",
                "difference",
                control,
                spacing,
                caption="the same with other noise",
                role="control",
            )
        )
    panels.append(Panel("mask", "mask", sample.labels, spacing))
    return panels
