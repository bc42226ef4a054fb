"""The same facts in other words: a control, for what a prompt says must matter and not how it says
it.
"""

from __future__ import annotations

import re

from data.text.prompts import Phrase, Prompt

_IS = re.compile(r"^(?P<name>.+?)(?: is |: )(?P<value>[^:]+?)(?P<end>[.]?)$")


def reordered(prompt: Prompt) -> Prompt:
    """The phrases in the opposite order."""
    return tuple(reversed(prompt))


def reworded(prompt: Prompt) -> Prompt:
    """ "NAME is VALUE" as "NAME: VALUE." and the other way round; a phrase of another form in small
    letters.
    """
    return tuple(Phrase(_reword(phrase.text), phrase.column) for phrase in prompt)


def _reword(text: str) -> str:
    found = _IS.match(text.strip())
    if found is None:
        return text[:1].lower() + text[1:]
    link = ": " if " is " in text else " is "
    return f"{found['name']}{link}{found['value']}{'.' if link == ': ' else ''}"
