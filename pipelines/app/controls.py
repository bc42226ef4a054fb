"""What the parts of the live page share: queue, frames, messages."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr
from dominate import tags

from pipelines.app.progress import GenerationProgress
from util.cli import UserError
from util.web.page_parts import CAUTIONS

NETWORK = "network"  # everything that generates waits in one queue
PROGRESS = gr.Progress()  # Gradio finds it as a default value
VIEW = "view"  # address of the answers' pages
FRAME_HEIGHT = "88vh"  # the page within scrolls by itself, so that a picture can fill the frame


def frame_of(address: str, name: str) -> str:
    """Return a frame that shows a page of the server, as HTML."""
    frame = tags.iframe(
        src=address,
        title="Volumes and effects",
        id=name,
        style=f"width:100%; height:{FRAME_HEIGHT}; border:0",
    )
    return frame.render()


class shown_errors:
    """Errors for users become messages on the page."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            raise gr.Error(str(error), duration=None, print_exception=False) from None


def shown_progress(
    bar: gr.Progress, cancelled: threading.Event | None = None
) -> GenerationProgress:
    """Return the progress of a generation that a bar shows."""
    return GenerationProgress(
        lambda share, text: bar(share, desc=text), cancelled or threading.Event()
    )


class RunningGenerations:
    """The last generation of every visitor, which the visitor may cancel."""

    def __init__(self) -> None:
        self._cancelled: dict[str, threading.Event] = {}

    def begin(self, request: gr.Request, bar: gr.Progress) -> GenerationProgress:
        """Return the progress of a visitor's next generation."""
        cancelled = self._cancelled[str(request.session_hash)] = threading.Event()
        return shown_progress(bar, cancelled)

    def cancel(self, request: gr.Request) -> None:
        """End the visitor's generation."""
        if (cancelled := self._cancelled.get(str(request.session_hash))) is not None:
            cancelled.set()


def page_head(title: str) -> None:
    """Add the title beside the standing caution, in one line where the window is wide."""
    head = tags.div(tags.h1(title), tags.p(CAUTIONS[0], " ", CAUTIONS[1]), cls="page-head")
    gr.HTML(head.render(), elem_id="head")
