"""Parts of the live page for teaching: the differential, attention maps, and the quiz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from dominate import tags

from options.app_options import AppOptions
from pipelines.app.answer import AnswerDesk
from pipelines.app.attention import attention_page
from pipelines.app.controls import (
    NETWORK,
    PROGRESS,
    VIEW,
    RunningGenerations,
    frame_of,
    shown_errors,
)
from pipelines.app.differential import columns_of, compare_values
from pipelines.app.progress import CancelledError
from pipelines.app.question import Question, parse_seed
from pipelines.app.quiz import open_case_set
from pipelines.app.quiz_page import LISTEN, QuizPage
from util.cli import counted

__all__ = ["LISTEN", "build_teaching"]

CANCELLED = "Cancelled."


def build_teaching(desk: AnswerDesk, options: AppOptions) -> None:
    """Add the tabs for teaching to the page that is being made.

    Raises:
        UserError: The case set cannot be read, or does not fit the run.
    """
    with gr.Tab("Differential", id="differential"):
        DifferentialPage(desk).build()
    if options.teach:
        case_set = open_case_set(desk.session, options.case_set)
        with gr.Tab("Quiz", id="quiz"):
            QuizPage(desk, case_set, desk.folder, VIEW).build()


class DifferentialPage:
    """The same patient under each value of an attribute, and the attention to each phrase."""

    def __init__(self, desk: AnswerDesk) -> None:
        self.desk = desk
        self._running = RunningGenerations()

    def build(self) -> None:
        """Add the controls to the page that is being made."""
        session = self.desk.session
        columns = columns_of(session)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                case = gr.Dropdown(
                    session.cases, label="Case", elem_id="d-case", allow_custom_value=True
                )
                text = gr.Textbox(label="Free text instead of the row", lines=2, elem_id="d-text")
                column = gr.Dropdown(columns, label="Each value of", elem_id="d-column")
                seed = gr.Number(0, label="Noise seed", precision=0, minimum=0)
                compare = gr.Button("Compare", variant="primary", elem_id="compare")
                attention = gr.Button("Attention to each phrase", elem_id="attention")
                cancel = gr.Button("Cancel", variant="stop")
                status = gr.HTML(elem_id="d-status")
            with gr.Column(scale=5):
                shown = gr.HTML()
        # Masks that were dropped meanwhile can be chosen, too.
        case.focus(lambda: gr.update(choices=session.cases), None, case, queue=False)
        run: dict[str, Any] = {
            "inputs": [case, text, seed, column],
            "outputs": [status, shown],
            "concurrency_id": NETWORK,
            "show_progress_on": status,
            "trigger_mode": "once",
        }
        compared = compare.click(self.compare, **run)
        attended = attention.click(self.attend, **run)
        cancel.click(self.cancel, None, status, queue=False, cancels=[compared, attended])

    def compare(
        self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any
    ) -> list[Any]:
        """Return status and page of a differential."""
        running = self._running.begin(request, progress)
        with shown_errors():
            try:
                made = compare_values(self.desk, _question(values), values[3] or "", running)
            except CancelledError:
                return [CANCELLED, gr.skip()]
        status = tags.p(
            f"{counted(len(made.volumes), 'volume')} in {made.seconds:.1f} s.", id="d-done"
        )
        address = f"/{VIEW}/{made.folder.name}/index.html"
        return [status.render(), frame_of(address, "differential-frame")]

    def attend(
        self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any
    ) -> list[Any]:
        """Return status and page of attention maps."""
        running = self._running.begin(request, progress)
        with shown_errors():
            try:
                folder = attention_page(self.desk, _question(values), running)
            except CancelledError:
                return [CANCELLED, gr.skip()]
        return ["", frame_of(f"/{VIEW}/{folder.name}/index.html", "attention-frame")]

    def cancel(self, request: gr.Request) -> str:
        """End the visitor's generation; return the status."""
        self._running.cancel(request)
        return CANCELLED


def _question(values: Sequence[Any]) -> Question:
    case, text, seed, _ = values
    return Question(case or "", text_a=text or "", seed=parse_seed(seed))
