"""Files and folders that appear whole or not at all, and what must not be replaced."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from util.cli import UserError
from util.files import (
    atomic_folder,
    atomic_path,
    claim_file,
    claim_folder,
    file_fingerprint,
    path_inside,
    read_csv,
    read_json,
    write_csv,
    write_frame,
    write_json,
)
from util.records import open_record


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and not path.exists()
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_disk_that_refuses_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.json cannot be written .* Free space"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    for text in ("one", "two"):
        with atomic_folder(folder) as part:
            (part / "file").write_text(text)
            assert not (folder / "file").exists() or (folder / "file").read_text() != text
        assert (folder / "file").read_text() == text
    with pytest.raises(ValueError, match="damaged"), atomic_folder(folder) as part:
        raise ValueError("damaged")
    assert (folder / "file").read_text() == "two" and list(tmp_path.iterdir()) == [folder]


def test_json_and_csv(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}
    (tmp_path / "a.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")
    write_csv(tmp_path / "a.csv", ("x", "y"), [{"x": 1}, {"x": "a,b", "y": 2}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["x,y", "1,", '"a,b",2']


def test_json_has_null_for_numbers_that_it_lacks(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    path = tmp_path / "a.json"
    write_json(path, {"ratio": infinite, "low": [-infinite, 1.5], "sd": np.float64(nan), "n": (1,)})
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_json(path) == {"ratio": None, "low": [None, 1.5], "sd": None, "n": [1]}


FORMULAS = (
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "+cmd",
    "-x",
    "-1-1",
    "-5--3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1+1",
    "'=1+1",
    "''@x",
    "-inf",
)
PLAIN = ("-5", "+3", "-0.5", "-0,5", "-1e-5", "-.5", "-5 %", "-", "--", "'", "'-5", "it's", "1=1")


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    texts = [*FORMULAS, *PLAIN, "", " =1"]
    path = tmp_path / "a.csv"
    columns = ["=HYPERLINK(1)", "number"]
    write_csv(path, columns, [{columns[0]: t, "number": -1.5} for t in texts])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["'=HYPERLINK(1)", "number"] and {row[1] for row in rows[1:]} == {"-1.5"}
    cells = [row[0] for row in rows[1:]]
    assert cells[: len(FORMULAS)] == [f"'{text}" for text in FORMULAS]
    assert cells[len(FORMULAS) :] == texts[len(FORMULAS) :]
    back = read_csv(path, columns)
    assert [row[columns[0]] for row in back] == texts
    frame = pd.DataFrame({columns[0]: texts, "number": -1.5})
    write_frame(tmp_path / "b.csv", frame)
    assert read_csv(tmp_path / "b.csv") == back


def test_a_frame_is_written_as_pandas_does(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"a": ["x,y", None], "b": [1, -2], "c": [0.1234567, np.nan], "d": [True, False]}
    )
    write_frame(tmp_path / "a.csv", frame, "%.4g")
    frame.to_csv(tmp_path / "b.csv", index=False, float_format="%.4g")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    empty = pd.DataFrame(columns=["a"])
    write_frame(tmp_path / "c.csv", empty)
    assert (tmp_path / "c.csv").read_text() == "a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\nM\xfcller,3\n", r"t\.csv is not UTF-8 text: line 3 holds the byte 0xfc"),
        (b"a,b\n1," + b"x" * 200_000, r"t\.csv, row 2, cannot be read \(field larger"),
        (b"a,b\n1,2,3\n", r"t\.csv, row 2, has 3 cells, and the header 2"),
        (b"a,b\n\n1\n", r"t\.csv, row 3, has 1 cell"),
        (b"a,c\n", r"t\.csv lacks the columns b; it has: a, c"),
        (b"", r"t\.csv lacks the columns a, b; it has: none"),
        (b"a,b\n1,\0\n", r"t\.csv, line 2 holds a NUL character"),
        (b"a,b,b\n", r"t\.csv has a column twice"),
        ("a,b".encode("utf-16"), r"t\.csv is not UTF-8 text but UTF-16. Save it as CSV UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_row(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_csv(tmp_path / "t.csv", ["a", "b"])
    with pytest.raises(UserError, match=r"absent\.csv cannot be read"):
        read_csv(tmp_path / "absent.csv")


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / "volumes").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    table = folder / "volumes.csv"
    assert path_inside(folder, "volumes/a.nii.gz", table) == folder / "volumes" / "a.nii.gz"
    for name in ("/dev/zero", "../a.nii.gz", "volumes/../../a", "link/a", "", "a\0b", "a" * 5000):
        with pytest.raises(UserError, match=r"volumes\.csv names the file .* does not lie in"):
            path_inside(folder, name, table)


def test_json_of_any_damage_is_one_message(tmp_path: Path) -> None:
    for content in (b"[" * 10**5, b"9" * 5000, b"\xff", b"", b"{]"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json is damaged"):
            read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_text("1")
    before = file_fingerprint(path)
    assert before == file_fingerprint(path) and before[:2] == [str(path), 1]
    path.write_text("12")
    assert file_fingerprint(path) != before


def test_only_folders_of_the_command_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not claim_folder(folder, ["a.json"], overwrite=False)
    folder.mkdir()
    assert not claim_folder(folder, ["a.json"], overwrite=False)
    (folder / "thesis.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"--out: .*out is not empty and holds no a\.json"):
            claim_folder(folder, ["a.json"], overwrite)
    with pytest.raises(UserError, match="is not empty, so it is not replaced"):
        claim_folder(folder, [], overwrite=True)
    (folder / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"--name: .*exists already. Use --overwrite .* or resume"):
        claim_folder(folder, ["a.json"], False, "--name", "resume")
    assert claim_folder(folder, ["a.json"], overwrite=True)
    with pytest.raises(UserError, match=r"thesis\.txt exists already. Use --overwrite"):
        claim_file(folder / "thesis.txt", overwrite=False)
    claim_file(folder / "thesis.txt", overwrite=True)
    with pytest.raises(UserError, match=r"thesis\.txt is not a folder"):
        claim_file(folder / "thesis.txt" / "new" / "a.nii.gz", overwrite=True)
    claim_file(folder / "new" / "a.nii.gz", overwrite=False)


def test_a_record_names_the_settings_that_differ(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = {"seed": 1, "size": (1, 2), "name": "a"}
    assert not open_record(folder, "record.json", settings, overwrite=False)
    assert open_record(folder, "record.json", settings, overwrite=False)
    changed = settings | {"seed": 2, "size": (1, 3)}
    for overwrite, fix in ((False, "Use --overwrite"), (None, "Choose another folder")):
        with pytest.raises(UserError, match=rf"\(seed 1 there, 2 now, size\)\. {fix}"):
            open_record(folder, "record.json", changed, overwrite)
    assert not open_record(folder, "record.json", changed, overwrite=True)
