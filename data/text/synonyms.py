"""Other words for the phrases of a template: `--paraphrases FILE`.

The file (YAML) lists wordings by column and value; `"{value}"` stands for any value of a column:

    SMOKING HISTORY:
      Current smoker: [The patient currently smokes., active smoker]
    AGE:
      "{value}": ["aged {value}", "{value} years old"]

A run trained with it takes each wording for the template's own phrase, and the cohort's CLIP learns
from all of them, so that wordings close to them are understood better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.text.prompts import Template
from util.cli import UserError, format_list
from util.phrasing import normalise_phrase, split_phrases, strip_phrase
from util.yaml_files import parse_yaml

VALUE = "{value}"
FORMAT = "Write, for example: {SEX: {Male: [a man, he is male]}}, as COLUMN, VALUE and other words."
NUMBER = "#"  # stands for the number in a wording, as in the phrase encoder


@dataclass(frozen=True)
class Paraphrases:
    """Wordings by the phrase that they stand for; `#` is the number of a phrase with one.

    Attributes:
        wordings: The wordings of each phrase, both without final punctuation.
    """

    wordings: Mapping[str, tuple[str, ...]]

    @property
    def synonyms(self) -> dict[str, str]:
        """The phrase of each wording, by its normalised form."""
        return {
            normalise_phrase(wording): phrase
            for phrase, wordings in self.wordings.items()
            for wording in wordings
        }

    def alternatives(self, phrase: str) -> list[str]:
        """Return all other words for a phrase as it stands in a prompt."""
        text = strip_phrase(phrase)
        found = list(self.wordings.get(text, ()))
        for pattern, wordings in self.wordings.items():
            before, mark, after = pattern.partition(NUMBER)
            if mark and text.startswith(before) and text.endswith(after):
                number = text[len(before) : len(text) - len(after)]
                found += [wording.replace(NUMBER, number) for wording in wordings]
        return found


def load_paraphrases(path: str, template: Template, columns: Sequence[str]) -> Paraphrases:
    """Read a file of paraphrases; an empty path gives none.

    Args:
        path: The file.
        template: Words the phrases of the table.
        columns: Columns of the table.

    Raises:
        UserError: The file cannot be read or breaks the format, names a column or value that
            cannot be, or gives one wording to two phrases.
    """
    if not path:
        return Paraphrases({})
    try:
        content = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--paraphrases {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"--paraphrases {path} is not valid YAML: {error}. {FORMAT}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--paraphrases {path} must be a mapping of columns. {FORMAT}")
    known = template.attributes(columns)
    wordings: dict[str, tuple[str, ...]] = {}
    for column, by_value in content.items():
        where = f"--paraphrases {path}, {column}"
        if column not in known:
            raise UserError(
                f"{where}: the table has no such column; it has: {format_list(known)}. {FORMAT}"
            )
        if not isinstance(by_value, dict):
            raise UserError(f"{where} must be a mapping of values, such as {{Male: [a man]}}.")
        for value, texts in by_value.items():
            phrase = _phrase(f"{where}, {value}", template, column, str(value))
            wordings[phrase] = _parse_wordings(f"{where}, {value}", texts, NUMBER in phrase)
    _check_conflicts(path, wordings)
    return Paraphrases(wordings)


def _phrase(where: str, template: Template, column: str, value: str) -> str:
    """Return the template's phrase of a value, with `#` for any number."""
    if value == VALUE:
        return strip_phrase(template[column].to_phrase(NUMBER))
    try:
        shown = template[column].format_value(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not shown:
        raise UserError(f'{where} means "not known", which has no phrase. Leave it out.')
    return strip_phrase(template[column].to_phrase(shown))


def _parse_wordings(where: str, texts: Any, has_number: bool) -> tuple[str, ...]:
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{where} must be a list of texts, such as [active smoker].")
    wordings = []
    for text in texts:
        if len(split_phrases(text)) != 1 or (VALUE in text) != has_number or NUMBER in text:
            rule = f" that holds {VALUE}" if has_number else f" without {VALUE}"
            raise UserError(
                f"{where}: {text!r} must be one phrase{rule}, without commas, semicolons or #."
            )
        wordings.append(strip_phrase(text.replace(VALUE, NUMBER)))
    return tuple(dict.fromkeys(wordings))


def _check_conflicts(path: str, wordings: Mapping[str, Sequence[str]]) -> None:
    """Raise `UserError` where two phrases have a wording in common, or one is the other's."""
    owners = {normalise_phrase(phrase): phrase for phrase in wordings}
    for phrase, texts in wordings.items():
        for text in texts:
            owner = owners.setdefault(normalise_phrase(text), phrase)
            if owner != phrase:
                raise UserError(
                    f"--paraphrases {path}: {text!r} stands for two phrases, {owner!r} and "
                    f"{phrase!r}, so that a text could mean either. Leave one of them out."
                )
