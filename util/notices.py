"""Warnings of a command as its pages repeat them: what each concerns, and a badge for pictures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

PACKAGES = ("data", "models", "pipelines", "util")  # whose warnings pages repeat


@dataclass(frozen=True)
class Notice:
    """A warning for a page.

    Attributes:
        text: The sentence.
        badge: The same in a few words, for pictures; "" for none.
        column: Attribute whose pictures it concerns; "" for any.
        value: Value of the attribute that it concerns; "" for all of them.
        cases: Cases that it concerns; empty for all.
        phrases: Phrases that it concerns: pictures generated from one of them.
    """

    text: str
    badge: str = ""
    column: str = ""
    value: str = ""
    cases: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()

    def concerns_case(self, case: str) -> bool:
        """Return whether it concerns all pictures of a case."""
        return not (self.column or self.phrases) and (not self.cases or case in self.cases)

    def concerns_picture(
        self, case: str, column: str, values: Collection[str], phrases: Collection[str]
    ) -> bool:
        """Return whether it concerns one picture of a case alone.

        Args:
            column: The attribute varied in the picture; "" for none.
            values: The values of the attribute in the picture.
            phrases: The phrases that the picture was generated from.
        """
        if self.cases and case not in self.cases:
            return False
        if self.phrases:
            return not set(self.phrases).isdisjoint(phrases)
        return bool(self.column) and self.column == column and self.value in ("", *values)


def notice(
    badge: str,
    column: str = "",
    value: str = "",
    cases: Sequence[str] = (),
    phrases: Sequence[str] = (),
) -> dict[str, Any]:
    """Return `extra` of a log call, which says what its warning concerns (see `Notice`)."""
    parts = {"badge": badge, "column": column, "value": value}
    return {"notice": {**parts, "cases": tuple(cases), "phrases": tuple(phrases)}}


_warned: list[set[str]] = []  # phrases that warnings have named, per `collected_warnings`
_unwarned = ContextVar("_unwarned", default=False)


@contextlib.contextmanager
def no_phrase_warnings() -> Iterator[None]:
    """Name no unseen phrases within the block: volumes that are only measured are shown nowhere."""
    token = _unwarned.set(True)
    try:
        yield
    finally:
        _unwarned.reset(token)


def not_yet_warned(phrases: Sequence[str]) -> list[str]:
    """Return the phrases that no warning of this command has named, and note them.

    Networks of one command, such as the refits of an atlas, have encoders of their own, which
    would name the same phrase again. Outside of a command all are returned.
    """
    if _unwarned.get():
        return []
    new = [phrase for phrase in phrases if not any(phrase in named for named in _warned)]
    for named in _warned:
        named.update(new)
    return new


class _Collector(logging.Handler):
    def __init__(self, notices: list[Notice]) -> None:
        super().__init__(logging.WARNING)
        self.notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING or record.name.partition(".")[0] not in PACKAGES:
            return
        collected = Notice(record.getMessage(), **getattr(record, "notice", {}))
        if collected not in self.notices:
            self.notices.append(collected)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[Notice]]:
    """Collect the warnings of the project's own code, for a page that must not hide them.

    Yields:
        The warnings, each once, in their order; the list grows while the block runs.
    """
    notices: list[Notice] = []
    handler = _Collector(notices)
    root = logging.getLogger()
    root.addHandler(handler)
    _warned.append(set())
    try:
        yield notices
    finally:
        _warned.pop()
        root.removeHandler(handler)
