"""The page that shows what preparing scans did: a row a case with thumbnails, figures and warnings,
troubled ones first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dominate import tags
from dominate.util import raw

from util.web import page_parts
from util.web.figures import LABEL_NAMES, label_colour

STYLE = """
.case .row { display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: flex-start; margin-top: .5rem; }
.case img { max-width: 100%; height: auto; border-radius: 5px; background: #0b0d11; display: block; }
.planes { display: flex; color: var(--soft); font-size: .75rem; }
.bad h2::after { content: "not prepared"; margin-left: .6rem; font-size: .75rem; font-weight: 550; color: var(--warn); }
.card + .card { margin-top: 1rem; }
.hidden { display: none; }
"""
SCRIPT = """
const box = document.getElementById('only'), find = document.getElementById('find');
function show() {
  const text = find.value.toLowerCase();
  for (const row of document.querySelectorAll('.case'))
    row.classList.toggle('hidden', (box.checked && !row.dataset.warned) || !row.textContent.toLowerCase().includes(text));
}
box.addEventListener('change', show);
find.addEventListener('input', show);
"""


@dataclass(frozen=True)
class Card:
    """A case on the page; `picture` is a link relative to the page, "" for a case that was not
    prepared.
    """

    case: str
    picture: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def write_intake_page(
    folder: Path,
    failed: Sequence[Card],
    cards: Sequence[Card],
    columns: Mapping[str, str],
    remarks: Sequence[str],
    options: Mapping[str, str],
) -> Path:
    """Writes `report.html` into a dataroot.

    Args:
        folder: The dataroot.
        failed: Cases that were not prepared; their warning is the reason.
        cards: The others; those with warnings are shown first.
        columns: Every column of the table and where it comes from.
        remarks: What is to be said of the folder as a whole.
        options: The command's flags by group.
    """
    page_parts.copy_assets(folder / "report", "page.css")
    document = page_parts.new_document("Prepared scans", "report/")
    with document.head:
        tags.style(raw(STYLE))  # our own text, like the script below: as it stands
    warned = [c for c in cards if c.warnings]
    with document.add(tags.header(cls="top")):
        tags.h1("Prepared scans")
        _summary(len(cards), len(warned), len(failed))
    with document.add(tags.main()):
        _remarks(remarks)
        _toolbar()
        for card in failed:
            _case(card, "bad")
        for card in [*warned, *(c for c in cards if not c.warnings)]:
            _case(card, "")
        _columns(columns)
        page_parts.options_list(
            {name: {"flags": text} for name, text in options.items() if text},
            "Flags of the command",
        )
    document.body.add(tags.script(raw(SCRIPT)))
    return page_parts.write_document(document, folder / "report.html")


def _summary(ready: int, warned: int, failed: int) -> None:
    tags.p(f"Ready: {ready}, of which with a warning: {warned}. Not prepared: {failed}.")
    with tags.ul(cls="cautions"):
        tags.li(
            "For research only. Masks are made by a computer: look at every outline before you "
            "train on it."
        )
        tags.li("This page shows scans of patients. Treat it as you treat the scans.")


def _remarks(remarks: Sequence[str]) -> None:
    if remarks:
        with tags.section(cls="card"):
            tags.h2("About the folder")
            with tags.ul():
                for text in remarks:
                    tags.li(text)


def _toolbar() -> None:
    with tags.div(cls="toolbar"):
        with tags.label(cls="group"):
            tags.input_(type="checkbox", id="only")
            tags.span("Only cases with warnings")
        tags.input_(
            type="search",
            id="find",
            placeholder="Find a case or a warning",
            aria_label="Find a case or a warning",
        )
        with tags.div(cls="legend"):
            for label, name in LABEL_NAMES.items():
                if label:
                    tags.span(tags.i(style=f"background:{label_colour(label)}"), name)
        tags.span(
            "Axial, coronal, sagittal; lung window; the patient's right is on the left.",
            cls="group",
        )


def _case(card: Card, cls: str) -> None:
    warned = {"data_warned": "1"} if card.warnings else {}
    with tags.section(cls=f"case card {cls}".strip(), id=card.case, **warned):
        tags.h2(tags.a(card.case, href=f"#{page_parts.link(card.case)}"))
        if card.warnings:
            with tags.ul(cls="notes"):
                for text in card.warnings:
                    tags.li(text)
        with tags.div(cls="row"):
            if card.picture:
                tags.img(
                    src=page_parts.link(card.picture),
                    alt=f"Slices of {card.case} with the mask's outline",
                    loading="lazy",
                )
            if card.facts:
                with tags.table(), tags.tbody():
                    for name, value in card.facts.items():
                        tags.tr(tags.th(name, scope="row"), tags.td(value, cls="number"))
        for text in card.notes:
            tags.p(text, cls="note")
        _left_out(card.left_out)


def _left_out(left_out: Sequence[tuple[str, str]]) -> None:
    if left_out:
        with tags.details():
            tags.summary(f"{len(left_out)} other series of this study left out")
            with tags.ul():
                for name, reason in left_out:
                    tags.li(f"{name}: {reason}")


def _columns(columns: Mapping[str, str]) -> None:
    with tags.details(cls="card"):
        tags.summary("What was kept: the columns of clinical.csv")
        with tags.table(), tags.tbody():
            for name, source in columns.items():
                tags.tr(tags.td(name), tags.td(source))
        tags.p(
            "Nothing else of a DICOM header was kept: no name, date, number, free text or private "
            "field.",
            cls="note",
        )
