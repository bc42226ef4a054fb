"""Markdown files: text of users, so that it is shown as it is, and tables."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

# Characters that Markdown, or the HTML within it, gives a meaning: some anywhere, dashes and number
# signs where a text begins, colons in addresses and emojis. Others stay: the file is read as it is,
# too.
SPECIAL = re.compile(r"[\\`*_{}\[\]<>|~&$@]|^[#+-]|:(?=//|\w+:)")


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape_text(text: str) -> str:
    """Return text for a paragraph or a table's cell, on one line."""
    return SPECIAL.sub(lambda match: f"&#{ord(match.group())};", _one_line(text))


def code(text: str) -> str:
    """Return text as inline code; it may hold backticks."""
    line = _one_line(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    if not longest:
        return f"`{line}`"
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}"


def markdown_table(frame: pd.DataFrame) -> str:
    """Return a frame as Markdown; numbers with two decimals, absent ones as a dash.

    Cells are written as they are: text of users must be escaped before (`escape_text`).
    """
    lines = [list(frame.columns), ["---"] * len(frame.columns)]
    lines += [[_cell(value) for value in row] for row in frame.to_numpy(object)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
