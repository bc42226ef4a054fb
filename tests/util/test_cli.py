"""Names of files: readable, and no two alike."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from util.cli import MAX_NAME_LENGTH, path_from_here, safe_name, setup_logging, unique_names


def test_a_message_is_printed_once_and_libraries_are_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        setup_logging()
        log = logging.getLogger("data.test")
        for number in (1, 1, 2):
            log.warning("Case %d is empty.", number)
        log.info("Case 1 is empty.")  # of another level
        logging.getLogger("highdicom.base").info("copy attributes of module 'Specimen'")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "WARNING Case 1 is empty.",
        "WARNING Case 2 is empty.",
        "INFO Case 1 is empty.",
    ]


def test_ordinary_names_stay_as_they_were() -> None:
    texts = ["phantom_001", "P1.2", "Never smoker", "FVC (%)", "a+b", "-dash"]
    assert unique_names(texts) == {text: safe_name(text) for text in texts}


@pytest.mark.parametrize(
    "texts",
    [
        ["p 1", "p_1", "p#1"],
        ["中国1", "日本1"],
        ["男", "女"],
        ["<50%", ">50%"],
        ["P1", "p1"],
        ["x" * 300 + "1", "x" * 300 + "2"],
        ["Müller", "Möller", "M_ller"],
    ],
)
def test_names_that_would_be_one_are_told_apart(texts: list[str]) -> None:
    names = unique_names(texts)
    assert len({name.casefold() for name in names.values()}) == len(texts)
    for text, name in names.items():
        assert name.startswith(safe_name(text)[:MAX_NAME_LENGTH])
        assert safe_name(name) == name and len(name) <= MAX_NAME_LENGTH + 9
    assert unique_names(reversed(texts)) == names  # whatever their order


def test_a_safe_name_is_kept_beside_one_that_becomes_it() -> None:
    names = unique_names(["p 1", "p_1"])
    assert names["p_1"] == "p_1" and names["p 1"].startswith("p_1-")


def test_a_path_below_the_current_folder_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_from_here(str(tmp_path / "a" / "b")) == str(Path("a", "b"))
    assert path_from_here("/elsewhere/b") == "/elsewhere/b" and path_from_here("../b") == "../b"
