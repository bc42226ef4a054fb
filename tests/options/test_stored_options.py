"""Options of a run that are read again: wrong types and values are named, not taken."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from options.base_options import DataOptions
from options.parser import command_line, from_dict, groups_of, parse, to_dict
from options.train_options import TrainOptions
from util.cli import UserError

SOURCE = "runs/a/options.json"
WRONG_VALUES: tuple[Any, ...] = (
    None,
    [],
    [None],
    ["x"],
    "x",
    10**400,
    float("inf"),
    float("nan"),
    {},
    True,
    -(10**9),
    [[1, 2]],
)


def stored() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(to_dict(TrainOptions())))
    return values


def test_options_come_back() -> None:
    assert from_dict(TrainOptions, stored(), SOURCE) == TrainOptions()
    earlier = {
        outer.name: group_class(**getattr(group_class, "ABSENT", {}))
        for outer, group_class in groups_of(TrainOptions)
    }
    assert from_dict(TrainOptions, {}, SOURCE) == TrainOptions(**earlier)


def test_the_command_line_of_options_gives_them_again() -> None:
    options = TrainOptions(data=DataOptions(lesion_labels=(7, 9), lung_labels=(3, 4)))
    for expected in (TrainOptions(), options):
        words = [word for line in command_line(expected).values() for word in shlex.split(line)]
        assert parse(TrainOptions, "", words) == expected


@pytest.mark.parametrize("value", WRONG_VALUES)
def test_a_value_of_any_type_is_taken_or_named(value: Any) -> None:
    for group, options in stored().items():
        for name in options:
            changed = stored()
            changed[group][name] = value
            try:
                from_dict(TrainOptions, changed, SOURCE)
            except UserError as error:
                assert SOURCE in str(error) and name in str(error) and len(str(error)) < 400
    for group in stored():
        try:
            from_dict(TrainOptions, {**stored(), group: value}, SOURCE)
        except UserError as error:
            assert SOURCE in str(error)


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("generator", "ngf", "32", "ngf is '32'; it must be a whole number"),
        ("generator", "ngf", 10**30, "ngf is too large a number"),
        ("generator", "skip", 1, "skip is 1; it must be true or false"),
        ("generator", "norm", "layered", "norm is 'layered'; it must be one of"),
        ("optim", "lr", "fast", "lr is 'fast'; it must be a number"),
        ("optim", "lr", float("nan"), "lr is nan; it must be a finite number"),
        ("optim", "batch_size", 0, "batch_size is 0; it must be at least 1"),
        ("data", "hu_window", [-1000.0], "hu_window is .*; it must be a list of 2"),
        ("data", "lung_labels", [1, "2"], "lung_labels is"),
        ("data", "lung", 1, "options this version does not know: lung"),
    ],
)
def test_the_wrong_value_is_named(group: str, name: str, value: Any, message: str) -> None:
    changed = stored()
    changed[group][name] = value
    with pytest.raises(UserError, match=message) as raised:
        from_dict(TrainOptions, changed, SOURCE)
    assert SOURCE in str(raised.value)


def test_unknown_groups_are_named() -> None:
    with pytest.raises(UserError, match="does not know: colours"):
        from_dict(TrainOptions, {**stored(), "colours": {}}, SOURCE)
    with pytest.raises(UserError, match="is damaged"):
        from_dict(TrainOptions, [], SOURCE)  # type: ignore[arg-type]
