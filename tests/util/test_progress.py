"""Estimates of the end of a long command."""

from __future__ import annotations

import logging

import pytest

from util import progress


def test_durations() -> None:
    shown = [progress.format_duration(s) for s in (0.01, 40, 100, 3599, 3601, 12_000)]
    assert shown == ["1 s", "40 s", "2 min", "1 h 0 min", "1 h 0 min", "3 h 20 min"]


def test_the_end_is_estimated_from_finished_pieces(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    remaining = progress.RemainingTime(40, "refits")
    for seconds in (600, 10, 10, 590):
        clock[0] += seconds
        remaining.step()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # none a moment after another
    assert messages[0].startswith("1 of 40 refits are done; about 6 h 30 min left, until ")
    assert messages[1].startswith("4 of 40 refits are done; about 3 h 2 min left, until ")
    caplog.clear()
    short = progress.RemainingTime(3, "cases")
    clock[0] += 1
    short.step()
    assert not caplog.records
