"""What every page is made of: the document with its style sheet, tables, and collapsible lists of
options.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dominate
import pandas as pd
from dominate import tags

from util.files import atomic_path

ASSETS = Path(__file__).parent / "assets"
CAUTIONS = (
    "For research only: not for diagnosis, treatment or any other clinical decision.",
    "Pictures are generated. A change shows what the model associates with an attribute in its "
    "training cohort; it is not the effect of an intervention on a patient.",
)


def new_document(title: str, assets: str) -> dominate.document:
    """An empty page whose style sheet lies in the folder `assets`, a link relative to the page."""
    document = dominate.document(title=title)
    document["lang"] = "en"
    with document.head:
        tags.meta(charset="utf-8")
        tags.meta(name="viewport", content="width=device-width, initial-scale=1")
        tags.meta(name="color-scheme", content="light dark")
        tags.link(rel="icon", href="data:,")
        tags.link(rel="stylesheet", href=f"{assets}page.css")
    return document


def copy_assets(folder: Path, *names: str) -> None:
    """Copies files of util/assets into a page's folder, so that the page travels with its
    folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(ASSETS / name, folder / name)


def write_document(document: dominate.document, path: Path) -> Path:
    """Writes a page in one step, so that a browser never sees half of it."""
    with atomic_path(path) as part:
        part.write_text(document.render(pretty=False), encoding="utf-8")
    return path


def link(file: str) -> str:
    """A relative path as the address of a link; spaces and the like are escaped."""
    return quote(file.replace(os.sep, "/"))


def cautions(extra: Sequence[str] = ()) -> None:
    """Adds the list of cautions that every page of generated pictures carries, and further ones."""
    with tags.ul(cls="cautions"):
        for text in (*CAUTIONS, *extra):
            tags.li(text)


def value_text(value: Any) -> str:
    """An option's value for reading."""
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {value_text(v)}" for k, v in value.items())
    return str(value)


def options_list(
    options: Mapping[str, Mapping[str, Any]], summary: str = "Options of the run"
) -> None:
    """Adds a collapsible table of options, a group after the other."""
    if not options:
        return
    with tags.details(cls="card"):
        tags.summary(summary)
        with tags.div(cls="option-groups"):
            for group, values in options.items():
                with tags.table(), tags.tbody():
                    tags.tr(tags.th(group, colspan=2, scope="colgroup"))
                    for name, value in values.items():
                        tags.tr(tags.td(name), tags.td(value_text(value)))


def choice(name: str, label: str, values: Mapping[str, str], chosen: str) -> None:
    """A row of buttons that sets `name` for all panels."""
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


def frame_table(frame: pd.DataFrame, number: Callable[[float], str] = "{:.4g}".format) -> None:
    """Adds a data frame as a table; numbers are right-aligned and formatted by `number`, absent
    ones are a dash.
    """
    with tags.div(cls="scroll"), tags.table():
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
