"""What the parts of the live page share: queue, frames, messages."""

from __future__ import annotations

from typing import Any

import gradio as gr
from dominate import tags

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


def caution() -> None:
    """Add the standing caution."""
    gr.HTML(tags.p(CAUTIONS[0], " ", CAUTIONS[1], cls="caution").render(), elem_id="caution")
