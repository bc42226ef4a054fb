"""What is looked at in an atlas: which columns of a table can be studied, and with which values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from data.text.counterfactuals import Variant
from data.text.prompts import Row, Template
from data.text.template import parse_number
from pipelines.atlas.statistics.contrasts import AtlasAttribute
from util.cli import UserError, format_list, safe_name

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
MAX_CODES = 6  # more different numbers than this are a size, fewer are codes
MAX_LEVELS = 8  # more different texts than this are free text
MIN_LEVEL_CASES = (
    3  # training cases of a value, below which it is not looked at where two others have more
)
WRITTEN_NUMBER = re.compile(
    r"[-+]?\d+(?:[.,]\d+)?(?:\s*\D{1,12})?"
)  # a number with its unit, or with a comma
ADJUSTED_ROLES = ("demographic", "acquisition")  # roles that real scans are always adjusted for
ABSENT_VALUE = re.compile(
    r"(no|not|none|never|negative|absent|without|normal|healthy|control)\b", re.IGNORECASE
)


def classify_column(
    template: Template, rows: Sequence[Row], column: str, reference: str = ""
) -> AtlasAttribute | str:
    """The attribute that a column is, by its values in these rows, or why it cannot be studied."""
    values = [template.format_value(row, column) for row in rows]
    counts = Counter(v for v in values if v)
    role, known = template.role(column), template[column]
    if not counts:
        return "no training case has a value"
    numbers = {v: n for v in counts if (n := parse_number(v)) is not None}
    if len(counts) == 1:
        return f"all training cases that have a value have {next(iter(counts))!r}"
    written = [v for v in counts if v not in numbers and WRITTEN_NUMBER.fullmatch(v)]
    if known.kind != "category" and len(written) > MAX_CODES and len(written) > len(counts) / 2:
        return f"it holds numbers written as texts ({format_list(sorted(written), 3)}); write plain numbers, such as 63 or 1.5"
    if known.kind != "category" and len(numbers) > MAX_CODES:
        if odd := sorted(set(counts) - set(numbers)):
            return (
                f"it holds numbers and texts ({format_list(odd, 3)}); write plain numbers, or leave "
                "the cell empty where nothing is known"
            )
        chosen = quantile_values(list(numbers), counts)
        if float(chosen[0]) == float(chosen[-1]):
            return (
                f"most training cases have {chosen[0]}, so that its outer quantiles do not differ"
            )
        return AtlasAttribute(column, role, "number", chosen, counts, known.unit)
    if len(counts) > MAX_LEVELS:
        return f"it holds {len(counts)} different texts, which is free text and no category (at most {MAX_LEVELS})"
    every = [v for v, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    common = [v for v in every if counts[v] >= MIN_LEVEL_CASES or v == reference]
    levels = common if len(common) > 1 else every  # a small cohort is shown too, and warned of
    if alike := find_same_file_names(levels):
        return f"{alike[0]!r} and {alike[1]!r} would have the same file name; write one of them otherwise"
    if reference and reference not in levels:
        return f"no training case has the reference {reference!r} ({_counted(counts)})"
    first = reference or next((v for v in levels if ABSENT_VALUE.match(v)), levels[0])
    ordered = (
        first,
        *(v for v in sorted(levels, key=lambda v: (parse_number(v) or 0, v)) if v != first),
    )
    return AtlasAttribute(column, role, "category", ordered, counts, known.unit)


def pooled_covariate(template: Template, rows: Sequence[Row], column: str) -> AtlasAttribute | None:
    """A column that cannot be studied, such as one of many scanners, as something to adjust real
    scans for.
    """
    counts = Counter(v for row in rows if (v := template.format_value(row, column)))
    if template.role(column) not in ADJUSTED_ROLES or len(counts) < 2:
        return None
    return AtlasAttribute(
        column,
        template.role(column),
        "category",
        tuple(sorted(counts)),
        counts,
        template[column].unit,
    )


def find_same_file_names(values: Sequence[str]) -> tuple[str, str] | None:
    """The first two values that differ in nothing that a file name can hold."""
    first: dict[str, str] = {}
    for value in values:
        if (other := first.setdefault(safe_name(value).casefold(), value)) != value:
            return other, value
    return None


def quantile_values(values: Sequence[str], counts: Mapping[str, int]) -> tuple[str, ...]:
    """The values at five quantiles of what the cases have, each a value that occurs; fewer where
    they coincide.
    """
    every = sorted((v for v in values for _ in range(counts[v])), key=float)
    chosen = [every[round(q * (len(every) - 1))] for q in QUANTILES]
    return tuple(dict.fromkeys(chosen))


def _counted(counts: Mapping[str, int]) -> str:
    return format_list([f"{v}: {n}" for v, n in counts.items()], 6)


def choose_attributes(
    template: Template,
    rows: Sequence[Row],
    columns: Sequence[str],
    wanted: Sequence[str],
    known: Sequence[str],
    references: Mapping[str, str],
) -> tuple[list[AtlasAttribute], dict[str, str]]:
    """The attributes to study, and why other columns are left out.

    Args:
        template: How rows become text.
        rows: Of the training cases.
        columns: Of the table.
        wanted: Those asked for by name; all that can be studied where empty.
        known: The columns that the run was trained with.
        references: Reference value by column.

    Raises:
        UserError: A column asked for that is not there, that the run does not know, or that cannot
            be studied.
    """
    there = template.attributes(columns)
    for flag, named in (("--columns", wanted), ("--reference", list(references))):
        if strange := [c for c in named if c not in there]:
            raise UserError(
                f"{flag}: {strange[0]!r} is no column that the text can tell; there are: "
                f"{format_list(there, 40)}."
            )
    chosen: list[AtlasAttribute] = []
    left_out: dict[str, str] = {}
    for column in there:
        found = classify_column(template, rows, column, references.get(column, ""))
        if column not in known:
            found = "the run was trained without this column"
        if isinstance(found, str) and (column in wanted or (column in references and not wanted)):
            raise UserError(f"--columns: {column!r} cannot be studied: {found}.")
        if isinstance(found, str):
            left_out[column] = found
        elif wanted and column not in wanted:
            left_out[column] = "not asked for"
        elif column in references and found.kind == "number":
            raise UserError(
                f"--reference: {column!r} holds numbers, which are compared at quantiles; give "
                "--reference for columns with categories only."
            )
        elif twin := find_same_file_names([*(a.column for a in chosen), column]):
            left_out[column] = (
                f"its files would have the same names as those of {twin[0]!r}; rename one of the "
                "columns"
            )
        else:
            chosen.append(found)
    if not chosen:
        raise UserError(
            "No column of the table can be studied: "
            f"{format_list([f'{c}: {why}' for c, why in left_out.items()], 20) or 'it has none'}."
        )
    return chosen, left_out


def attribute_variants(template: Template, row: Row, attribute: AtlasAttribute) -> list[Variant]:
    """An arm a value, or none where the rest of the row rules the attribute out (pack-years of a
    never smoker).
    """
    own = template.consistent(row).row
    made = []
    for value in attribute.values:
        changed = {**own, attribute.column: value}
        if not template.consistent(changed).row[attribute.column]:
            return []
        arm = template.change(own, attribute.column, value)
        made.append(Variant(template.phrases(arm.row), attribute.column, value, arm.dropped))
    return made


def dependent_columns(template: Template) -> dict[str, tuple[str, ...]]:
    """For each column those that hang on it: a value of it can make them meaningless."""
    return {
        name: tuple(dict.fromkeys(d for rule in column.implies for d in rule.drop))
        for name, column in template.columns.items()
        if column.implies
    }
