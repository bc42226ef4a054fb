"""Types of values that were read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from util.cli import UserError
from util.schema import check_record, fits, misfit


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -1, 10**30], [True, 1.0, "1", None, []]),
        (float, [0, 1.5, float("nan")], [True, "1", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (bool, [True], [1, None]),
        (None, [None], [0, False]),
        (float | None, [None, 1], ["x"]),
        (list[int], [[], [1], (1, 2)], [[1, "a"], {}, "12", None]),
        (tuple[int, ...], [(), [1, 2]], [[1.5]]),
        (tuple[float, float], [[1, 2.5]], [[1], [1, 2, 3], ["a", 1]]),
        (dict[str, float], [{}, {"a": 1}], [{"a": "x"}, {1: 1}, []]),
        (list, [[1, "a"]], [{}]),
        (dict, [{"a": []}], [[]]),
        (Literal["a", 1], ["a", 1], ["b", True]),
        (Any, [None, 1, "a"], []),
    ],
)
def test_values_of_a_type(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fits(value, hint) for value in good)
    assert not any(fits(value, hint) for value in bad)


def test_the_entry_that_does_not_fit_is_named() -> None:
    hints = {"step": int, "size": tuple[int, int], "weights": dict[str, float] | None}
    assert misfit({"step": 1, "size": [1, 2]}, hints) == ""
    assert misfit({"step": 1}, hints) == "size is missing"
    assert "step is 'x'; it must be a whole number" in misfit({"step": "x"}, hints)
    assert "a list of 2 (a whole number)" in misfit({"step": 1, "size": [1]}, hints)
    assert "a mapping to a number or null" in misfit(
        {"step": 1, "size": [1, 2], "weights": 3}, hints
    )
    assert "instead of a mapping" in misfit(["x" * 999], hints)
    assert len(misfit({"step": "x" * 10**6}, hints)) < 150
    assert "too many digits" in misfit({"step": 1, "size": 10**5000}, hints)
    with pytest.raises(UserError, match=r"a\.json is damaged: step is missing\. Make it again\."):
        check_record({}, hints, Path("a.json"), "Make it again.")
