"""Paraphrases of a prompt: controls that must not change what is generated."""

from __future__ import annotations

import re

from data.text.prompts import Phrase, Prompt

_STATEMENT = re.compile(r"^(?P<name>.+?)(?: is |: )(?P<value>[^:]+?)(?P<end>[.]?)$")


def reordered(prompt: Prompt) -> Prompt:
    """Return the phrases in the opposite order."""
    return Prompt(reversed(prompt))


def reworded(prompt: Prompt) -> Prompt:
    """Return "NAME is VALUE" as "NAME: VALUE." and the other way round.

    A phrase of another form begins with a small letter instead.
    """
    return Prompt(Phrase(_reword(phrase.text), phrase.column) for phrase in prompt)


def _reword(text: str) -> str:
    statement = _STATEMENT.match(text.strip())
    if statement is None:
        return text[:1].lower() + text[1:]
    if " is " in text:
        return f"{statement['name']}: {statement['value']}."
    return f"{statement['name']} is {statement['value']}"
