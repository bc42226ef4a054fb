"""Punctuation of prompts: phrases to one sentence and back."""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIX = "Lung CT scan :"  # how the published prompts begin
_PREFIX = re.compile(r"^\s*lung\s+ct\s+scan\s*[:.]?\s*", re.IGNORECASE)
_ABBREVIATIONS = ("e.g.", "i.e.", "approx.", "ca.", "vs.", "dr.", "no.", "st.", "resp.", "incl.")
_ENDS = (".", "!", "?")
_LINKS = re.compile(r"\b(?:is|are|was|were)\b")
_MARKS = re.compile(r"[:;,!?\"'()]|[.=](?=\s|$)")
# Leaves 1.5 and 1,5 whole, and "Smoker? is yes", a column whose name ends like a sentence.
_BREAK = re.compile(r"(?:(?<=[.!?])\s+(?!(?:is|are|was|were)\b))|(?:[,;]\s+)|(?:\s*\n\s*)")

LOW_RELEVANCE = 0.2  # a phrase with less weight than this (1: full) has next to no effect


def join_phrases(phrases: Sequence[str]) -> str:
    """Return one sentence of all phrases in the published punctuation, "" for no phrases.

    A phrase that ends in a full stop is kept as it is; any other is followed by a comma.
    """
    parts = [phrase.strip() for phrase in phrases if phrase.strip()]
    if not parts:
        return ""
    marked = [part if part.endswith(_ENDS) else f"{part.rstrip(',;')}," for part in parts]
    body = " ".join(marked).rstrip(",")
    return f"{PREFIX} {body}" if body.endswith(_ENDS) else f"{PREFIX} {body}."


def split_phrases(text: str) -> list[str]:
    """Return the phrases of a free text.

    It is broken after full stops, commas, semicolons and line ends, but not within a number.
    """
    pieces: list[str] = []
    start = 0
    body = _PREFIX.sub("", text.strip(), count=1)
    for match in _BREAK.finditer(body):
        piece = body[start : match.start()]
        words = piece.lower().split()
        if words and words[-1] in _ABBREVIATIONS:
            continue
        pieces.append(piece)
        start = match.end()
    pieces.append(body[start:])
    return [piece.strip() for piece in pieces if strip_phrase(piece)]


def strip_phrase(phrase: str) -> str:
    """Return a phrase without final punctuation and with single spaces, for comparisons."""
    return " ".join(phrase.split()).strip(" .,;")


def normalise_phrase(phrase: str) -> str:
    """Return a phrase without capitals, punctuation and the verb between name and value."""
    return " ".join(_LINKS.sub(" ", _MARKS.sub(" ", phrase.casefold())).split())
