"""Tables that are damaged, written by other programs, or spelled in other ways."""

from __future__ import annotations

import random
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest

from data.load_cohort import load_cohort
from data.table import read_lines, read_table
from data.text.prompts import cohort_prompts, load_template, read_prompts
from options.base_options import DataOptions
from options.prompt_options import PromptOptions
from tests.commands import command, refused
from tests.shared_cases import shared_case
from util.cli import UserError

Sheet = list[list[object]]
TABLE: Sheet = [["File Name", "Patient", "AGE"], ["a", "P1", 50], ["b", None, 51], ["c", "P2", 52]]


def workbook(path: Path, lines: Sheet, *merged: str) -> Path:
    book = openpyxl.Workbook()
    for line in lines:
        book.active.append(line)
    for cells in merged:
        book.active.merge_cells(cells)
    book.save(path)
    return path


def rewrite_sheet(path: Path, change: Callable[[str], str]) -> None:
    """Change the XML of the first sheet."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    parts[name] = change(parts[name].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


# --- spreadsheets ---------------------------------------------------------------------------------


def test_a_merged_value_stands_in_each_of_its_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_table(workbook(tmp_path / "t.xlsx", TABLE, "B2:B3"), "File Name").rows
    assert [row["Patient"] for row in rows.values()] == ["P1", "P1", "P2"]
    assert "merged cells of column B count for each of their rows: B2:B3" in caplog.text


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("B2:C2", "B2:C2 are merged over several columns"),
        ("B1:B2", "B1:B2 are merged over several columns or with the column names"),
        ("B1:C1", "column 3 has cells but no name.*merged"),
    ],
)
def test_merged_cells_without_one_meaning_are_refused(
    tmp_path: Path, cells: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_lines(workbook(tmp_path / "t.xlsx", TABLE, cells))


def test_merged_patients_stay_in_one_split() -> None:
    root = shared_case("61_merged") / "cohort"
    cohort = load_cohort(DataOptions(dataroot=str(root), patient_column="Patient"), check=False)
    assert cohort["case001"].row["Patient"] == cohort["case002"].row["Patient"] == "P0"
    owners = [{cohort[c].row["Patient"] for c in ids} for ids in cohort.splits.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]


def test_a_formula_without_result_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", [["File Name", "AGE"], ["a", "=2020-1950"]])
    with pytest.raises(UserError, match=r"t\.xlsx: cell B2 holds a formula without its result"):
        read_lines(path)
    rewrite_sheet(
        path, lambda xml: xml.replace("<v></v>", "<v>70</v>").replace("<v />", "<v>70</v>")
    )
    assert read_lines(path)[1] == ["a", "70"]


def test_a_formula_whose_result_is_an_empty_text_is_an_empty_cell(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", [["File Name", "AGE"], ["a", '=IF(1,"",2)'], ["b", 3]])
    rewrite_sheet(path, lambda xml: xml.replace('r="B2"', 'r="B2" t="str"'))
    assert read_lines(path)[1:] == [["a", ""], ["b", "3"]]


def test_formulas_of_a_cohort_are_refused() -> None:
    with pytest.raises(UserError, match=r"clinical\.xlsx: cell C2, C3.* formula"):
        load_cohort(DataOptions(dataroot=str(shared_case("62_formula") / "cohort")), check=False)


def test_a_wrong_dimension_hides_nothing(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", TABLE)
    rewrite_sheet(path, lambda xml: xml.replace('ref="A1:C4"', 'ref="A1"'))
    assert len(read_table(path, "File Name").rows) == 3
    root = shared_case("93_xlsx_dimension") / "cohort"
    cohort = load_cohort(DataOptions(dataroot=str(root)), check=False)
    prompts = cohort_prompts(cohort, load_template("auto", cohort.columns, "File Name"))
    assert prompts["case001"].texts == ["AGE is 50", "SEX is M"]


@pytest.mark.parametrize("cell", ["A1048576", "XFD1", "XFD1048576"])
def test_a_blank_far_away_costs_nothing(tmp_path: Path, cell: str) -> None:
    book = openpyxl.Workbook()
    for line in TABLE:
        book.active.append(line)
    book.active[cell] = " "
    book.save(tmp_path / "t.xlsx")
    tracemalloc.start()
    lines = read_lines(tmp_path / "t.xlsx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lines) == 4 and len(lines[0]) == 3 and peak < 2**26


def test_a_sheet_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.spreadsheet.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UserError, match=r"unpacks to .* Save the sheet as CSV"):
        read_lines(workbook(tmp_path / "t.xlsx", TABLE))


def test_further_sheets_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = workbook(tmp_path / "t.xlsx", TABLE)
    book = openpyxl.load_workbook(path)
    book.create_sheet("Controls").append(["x"])
    book.save(path)
    assert len(read_lines(path)) == 4 and "only the first, 'Sheet'" in caplog.text


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("File Name,A\nx,1\ny,\xe9\n".encode("latin-1"), "line 3 holds the byte 0xe9"),
        ("File Name,A\nx,1\n".encode("utf-16"), "UTF-16"),
        (b"File Name,A\nx,\0\n", "line 2 holds a NUL"),
        (b"File Name,A\nx,1,2\n", "cannot be read as a table.*line 2"),
        (b'File Name,A\nx,"1\n', "cannot be read as a table"),
        (b"File Name,,A\nx,5,1\ny,7,1\n", "column 2 has cells but no name"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.csv", "File Name")
    (tmp_path / "prompts.csv").write_bytes(content.replace(b",A\n", b",Prompt\n"))
    with pytest.raises(UserError, match=r"prompts\.csv"):
        read_prompts(tmp_path / "prompts.csv")


def test_row_numbers_without_a_name_are_left_out(tmp_path: Path) -> None:
    """As pandas writes them."""
    (tmp_path / "t.csv").write_text(",File Name,A\n0,x,1\n1,y,2\n")
    assert read_table(tmp_path / "t.csv", "File Name").rows == {"x": {"A": "1"}, "y": {"A": "2"}}


def test_long_cells_and_long_numbers_are_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(f"File Name,Prompt\na,{'x' * 200_000}\n")
    assert len(read_prompts(tmp_path / "prompts.csv")["a"].sentence) > 200_000
    (tmp_path / "t.csv").write_text(f"File Name,A\na,{'9' * 5000}\n")
    row = read_table(tmp_path / "t.csv", "File Name").rows["a"]
    assert load_template("auto").phrases(row).texts == [f"A is {'9' * 5000}"]


def test_prompts_in_another_encoding_are_one_message() -> None:
    root = shared_case("92_prompts_latin1") / "cohort"
    cohort = load_cohort(DataOptions(dataroot=str(root)), check=False)
    with pytest.raises(UserError, match=r"prompts\.csv is not UTF-8 text: line 2.*CSV UTF-8"):
        cohort_prompts(cohort, load_template("auto", cohort.columns))


# --- keys -----------------------------------------------------------------------------------------


@pytest.fixture()
def masks(tmp_path: Path) -> Path:
    """A cohort of masks, whose files are not read here."""
    for name in ("Case_A", "007", "8"):
        path = tmp_path / "gtlung" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def load(root: Path) -> dict[str, dict[str, str]]:
    cohort = load_cohort(DataOptions(dataroot=str(root)), need_images=False, check=False)
    return {case.id: case.row for case in cohort.cases}


def test_keys_match_across_suffix_capitals_and_zeros(masks: Path, tmp_path: Path) -> None:
    (masks / "clinical.csv").write_text("File Name,A\ncase_a.nii,1\n7,2\n8.0,3\n")
    (masks / "splits.json").write_text('{"train": ["CASE_A", "7"], "test": ["08"]}')
    (masks / "prompts.csv").write_text("File Name,Prompt\n7.nii.gz,seven\n")
    cohort = load_cohort(DataOptions(dataroot=str(masks)), need_images=False, check=False)
    assert {case.id: case.row["A"] for case in cohort.cases} == {
        "Case_A": "1",
        "007": "2",
        "8": "3",
    }
    assert cohort.splits == {"train": ("Case_A", "007"), "val": (), "test": ("8",)}
    prompts = cohort_prompts(cohort, load_template("auto", cohort.columns))
    assert prompts["007"].texts == ["seven"] and prompts["8"].texts == ["A is 3"]
    out = tmp_path / "out.csv"
    done = command("scripts/make_prompts.py", "--dataroot", masks, "--out", out)
    assert done.code == 0 and [line.split(",")[0] for line in out.read_text().splitlines()[1:]] == [
        "Case_A",
        "007",
        "8",
    ]


def test_a_key_that_may_mean_two_scans_is_refused(masks: Path) -> None:
    (masks / "gtlung" / "07.nii.gz").touch()
    (masks / "clinical.csv").write_text("File Name,A\n7,2\n")
    with pytest.raises(UserError, match=r"column 'File Name': 7 may mean 007, 07"):
        load(masks)


def test_no_scan_with_a_row_is_refused_with_both_spellings(masks: Path) -> None:
    (masks / "clinical.csv").write_text("File Name,A\npatient-1,2\n")
    with pytest.raises(UserError, match=r"no scan has a row.*'007'.*'patient-1'.*--key_column"):
        load(masks)
    refused(
        command("scripts/make_prompts.py", "--dataroot", masks, "--out", masks / "o.csv"),
        "no scan has a row",
        "'007'",
        "'patient-1'",
    )
    (masks / "clinical.csv").write_text("File Name,A\n")
    with pytest.raises(UserError, match=r"no scan has a row.*has no rows"):
        load(masks)


def test_prompts_of_no_scan_are_refused(masks: Path) -> None:
    (masks / "prompts.csv").write_text("File Name,Prompt\nother,text\n")
    cohort = load_cohort(DataOptions(dataroot=str(masks)), need_images=False, check=False)
    with pytest.raises(UserError, match=r"prompts\.csv has the prompt of no scan.*'007'.*'other'"):
        cohort_prompts(cohort, load_template("auto"))


# --- mutated files --------------------------------------------------------------------------------


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Flip, delete, repeat or insert a few bytes."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(data))
        action = generator.randrange(4)
        if action == 0:
            data[place] = generator.randrange(256)
        elif action == 1:
            del data[place : place + generator.randint(1, 8)]
        elif action == 2:
            data[place:place] = data[place : place + generator.randint(1, 40)]
        else:
            data[place:place] = bytes(generator.choice(b'\0",;\n\r\xff=9') for _ in range(3))
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("name", ["clinical.csv", "clinical.xlsx", "prompts.csv", "splits.json"])
def test_mutated_files_are_read_or_named(masks: Path, name: str, tmp_path: Path) -> None:
    original = tmp_path / f"original{Path(name).suffix}"
    if name == "clinical.xlsx":
        workbook(original, [["File Name", "AGE"], ["case_a", 50], ["7", 51], ["8", 52]], "B3:B4")
    elif name == "splits.json":
        original.write_text('{"train": ["Case_A", "007"], "test": ["8"]}')
    else:
        column = "Prompt" if name == "prompts.csv" else "AGE"
        original.write_text(f'File Name,{column}\ncase_a,50\n7,"5,5"\n8,052Y\n')
    generator = random.Random(0)
    content = original.read_bytes()
    for _ in range(150):
        (masks / name).write_bytes(mutate(content, generator))
        try:
            cohort = load_cohort(DataOptions(dataroot=str(masks)), need_images=False, check=False)
            cohort_prompts(cohort, load_template("auto", cohort.columns, "File Name"))
        except UserError as error:
            assert len(str(error)) < 2000


def test_mutated_sheets_are_read_or_named(tmp_path: Path) -> None:
    """Damage within the XML, which the checksums of the archive do not show."""
    original = workbook(tmp_path / "o.xlsx", TABLE, "B2:B3")
    generator = random.Random(1)
    for _ in range(150):
        path = Path(shutil.copy(original, tmp_path / "t.xlsx"))
        rewrite_sheet(
            path, lambda xml: mutate(xml.encode(), generator).decode("utf-8", errors="replace")
        )
        try:
            read_table(path, "File Name")
        except UserError as error:
            assert len(str(error)) < 2000


def test_make_prompts_takes_a_column_that_is_asked_for(tmp_path: Path) -> None:
    lines = [f"c{k},finding {k}" for k in range(12)]
    (tmp_path / "clinical.csv").write_text("\n".join(["File Name,FINDING", *lines]))
    out = PromptOptions(dataroot=str(tmp_path)).out
    words = ("--dataroot", tmp_path, "--out", tmp_path / out)
    assert "FINDING" in command("scripts/make_prompts.py", *words).text
    assert "finding 3" not in (tmp_path / out).read_text()
    done = command("scripts/make_prompts.py", *words, "--text_columns", "FINDING")
    assert done.code == 0 and "finding 3" in (tmp_path / out).read_text()
