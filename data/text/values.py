"""Rules for the cells, columns and keys of clinical tables: the only copy of each.

Preparation, training, testing and all tools read a table by these rules: which cells mean "not
known", what is a number, which columns identify people, and which spellings name the same scan.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

from data.volumes import strip_suffix
from util.cli import UserError, format_list

# Cells that mean "not known", as `normalise_key` writes them.
UNKNOWN_VALUES = frozenset((
    "", "-", "--", "---", "–", "—", ".", "..", "...", "…", "?", "??", "???",
    "nan", "na", "n/a", "n.a.", "n.a", "n/k", "<na>", "null", "nat", "unk", "unk.", "unkn", "unkn.",
    "unknown", "not available", "not known", "not reported", "not recorded", "not applicable",
    "not stated", "not documented", "no data", "missing",
    "k.a.", "k. a.", "k.a", "k/a", "keine angabe", "keine angaben", "unbekannt", "nicht bekannt",
    "nicht erhoben", "inconnu", "inconnue", "non connu", "non renseigné", "desconocido",
    "desconocida", "no consta", "sconosciuto", "onbekend", "未知", "不详",
    "#n/a", "#n/a n/a", "#na", "#value!", "#ref!", "#div/0!", "#name?", "#num!", "#null!",
))  # fmt: skip
# Cells that may mean "not known", and may be values: a drug "none" is the absence of one.
DOUBTFUL_VALUES = frozenset((
    "none", "nil", "nd", "n.d.", "nk", "ni", "not done", "not tested", "not assessed", "pending",
    "tbd", "refused", "*", "/", "x", "xx", "xxx", "undefined", "unclear", "#",
))  # fmt: skip
DOUBTFUL_NUMBERS = frozenset((
    -1, -9, -88, -99, -888, -999, -8888, -9999, 88, 99, 999, 9999, 99999, 999999,
))  # fmt: skip
# Words for the same value; spellings that differ by capitals, spaces or hyphens need no entry.
SYNONYMS = (
    ("m", "male", "man", "männlich", "mann"),
    ("f", "female", "woman", "w", "weiblich", "frau"),
    ("y", "yes", "ja", "true"),
    ("n", "no", "nein", "false"),
)
MAX_AGE = 90  # ages above 89 identify people; files that leave a hospital hold 90 instead

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")
# A comma before exactly three digits may separate thousands; only after a zero it is a decimal one.
_DECIMAL_COMMA = re.compile(r"([+-]?)(?:(\d*),(\d{1,2}|\d{4,})|(0),(\d{3}))")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_AGE = re.compile(r"(\d{1,3}) ?(y|years?|yrs?|m|w|d)(?: old)?", re.ASCII | re.IGNORECASE)
_YEARS_PER_UNIT = {"y": 1.0, "m": 1 / 12, "w": 1 / 52.18, "d": 1 / 365.25}

_ID_COLUMN = re.compile(
    r"(?:.* )?(?:ids?|identifiers?|uid|guid|pid|mrn)|patientid|patient|subject|case|file ?name"
    r"|(?:patient|subject|case|hospital|record|chart|file|study|admission|insurance|registration"
    r"|accession|serial) (?:numbers?|no\.?|nr\.?|num|code|#)"
)
_ROW_NUMBER_COLUMN = re.compile(r"unnamed: ?\d+|index|synthetic(?: .*)?|")
_IDENTIFYING_WORDS = re.compile(
    r"\b(?:surnames?|(?:first|last|fore|full|patient|family|given|user)names?|initials|birth(?! ?w)"
    r"|birth ?(?:date|day|year|place)|dob|ssn|social security|passport|medical record"
    r"|address(?:es)?|street|post ?codes?|postal codes?|zip(?: ?code)?|city"
    r"|(?:tele|cell)?phones?|mobile (?:no\.?|number)|fax|e ?-?mails?|accession|insurance"
    r"|physicians?|next of kin|contact (?:number|no\.?|person)"
    r"|notes?|comments?|remarks?|free ?text|memo"
    r"|vorname|nachname|familienname|geburts?\w*|geb\.? ?-?(?:dat\w*|tag|jahr|am)?|adresse"
    r"|anschrift|telefon\w*|bemerkung\w*|anmerkung\w*|kommentar\w*|notiz\w*|remarques?|nombre"
    r"|apellidos?|(?:fecha de )?nacimiento|prenom|prénom|(?:date de )?naissance|cognome"
    r"|(?:data di )?nascita|geboorte\w*)\b"
    r"|姓名|生日|出生|电话|地址|备注|住院号|病历号|身份证"
)
_NAMED_THINGS = frozenset((
    "agent", "brand", "device", "diagnosis", "disease", "drug", "gene", "kernel", "manufacturer",
    "medication", "model", "product", "protocol", "scanner", "sequence", "test", "trade",
))  # fmt: skip


def clean_cell(value: object) -> str:
    """Return a raw cell as text: single spaces, 55.0 and 55,0 as 55, and 0,5 as 0.5."""
    return _clean_text(str(value))


@lru_cache(maxsize=65536)  # a table repeats its values
def _clean_text(text: str) -> str:
    text = " ".join(text.split())
    comma = _DECIMAL_COMMA.fullmatch(text)
    if comma:
        sign, whole, part, zero, thousandths = comma.groups()
        text = f"{sign}{whole or zero or '0'}.{part or thousandths}"
    number = _WHOLE_NUMBER.fullmatch(text)
    return number.group(1) if number else text


def clean_value(column: str, value: object) -> str:
    """Return a raw cell as text, where an age such as 045Y is a number of years.

    Args:
        column: Name of the column, which decides whether the cell is an age.
        value: The cell.
    """
    text = clean_cell(value)
    return parse_age(text) or text if is_age_column(column) else text


def normalise_key(value: object) -> str:
    """Return the form that spellings of a value share: `Never-smoker` is `never smoker`.

    The sign of a number stays.
    """
    return _normalise_text(str(value))


@lru_cache(maxsize=65536)
def _normalise_text(text: str) -> str:
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", clean_cell(text)).casefold()


def is_unknown(value: object) -> bool:
    """Return whether a cell means "not known" in every table."""
    return normalise_key(value) in UNKNOWN_VALUES


def named_patient(row: Mapping[str, str], column: str) -> str:
    """Return the patient that a row names in a column; "" where it names none."""
    cell = row.get(column, "").strip() if column else ""
    return "" if is_unknown(cell) else cell


def parse_number(text: str) -> float | None:
    """Return the finite number that a text holds, or None; 0,5 is 0.5."""
    cleaned = clean_cell(text)
    if not _NUMBER.fullmatch(cleaned):
        return None
    number = float(cleaned)
    return number if math.isfinite(number) else None


def parse_age(text: str) -> str:
    """Return the whole years of an age with a unit, such as 067Y of DICOM; "" for other texts."""
    age = _AGE.fullmatch(text)
    if age is None:
        return ""
    return str(int(int(age[1]) * _YEARS_PER_UNIT[age[2][0].lower()]))


def cap_age(column: str, value: str) -> str:
    """Return a value for a file that leaves the hospital: ages above 89 are written as 90."""
    cleaned = clean_value(column, value)
    number = parse_number(cleaned) if is_age_column(column) else None
    return str(MAX_AGE) if number is not None and number >= MAX_AGE else cleaned


@lru_cache(maxsize=4096)  # asked for every cell
def is_age_column(column: str) -> bool:
    """Return whether a column holds ages, by its name."""
    return bool(re.search(r"\b(?:age|alter)\b", _column_key(column))) or (
        _column_key(column) == "patientage"
    )


def is_identifying(column: str) -> bool:
    """Return whether a column may identify people, by its name.

    Names, birth dates, addresses, numbers of patients and free notes stay out of prompts and out of
    prepared tables.
    """
    key = _column_key(column)
    if _ID_COLUMN.fullmatch(key) or _IDENTIFYING_WORDS.search(key):
        return True
    words = re.findall(r"\w+", key)
    return any(
        word in ("name", "names") and (i == 0 or words[i - 1] not in _NAMED_THINGS)
        for i, word in enumerate(words)
    )


def is_never_text(column: str) -> bool:
    """Return whether a column has no clinical meaning: it identifies, or it numbers the rows."""
    return is_identifying(column) or bool(_ROW_NUMBER_COLUMN.fullmatch(_column_key(column)))


@lru_cache(maxsize=4096)
def _column_key(column: str) -> str:
    """Return a column's name as single words: `PatientName` and `patient_name` are one."""
    return normalise_key(re.sub(r"(?<=[a-zà-ÿ])(?=[A-Z])", " ", clean_cell(column)))


def normalise_id(text: object) -> str:
    """Return the form that spellings of an id share.

    Volume suffix, capitals, Unicode form and the leading zeros of a number do not count, because
    spreadsheets and file systems change them.
    """
    bare = strip_suffix(clean_cell(text)).strip()
    bare = unicodedata.normalize("NFC", bare).casefold()
    if bare.isascii() and bare.isdigit():
        return bare.lstrip("0") or "0"
    return bare


def match_ids(names: Iterable[str], known: Iterable[str], where: str) -> dict[str, str]:
    """Return which known id each name means: the same text, else the only one of its spelling.

    Args:
        names: Ids as a table, splits file or prompts file writes them.
        known: Ids of the cases.
        where: What holds the names, for messages.

    Returns:
        Known id by name; a name that means none is left out.

    Raises:
        UserError: A name that is no known id may mean several, or several such names mean one.
    """
    names = list(dict.fromkeys(names))
    known = list(dict.fromkeys(known))
    same = set(names) & set(known)
    free_names = _group_by_spelling(name for name in names if name not in same)
    free_ids = _group_by_spelling(case for case in known if case not in same)
    matches = {name: name for name in names if name in same}
    for spelling, spelled in free_names.items():
        cases = free_ids.get(spelling, [])
        if not cases:
            continue
        if len(spelled) > 1 or len(cases) > 1:
            raise UserError(
                f"{where}: {format_list(spelled)} may mean {format_list(cases)}, because capitals, "
                "leading zeros and suffixes do not tell them apart. Write the ids as the files "
                "are called."
            )
        matches[spelled[0]] = cases[0]
    return matches


def _group_by_spelling(names: Iterable[str]) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[normalise_id(name)].append(name)
    return groups
