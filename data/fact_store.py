"""Facts of files, stored by path, size and time of change, so that a file is read once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.integrity import volume_fingerprint
from util.files import write_json

log = logging.getLogger(__name__)

CHECKS_FILE = "checks.json"  # of a folder of prepared volumes: facts and checksums of files
VERSION = 4  # part of the keys of stored facts: raise it when the checks change

Facts = dict[str, Any]


class FactStore:
    """Facts of files in one JSON file, and those that this process has measured for any store.

    Args:
        path: JSON file of the facts; None stores nothing.
    """

    _measured: dict[str, Facts] = {}  # noqa: RUF012 - shared by all stores of a process

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.facts: dict[str, Facts] = {}
        if path is not None and path.is_file():
            try:
                self.facts = _read_facts(path)
            except (OSError, ValueError, RecursionError):
                log.warning("%s is damaged; the volumes are checked again.", path)
        self.stored = len(self.facts)

    def key(self, name: str, files: Sequence[Path]) -> str:
        """Return the key of facts.

        Args:
            name: Name of the facts, with everything but the files that decides them.
            files: Files of which the facts are.
        """
        parts: list[str | int] = [VERSION, name]
        for file in files:
            parts += volume_fingerprint(file)
        return "|".join(map(str, parts))

    def find(self, key: str) -> Facts | None:
        """Return the facts of a key; None where they are not known."""
        if key not in self.facts and key in self._measured:
            self.facts[key] = self._measured[key]
        return self.facts.get(key)

    def add(self, key: str, facts: Facts) -> None:
        """Keep facts for this process, and for `save`."""
        self.facts[key] = self._measured[key] = facts

    def get(self, name: str, files: Sequence[Path], measure: Callable[[], Facts]) -> Facts:
        """Return facts, measured where they are not known; for the arguments see `key`."""
        key = self.key(name, files)
        facts = self.find(key)
        if facts is None:
            facts = measure()
            self.add(key, facts)
        return facts

    def save(self) -> None:
        """Write the facts where new ones were measured."""
        if self.path is not None and len(self.facts) > self.stored:
            write_json(self.path, self.facts)
            self.stored = len(self.facts)


def _read_facts(path: Path) -> dict[str, Facts]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not all(isinstance(v, dict) for v in facts.values()):
        raise ValueError("it does not hold facts by file")
    return facts
