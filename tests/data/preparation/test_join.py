"""The clinical table beside the scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pytest

from data.preparation.join import join_table
from data.preparation.sources import Source
from tests.shared_cases import shared_case
from util.cli import UserError


def sources(*names: str) -> list[Source]:
    return [Source(f"key{n}", n, (n,)) for n in names]


def table_file(folder: Path, *lines: str) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_join(tmp_path: Path) -> None:
    path = table_file(
        tmp_path,
        "No;MRN;AGE;SMOKER;Home address;Notes",
        "1;00123;N/A; yes ;x;calls daily",
        "2;77;55,0;-;y;",
        "3;77;56;no;y;",
        "4;8;093Y;2;z;",
    )
    table = join_table(path, sources("123", "77", "9"), "MRN")
    assert table.key_column == "MRN" and table.columns == ("No", "AGE", "SMOKER")
    assert table.rows == {("key123", "123"): {"No": "1", "AGE": "", "SMOKER": "yes"}}
    remarks = " ".join(table.remarks)
    assert (
        "1 scan with several rows that differ" in remarks
        and "No row for 1 of 3 scans" in remarks
        and "left out: Home address, Notes" in remarks
        and "1 row with an age above 89 got 90 instead" in remarks
    )
    assert join_table(path, sources("8"), "MRN").rows["key8", "8"]["AGE"] == "90"
    with pytest.raises(UserError, match="none of its columns names a scan"):
        join_table(path, sources("nobody"))
    with pytest.raises(UserError, match=r"'AGE' names no scan.* 123; it holds.* N/A"):
        join_table(path, sources("123"), "AGE")


def test_a_row_number_is_never_the_key(tmp_path: Path) -> None:
    text = (shared_case("90_join_rownumber") / "t.csv").read_text(encoding="utf-8")
    path = table_file(tmp_path, text.replace("AGE", "FVC"))  # ages above 89 would all be 90
    scans = sources(*map(str, range(1, 13)))
    with pytest.raises(UserError, match=r"'ID' and 'No\.' both name the scans") as error:
        join_table(path, scans)
    assert "11 of 12 different rows" in str(error.value)
    assert "scan 1 is '1' in row 6; scan 2 is '2' in row 7" in str(error.value)
    assert "scan 1 is '1' in row 2" in str(error.value) and "--key_column" in str(error.value)
    table = join_table(path, scans, "ID")
    values = {identity[1]: row["FVC"] for identity, row in table.rows.items()}
    assert values == {str(i): str(100 + i) for i in range(1, 13)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("No.,AGE", "1,50", "2,60", "3,70"), "measurement or a row number"),
        (("FVC,AGE", "3,50", "1,60", "2,70"), "measurement or a row number"),
        (("ID,AGE", "1,50", "2,60", "9,70"), "'ID' names 2 of 3 scans: scan 1 is '1' in row 2"),
        (("ID,AGE", "1,50", "2,60", "3,70", "3,71"), "holds an id in several rows"),
        (("ID,Study ID,AGE", "1,2,50", "2,1,60", "3,3,70"), "2 of 3 different rows"),
    ],
)
def test_a_key_that_is_not_clear_is_asked_for(
    tmp_path: Path, lines: Sequence[str], message: str
) -> None:
    path = table_file(tmp_path, *lines)
    with pytest.raises(UserError, match=message) as error:
        join_table(path, sources("1", "2", "3"))
    assert "--key_column" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "names", "key"),
    [
        (("No.,Fall,AGE", "1,b,50", "2,a,60"), ("a", "b"), "Fall"),
        (("Patient ID;AGE", "007;50", "8;60", ";"), ("7", "008"), "Patient ID"),
        (("Nr,Scan,File Name", "1,1,1.nii.gz", "2,2,2"), ("1", "2"), "Scan"),
        (("ID,Pages", "7,1", "07,2"), ("7", "07"), "ID"),
    ],
)
def test_a_clear_key_is_found(
    tmp_path: Path, lines: Sequence[str], names: Sequence[str], key: str
) -> None:
    table = join_table(table_file(tmp_path, *lines), sources(*names))
    assert table.key_column == key and len(table.rows) == 2


def test_scans_that_differ_by_leading_zeros_get_only_their_own_row(tmp_path: Path) -> None:
    path = table_file(tmp_path, "ID,AGE", "7,50", "8,60")
    table = join_table(path, sources("7", "007"), "ID")
    assert {identity[1]: row for identity, row in table.rows.items()} == {"7": {"AGE": "50"}}


def test_a_row_that_may_mean_two_scans(tmp_path: Path) -> None:
    path = table_file(tmp_path, "ID,AGE", "07,50", "8,60")
    for key in ("", "ID"):
        with pytest.raises(UserError, match=r"t\.csv: Column 'ID': 07 may mean 7, 007"):
            join_table(path, sources("7", "007"), key)


def test_the_patient_column_stays(tmp_path: Path) -> None:
    path = table_file(tmp_path, "File Name,Patient ID", "a,x", "b,y")
    assert join_table(path, sources("a", "b")).columns == ()
    kept = join_table(path, sources("a", "b"), patient_column="Patient ID")
    assert kept.columns == ("Patient ID",)


def test_spreadsheets_that_cannot_be(tmp_path: Path) -> None:
    path, book = tmp_path / "t.xlsx", openpyxl.Workbook()
    for line in (["id", "Lung function", None], ["a", 1, 2]):
        book.active.append(line)
    book.save(path)
    with pytest.raises(UserError, match=r"column (3|C).*no name"):
        join_table(path, sources("a"))
    path = tmp_path / "t.csv"
    path.write_text("id,AGE,AGE\na,1,2\n")
    with pytest.raises(UserError, match="more than once: AGE"):
        join_table(path, sources("a"))
