"""What every page is asked for: a picture on the first screen, and the warnings of its command."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_SCREEN = {"width": 1400, "height": 1000}
MAX_TOP = 400  # pixels above the first picture


def first_picture_top(page: Any, pictures: str = ".stage") -> float:
    """Return the pixels above the first picture, and check that the page's sentence is above it.

    Args:
        page: An open page; it is set to the size of `FIRST_SCREEN`.
        pictures: Selector of its pictures.
    """
    page.set_viewport_size(FIRST_SCREEN)
    first = page.locator(pictures).first
    first.wait_for()
    box = first.bounding_box()
    sentence = page.locator(".headline, .summary").first.bounding_box()
    assert sentence["y"] + sentence["height"] <= box["y"]
    return float(box["y"])


def shows_picture_first(visit: Callable[[Path], Any], path: Path, pictures: str = ".stage") -> Any:
    """Open a page, check that its first picture is on the first screen, and return it."""
    page = visit(path)
    top = first_picture_top(page, pictures)
    assert top < MAX_TOP, f"{path.name}: the first picture is {top:.0f} pixels from the top"
    return page


def printed_warnings(text: str) -> list[str]:
    """Return the warnings that a command printed."""
    return re.findall(r"^\d\d:\d\d:\d\d WARNING (.*)$", text, re.MULTILINE)


def page_warnings(path: Path) -> str:
    """Return the warnings on a page; "" where it has none."""
    lists = re.findall(r'<ul class="cautions warnings">.*?</ul>', path.read_text(encoding="utf-8"))
    return html.unescape(re.sub(r"</?code>", "", "".join(lists)))
