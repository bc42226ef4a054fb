"""A question to a run: a case, what is known of its patient, what is changed, and the noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from util.cli import UserError

NOT_KNOWN = ""  # value of a column whose cell is empty
CHANGED, FACTUAL = "b.", "a."  # prefixes of columns in an address
MAX_SEED = 2**31 - 1
MAX_TEXT = 4000  # characters of an address or of a free text


@dataclass(frozen=True)
class Question:
    """What one click on "Generate" asks for.

    Attributes:
        case: Name of the case, or of a mask that was dropped on the page.
        factual: Values of volume A that differ from the case's row, by column.
        changed: Values of volume B that differ from those of A, by column.
        text_a: Free text of A in place of its values.
        text_b: Free text of B in place of its values.
        seed: Seed of the noise, which both volumes share.
    """

    case: str
    factual: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    text_a: str = ""
    text_b: str = ""
    seed: int = 0

    @property
    def query(self) -> str:
        """The question as the query of an address."""
        items = [("case", self.case), ("seed", str(self.seed))]
        items += [(f"{FACTUAL}{column}", value) for column, value in self.factual.items()]
        items += [(f"{CHANGED}{column}", value) for column, value in self.changed.items()]
        items += [(name, text) for name in ("text_a", "text_b") if (text := getattr(self, name))]
        return urlencode(items)

    @property
    def key(self) -> str:
        """A name that no other question has, for files."""
        return hashlib.sha256(self.query.encode()).hexdigest()[:16]

    @classmethod
    def from_query(cls, query: str) -> Question:
        """Read the query of an address; an empty one is a question without a case.

        Raises:
            UserError: The query holds something else.
        """
        if len(query) > MAX_TEXT:
            raise UserError(f"The link is longer than {MAX_TEXT} characters. Copy it again.")
        plain = {"case": "", "seed": "0", "text_a": "", "text_b": ""}
        factual: dict[str, str] = {}
        changed: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name.startswith(FACTUAL):
                factual[name.removeprefix(FACTUAL)] = value
            elif name.startswith(CHANGED):
                changed[name.removeprefix(CHANGED)] = value
            elif name in plain:
                plain[name] = value
            elif not name.startswith("__"):  # those are the page's own settings
                raise UserError(f"The link holds {name[:60]!r}, which no question has.")
        seed = parse_seed(plain["seed"])
        return cls(plain["case"], factual, changed, plain["text_a"], plain["text_b"], seed)


def parse_seed(value: object) -> int:
    """Return a seed; raise `UserError` unless it is a whole number from 0."""
    text = str(value).strip()
    number = float(text) if text.replace(".", "", 1).isdigit() else -1.0
    if not (number.is_integer() and 0 <= number <= MAX_SEED):
        raise UserError(f"The noise seed is {text[:40]!r}; it must be a whole number from 0.")
    return int(number)
