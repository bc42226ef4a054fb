"""The quiz as a part of the live page: pictures to click on, a choice, feedback and a score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from dominate import tags

from pipelines.app.answer import Answer, AnswerDesk
from pipelines.app.controls import NETWORK, PROGRESS, frame_of, shown_errors, shown_progress
from pipelines.app.quiz import CaseSet, QuizItem, choices, judge, pictures
from util.cli import UserError
from util.web import page_parts, viewer_parts
from util.web.figures import Panel
from util.web.picture_row import write_panels

SCRIPTS = (*viewer_parts.SCRIPTS, "quiz.js")
POINTS = 2  # of a question
# The place that is clicked within the frame goes into a field of this page.
LISTEN = """
<script>
window.addEventListener("message", ({ origin, data }) => {
  if (origin !== window.location.origin || !Array.isArray(data?.voxel)) return;
  const field = document.querySelector("#voxel textarea, #voxel input");
  field.value = data.voxel.join(",");
  field.dispatchEvent(new Event("input", { bubbles: true }));
});
</script>
"""


@dataclass(frozen=True)
class Progress:
    """How far a visitor is in the quiz.

    Attributes:
        number: Number of the question, from 0.
        points: Points so far.
        answered: Whether this question is answered.
        answers: Questions answered.
    """

    number: int = 0
    points: int = 0
    answered: bool = False
    answers: int = 0

    def score(self, total: int) -> str:
        """Return the score in words."""
        return (
            f"Question {self.number + 1} of {total} · {self.points} of "
            f"{POINTS * self.answers} points"
        )


def write_question_page(folder: Path, item: QuizItem, answer: Answer) -> Path:
    """Write the page with the two pictures of a question; return the file."""
    spacing = answer.sample.spacing
    first, second = pictures(item, answer)
    kind = "real scan" if item.shown == "real" else "generated chest"
    panels = [
        Panel("1", "ct", first, spacing, caption=f"a {kind}"),
        Panel("2", "ct", second, spacing, caption="the same, changed"),
        Panel("mask", "mask", answer.sample.labels, spacing),
    ]
    page_parts.copy_assets(folder / "web", "page.css", *SCRIPTS)
    row = write_panels(folder / "web", "case", item.case, panels)
    row = replace(row, pictures=row.pictures[:2])  # the mask is for the outlines
    document = page_parts.new_document("What was changed, and where?", "web/", scripts=SCRIPTS)
    data = answer.plan.data
    config = viewer_parts.viewer_config(data.hu_window, 0.0, row.labels, terms=data.terms)
    document.body["data-config"] = json.dumps(config)
    document.body["style"] = f"--panel:{viewer_parts.SIZES['large']}px"
    with document:
        page_parts.page_header(
            "What was changed in picture 2, and where?", cautions=(page_parts.RESEARCH_ONLY,)
        )
        with tags.main():
            with viewer_parts.toolbar("View of the pictures"):
                viewer_parts.plane_and_window("axial", data.terms)
                page_parts.check_box("lines", "Outlines")
                viewer_parts.size_choice("large")
            with tags.section(cls="card", id="question", **row.attributes()):
                row.add(0.0)
                tags.p("Click where picture 2 is changed most.", id="place", cls="note")
                viewer_parts.slice_slider("Slice", play=True)
    return page_parts.write_document(document, folder / "index.html", data.terms)


class QuizPage:
    """The quiz.

    Args:
        desk: Answers questions.
        case_set: The questions.
        folder: Folder of the questions' pages, which the server shows.
        address: Address of that folder.
    """

    def __init__(self, desk: AnswerDesk, case_set: CaseSet, folder: Path, address: str) -> None:
        self.desk = desk
        self.session = desk.session
        self.case_set = case_set
        self.folder = folder
        self.address = address

    def build(self) -> None:
        """Add the quiz to the page that is being made."""
        state = gr.State(Progress())
        voxel = gr.Textbox(elem_id="voxel", show_label=False)  # hidden by the style sheet
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                gr.Markdown(f"### {self.case_set.title}")
                score = gr.HTML(elem_id="score")
                start = gr.Button("Start", variant="primary", elem_id="quiz-start")
                choice = gr.Radio([], label="Which of these was changed?", elem_id="quiz-choice")
                answer = gr.Button("Answer", variant="primary", elem_id="quiz-answer")
                feedback = gr.HTML(elem_id="quiz-feedback")
                following = gr.Button("Next question", elem_id="quiz-next")
            with gr.Column(scale=5):
                shown = gr.HTML(elem_id="quiz-frame")
        run = {"concurrency_id": NETWORK, "show_progress_on": score, "trigger_mode": "once"}
        outputs = [state, score, choice, voxel, feedback, shown]
        start.click(self.begin, None, outputs, **run)
        following.click(self.next, state, outputs, **run)
        answer.click(self.answer, [state, choice, voxel], [state, score, feedback, shown], **run)

    def begin(self, progress: gr.Progress = PROGRESS) -> list[Any]:
        """Show the first question."""
        return self._ask(Progress(), progress)

    def next(self, state: Progress, progress: gr.Progress = PROGRESS) -> list[Any]:
        """Show the next question; after the last one, the first again with no points."""
        if state.number + 1 >= len(self.case_set.items):
            return self._ask(Progress(), progress)
        return self._ask(replace(state, number=state.number + 1, answered=False), progress)

    def answer(
        self, state: Progress, choice: str, voxel: str, progress: gr.Progress = PROGRESS
    ) -> list[Any]:
        """Judge an answer; show the map and the sentence."""
        item = self.case_set.items[state.number]
        with shown_errors():
            if state.answered:
                raise UserError("This question is answered. Go to the next one.")
            given = self._answer(item, progress)
            judgement = judge(item, given, self.session, choice or "", _voxel(voxel))
        state = replace(
            state,
            points=state.points + judgement.points,
            answered=True,
            answers=state.answers + 1,
        )
        box = tags.div(tags.p(tags.strong(f"{judgement.points} of {POINTS} points")))
        box.add(tags.ul(*(tags.li(text) for text in judgement.texts)))
        if item.shown == "real":
            box.add(tags.p("The map is that of the generated pair, which was added to the scan."))
        if state.number + 1 == len(self.case_set.items):
            box.add(tags.p("That was the last question; the next one begins anew."))
        page = frame_of(f"/view/{given.question.key}/index.html", "quiz-answer-frame")
        return [state, self._score(state), box.render(), page]

    def _ask(self, state: Progress, progress: gr.Progress) -> list[Any]:
        item = self.case_set.items[state.number]
        with shown_errors():
            answer = self._answer(item, progress)
            name = f"{answer.question.key}-{item.shown}"
            if not (self.folder / name / "index.html").exists():
                write_question_page(self.folder / name, item, answer)
        page = frame_of(f"/{self.address}/{name}/index.html", "quiz-question-frame")
        radio = gr.update(choices=choices(item, self.session), value=None)
        return [state, self._score(state), radio, "", "", page]

    def _answer(self, item: QuizItem, progress: gr.Progress) -> Answer:
        return self.desk.answer(item.question, shown_progress(progress))

    def _score(self, state: Progress) -> str:
        return tags.p(state.score(len(self.case_set.items)), id="quiz-score").render()


def _voxel(text: str) -> Sequence[int] | None:
    """Return the place that was clicked; None for none."""
    parts = (text or "").split(",")
    if not all(part.strip().isdigit() for part in parts):
        return None
    return [int(part) for part in parts]
