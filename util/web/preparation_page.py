"""The page of prepared scans: thumbnails, facts and warnings of each case, troubled ones first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dominate import tags

from util.web import page_parts, viewer_parts
from util.web.figures import LABEL_NAMES

CAUTIONS = (
    "For research only. Masks are made by a computer: look at every outline before you train on "
    "it.",
    "This page shows scans of patients. Treat it as you treat the scans.",
)


@dataclass(frozen=True)
class CaseCard:
    """A case on the page.

    Attributes:
        case: Its name.
        picture: Link relative to the page; "" for a case that was not prepared.
        facts: Values to show by their names.
        warnings: What has to be looked at.
        notes: What is good to know.
        left_out: Other series of the study, with the reasons why they were left out.
    """

    case: str
    picture: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def write_preparation_page(
    folder: Path,
    failed: Sequence[CaseCard],
    cards: Sequence[CaseCard],
    columns: Mapping[str, str],
    remarks: Sequence[str],
    options: Mapping[str, str],
) -> Path:
    """Write `report.html` into a dataroot and return its path.

    Args:
        folder: The dataroot.
        failed: Cases that were not prepared; their warning is the reason.
        cards: The others; those with warnings are shown first.
        columns: Every column of the table and where it comes from.
        remarks: Remarks on the folder as a whole.
        options: The command's flags by group.
    """
    page_parts.copy_assets(folder / "report", "page.css", "cases.js")
    document = page_parts.new_document("Prepared scans", "report/", scripts=("cases.js",))
    warned = [card for card in cards if card.warnings]
    clean = [card for card in cards if not card.warnings]
    counts = f"Ready: {len(cards)}, of which with a warning: {len(warned)}."
    with document:
        page_parts.page_header(
            "Prepared scans", tags.p(f"{counts} Not prepared: {len(failed)}."), cautions=CAUTIONS
        )
        with tags.main():
            if remarks:
                with page_parts.card("About the folder"):
                    page_parts.bullet_list(remarks)
            _toolbar()
            for card in failed:
                _case(card, "bad")
            for card in (*warned, *clean):
                _case(card)
            _columns(columns)
            flags = {name: {"flags": text} for name, text in options.items() if text}
            page_parts.option_tables(flags, "Flags of the command")
    return page_parts.write_document(document, folder / "report.html")


def _toolbar() -> None:
    with viewer_parts.toolbar("Cases shown"):
        page_parts.check_box("warned", "Only cases with warnings")
        page_parts.search_field("Find a case or a warning", "Find a case or a warning")
        viewer_parts.label_legend(list(LABEL_NAMES))
        tags.span(
            "Axial, coronal, sagittal; lung window; the patient's right is on the left.",
            cls="group",
        )


def _case(card: CaseCard, cls: str = "") -> None:
    warned = {"data_warned": "1"} if card.warnings else {}
    with tags.section(cls=f"case card {cls}".strip(), id=card.case, **warned):
        tags.h2(tags.a(card.case, href=f"#{page_parts.link(card.case)}"))
        page_parts.bullet_list(card.warnings, "notes")
        with tags.div(cls="row"):
            if card.picture:
                tags.img(
                    src=page_parts.link(card.picture),
                    alt=f"Slices of {card.case} with the mask's outline",
                    loading="lazy",
                )
            if card.facts:
                page_parts.key_table(card.facts, "number")
        for text in card.notes:
            page_parts.note(text)
        if card.left_out:
            with page_parts.fold(f"{len(card.left_out)} other series of this study left out"):
                page_parts.bullet_list([f"{name}: {reason}" for name, reason in card.left_out])


def _columns(columns: Mapping[str, str]) -> None:
    with page_parts.fold("Columns of clinical.csv", "card"):
        page_parts.key_table(columns)
        page_parts.note(
            "Nothing else of a DICOM header is in this folder: no name, date, number, free text or "
            "private field."
        )
