"""Parts of every page: document, header, cautions, cards, lists, tables, charts and options."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dominate
import pandas as pd
from dominate import tags
from dominate.dom_tag import dom_tag

from util.files import atomic_path
from util.modality import CT, Terms

ASSETS = Path(__file__).parent / "assets"
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")  # of a command, within a sentence
PLAIN_TEXT = (tags.script, tags.style, tags.title, tags.option, tags.textarea, tags.code)
RESEARCH_ONLY = "For research only: not for diagnosis, treatment or any other clinical decision."
ASSOCIATION = (
    "A change shows what the model associates with an attribute in its training cohort; it is not "
    "the effect of an intervention on a patient."
)
CAUTIONS = (RESEARCH_ONLY, f"Pictures are generated. {ASSOCIATION}")
EMPTY_PROMPT = "Nothing is known of this patient: the prompt is empty."


def new_document(
    title: str, assets: str = "", styles: Sequence[str] = (), scripts: Sequence[str] = ()
) -> dominate.document:
    """Return an empty page with the base style sheet.

    Args:
        title: Title of the page.
        assets: Folder of style sheets and scripts, relative to the page ("web/").
        styles: Further style sheets, for what is special to the page.
        scripts: Scripts, run in their order once the page is read.
    """
    document = dominate.document(title=title)
    document["lang"] = "en"
    with document.head:
        tags.meta(charset="utf-8")
        tags.meta(name="viewport", content="width=device-width, initial-scale=1")
        tags.meta(name="color-scheme", content="light dark")
        tags.link(rel="icon", href="data:,")
        for name in ("page.css", *styles):
            tags.link(rel="stylesheet", href=f"{assets}{name}")
        for name in scripts:
            tags.script(src=f"{assets}{name}", defer=True)
    return document


def copy_assets(folder: Path, *names: str) -> None:
    """Copy style sheets and scripts into a page's folder, so that the page travels with it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(ASSETS / name, folder / name)


def write_document(document: dominate.document, path: Path, terms: Terms = CT) -> Path:
    """Write a page in one step, so that a browser never sees half of it; return its path.

    Args:
        document: The page.
        path: The file.
        terms: Words of the modality that the page shows, in place of those for chest CT.
    """
    terms.document(document)
    mark_flags(document.body)
    with atomic_path(path) as temporary:
        temporary.write_text(document.render(pretty=False), encoding="utf-8")
    return path


def mark_flags(element: dom_tag) -> None:
    """Set flags in the texts of an element as code, so that no line breaks within their dashes."""
    if isinstance(element, PLAIN_TEXT):
        return
    children: list[Any] = []
    for child in element.children:
        if isinstance(child, str):
            parts = FLAG.split(child)  # flags are every second part
            children += [tags.code(p) if i % 2 else p for i, p in enumerate(parts) if p]
        else:
            mark_flags(child)
            children.append(child)
    element.children[:] = children


def link(file: str) -> str:
    """Return a relative path as the address of a link; spaces and the like are escaped."""
    return quote(file.replace(os.sep, "/"))


def typeset(text: str) -> str:
    """Return a text whose negative numbers have minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


# The parts below add themselves to the element whose `with` block they stand in.


def page_header(
    title: str,
    *lines: Any,
    cautions: Sequence[str] = CAUTIONS,
    links: Mapping[str, str] | None = None,
) -> None:
    """Add the top of a page.

    Args:
        title: Its heading.
        lines: Elements below the heading.
        cautions: Sentences that a reader has to know.
        links: Address of other pages by their text.
    """
    header = tags.header(cls="top")
    if links:
        header.add(tags.nav(*(tags.a(text, href=address) for text, address in links.items())))
    header.add(tags.h1(title), *lines)
    with header:
        if len(cautions) == 1:
            tags.p(cautions[0], cls="cautions brief")
        else:
            bullet_list(cautions, "cautions")


def card(title: str, cls: str = "", **attributes: Any) -> tags.section:
    """Add a card with its heading, to be filled in a `with` block."""
    section = tags.section(cls=f"card {cls}".strip(), **attributes)
    with section:
        tags.h2(title)
    return section


def badges(texts: Sequence[str]) -> None:
    """Add warnings of a few words each; nothing where there are none."""
    for text in dict.fromkeys(texts):
        tags.span(text, cls="badge")


def fold(summary: str, cls: str = "", **attributes: Any) -> tags.details:
    """Add a part that a click unfolds, to be filled in a `with` block."""
    details = tags.details(cls=cls, **attributes)
    with details:
        tags.summary(summary)
    return details


def note(*content: Any) -> None:
    """Add a short explanation in small letters."""
    tags.p(*content, cls="note")


def bullet_list(texts: Sequence[str], cls: str = "") -> None:
    """Add a list of texts; nothing where there are none."""
    if texts:
        tags.ul(*(tags.li(text) for text in texts), cls=cls)


def prompt_line(prompt: str, empty: str = EMPTY_PROMPT) -> None:
    """Add the text that a volume was generated from, or the text for an empty one."""
    tags.p(prompt or empty, cls="prompt" if prompt else "prompt empty")


def chart(address: str, text: str, caption: Sequence[Any] = (), cls: str = "") -> None:
    """Add a picture.

    Args:
        address: Its file, relative to the page.
        text: What it shows, for readers who do not see it.
        caption: Texts and elements below it.
        cls: Class of its size; see page.css.
    """
    with tags.figure(cls=f"chart {cls}".strip()):
        tags.img(src=address, alt=text)
        if caption:
            tags.figcaption(*caption)


def choice_buttons(name: str, label: str, values: Mapping[str, str], chosen: str) -> None:
    """Add a row of buttons that set `name` for all pictures of a page."""
    with tags.div(cls="group", role="group", aria_label=label):
        tags.span(label)
        with tags.div(cls="buttons"):
            for value, text in values.items():
                tags.button(
                    text,
                    type="button",
                    data_set=name,
                    data_value=value,
                    aria_pressed="true" if value == chosen else "false",
                )


def check_box(name: str, label: str, checked: bool = False) -> None:
    """Add a box to tick, with its label."""
    with tags.label(cls="group"):
        tags.input_(type="checkbox", id=name, **({"checked": True} if checked else {}))
        tags.span(label)


def search_field(text: str, label: str) -> None:
    """Add a field that hides the cases that do not contain its text; needs cases.js."""
    tags.input_(type="search", id="filter", placeholder=text, aria_label=label, size=len(text))


def legend(colours: Mapping[str, str]) -> None:
    """Add the colours of names."""
    with tags.div(cls="legend"):
        for name, colour in colours.items():
            tags.span(tags.i(style=f"background:{colour}"), name)


def frame_table(frame: pd.DataFrame, number: Callable[[float], str] = "{:.4g}".format) -> None:
    """Add a data frame; numbers are formatted by `number`, absent ones are a dash.

    The first column stays in view where a table is scrolled sideways.
    """
    with tags.div(cls="scroll", tabindex="0"), tags.table():
        tags.thead(tags.tr(*(tags.th(str(c), scope="col") for c in frame.columns)))
        with tags.tbody():
            for row in frame.itertuples(index=False):
                tags.tr(*(_cell(value, number) for value in row))


def _cell(value: Any, number: Callable[[float], str]) -> tags.td:
    if isinstance(value, str):
        return tags.td(value)
    if pd.isna(value):
        return tags.td("–", cls="number")
    text = str(value) if isinstance(value, int) else number(value)
    return tags.td(text.replace("-", "−"), cls="number")


def key_table(values: Mapping[str, str], cls: str = "") -> None:
    """Add a table of names and their values; `cls` is the class of the values."""
    with tags.table(), tags.tbody():
        for name, value in values.items():
            tags.tr(tags.th(name, scope="row"), tags.td(value, cls=cls))


def option_text(value: Any) -> str:
    """Return the value of an option for reading."""
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(option_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {option_text(v)}" for k, v in value.items())
    return str(value)


def option_tables(
    options: Mapping[str, Mapping[str, Any]], summary: str = "Options of the run"
) -> None:
    """Add the options of a command, a table for each group, folded away."""
    if not options:
        return
    with fold(summary, "card"), tags.div(cls="option-groups"):
        for group, values in options.items():
            with tags.table(), tags.tbody():
                tags.tr(tags.th(group, colspan=2, scope="colgroup"))
                for name, value in values.items():
                    tags.tr(tags.td(name), tags.td(option_text(value)))
