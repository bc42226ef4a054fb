"""Phrases to one sentence and back: the one place that knows how a prompt is punctuated."""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIX = "Lung CT scan :"  # how the published prompts begin
_PREFIX = re.compile(r"^\s*lung\s+ct\s+scan\s*[:.]?\s*", re.IGNORECASE)
_ABBREVIATIONS = ("e.g.", "i.e.", "approx.", "ca.", "vs.", "dr.", "no.", "st.", "resp.", "incl.")
_LINKS = re.compile(r"\b(?:is|are|was|were)\b")
_MARKS = re.compile(r"[:;,!?\"'()]|[.=](?=\s|$)")
_BREAK = re.compile(
    r"(?:(?<=[.!?])\s+)|(?:[,;]\s+)|(?:\s*\n\s*)"
)  # 1.5 and 1,5 hold no white space and stay whole

LOW_RELEVANCE = 0.2  # a phrase less loud than this (1: wholly heard) has next to no effect


def join_phrases(phrases: Sequence[str]) -> str:
    """One sentence of all phrases in the published punctuation; the empty text where nothing is
    known.

    A phrase that ends in a full stop stands as it is, any other is followed by a comma.
    """
    parts = [p.strip() for p in phrases if p.strip()]
    if not parts:
        return ""
    body = " ".join(
        p if p.endswith((".", "!", "?")) else f"{p.rstrip(',;')}," for p in parts
    ).rstrip(",")
    return f"{PREFIX} {body}" if body.endswith((".", "!", "?")) else f"{PREFIX} {body}."


def split_phrases(text: str) -> list[str]:
    """The phrases of a free text: broken after full stops, commas, semicolons and line ends, never
    within a number.
    """
    pieces: list[str] = []
    start = 0
    body = _PREFIX.sub("", text.strip(), count=1)
    for found in _BREAK.finditer(body):
        piece = body[start : found.start()]
        if piece.lower().split()[-1:] and piece.lower().split()[-1] in _ABBREVIATIONS:
            continue
        pieces.append(piece)
        start = found.end()
    pieces.append(body[start:])
    return [p.strip() for p in pieces if strip_phrase(p)]


def strip_phrase(phrase: str) -> str:
    """A phrase without its final punctuation and with single spaces: equal phrases are equal
    texts.
    """
    return " ".join(phrase.split()).strip(" .,;")


def normalise_phrase(phrase: str) -> str:
    """A phrase without what says nothing: capitals, punctuation and the verb between name and
    value.
    """
    return " ".join(_LINKS.sub(" ", _MARKS.sub(" ", phrase.casefold())).split())
