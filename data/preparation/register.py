"""Case ids: new ones or the source's own, safe as file names, and the key file that alone leads
back.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.preparation.sources import Source
from util.cli import UserError, safe_name
from util.files import atomic_path

FIELDS = ("File Name", "Patient", "source", "source patient", "source name")
LONGEST = 60


@dataclass(frozen=True)
class Entry:
    """The ids of a case in the dataroot: its own and its patient's."""

    case: str
    patient: str


def plain_id(text: str) -> str:
    """An id as a file name: safe characters, no dots in front, at most `LONGEST`; one that changes
    carries a hash.
    """
    safe = safe_name(text).lstrip(".")
    if safe and safe == text and len(text) <= LONGEST:
        return safe
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe.strip('._')[: LONGEST - 9] or 'case'}-{mark}"


class Register:
    """Which source has which ids; what was given once stays, and new sources are added.

    Args:
        path: The key file, outside the dataroot.
        recode: New ids without meaning, or ids made of the source's own.

    Raises:
        UserError: A key file that cannot be read.
    """

    def __init__(self, path: Path, recode: bool) -> None:
        self.path, self.recode = path, recode
        self.entries: dict[str, Entry] = {}
        self._patients: dict[str, str] = {}
        self._rows: dict[str, dict[str, str]] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                self._keep(
                    row["source"],
                    Entry(row["File Name"], row["Patient"]),
                    row["source patient"],
                    row["source name"],
                )
        except (OSError, KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"--key_file {self.path} is no key file of this command ({error}). Name the right "
                "one: without it the cases in OUT cannot be told apart."
            ) from None

    def _keep(self, key: str, entry: Entry, patient: str, name: str) -> None:
        self.entries[key] = entry
        self._patients[patient] = entry.patient
        self._rows[key] = dict(
            zip(FIELDS, (entry.case, entry.patient, key, patient, name), strict=True)
        )

    def add(self, sources: Sequence[Source]) -> None:
        """Gives ids to sources that have none, in random order where they are recoded, and writes
        the key file.
        """
        new = [s for s in sources if s.key not in self.entries]
        if self.recode:
            random.SystemRandom().shuffle(new)
        taken = {e.case for e in self.entries.values()}
        for source in new:
            case = self._new("case", taken) if self.recode else self._own(source, taken)
            taken.add(case)
            patient = self._patients.get(source.patient) or (
                self._new("patient", set(self._patients.values()))
                if self.recode
                else plain_id(source.patient)
            )
            self._keep(source.key, Entry(case, patient), source.patient, source.names[0])
        if new:
            self._write()

    @staticmethod
    def _new(word: str, taken: set[str]) -> str:
        numbers = [int(n) for t in taken if (n := t.removeprefix(f"{word}_")) != t and n.isdigit()]
        return f"{word}_{max(numbers, default=0) + 1:04d}"

    @staticmethod
    def _own(source: Source, taken: set[str]) -> str:
        case = plain_id(source.names[0])
        if case.casefold() not in {t.casefold() for t in taken}:
            return case
        # another scan of the patient
        return f"{case[:LONGEST]}-{hashlib.sha256(source.key.encode()).hexdigest()[:8]}"

    def _write(self) -> None:
        with atomic_path(self.path) as temporary:
            temporary.touch(mode=0o600)  # for nobody else's eyes
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(sorted(self._rows.values(), key=lambda row: row["File Name"]))
