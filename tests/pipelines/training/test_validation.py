"""The tiles of validations, and their share of the time."""

from __future__ import annotations

import pytest

from pipelines.training.validation import validation_window
from util.training.monitor import Stopwatch


def test_validations_keep_their_share_of_the_time() -> None:
    watch = Stopwatch(0)
    watch.began -= 100.0
    watch.last = 10.0
    assert watch.may_validate(0.2)  # 10 of 110 s
    watch.validating = 15.0
    assert not watch.may_validate(0.2)  # 25 of 110 s
    assert watch.may_validate(0.25) and not watch.may_validate(0.0)
    left = watch.seconds_left(10, 30)
    assert left == pytest.approx(200, rel=0.01) and watch.seconds_left(0, 30) is None


def test_validation_tiles_are_twice_the_patch_but_no_larger_than_the_volume() -> None:
    window = validation_window((16, 16, 8), 4, [(24, 64, 8), (28, 40, 8)])
    assert window.tile == (32, 32, 8) and window.batch == 1
