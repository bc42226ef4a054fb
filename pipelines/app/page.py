"""The page's controls (Gradio): they collect a question, and show its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from dominate import tags

from pipelines.app.answer import AnswerDesk
from pipelines.app.answer_page import prompts
from pipelines.app.controls import (
    NETWORK,
    PROGRESS,
    VIEW,
    RunningGenerations,
    frame_of,
    shown_errors,
)
from pipelines.app.exports import FORMATS, export
from pipelines.app.progress import CancelledError
from pipelines.app.question import NOT_KNOWN, Question, parse_seed
from pipelines.app.session import AppSession, KnownColumn
from util.cli import UserError

AS_A = "as A"
UNKNOWN = "not known"
START = (
    'Choose in the column "in B" what is changed, then click on Generate. The volumes A and B and '
    "their difference appear here."
)
# Shows the address of an answer, and on a phone, where it stands below the whole form, the answer.
SHOW_LINK = """(link) => {
    if (!link) return;
    history.replaceState(null, '', new URL(link).search);
    if (innerWidth < 800) document.getElementById('answer').scrollIntoView();
}"""


@dataclass(frozen=True)
class Controls:
    """The parts of the page that hold a question.

    Attributes:
        case: Choice of the case.
        seed: Seed of the noise.
        text_a: Free text of A.
        text_b: Free text of B.
        a: Choice of A's value by column.
        b: Choice of B's value by column.
    """

    case: gr.Dropdown
    seed: gr.Number
    text_a: gr.Textbox
    text_b: gr.Textbox
    a: Mapping[str, gr.Dropdown]
    b: Mapping[str, gr.Dropdown]

    @property
    def all(self) -> list[Any]:
        """Every part, in the order in which functions take their values."""
        return [self.case, self.seed, self.text_a, self.text_b, *self.a.values(), *self.b.values()]


class AskPage:
    """The controls and what they do."""

    def __init__(self, session: AppSession, desk: AnswerDesk, address: str, folder: Path) -> None:
        self.session = session
        self.desk = desk
        self.address = address
        self.folder = folder
        self._running = RunningGenerations()

    def build(self) -> None:
        """Add the controls to the page that is being made."""
        with gr.Row():
            with gr.Column(scale=2, min_width=400):
                case = gr.Dropdown(
                    self.session.cases, label="Case", elem_id="case", allow_custom_value=True
                )
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    another = gr.Button("Another draw", elem_id="another", min_width=130)
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=60)
                status = gr.HTML(elem_id="status")
                texts = gr.HTML(elem_id="prompts")
                controls = self._question(case)
            with gr.Column(scale=5):
                answer = gr.HTML(tags.p(START).render(), elem_id="answer")
                with gr.Row():
                    formats = gr.CheckboxGroup(
                        list(FORMATS),
                        value=["NIfTI", "PNG"],
                        label="Files of this state",
                        elem_id="formats",
                        scale=3,
                    )
                    make = gr.Button("Make files", elem_id="export", scale=1)
                    files = gr.File(
                        label="Files",
                        interactive=False,
                        elem_id="files",
                        height=90,
                        scale=3,
                        visible=False,  # until there are files
                    )
                link = gr.Textbox(
                    label="Link to this state", buttons=["copy"], interactive=False, elem_id="link"
                )
        linked = gr.State(False)
        self._bind_question(controls, texts)
        shown = [status, answer, link]
        run: dict[str, Any] = {
            "inputs": controls.all,
            "outputs": shown,
            "concurrency_id": NETWORK,
            "concurrency_limit": 1,
            "show_progress_on": status,
            "trigger_mode": "once",
        }
        self._generated = generate.click(self.generate, **run)
        self._generated.then(None, link, None, js=SHOW_LINK)
        drawn = another.click(lambda seed: parse_seed(seed) + 1, controls.seed, controls.seed)
        drawn = drawn.then(self.generate, **run)
        drawn.then(None, link, None, js=SHOW_LINK)
        restored = gr.on(None, self.restore, None, [*controls.all, linked])
        restored.then(self.show_texts, controls.all, texts)
        opened = restored.then(self.generate_linked, **{**run, "inputs": [linked, *controls.all]})
        running = [self._generated, drawn, opened]
        cancel.click(self.cancel, None, status, queue=False, cancels=running)
        make.click(self.make_files, [formats, *controls.all], files, concurrency_id=NETWORK)

    def _question(self, case: gr.Dropdown) -> Controls:
        """Add the parts that hold a question."""
        seed = gr.Number(0, label="Noise seed", precision=0, minimum=0, elem_id="seed")
        a: dict[str, gr.Dropdown] = {}
        b: dict[str, gr.Dropdown] = {}
        with gr.Accordion("Known of the patient (A), changed (B)"), gr.Column(elem_id="form"):
            for number, column in enumerate(self.session.columns.values()):
                with gr.Row():
                    a[column.name] = self._choice(column, UNKNOWN, [UNKNOWN], f"a-{number}")
                    b[column.name] = self._choice(column, AS_A, [AS_A, UNKNOWN], f"b-{number}")
        with gr.Accordion("Free text instead", open=False):
            text_a = gr.Textbox(
                label="A",
                lines=2,
                elem_id="text-a",
                placeholder="Patient age: 60. DIAGNOSIS is HP.",
            )
            text_b = gr.Textbox(
                label="B", lines=2, elem_id="text-b", placeholder="empty: A with the changes above"
            )
        with gr.Accordion("Drop a mask", open=not self.session.cases):
            self._file = gr.File(
                label="Lung mask (.nii.gz, .nii, .mha, .nrrd)", height=110, elem_id="mask"
            )
        return Controls(case, seed, text_a, text_b, a, b)

    def _choice(
        self, column: KnownColumn, value: str, first: Sequence[str], name: str
    ) -> gr.Dropdown:
        is_a = value == UNKNOWN
        return gr.Dropdown(
            [*first, *column.values],
            value=value,
            label=column.name if is_a else "in B",
            info=column.info if is_a else None,
            allow_custom_value=True,
            elem_id=name,
            min_width=120,
            scale=1,  # both show the same values
        )

    def _bind_question(self, controls: Controls, texts: gr.HTML) -> None:
        filled = [controls.text_a, controls.text_b, *controls.a.values(), *controls.b.values()]
        quick = {"queue": False, "show_progress": "hidden"}
        changed = controls.case.input(self.fill, controls.case, filled, **quick)
        changed.then(self.show_texts, controls.all, texts, **quick)
        dropped = self._file.upload(self.take_mask, self._file, controls.case)
        dropped = dropped.success(self.fill, controls.case, filled, **quick)
        dropped.then(self.show_texts, controls.all, texts, **quick)
        typed = [c.input for c in (*controls.a.values(), *controls.b.values())]
        typed += [controls.text_a.input, controls.text_b.input]
        # The last letter counts: by default, what is typed while an answer is on its way is lost.
        gr.on(typed, self.show_texts, controls.all, texts, trigger_mode="always_last", **quick)

    def question(self, *values: Any) -> Question:
        """Return the question that the values of `Controls.all` hold.

        Raises:
            UserError: There is no such case, or the seed is not a whole number.
        """
        case, seed, text_a, text_b, *cells = values
        columns = list(self.session.columns)
        row = self.session.row(case or "")
        factual: dict[str, str] = {}
        changed: dict[str, str] = {}
        for column, value in zip(columns, cells[: len(columns)], strict=True):
            value = _cell(value)
            if value != row[column]:
                factual[column] = value
        for column, value in zip(columns, cells[len(columns) :], strict=True):
            if str(value or AS_A).strip() != AS_A:
                changed[column] = _cell(value)
        return Question(case, factual, changed, text_a or "", text_b or "", parse_seed(seed))

    def fill(self, case: str) -> list[Any]:
        """Return the free texts and values of a case."""
        with shown_errors():
            row = self.session.row(case)
            written = self.session.written_text(case)
        return [written, "", *(value or UNKNOWN for value in row.values()), *[AS_A] * len(row)]

    def take_mask(self, file: str) -> Any:
        """Take a dropped mask; return the choice of cases with it."""
        with shown_errors():
            name = self.session.add_mask(Path(file))
        return gr.update(choices=self.session.cases, value=name)

    def show_texts(self, *values: Any) -> str:
        """Return the two texts of the question, or what is wrong with it."""
        if not values[0]:
            return ""
        try:
            texts = self.session.texts(self.question(*values))
        except UserError as error:
            return tags.p(str(error), cls="problem").render()
        box = tags.div(cls="asked")
        with box:
            prompts(texts)
            tags.ul(*(tags.li(notice.text) for notice in texts.notices))
        return box.render(pretty=False)

    def generate(
        self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any
    ) -> list[Any]:
        """Return status, answer and link of a question."""
        running = self._running.begin(request, progress)
        with shown_errors():
            question = self.question(*values)
            try:
                answer = self.desk.answer(question, running)
            except CancelledError:
                return [tags.p("Cancelled.").render(), gr.skip(), gr.skip()]
        frame = frame_of(f"/{VIEW}/{question.key}/index.html", "answer-frame")
        status = tags.p(f"Generated in {answer.seconds:.1f} s.", id="done")
        return [status.render(), frame, f"{self.address}/?{question.query}"]

    def generate_linked(
        self,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
        linked: bool = False,
        *values: Any,
    ) -> list[Any]:
        """Generate what the address of the page asked for, if it asked for something."""
        if not linked:
            return [gr.skip()] * 3
        return self.generate(request, progress, *values)

    def restore(self, request: gr.Request) -> list[Any]:
        """Return the values of `Controls.all` of the page's address, and whether it has one."""
        with shown_errors():
            question = Question.from_query(urlencode(dict(request.query_params)))
            columns = list(self.session.columns)
            if not question.case:
                first = next((case.id for case in self.session.plan.cohort.cases), None)
                if first is None:
                    return [gr.skip()] * (4 + 2 * len(columns)) + [False]
                shown = gr.update(choices=self.session.cases, value=first)
                return [shown, 0, *self.fill(first), False]
            row = self.session.row(question.case)
            self.session.texts(question)
        a = [question.factual.get(column, row[column]) or UNKNOWN for column in columns]
        b = [question.changed.get(column, AS_A) or UNKNOWN for column in columns]
        case = gr.update(choices=self.session.cases, value=question.case)
        return [case, question.seed, question.text_a, question.text_b, *a, *b, True]

    def cancel(self, request: gr.Request) -> str:
        """End the visitor's generation; return the status."""
        self._running.cancel(request)
        return tags.p("Cancelled.", id="cancelled").render()

    def make_files(self, formats: Sequence[str], *values: Any) -> Any:
        """Show the file that holds the answer in these formats."""
        with shown_errors():
            answer = self.desk.known(self.question(*values))
            file = export(answer, formats, self.folder)
        return gr.update(value=str(file), visible=True)


def _cell(value: Any) -> str:
    text = str(value or "").strip()
    return NOT_KNOWN if text == UNKNOWN else text
