"""Texts written by people: what they say of the columns of a table, and edits of their wording.

A text follows no template. Three kinds of statement are found in it: phrases worded as the
template words them ("Patient age: 62."), the values of categories as words of a phrase ("a current
smoker"), and numbers with their unit ("62-year-old", "40 pack-years"). Nothing is guessed: a
statement that is negated, or that may belong to two columns, is not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from data.text.prompts import Phrase, Prompt, Template
from data.text.values import is_age_column, normalise_key
from util.cli import UserError, shorten
from util.phrasing import normalise_phrase, split_phrases

ARROW = "=>"  # of an edit, between a wording and the next
REMOVED = "(removed)"  # shown for a wording that is replaced by nothing
MIN_LETTERS = 4  # of a value that is looked for within phrases; shorter ones are acronyms
# Values that say nothing without the name of their column.
BARE_VALUES = frozenset((
    "true", "false", "none", "some", "other", "present", "absent", "positive", "negative", "normal",
    "abnormal", "mild", "moderate", "severe", "high", "low", "left", "right",
))  # fmt: skip
YEAR = "year"  # the unit of an age, without its plural
OLD = r"(?:[\s-]+old\b|\s+of\s+age\b)"
NEGATION = re.compile(
    r"\b(?:no|not|never|without|denie[sd]|denying|rather than|nor|neither|family history)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Statement:
    """What a phrase says of a column.

    Attributes:
        value: Its value as the phrase has it; "" where the wording tells none.
        start: First character of the value's words in the phrase.
        end: Character after them.
        unit_end: Character after the unit, which leaves the text with the value.
        is_phrase: Whether the whole phrase is the statement, in the wording of the template.
    """

    column: str
    value: str
    start: int
    end: int
    unit_end: int = 0
    is_phrase: bool = False


@dataclass(frozen=True)
class ChangedText:
    """A text after a change, and the columns removed because they would contradict it."""

    prompt: Prompt
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextReader:
    """Finds statements on the columns of a table in texts.

    Attributes:
        template: Wording of the table.
        values: Known values, as shown, by column; the keys are the columns that exist.
        synonyms: Phrases that other words stand for, by their normalised form.
    """

    template: Template
    values: Mapping[str, Sequence[str]]
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _wordings(self) -> list[tuple[re.Pattern[str], str, str]]:
        """Pattern, column and value of each category, longest first; ambiguous ones left out."""
        owners = Counter(
            normalise_key(value) for values in self.values.values() for value in set(values)
        )
        wordings = []
        for column, values in self.values.items():
            for value in values:
                key = normalise_key(value)
                letters = sum(character.isalpha() for character in key)
                is_acronym = 1 < letters < MIN_LETTERS and value.isupper()
                is_word = letters >= MIN_LETTERS and key not in BARE_VALUES
                if (is_word or is_acronym) and owners[key] == 1:
                    flags = re.RegexFlag(0) if is_acronym else re.IGNORECASE
                    wordings.append((wording_pattern(value, flags), column, value))
        return sorted(wordings, key=lambda entry: -len(entry[2]))

    @cached_property
    def _units(self) -> list[tuple[re.Pattern[str], str]]:
        """Pattern of a number with its unit or its column's name, and the column.

        Years are an age only where the words say so, because much else lasts years.
        """
        names: dict[str, list[str]] = {}
        for column in self.values:
            known = self.template[column]
            if known.kind == "number":
                for name in {normalise_key(known.unit), normalise_key(column)} - {""}:
                    names.setdefault(name.removesuffix("s"), []).append(column)
        patterns = []
        for name, columns in names.items():
            if len(columns) == 1:
                words = r"[\s-]+".join(map(re.escape, name.split()))
                text = rf"(?<![\w.,-])(\d+(?:\.\d+)?)[\s-]*{words}s?(?![\w])"
                if name == YEAR and is_age_column(columns[0]):
                    forms = [rf"{text}{OLD}", rf"(?<=\baged\s){text}", rf"^\W*{text}(?=\W*$)"]
                else:  # "20 years old" is an age, and not the value of another column
                    forms = [rf"{text}(?!\s+ago)(?!{OLD})"]
                patterns += [(re.compile(form, re.IGNORECASE), columns[0]) for form in forms]
        return patterns

    def read(self, phrase: str) -> list[Statement]:
        """Return the statements of a phrase, in their order."""
        wording = self.synonyms.get(normalise_phrase(phrase), phrase)
        for column in self.values:
            value = self.template[column].parse_phrase(wording)
            if value is not None:
                return [Statement(column, value, 0, len(phrase), is_phrase=True)]
        statements: list[Statement] = []
        candidates = [
            Statement(column, value, *match.span())
            for pattern, column, value in self._wordings
            for match in pattern.finditer(phrase)
        ]
        candidates += [
            Statement(column, match[1], *match.span(1), unit_end=match.end())
            for pattern, column in self._units
            for match in pattern.finditer(phrase)
        ]
        for new in candidates:
            overlaps = any(new.start < old.end and old.start < new.end for old in statements)
            if not overlaps and not NEGATION.search(phrase[: new.start]):
                statements.append(new)
        return sorted(statements, key=lambda statement: statement.start)

    def row(self, prompt: Prompt) -> dict[str, str]:
        """Return the values that a text states, by column; "" where it states none."""
        row = dict.fromkeys(self.values, "")
        for phrase in prompt:
            for statement in self.read(phrase.text):
                row[statement.column] = statement.value
        return row

    def change(self, prompt: Prompt, column: str, value: str) -> ChangedText | None:
        """Return a text with another value of a column, or None where it does not state one.

        The rest of the text stays, but for statements that the new value contradicts.

        Args:
            prompt: The text.
            value: Its new value; "" removes the statement.

        Raises:
            UserError: The table does not have the column, or the value is not a number where one
                is needed.
        """
        readings = [self.read(phrase.text) for phrase in prompt]
        row = self.row(prompt)
        changed = self.template.change(row, column, value)  # names a column that is not known
        if not any(statement.column == column for found in readings for statement in found):
            return None
        shown = self.template.format_value(changed.row, column)
        new = {dropped: "" for dropped in changed.dropped} | {column: shown}
        phrases: list[Phrase] = []
        for phrase, found in zip(prompt, readings, strict=True):
            if text := self._rewrite(phrase.text, found, new):
                is_changed = text != phrase.text
                phrases.append(Phrase(text, None) if is_changed else phrase)
        return ChangedText(Prompt(phrases), changed.dropped)

    def _rewrite(self, phrase: str, found: Sequence[Statement], new: Mapping[str, str]) -> str:
        """Return a phrase with new values of columns; "" removes a statement."""
        for statement in reversed(found):
            if statement.column not in new:
                continue
            value = new[statement.column]
            if statement.is_phrase:
                return self.template[statement.column].to_phrase(value) if value else ""
            end = statement.end if value else max(statement.end, statement.unit_end)
            phrase = replace_span(phrase, statement.start, end, value)
        return phrase if re.search(r"\w", phrase) else ""


@dataclass(frozen=True)
class TextEdit:
    """A wording and what takes its place, from `--vary_text "A=>B[=>C...]"`.

    Attributes:
        wordings: The wording that a text holds, and those that replace it; "" removes it.
    """

    wordings: tuple[str, ...]

    @classmethod
    def parse(cls, flag: str, text: str) -> TextEdit:
        """Parse `A=>B[=>C...]`.

        Raises:
            UserError: The text has another form, or names a wording twice.
        """
        wordings = tuple(part.strip() for part in text.split(ARROW))
        if len(wordings) < 2 or not split_phrases(wordings[0]):
            raise UserError(
                f'{flag} is {shorten(text)!r}; it must be of the form "WORDING=>OTHER[=>...]": the '
                "words that the text holds, and those that take their place."
            )
        keys = [normalise_phrase(wording) for wording in wordings]
        if repeated := [w for w, key in zip(wordings, keys, strict=True) if keys.count(key) > 1]:
            raise UserError(
                f"{flag} is {shorten(text)!r}; it names {repeated[0]!r} twice. Name each wording "
                "once."
            )
        return cls(wordings)

    @property
    def column(self) -> str:
        """What tables and pages call the edit."""
        return f"text: {self.wordings[0]}"

    @property
    def values(self) -> tuple[str, ...]:
        """The wordings as tables and pages show them."""
        return tuple(wording or REMOVED for wording in self.wordings)

    def value(self, prompt: Prompt) -> str:
        """Return the wording that a text holds, as tables show it; "" where it holds none of them.

        A text without the words is one from which they were removed, where the edit removes them.
        """
        for wording in sorted(filter(None, self.wordings), key=len, reverse=True):
            if TextEdit((wording,)).apply(prompt, "") is not None:
                return wording
        return REMOVED if "" in self.wordings else ""

    def apply(self, prompt: Prompt, wording: str) -> Prompt | None:
        """Return a text in which the first wording is replaced; None where it is not in the text.

        A wording of several phrases must be there as a whole; its phrases need not be neighbours.
        """
        wanted = [wording_pattern(piece) for piece in split_phrases(self.wordings[0])]
        keys = [normalise_phrase(piece) for piece in split_phrases(self.wordings[0])]
        is_found = [False] * len(wanted)
        phrases: list[Phrase] = []
        for phrase in prompt:
            text = phrase.text
            for number, (pattern, key) in enumerate(zip(wanted, keys, strict=True)):
                new = wording if number == 0 else ""
                if normalise_phrase(text) == key:
                    text, is_found[number] = new, True
                    continue
                match = pattern.search(text)
                while match is not None:
                    is_found[number] = True
                    text = replace_span(text, *match.span(), new)
                    match = pattern.search(text, match.start() + len(new))
            if text == phrase.text:
                phrases.append(phrase)
            else:
                phrases += [Phrase(piece, None) for piece in split_phrases(text)]
        return Prompt(phrases) if all(is_found) else None


def wording_pattern(wording: str, flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
    """Return a pattern of a wording within a phrase; spaces and hyphens do not count."""
    words = re.split(r"[\s_-]+", wording.strip(" .,;"))
    text = r"[\s_-]+".join(map(re.escape, words))
    return re.compile(rf"(?<![\w-]){text}(?![\w-])", flags)


def replace_span(phrase: str, start: int, end: int, new: str) -> str:
    """Return a phrase with other words at a place, with the capitals of the words replaced."""
    old = phrase[start:end]
    if new[:1].isalpha() and old[:1].isalpha() and not new[1:2].isupper():
        new = (new[0].upper() if old[0].isupper() else new[0].lower()) + new[1:]
    replaced = f"{phrase[:start]}{new}{phrase[end:]}"
    return re.sub(r"\s+([.,;]|$)", r"\1", " ".join(replaced.split()))
