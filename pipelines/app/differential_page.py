"""The page of a differential: a volume for each value, differences, effects, similar cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from data.text.counterfactuals import Variant
from data.volume_dataset import VolumeSample
from options.base_options import DataOptions
from pipelines.app.answer_page import SIZE, difference_limit
from pipelines.app.question import Question
from pipelines.app.similar_cases import SimilarCase
from pipelines.generation.case_writer import Hu
from util.metrics.contrast_summary import ContrastSummary
from util.metrics.regions import region_name
from util.notices import Notice
from util.web import page_parts, viewer_parts
from util.web.figures import Panel
from util.web.picture_row import write_panels


@dataclass(frozen=True)
class SimilarRow:
    """Real cases nearest to a volume, and nearest to its text."""

    by_image: Sequence[SimilarCase]
    by_text: Sequence[SimilarCase]


@dataclass(frozen=True)
class DifferentialContent:
    """What the page of a differential shows.

    Attributes:
        question: The patient.
        column: The attribute.
        sample: The case on the model's grid.
        variants: The patient's own text, then one per value.
        volumes: HU by value.
        effects: Rows of effects.csv, each value against the own text.
        notices: What a reader has to know.
        similar: Similar real cases by value; empty where there are none.
        similar_note: How far they can be trusted, or why there are none.
        values: Value of the attribute by real case.
        data: How the cohort is read: window, unit and words of the modality.
    """

    question: Question
    column: str
    sample: VolumeSample
    variants: Sequence[Variant]
    volumes: Mapping[str, Hu]
    effects: Sequence[Mapping[str, Any]]
    contrasts: Sequence[ContrastSummary]
    notices: Sequence[Notice]
    similar: Mapping[str, SimilarRow]
    similar_note: str
    values: Mapping[str, str]
    data: DataOptions


def write_page(folder: Path, content: DifferentialContent) -> Path:
    """Write `folder`/index.html with its voxels; return the file."""
    page_parts.copy_assets(folder / "web", "page.css", *viewer_parts.SCRIPTS)
    panels = _panels(content)
    row = write_panels(folder / "web", "case", content.question.case, panels)
    title = f"{content.question.case} under each value of {content.column}"
    document = page_parts.new_document(title, "web/", scripts=viewer_parts.SCRIPTS)
    limit, data = difference_limit(panels), content.data
    document.body["data-config"] = json.dumps(
        viewer_parts.viewer_config(data.hu_window, limit, row.labels, terms=data.terms)
    )
    document.body["style"] = f"--panel:{viewer_parts.SIZES[SIZE]}px"
    above = len(content.variants)
    with document:
        page_parts.page_header(title, cautions=(page_parts.RESEARCH_ONLY,))
        with tags.main():
            with viewer_parts.toolbar("View of the volumes"):
                viewer_parts.plane_and_window("axial", data.terms)
                viewer_parts.limit_choice(limit)
                viewer_parts.overlay_choice()
                page_parts.check_box("lines", "Outlines")
                viewer_parts.size_choice(SIZE)
            with tags.section(cls="card", id="differential", **row.attributes()):
                replace(row, pictures=row.pictures[:above]).add(limit)
                viewer_parts.slice_slider("Slice", play=True)
                replace(row, pictures=row.pictures[above:-1]).add(limit)
            with page_parts.card("What changes, and where", id="sentences"):
                texts = [page_parts.typeset(c.sentence()) for c in content.contrasts]
                page_parts.bullet_list(texts)
                _effects(content.effects)
            _similar(content)
            with page_parts.card("Read before judging", id="warnings"):
                page_parts.bullet_list([n.text for n in content.notices], "cautions warnings")
                page_parts.bullet_list(page_parts.CAUTIONS[1:], "notes-plain")
    return page_parts.write_document(document, folder / "index.html", data.terms)


def _panels(content: DifferentialContent) -> list[Panel]:
    """Return the volumes, then the difference of each value from the own text, then the mask."""
    spacing = content.sample.spacing
    own, *others = content.variants
    volumes = {
        variant.value: Panel(variant.value, "ct", content.volumes[variant.value], spacing)
        for variant in content.variants
    }
    differences = [
        Panel(
            f"{variant.value} minus {own.value}",
            "difference",
            content.volumes[variant.value] - content.volumes[own.value],
            spacing,
            before=volumes[own.value],
        )
        for variant in others
    ]
    mask = Panel("mask", "mask", content.sample.labels, spacing)
    return [*volumes.values(), *differences, mask]


def _effects(effects: Sequence[Mapping[str, Any]]) -> None:
    """Add the mean effects, a row per region and a column per value."""
    frame = pd.DataFrame(effects)
    if frame.empty:
        return
    frame = frame.assign(mean_diff_hu=frame["mean_diff_hu"].astype(float))
    table = frame.pivot_table(index="region", columns="to", values="mean_diff_hu", sort=False)
    table.insert(0, "mean against the own text, HU", [region_name(name) for name in table.index])
    page_parts.frame_table(table.reset_index(drop=True), "{:+.1f}".format)


def _similar(content: DifferentialContent) -> None:
    """Add the real cases that resemble each volume and each text, or why there are none."""
    with page_parts.card("Similar real cases", id="similar"):
        if content.similar:
            rows = [
                {
                    "value": value,
                    "nearest to the volume": _listed(row.by_image, content.values),
                    "nearest to the text": _listed(row.by_text, content.values),
                }
                for value, row in content.similar.items()
            ]
            page_parts.frame_table(pd.DataFrame(rows))
        page_parts.note(content.similar_note)


def _listed(cases: Sequence[SimilarCase], values: Mapping[str, str]) -> str:
    return "; ".join(
        f"{one.case} ({values.get(one.case) or 'not known'}, {one.similarity:.2f})" for one in cases
    )
