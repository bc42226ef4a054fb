"""The tiles of validations, and their share of the time."""

from __future__ import annotations

import pytest

from options.train_options import RunOptions, TrainOptions
from pipelines.training.dry_run import describe_validations
from pipelines.training.validation import validation_window
from util.training.monitor import Stopwatch, ValidationResult


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


def test_a_postponed_validation_is_explained_by_times_above_zero() -> None:
    watch = Stopwatch(0)
    watch.began -= 4.0
    watch.last = 0.02
    text = watch.postponed(10, 0.1)
    assert "after step 10 is postponed: it takes about 1 s" in text
    assert "run for 4 s" in text and "10% of the time (--val_share); later" in text


class Validator:
    """A validation of a known length."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, step: int) -> ValidationResult:
        raise AssertionError(step)

    def estimate_seconds(self) -> float:
        return self.seconds


def test_a_dry_run_says_how_long_validations_take_and_whether_they_are_postponed() -> None:
    options = TrainOptions(run=RunOptions(val_freq=10))
    assert describe_validations(options, 600.0, 100, None) == ", without validation"
    few = describe_validations(options, 600.0, 100, Validator(0.01))
    assert few == ", and validation (10 times) about 1 s more"
    many = describe_validations(options, 600.0, 100, Validator(60.0))
    assert "would take about 10 min more; it is postponed beyond 10% of the time" in many
