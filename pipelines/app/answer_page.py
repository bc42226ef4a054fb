"""The page of an answer: the slice viewer, the two texts, effects by region, and cautions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from options.base_options import DataOptions
from pipelines.app.question import Question
from pipelines.app.session import AskedText
from util.cli import counted
from util.metrics.contrast_summary import ContrastSummary
from util.metrics.regions import region_name
from util.notices import Notice
from util.web import page_parts, viewer_parts
from util.web.attribute_list import AttributeFacts, attribute_list
from util.web.figures import Panel
from util.web.picture_row import PictureRow, write_panels
from util.web.results_page import meaningless_attributes

SIZE = "small"  # of the pictures at first: all stand in one row
EFFECT_HEADINGS = {
    "region": "region",
    "voxels": "voxels",
    "mean_diff_hu": "mean B − A, HU",
    "mc_error_hu": "error by noise, HU",
    "sd_over_voxels_hu": "SD over voxels, HU",
}


@dataclass(frozen=True)
class PageContent:
    """What the page of an answer shows.

    Attributes:
        texts: Its prompts.
        panels: The volumes and the mask.
        effects: Rows of effects.csv.
        notices: What a reader has to know.
        facts: What the training data support, by attribute.
        data: How the cohort is read: window, unit and words of the modality.
    """

    question: Question
    texts: AskedText
    panels: Sequence[Panel]
    effects: Sequence[Mapping[str, Any]]
    contrasts: Sequence[ContrastSummary]
    notices: Sequence[Notice]
    facts: Mapping[str, AttributeFacts]
    data: DataOptions
    run_name: str

    @property
    def title(self) -> str:
        """The page's title."""
        return f"{self.run_name}: {self.question.case}, noise {self.question.seed}"

    @property
    def headline(self) -> str:
        """The figures in a sentence."""
        if not self.texts.differs:
            return "A and B have the same text: one volume."
        if not self.contrasts:
            return "The mask has no lungs, so that no effect is measured in them."
        sentence = self.contrasts[0].sentence()
        return f"May mean nothing (see below): {sentence}" if self._is_doubtful else sentence

    @property
    def _is_doubtful(self) -> bool:
        """Whether what differs was not seen in training, or had no relevance there."""
        doubtful = {phrase for notice in self.notices for phrase in notice.phrases}
        doubtful.update(meaningless_attributes(self.notices))
        names = set(self.texts.a.texts) ^ set(self.texts.b.texts)
        for column, pair in self.texts.columns.items():
            names |= {column, *(f"{column}={value}" for value in pair)}
        return not names.isdisjoint(doubtful)


def write_answer_page(folder: Path, content: PageContent) -> Path:
    """Write `folder`/index.html with its voxels; return the file."""
    page_parts.copy_assets(folder / "web", "page.css", *viewer_parts.SCRIPTS)
    row = write_panels(folder / "web", "case", content.question.case, content.panels)
    document = page_parts.new_document(content.title, "web/", scripts=viewer_parts.SCRIPTS)
    limit = difference_limit(content.panels)
    data = content.data
    config = viewer_parts.viewer_config(data.hu_window, limit, row.labels, terms=data.terms)
    document.body["data-config"] = json.dumps(config)
    document.body["style"] = f"--panel:{viewer_parts.SIZES[SIZE]}px"
    with document:
        page_parts.page_header(
            content.title,
            tags.p(page_parts.typeset(content.headline), cls="headline"),
            cautions=(page_parts.RESEARCH_ONLY,),
        )
        with tags.main():
            _viewer(row, limit, content)
            prompts(content.texts)
            _cautions(content)
            attribute_list(content.contrasts, content.notices, content.facts)
            effect_table(content.effects)
    return page_parts.write_document(document, folder / "index.html", data.terms)


def difference_limit(panels: Sequence[Panel]) -> float:
    """Return the range of the differences, HU."""
    changes = [
        viewer_parts.largest_change(panel.array) for panel in panels if panel.kind == "difference"
    ]
    return viewer_parts.difference_limit(max(changes, default=0.0))


def _viewer(row: PictureRow, limit: float, content: PageContent) -> None:
    with viewer_parts.toolbar("View of the volumes"):
        viewer_parts.plane_and_window("axial", content.data.terms)
        if content.effects:
            viewer_parts.limit_choice(limit)
            viewer_parts.overlay_choice()
        page_parts.check_box("lines", "Outlines")
        viewer_parts.size_choice(SIZE)
    with tags.section(cls="card", id="answer", **row.attributes()):
        row.add(limit, content.data.terms.label_names)
        viewer_parts.slice_slider("Slice", play=True)


def prompts(texts: AskedText) -> None:
    """Add the two texts, each phrase that only one of them has marked."""
    with page_parts.card("Texts", id="texts"):
        for name, mine, other in (("A", texts.a, texts.b), ("B", texts.b, texts.a)):
            line = tags.p(tags.strong(f"{name}: "), cls="prompt")
            for number, phrase in enumerate(mine.texts, start=1):
                is_open = number < len(mine.texts) and not phrase.endswith((".", ",", ";"))
                line.add(phrase if phrase in other.texts else tags.mark(phrase))
                line.add(", " if is_open else " ")
            if not mine:
                line.add(tags.em(page_parts.EMPTY_PROMPT))


def _cautions(content: PageContent) -> None:
    """Add the cautions, and the warnings that are not of one attribute."""
    texts = [notice.text for notice in content.notices if not notice.column]
    with page_parts.card("Read before judging", id="warnings"):
        page_parts.bullet_list(texts, "cautions warnings")
        page_parts.bullet_list(page_parts.CAUTIONS[1:], "notes-plain")


def effect_table(effects: Sequence[Mapping[str, Any]]) -> None:
    """Add the effects by region."""
    if not effects:
        return
    frame = pd.DataFrame(effects)[list(EFFECT_HEADINGS)]
    frame["region"] = frame["region"].map(region_name)
    frame["mc_error_hu"] = pd.to_numeric(frame["mc_error_hu"], errors="coerce")
    with page_parts.card("Effects by region", cls="evidence", id="effects"):
        page_parts.frame_table(frame.rename(columns=EFFECT_HEADINGS), "{:.1f}".format)
        draws = int(effects[0]["draws"])
        page_parts.note(
            f"Means over {counted(draws, 'noise')}, each shared by A and B. "
            + (
                "The error by noise is the SD over noises divided by the root of their number."
                if draws > 1
                else "One noise has no error that could be estimated (--draws 2)."
            )
        )
