"""Cohorts: files, tables, splits, and every bad input that they may hold."""

from __future__ import annotations

import datetime
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from data.checks import case as case_checks
from data.cohort import Cohort, natural_key
from data.load_cohort import load_cohort
from data.resampling import patients_of
from data.splits import draw_splits, read_splits, save_splits
from data.table import find_table, read_table
from options.base_options import DataOptions
from util.cli import UserError

SHAPE = (8, 7, 6)


def scan(seed: int = 0) -> np.ndarray:
    """Return a volume in the range of a CT, with lungs where `labels` has them."""
    rng = np.random.default_rng(seed)
    lungs = np.isin(labels(), (1, 2))
    return np.where(lungs, rng.integers(-990, -700, SHAPE), rng.integers(-1000, 400, SHAPE)).astype(
        np.int16
    )


def labels() -> np.ndarray:
    """Return a mask with the labels 0 to 3."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:5, 1:5] = 1
    mask[5:7, 2:5, 1:5] = 2
    mask[4, 3, 4] = 3
    return mask


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a NIfTI, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """Return a dataroot of twelve cases with a table."""
    folder = tmp_path / "cohort"
    for k in range(1, 13):
        save(folder / "img" / f"case{k}.nii.gz", scan(k))
        save(folder / "gtlung" / f"case{k}.nii.gz", labels())
    rows = [f"case{k}.nii.gz,P{(k + 1) // 2},{50 + k},None" for k in range(1, 13)]
    (folder / "clinical.csv").write_text(
        "\n".join(["File Name,Patient,AGE,SMOKING", *rows]), encoding="utf-8"
    )
    return folder


def loaded(root: Path, **flags: Any) -> Cohort:
    """Load the cohort of a folder, with further flags."""
    return load_cohort(DataOptions(dataroot=str(root), **flags))


def test_a_good_cohort(root: Path) -> None:
    cohort = loaded(root)
    assert [case.id for case in cohort.cases] == [f"case{k}" for k in range(1, 13)]  # natural order
    assert cohort.labels == (0, 1, 2, 3, 4) and cohort.columns == ("Patient", "AGE", "SMOKING")
    assert cohort["case3"].row == {"Patient": "P2", "AGE": "53", "SMOKING": "None"}
    assert cohort["case3"].image == root / "img" / "case3.nii.gz"
    assert [len(cohort.split(name)) for name in ("train", "val", "test")] == [10, 1, 1]
    assert sorted(["b10", "b2", "a", "2", "b2c"], key=natural_key) == ["2", "a", "b2", "b2c", "b10"]


def test_formats_may_differ_between_pairs(root: Path) -> None:
    shutil.move(root / "gtlung" / "case1.nii.gz", root / "case1.nii.gz")
    nib.save(nib.load(root / "case1.nii.gz"), root / "gtlung" / "case1.nii")
    (root / "gtlung" / ".DS_Store").write_text("")
    assert loaded(root)["case1"].mask.name == "case1.nii"


def test_masks_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "img")
    with pytest.raises(UserError, match=r"img does not exist"):
        loaded(root)
    cohort = load_cohort(DataOptions(dataroot=str(root)), need_images=False)
    assert cohort.cases[0].image is None and len(cohort.split("test")) == 12
    assert "every case is in every split" in caplog.text


def test_without_a_table_rows_are_empty(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "clinical.csv").unlink()
    assert loaded(root).cases[0].row == {} and "all prompts are empty" in caplog.text


@pytest.mark.parametrize(
    ("mark", "name"), [("expansion.json", "expand.py"), (".prepared", "prepare_data.py")]
)
def test_a_cohort_that_is_half_written_is_refused(root: Path, mark: str, name: str) -> None:
    (root / mark).touch()
    loaded(root)
    (root / "clinical.csv").unlink()
    with pytest.raises(UserError, match=rf"no clinical.csv, because scripts/{name}.*interrupted"):
        loaded(root)


# --- bad input: a change of the folder, and parts of the message ----------------------------------

Spoil = Callable[[Path], object]


def _drop(*names: str) -> Spoil:
    def act(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def _emptied(root: Path) -> None:
    for path in (root / "gtlung").iterdir():
        path.unlink()


def _text(name: str, text: str) -> Spoil:
    return lambda root: (root / name).write_text(text, encoding="utf-8")


def _put(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Spoil:
    return lambda root: save(root / name, array, affine)


def _cut(root: Path) -> None:
    path = root / "img" / "case2.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def _false_xlsx(root: Path) -> None:
    (root / "clinical.csv").rename(root / "clinical.xlsx")


IMG, MASK = "img/case2.nii.gz", "gtlung/case2.nii.gz"
BAD: dict[str, tuple[Spoil, str]] = {
    "no masks folder": (
        _drop("gtlung"),
        r"--dataroot .* has no folder gtlung/.*it holds: clinical\.csv, img",
    ),
    "empty folder": (_emptied, r"gtlung is empty.*\.nrrd"),
    "missing mask": (
        _drop(MASK, "gtlung/case7.nii.gz"),
        r"img holds 2 scans without a mask .*: case2, case7",
    ),
    "missing scan": (_drop(IMG), r"gtlung holds 1 mask without a scan .*: case2"),
    "case twice": (
        _put("gtlung/case2.nii", labels()),
        r"holds case 'case2' twice: case2\.nii and case2\.nii\.gz",
    ),
    "truncated": (_cut, r"case2\.nii\.gz cannot be read as a volume"),
    "no NIfTI": (_text(IMG, "hello"), r"case2\.nii\.gz cannot be read as a volume"),
    "other shape": (
        _put(MASK, labels()[:-1]),
        r"case2\.nii\.gz has shape \(7, 7, 6\).* has \(8, 7, 6\)",
    ),
    "other place": (
        _put(MASK, labels(), np.diag([1, 1, 1.5, 1])),
        r"case2\.nii\.gz lies elsewhere.*2\.5 mm apart",
    ),
    "half labels": (
        _put(MASK, labels() * np.float32(0.5)),
        r"case2\.nii\.gz holds labels that are not integers.*0\.5",
    ),
    "negative label": (
        _put(MASK, labels().astype(np.int16) - 1),
        r"holds the label -1; labels run from 0 to 255",
    ),
    "many labels": (
        _put(MASK, np.arange(336).reshape(SHAPE).astype(np.uint8)),
        r"256 different.*--max_labels 16",
    ),
    "constant": (_put(IMG, np.full(SHAPE, -1000, np.int16)), r"case2\.nii\.gz is constant \(-1000"),
    "not finite": (
        _put(IMG, np.where(scan() > 300, np.nan, scan())),
        r"case2\.nii\.gz holds .*not finite",
    ),
    "0 to 1": (
        _put(IMG, (scan() + 1000) / np.float32(1400)),
        r"case2\.nii\.gz is not in HU.*rescale",
    ),
    "8 bit": (
        _put(IMG, (scan() % 256).astype(np.uint8)),
        r"is not in HU: its values run from 0 to 254",
    ),
    "raw": (_put(IMG, scan() + np.int16(1024)), r"is not in HU"),
    "z-score": (_put(IMG, scan() / np.float32(400)), r"is not in HU"),
    "no key column": (
        _text("clinical.csv", "Mapping ID,AGE\n1,2\n"),
        r"no column 'File Name'; it has: Mapping ID, AGE\. .*--key_column",
    ),
    "column twice": (
        _text("clinical.csv", "File Name,AGE,AGE\ncase1,2,3\n"),
        r"more than once: AGE",
    ),
    "row twice": (
        _text("clinical.csv", "File Name,AGE\ncase1,2\ncase1.nii.gz,3\n"),
        r"row 3: case 'case1' has a row",
    ),
    "no key": (_text("clinical.csv", "File Name,AGE\n,2\n"), r"row 2: 'File Name' is empty"),
    "empty table": (_text("clinical.csv", ""), r"clinical\.csv is empty"),
    "ragged": (
        _text("clinical.csv", "File Name,AGE\ncase1,2,3,4\n"),
        r"clinical\.csv cannot be read.*Quote",
    ),
    "false xlsx": (_false_xlsx, r"clinical\.xlsx cannot be read as an XLSX"),
    "two tables": (_text("clinical.xlsx", "x"), r"both clinical\.csv and clinical\.xlsx"),
    "bad splits": (_text("splits.json", "[1, 2"), r"splits\.json cannot be read as JSON"),
    "splits form": (_text("splits.json", '{"train": "case1"}'), r"splits\.json must look like"),
    "splits name": (
        _text("splits.json", '{"training": ["case1"]}'),
        r"lists training; it may have only train, val",
    ),
    "splits case": (
        _text("splits.json", '{"train": ["case1", "case99"]}'),
        r"have no files: case99",
    ),
    "splits twice": (
        _text("splits.json", '{"train": ["case1"], "test": ["case1.nii.gz"]}'),
        r"more than once: case1",
    ),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_named(root: Path, what: str) -> None:
    spoil, message = BAD[what]
    spoil(root)
    with pytest.raises(UserError, match=message):
        loaded(root)


def test_no_dataroot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataroot is not given"):
        load_cohort(DataOptions())
    with pytest.raises(UserError, match=r"--dataroot .*nowhere does not exist"):
        loaded(tmp_path / "nowhere")


def test_problems_are_shown_together(root: Path) -> None:
    _put(IMG, np.zeros(SHAPE, np.int16))(root)
    _put("gtlung/case5.nii.gz", labels() * np.float32(0.5))(root)
    _put("gtlung/case9.nii.gz", labels()[1:])(root)
    with pytest.raises(UserError) as caught:
        loaded(root)
    message = str(caught.value)
    assert all(name in message for name in ("case2", "case5", "case9"))
    assert "case1." not in message


def test_too_many_labels_over_the_cohort(root: Path) -> None:
    for k in (1, 2, 3):
        save(root / "gtlung" / f"case{k}.nii.gz", labels() + np.uint8(10 * k))
    with pytest.raises(
        UserError, match="The masks hold 16 different labels, more than --max_labels 8"
    ):
        loaded(root, max_labels=8)


def test_rows_and_scans_that_do_not_meet(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "clinical.csv").write_text("File Name,AGE\ncase1,60\nother,70\n", encoding="utf-8")
    cohort = loaded(root)
    assert cohort["case2"].row == {"AGE": ""}
    assert (
        "11 of 12 scans without a row: case2" in caplog.text
        and "1 of 2 rows without a scan: other" in caplog.text
    )
    with pytest.raises(UserError, match="11 of 12 scans without a row"):
        loaded(root, strict=True)


def test_checks_are_remembered(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, cache = DataOptions(dataroot=str(root)), tmp_path / "cache"
    first = load_cohort(options, cache=cache)
    monkeypatch.setattr(
        case_checks, "load_checked", lambda path: pytest.fail(f"{path} is read again")
    )
    assert load_cohort(options, cache=cache) == first
    monkeypatch.undo()
    save(root / "gtlung" / "case1.nii.gz", labels() * np.uint8(2))
    assert load_cohort(options, cache=cache).labels == (0, 1, 2, 3, 4, 6)  # the file changed
    (cache / "checks.json").write_text("{broken")
    assert load_cohort(options, cache=cache).labels == (0, 1, 2, 3, 4, 6)


def test_an_empty_mask_is_only_warned_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(root / "gtlung" / "case4.nii.gz", labels() * np.uint8(0))
    assert loaded(root).labels == (0, 1, 2, 3, 4)
    assert "1 mask holds only background: case4.nii.gz" in caplog.text


# --- tables ---------------------------------------------------------------------------------------


def test_strings_stay_as_written(tmp_path: Path) -> None:
    path = tmp_path / "clinical.csv"
    path.write_bytes(
        '\ufeffFile Name,A,B , C\r\nx.nii.gz,None,NA, 055.0\r\n\r\n"y.1","a, b",,\r\n'.encode()
    )
    table = read_table(path, "File Name")
    assert table.columns == ("A", "B", "C")
    assert table.rows == {
        "x": {"A": "None", "B": "NA", "C": " 055.0"},
        "y.1": {"A": "a, b", "B": "", "C": ""},
    }
    path.write_text("Patient;Age\np;5,5\n", encoding="utf-8")
    assert read_table(path, "Patient").rows == {"p": {"Age": "5,5"}}
    path.write_bytes("File Name,A\nx,\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(path, "File Name")


def test_spreadsheets_read_as_they_look(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["File Name", "AGE", "DATE", "FVC", "EMPTY", "CODE"])
    sheet.append(["x.nii.gz", 55.0, datetime.datetime(2020, 3, 1), 2.5, None, "NA"])
    sheet.append([7, 60, datetime.datetime(2020, 3, 1, 12, 30), -1, "", "007"])
    book.save(tmp_path / "clinical.xlsx")
    assert find_table(tmp_path) == tmp_path / "clinical.xlsx"
    table = read_table(tmp_path / "clinical.xlsx", "File Name")
    assert list(table.rows["x"].values()) == ["55", "2020-03-01", "2.5", "", "NA"]
    assert list(table.rows["7"].values()) == ["60", "2020-03-01T12:30:00", "-1", "", "007"]


# --- splits ---------------------------------------------------------------------------------------


def test_splits_by_patient() -> None:
    cases = [f"c{k}" for k in range(100)]
    patients = {case: f"p{k // 4}" for k, case in enumerate(cases)}
    splits = draw_splits(cases, 3, patients)
    owners = [{patients[case] for case in members} for members in splits.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    assert sorted(case for members in splits.values() for case in members) == sorted(cases)
    assert [len(members) for members in splits.values()] == [84, 8, 8]
    assert splits == draw_splits(cases, 3, patients) != draw_splits(cases, 4, patients)


def test_splits_file_is_obeyed(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (root / "splits.json").write_text(
        json.dumps({"train": ["case1.nii.gz", "case3"], "test": ["case10"]})
    )
    cohort = loaded(root, patient_column="Patient")
    assert cohort.splits == {"train": ("case1", "case3"), "val": (), "test": ("case10",)}
    assert "no split for 9 of 12 cases" in caplog.text
    with pytest.raises(UserError, match=r"split 'val' .* has no cases \(train 2, val 0, test 1\)"):
        cohort.split("val")
    save_splits(tmp_path / "kept.json", cohort.splits)
    assert read_splits(tmp_path / "kept.json", [case.id for case in cohort.cases]) == cohort.splits
    (root / "splits.json").write_text(json.dumps({"train": ["case1"], "test": ["case2"]}))
    with pytest.raises(UserError, match=r"one patient into different splits: P1"):
        loaded(root, patient_column="Patient")
    assert loaded(root).splits["test"] == ("case2",)
    with pytest.raises(
        UserError,
        match=r"--patient_column: the table has no column 'Nobody'.*Patient, AGE, SMOKING",
    ):
        loaded(root, patient_column="Nobody")


def test_a_patient_that_is_not_known_is_not_shared(root: Path) -> None:
    table = (root / "clinical.csv").read_text()
    for patient in ("P1", "P2"):
        table = table.replace(f",{patient},", ",n.a.,")
    (root / "clinical.csv").write_text(table)
    (root / "splits.json").write_text(json.dumps({"train": ["case1"], "test": ["case2"]}))
    cohort = loaded(root, patient_column="Patient")
    patients = patients_of(cohort, "Patient")
    assert [patients[f"case{k}"] for k in range(1, 7)] == [
        *(f"case{k}" for k in range(1, 5)),
        "P3",
        "P3",
    ]


def test_few_cases_are_in_every_split(caplog: pytest.LogCaptureFixture) -> None:
    assert draw_splits(["a", "b"], 0) == {
        "train": ("a", "b"),
        "val": ("a", "b"),
        "test": ("a", "b"),
    }
    assert "fewer than 10 cases" in caplog.text
