"""The page of attention maps: where the network looks up each phrase of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from dominate import tags

from models.attention_maps import PhraseMap, phrase_maps
from pipelines.app.answer import AnswerDesk
from pipelines.app.answer_page import SIZE
from pipelines.app.progress import GenerationProgress
from pipelines.app.question import Question
from util.cli import digest_name
from util.web import page_parts, viewer_parts
from util.web.figures import Panel
from util.web.picture_row import write_panels

CAUTION = (
    "A map shows where the network attends to a phrase, as the mean over its attention units. It "
    "does not show what the phrase changes there: affine units and the text's residual act "
    "beside the attention. The change itself is the difference of two volumes."
)
PER_ROW = 5  # pictures
RANGE_SHARE = 0.999  # of a map's voxels that the range of colours holds


def attention_page(desk: AnswerDesk, question: Question, progress: GenerationProgress) -> Path:
    """Write the page with the attention to each phrase of A's text; return its folder.

    Raises:
        UserError: The run has no attention to phrases, or the question does not fit it.
        CancelledError: The user cancelled it.
    """
    asked = replace(question, changed={}, text_b="")
    answer = desk.answer(asked, progress)
    folder = desk.folder / digest_name(asked.query, "attention")
    if (folder / "index.html").is_file():
        return folder
    with desk.lock:
        plan = desk.session.question_plan(asked, progress.tile_counter())
        maps = phrase_maps(plan.run.generator, answer.sample, answer.texts.a.texts)
    inside = answer.sample.inside
    spacing = answer.sample.spacing
    panels = [Panel("A", "ct", answer.volumes["a"], spacing)]
    panels += [_panel(one, inside, spacing) for one in maps]
    mask = Panel("mask", "mask", answer.sample.labels, spacing)
    page_parts.copy_assets(folder / "web", "page.css", *viewer_parts.SCRIPTS)
    row = write_panels(folder / "web", "case", question.case, [*panels, mask])
    title = f"{question.case}: attention to each phrase"
    document = page_parts.new_document(title, "web/", scripts=viewer_parts.SCRIPTS)
    largest = max(float(np.quantile(panel.array, RANGE_SHARE)) for panel in panels[1:])
    config = viewer_parts.viewer_config(plan.data.hu_window, 0.0, row.labels, terms=plan.data.terms)
    config["share_limit"] = int(np.ceil(largest))
    document.body["data-config"] = json.dumps(config)
    document.body["style"] = f"--panel:{viewer_parts.SIZES[SIZE]}px"
    with document:
        page_parts.page_header(title, cautions=(page_parts.RESEARCH_ONLY,))
        with tags.main():
            with viewer_parts.toolbar("View of the maps"):
                viewer_parts.plane_and_window("axial", plan.data.terms)
                page_parts.check_box("lines", "Outlines")
                viewer_parts.size_choice(SIZE)
            with tags.section(cls="card", id="attention", **row.attributes()):
                for first in range(0, len(panels), PER_ROW):
                    some = row.pictures[first : min(first + PER_ROW, len(panels))]
                    replace(row, pictures=some).add(0.0)
                    if first == 0:
                        viewer_parts.slice_slider("Slice", play=True)
                page_parts.note(CAUTION)
    page_parts.write_document(document, folder / "index.html", plan.data.terms)
    return folder


def _panel(one: PhraseMap, inside: tuple[slice, slice, slice], spacing: Sequence[float]) -> Panel:
    """Return a map as a panel, in percent."""
    share = 100 * one.share.numpy()[inside]
    caption = f"mean {share.mean():.1f} %"
    return Panel(one.phrase, "share", share, spacing, caption=caption)
