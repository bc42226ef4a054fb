"""The files of a run's folder: what can be made again is, with a warning; the rest is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from util.cli import UserError
from util.training import monitor, runs
from util.training.runs import RunLog, read_log

GOOD = {"step": 1, "loss_G": 0.5}
DAMAGED: tuple[Any, ...] = (
    None,
    [],
    "x",
    5,
    {},
    {"step": "1"},
    {"step": None},
    {"step": 1.5},
    {"step": 1, "loss": "x"},
    {"step": 1, "loss": None},
    {"step": 1, "loss": [1]},
)


def test_lines_of_the_log_that_are_damaged_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps(value).encode() for value in (*DAMAGED, GOOD)]
    lines += [b'{"step": 2, "lo', b"\xff\xfe", b"[" * 10**5, b"9" * 5000, b"\0"]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert read_log(tmp_path) == [GOOD]
    assert "log.jsonl: lines that are damaged are left out: 1, 2, 3" in caplog.text
    log = RunLog(tmp_path, step=3)
    log.write(4, {"loss_G": 1.0})
    log.close()
    assert read_log(tmp_path) == [GOOD, {"step": 4, "loss_G": 1.0}]


def test_pictures_whose_list_is_damaged_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "web" / "images.json"
    path.parent.mkdir()
    good = {"step": 1, "case": "a", "prompt": "p", "file": "a.png"}

    def images(content: str) -> int:
        path.write_text(content)
        run: Any = SimpleNamespace(folder=tmp_path)
        return len(monitor.Monitor._earlier_images(run, 5))

    assert images(json.dumps([good, {**good, "step": 9}])) == 1 and not caplog.text
    wrong: tuple[Any, ...] = (None, [], "x", {}, 1, 10**30)
    for name in good:
        for value in wrong:
            expected = 1 + (type(value) is type(good[name]) and (name != "step" or value == 1))
            assert images(json.dumps([good, {**good, name: value}])) == expected
    assert "a picture that is damaged is left out" in caplog.text
    for content in ("{}", "null", "[1]", "[[]]", "[", "[" * 10**5, '[{"step": {}}]', ""):
        assert images(content) == 0
    assert "images.json is damaged" in caplog.text


def test_options_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    for content in ("[]", "null", "1", '"a"', "{", "[" * 10**5):
        (tmp_path / "options.json").write_text(content)
        with pytest.raises(UserError, match=r"options\.json is damaged"):
            runs.read_options(tmp_path)


def test_a_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    """TensorBoard, too, keeps the step that the run is resumed at, and drops later ones."""
    log = RunLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"loss_G": step})
    log.close()
    log = RunLog(tmp_path, step=20)
    log.write(30, {"loss_G": 31})
    log.close()
    assert [record["loss_G"] for record in read_log(tmp_path)] == [10, 20, 31]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("loss/G")] == [10, 20, 31]
