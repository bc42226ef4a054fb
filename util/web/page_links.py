"""Links between pages that are written at different times: each names the others once they exist.

A page reads them from a script beside its assets, so that a page written earlier learns of one
written later.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from util.files import atomic_path
from util.web import page_parts

DATA = "links.js"  # beside the assets of a page: [text, address] of each other page
SCRIPTS = ("nav.js", DATA)
CALL = "Mask2CT.links("


@dataclass(frozen=True)
class LinkedPage:
    """A page that others link to.

    Attributes:
        text: Text of the links to it.
        path: The page.
        assets: Name of the folder of its assets within its own folder; "" for its own folder.
    """

    text: str
    path: Path
    assets: str = "web"

    @property
    def data(self) -> Path:
        """The script that holds its links."""
        return self.path.parent / self.assets / DATA


def copy_link_assets(folder: Path) -> None:
    """Copy the script that shows links into a page's assets; links that are there stay."""
    page_parts.copy_assets(folder, "nav.js")
    if not (folder / DATA).is_file():
        _write(folder / DATA, [])


def link_pages(first: LinkedPage, second: LinkedPage) -> None:
    """Let two pages link to each other; nothing where one is missing or has no such links."""
    for page, other in ((first, second), (second, first)):
        if other.path.is_file() and page.data.is_file():
            address = page_parts.link(os.path.relpath(other.path, page.path.parent))
            links = [link for link in _read(page.data) if link[1] != address]
            _write(page.data, [*links, [other.text, address]])


def _read(path: Path) -> list[list[str]]:
    """Return the links of a page; none where the script is damaged."""
    text = path.read_text(encoding="utf-8").strip()
    try:
        links = json.loads(text.removeprefix(CALL).removesuffix(");"))
    except json.JSONDecodeError:
        return []
    return links if isinstance(links, list) else []


def _write(path: Path, links: list[list[str]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(f"{CALL}{json.dumps(links)});\n", encoding="utf-8")
