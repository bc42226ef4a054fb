"""The page of prepared scans: slices, facts and warnings of each case, troubled ones first.

Marks to accept or reject a case are saved as `review.csv`, which training obeys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dominate import tags

from util.modality import CT, LABEL_NAMES, UNIT_WINDOW, Terms
from util.web import page_parts, viewer_parts
from util.web.figures import LUNG
from util.web.viewer_parts import SlicePanel
from util.web.web_data import PageGrid, VolumeEntry

CAUTIONS = (
    "For research only. Masks can be wrong, above all those that a computer made: look at every "
    "outline before you train on it.",
    "This page shows scans of patients. Treat it as you treat the scans.",
)
SCALED = (
    "The slices are scaled to arbitrary units, 0 and 1000 at the 0.5th and the 99.5th percentile "
    "of the scan. The files hold the intensities as scanned."
)
REVIEW = (
    "Accept or reject each case (keys Y and N, pointer on the case), and save the marks as "
    "review.csv into the folder of this page. train.py leaves rejected cases out and names them. "
    "Until they are saved, the marks are kept by this browser alone."
)
BODY = 4  # the label that prepare_data.py gives the body


@dataclass(frozen=True)
class CaseSlices:
    """Every slice of a case.

    Attributes:
        grid: Grid of scan and mask.
        volumes: Kind and step of each by key.
        scan: Key of the scan.
        mask: Key of the mask.
        labels: Labels of the mask.
    """

    grid: PageGrid
    volumes: Mapping[str, VolumeEntry]
    scan: str
    mask: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class CaseCard:
    """A case on the page.

    Attributes:
        case: Its name.
        picture: Link to its montage, relative to the page; "" for a case that was not prepared.
        facts: Values to show by their names.
        warnings: What has to be looked at.
        notes: What is good to know.
        left_out: Other series of the study, with the reasons why they were left out.
        slices: Its slices, `None` where the page does not hold them.
        mark: "accept", "reject", or "" where nobody decided.
        note: Why.
    """

    case: str
    picture: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    slices: CaseSlices | None = None
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class PreparationFacts:
    """What the page says of the folder as a whole.

    Attributes:
        columns: Every column of the table and where it comes from.
        remarks: Remarks on the folder.
        options: The command's flags by group.
        terms: Unit and words of the modality.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    terms: Terms = CT


def write_preparation_page(
    folder: Path,
    voxels: str,
    failed: Sequence[CaseCard],
    cards: Sequence[CaseCard],
    facts: PreparationFacts | None = None,
) -> Path:
    """Write `report.html` into a dataroot and return its path.

    Args:
        folder: The dataroot.
        voxels: Folder of the cases' slices, relative to it.
        failed: Cases that were not prepared; their warning is the reason.
        cards: The others; those with warnings are shown first.
        facts: What the page says of the folder as a whole.
    """
    facts = facts or PreparationFacts()
    terms = facts.terms
    scripts = (*viewer_parts.SCRIPTS, "cases.js", "review.js")
    page_parts.copy_assets(folder / "report", "page.css", *scripts)
    document = page_parts.new_document("Prepared scans", "report/", scripts=scripts)
    labels = sorted({label for card in cards if card.slices for label in card.slices.labels})
    window = UNIT_WINDOW
    if terms.is_ct:
        window = LUNG
        terms = replace(CT, label_names={**LABEL_NAMES, BODY: "body"})
    config = viewer_parts.viewer_config(window, 100, labels, voxels=voxels, terms=terms)
    document.body["data-config"] = json.dumps(config)
    warned = [card for card in cards if card.warnings]
    clean = [card for card in cards if not card.warnings]
    counts = f"Ready: {len(cards)}, of which with a warning: {len(warned)}."
    with document:
        page_parts.page_header(
            "Prepared scans",
            tags.p(f"{counts} Not prepared: {len(failed)}.", cls="headline"),
            cautions=CAUTIONS if terms.is_ct else (*CAUTIONS, SCALED),
        )
        with tags.main():
            _remarks(facts.remarks)
            _toolbar(labels, terms)
            for card in failed:
                _case(card, "bad")
            for card in (*warned, *clean):
                _case(card)
            _columns(facts.columns)
            flags = {name: {"flags": text} for name, text in facts.options.items() if text}
            page_parts.option_tables(flags, "Flags of the command")
    return page_parts.write_document(document, folder / "report.html", terms)


def _remarks(remarks: Sequence[str]) -> None:
    """Add the remarks on the folder; several are folded, so that the first case is in sight."""
    texts = [page_parts.typeset(text) for text in remarks]
    if len(texts) == 1:
        page_parts.bullet_list(texts, "cautions remarks")
    elif texts:
        with page_parts.fold(f"{len(texts)} remarks on the folder", "cautions remarks"):
            page_parts.bullet_list(texts)


def _toolbar(labels: Sequence[int], terms: Terms) -> None:
    with viewer_parts.toolbar("Cases shown"):
        if labels:
            viewer_parts.plane_and_window("axial", terms)
            page_parts.check_box("lines", "Outlines", checked=True)
        page_parts.check_box("warned", "Only cases with warnings")
        page_parts.search_field("Find a case or a warning", "Find a case or a warning")
        viewer_parts.label_legend(labels or list(terms.label_names), terms.label_names)
        with tags.div(cls="group review-bar"):
            tags.button(
                "Save review.csv", type="button", id="save-review", cls="back", title=REVIEW
            )
            tags.output(id="review-state")


def _case(card: CaseCard, cls: str = "") -> None:
    attributes = {"data_warned": "1"} if card.warnings else {}
    if card.slices is not None:
        slices = card.slices
        attributes |= viewer_parts.viewer_attributes(slices.grid, slices.volumes, mask=slices.mask)
    with tags.section(cls=f"case card {cls}".strip(), id=card.case, **attributes):
        with tags.div(cls="case-top"):
            tags.h2(tags.a(card.case, href=f"#{page_parts.link(card.case)}"))
            if not cls:
                _review_buttons(card)
        page_parts.bullet_list(card.warnings, "notes")
        if card.picture:
            tags.img(
                src=page_parts.link(card.picture),
                alt=f"Slices of {card.case} with the mask's outline",
                cls="montage",
                loading="lazy",
            )
        with tags.div(cls="row"):
            if card.slices is not None:
                with tags.div(cls="every-slice"):
                    viewer_parts.slice_slider(f"Slice of {card.case}", play=True)
                    SlicePanel("Every slice", [card.slices.scan]).add()
            if card.facts:
                page_parts.key_table(card.facts, "number")
        for text in card.notes:
            page_parts.note(text)
        if card.left_out:
            with page_parts.fold(f"{len(card.left_out)} other series of this study left out"):
                page_parts.bullet_list([f"{name}: {reason}" for name, reason in card.left_out])


def _review_buttons(card: CaseCard) -> None:
    """Add the buttons and the note of a case's mark, for review.js."""
    with tags.div(cls="group review", data_case=card.case, role="group", aria_label="Review"):
        with tags.div(cls="buttons"):
            for mark, text in (("accept", "✓ Accept"), ("reject", "✗ Reject")):
                tags.button(
                    text,
                    type="button",
                    data_mark=mark,
                    aria_pressed="true" if card.mark == mark else "false",
                )
        tags.input_(
            type="text",
            value=card.note,
            placeholder="Note",
            aria_label=f"Note on {card.case}",
            maxlength=300,
        )


def _columns(columns: Mapping[str, str]) -> None:
    with page_parts.fold("Columns of clinical.csv", "card"):
        page_parts.key_table(columns)
        page_parts.note(
            "Nothing else of a DICOM header is in this folder: no name, date, number, free text or "
            "private field."
        )
