"""The clinical table beside the scans."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest

from data.preparation.join import join_table
from data.preparation.sources import Source
from util.cli import UserError


def sources(*names: str) -> list[Source]:
    return [Source(f"key{n}", n, (n,)) for n in names]


def test_join(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "No;MRN;AGE;SMOKER;Home address\n1;00123;N/A; yes "
        ";x\n2;77;55.0;-;y\n3;77;56;no;y\n4;8;1;2;z\n"
    )
    table = join_table(path, sources("123", "77", "9"))
    assert table.key_column == "MRN" and table.columns == ("No", "AGE", "SMOKER")
    assert table.rows == {"key123": {"No": "1", "AGE": "", "SMOKER": "yes"}}
    remarks = " ".join(table.remarks)
    assert (
        "1 scans have several rows that differ" in remarks
        and "1 of 3 scans have no row" in remarks
        and "Home address" in remarks
    )
    with pytest.raises(UserError, match="names no scan"):
        join_table(path, sources("nobody"))
    with pytest.raises(UserError, match="'AGE' names no scan"):
        join_table(path, sources("123"), "AGE")


def test_spreadsheets_that_cannot_be(tmp_path: Path) -> None:
    path, book = tmp_path / "t.xlsx", openpyxl.Workbook()
    for line in (["id", "Lung function", None], ["a", 1, 2]):
        book.active.append(line)
    book.active.merge_cells("B1:C1")
    book.save(path)
    with pytest.raises(UserError, match=r"column 3 has cells but no name.*merged"):
        join_table(path, sources("a"))
    path = tmp_path / "t.csv"
    path.write_text("id,AGE,AGE\na,1,2\n")
    with pytest.raises(UserError, match="more than once: AGE"):
        join_table(path, sources("a"))
