"""Case ids, new or the source's own, safe as file names, and the key file that leads back."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.preparation.sources import Source
from util.cli import UserError, digest_name, safe_name
from util.files import atomic_path, escape_cell, read_csv

KEY_FILE_COLUMNS = ("File Name", "Patient", "source", "source patient", "source name")
MAX_ID_LENGTH = 60
HASH_LENGTH = 8


@dataclass(frozen=True)
class CaseIds:
    """Ids in the dataroot of a case and of its patient."""

    case: str
    patient: str


def safe_id(text: str) -> str:
    """Return an id as a file name: safe characters, no leading dots, at most `MAX_ID_LENGTH`.

    An id that has to change carries a hash, so that two ids stay distinct.
    """
    safe = safe_name(text).lstrip(".")
    if safe and safe == text and len(text) <= MAX_ID_LENGTH:
        return safe
    stem = safe.strip("._")[: MAX_ID_LENGTH - HASH_LENGTH - 1] or "case"
    return digest_name(text, stem)


class CaseRegister:
    """The ids of all sources; ids of earlier runs stay, and new sources are added.

    Args:
        path: The key file, outside the dataroot.
        recode: New ids without meaning, or ids made of the source's own.

    Raises:
        UserError: The key file cannot be read.
    """

    def __init__(self, path: Path, recode: bool) -> None:
        self.path = path
        self.recode = recode
        # By key and patient of the source; see `Source.identity`.
        self.entries: dict[tuple[str, str], CaseIds] = {}
        self._patients: dict[str, str] = {}
        self._rows: dict[tuple[str, str], dict[str, str]] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            for row in read_csv(self.path, KEY_FILE_COLUMNS):
                self._add_row({name: row[name] for name in KEY_FILE_COLUMNS})
        except UserError as error:
            raise UserError(
                f"--key_file {self.path} is not a key file of this command ({error}). Name the "
                "right one: without it the cases in OUT cannot be told apart."
            ) from None

    def _add_row(self, row: dict[str, str]) -> None:
        ids = CaseIds(row["File Name"], row["Patient"])
        identity = (row["source"], row["source patient"])
        self.entries[identity] = ids
        self._patients[row["source patient"]] = ids.patient
        self._rows[identity] = row

    def add(self, sources: Sequence[Source]) -> None:
        """Give ids to sources that have none, and write the key file.

        New ids are given in random order, so that they reveal nothing of the source.
        """
        new = [source for source in sources if source.identity not in self.entries]
        if self.recode:
            random.SystemRandom().shuffle(new)
        for source in new:
            patient = self._patients.get(source.patient) or self._new_patient(source)
            values = (self._new_case(source), patient, source.key, source.patient, source.names[0])
            self._add_row(dict(zip(KEY_FILE_COLUMNS, values, strict=True)))
        if new:
            self._write()

    def _new_patient(self, source: Source) -> str:
        if self.recode:
            return _next_number("patient", set(self._patients.values()))
        return safe_id(source.patient)

    def _new_case(self, source: Source) -> str:
        taken = {ids.case for ids in self.entries.values()}
        if self.recode:
            return _next_number("case", taken)
        case = safe_id(source.names[0])
        # Another scan of a patient carries a digest of what distinguishes it.
        longer = [
            digest_name(text, case[:MAX_ID_LENGTH]) for text in (source.key, *source.identity)
        ]
        folded = {name.casefold() for name in taken}
        return next(name for name in (case, *longer) if name.casefold() not in folded)

    def _write(self) -> None:
        with atomic_path(self.path) as temporary:
            temporary.touch(mode=0o600)  # nobody else may read it
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, KEY_FILE_COLUMNS)
                writer.writeheader()
                for row in sorted(self._rows.values(), key=lambda row: row["File Name"]):
                    writer.writerow({name: escape_cell(cell) for name, cell in row.items()})


def _next_number(word: str, taken: set[str]) -> str:
    """Return the id `word_0001` with the lowest number above all that are taken."""
    highest = 0
    for name in taken:
        number = name.removeprefix(f"{word}_")
        if number != name and number.isdigit():
            highest = max(highest, int(number))
    return f"{word}_{highest + 1:04d}"
