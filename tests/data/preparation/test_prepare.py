"""scripts/prepare_data.py from folder to dataroot: ids, table, splits, restarts, bad input."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from data.load_cohort import load_cohort
from data.preparation.case import RECORDS
from options.base_options import DataOptions
from tests.chests import SPACING, chest, write_series
from tests.commands import ROOT, Outcome, command, files, refused

SECRETS = (
    b"Sally",
    b"Doe",
    b"Jane",
    b"MRN0042K",
    b"19500101",
    b"A777",
    b"secret",
    b"80 ml",
    b"067Y",
    b'"67"',
    b"/dicom",
)
AFFINE = np.diag([*SPACING, 1.0])


def prepare(source: Path, out: Path, *words: str | Path, jobs: str = "0") -> Outcome:
    return command("scripts/prepare_data.py", source, out, "--jobs", jobs, *words)


def volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_raw_values_padded_like_air_are_refused(tmp_path: Path) -> None:
    """HU + 1024 without a mask, and -1000 outside the field of view."""
    hu = np.maximum(chest()[0], -1000)
    volume(tmp_path / "in" / "good.nii.gz", hu)
    volume(tmp_path / "in" / "raw.nii.gz", np.where(hu == -1000, hu, hu + 1024).astype(np.int16))
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert "raw.nii.gz is not in HU: all its air" in done.text, done.text
    assert "good.nii.gz is not in HU" not in done.text
    assert len(list((tmp_path / "out" / "img").iterdir())) == 1


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies of two patients. Not to be changed; copy it."""
    root = tmp_path_factory.mktemp("dicom")
    for patient, study in (("Doe/../Jane", "a"), ("Doe/../Jane", "b"), ("MRN0042K", "c")):
        write_series(root / study, patient=patient, study=study)
    return root


@pytest.fixture(scope="module")
def prepared(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataroot of `dicom`. Not to be changed; copy it."""
    out = tmp_path_factory.mktemp("prepared") / "root"
    done = prepare(dicom, out)
    assert done.code == 0, done.text
    return out


def test_a_dataroot_that_training_accepts(prepared: Path) -> None:
    cohort = load_cohort(DataOptions(dataroot=str(prepared), patient_column="Patient"))
    assert [c.id for c in cohort.cases] == [
        "case_0001",
        "case_0002",
        "case_0003",
    ] and cohort.labels == (0, 1, 2, 3, 4)
    image, mask = (nib.load(prepared / folder / "case_0001.nii.gz") for folder in ("img", "gtlung"))
    assert (
        nib.aff2axcodes(image.affine) == ("L", "P", "S") and image.get_data_dtype() == np.int16
    )  # as scanned
    assert (
        np.array_equal(image.affine, mask.affine) and image.shape == mask.shape == chest()[0].shape
    )
    assert np.array_equal(np.asarray(image.dataobj), chest()[0][::-1, ::-1])
    table = rows(prepared / "clinical.csv")
    assert list(table[0]) == [
        "File Name",
        "Patient",
        "KVP",
        "KERNEL",
        "CONTRAST AGENT",
        "SCANNER",
        "SLICE THICKNESS",
    ]
    assert sorted(row["Patient"] for row in table) in (
        ["patient_0001", "patient_0001", "patient_0002"],
        ["patient_0001", "patient_0002", "patient_0002"],
    )
    report = rows(prepared / "report.csv")
    assert [r["state"] for r in report] == ["ready"] * 3 and float(report[0]["left_l"]) > 1


def test_no_identity_leaves_the_headers(prepared: Path) -> None:
    for name in files(prepared):
        content = (prepared / name).read_bytes()
        if name.endswith(".nii.gz"):
            header = nib.load(prepared / name).header
            content = bytes(header["descrip"].item()) + bytes(header["db_name"].item())
        for secret in SECRETS:
            assert secret not in content, (name, secret)
    key = prepared.with_name("root.key.csv")
    assert key.stat().st_mode & 0o077 == 0
    assert sorted(r["source patient"] for r in rows(key)) == [
        "Doe/../Jane",
        "Doe/../Jane",
        "MRN0042K",
    ]


def test_a_lost_key_is_noticed(dicom: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "out")
    refused(prepare(dicom, tmp_path / "out"), "out.key.csv is missing", "--key_file")


def test_demographics_under_a_flag(dicom: Path, tmp_path: Path) -> None:
    assert prepare(dicom / "a", tmp_path / "out", "--demographics").code == 0
    row = rows(tmp_path / "out" / "clinical.csv")[0]
    assert (row["AGE"], row["SEX"]) == ("67", "F")


def test_a_second_run_redoes_only_what_changed(dicom: Path, prepared: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "root"
    shutil.copytree(dicom, source)
    assert prepare(source, out).code == 0
    before = {p: p.stat().st_mtime_ns for p in out.glob("img/*")}
    keys = rows(tmp_path / "root.key.csv")
    assert "3 cases are already there" in prepare(source, out).text
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("img/*")}
    write_series(source / "d", patient="new", study="d")
    touched = source / "a" / "1_000.dcm"
    os.utime(touched, (1, 1))
    assert "2 cases are already there" in prepare(source, out).text
    after = {p: p.stat().st_mtime_ns for p in out.glob("img/*")}
    assert len(after) == 4 and sum(before.get(p) != t for p, t in after.items()) == 2
    assert rows(tmp_path / "root.key.csv")[:3] == keys  # nobody's id changes
    shutil.rmtree(source / "d")
    assert "1 case of an earlier run, no longer in IN" in prepare(source, out).text


def test_a_failed_case_loses_no_other(dicom: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "Doe Jane", tmp_path / "out"
    shutil.copytree(dicom, source)
    bad = source / "b" / "1_034.dcm"
    good = bad.read_bytes()
    bad.write_bytes(good[:-100])
    write_series(
        source / "mr", patient="m", study="mr", edit=lambda d, z: setattr(d, "Modality", "MR")
    )
    filled = np.where(chest()[1] > 0, 40, chest()[0]).astype(np.int16)
    write_series(source / "empty", patient="e", study="e", hu=filled)
    write_series(source / "far", patient="x" * 300, study="f")
    done = prepare(source, out)
    assert done.code == 3 and "Traceback" not in done.text
    for part in (
        "1_034.dcm cannot be read: it is truncated",
        "modality is MR",
        "No lungs were found",
        "3 cases could not",
        "3 cases are ready",
    ):
        assert part in done.text, done.text
    assert len(list((out / "img").iterdir())) == len(list((out / "gtlung").iterdir())) == 3
    assert all("Doe" not in p.read_text() for p in (out / "report.html", out / "report.csv"))
    bad.write_bytes(good)
    assert (
        "3 cases are already there" in prepare(source, out).text
        and len(list((out / "img").iterdir())) == 4
    )


def test_unreadable_folders_are_said(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(
        path: str | os.PathLike[str],
    ) -> object:  # root may read anything, so that permissions prove nothing here
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = prepare(dicom, tmp_path / "out", "--source", "dicom")
    assert done.code == 3 and "/b cannot be read (Permission denied)" in done.text
    assert len(list((tmp_path / "out" / "img").iterdir())) == 2


def test_a_full_disk(dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, count = nib.save, iter(range(100))

    def fill(image: object, path: Path) -> None:
        if next(count) == 3:  # the second case's mask
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", fill)
    refused(prepare(dicom, tmp_path / "out"), "No space left on device", "Finished cases are kept")
    names_by_folder = [
        [p.name for p in (tmp_path / "out" / folder).iterdir()]
        for folder in ("img", "gtlung", RECORDS)
    ]
    assert [len(names) for names in names_by_folder] == [1, 1, 1]
    monkeypatch.undo()
    assert prepare(dicom, tmp_path / "out").code == 0


@pytest.mark.slow
def test_a_killed_run_continues(dicom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command_line = [sys.executable, "scripts/prepare_data.py", str(dicom), str(out), "--jobs", "1"]
    running = subprocess.Popen(
        command_line, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    records = out / RECORDS
    for _ in range(1200):
        if records.is_dir() and len(list(records.glob("*.json"))) >= 1:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(2.5)  # its worker notices within a second
    assert not (out / "clinical.csv").exists()
    (out / "img" / f".{'0' * 32}.tmp.nii.gz").write_bytes(b"half")
    done = prepare(dicom, out)
    assert done.code == 0 and "already there and unchanged" in done.text
    assert len(list((out / "img").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--spacing", "0,1,1"], ["--spacing"]),
        (["--masks", "lungmask"], ["not installed", "weights"]),
        (["--mask_dir", "nowhere"], ["--mask_dir nowhere does not exist"]),
        (["--key_column", "x"], ["Give --table"]),
        (["--source", "osic"], ["no folder train/"]),
        (["--source", "aiib23"], ["no folder img/"]),
        (["--table", "nowhere.csv"], ["nowhere.csv"]),
    ],
)
def test_flags_that_cannot_be(
    dicom: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    refused(prepare(dicom / "a", tmp_path / "out", *words), *parts)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.csv"))


def test_folders_that_cannot_be(dicom: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    refused(prepare(dicom / "a", tmp_path / "full"), "is not empty and holds no")
    refused(prepare(dicom, dicom / "out"), "lie within each other")
    refused(prepare(tmp_path / "none", tmp_path / "out"), "does not exist")
    refused(prepare(tmp_path / "full", tmp_path / "out"), "no DICOM series and no volume file")
    (tmp_path / "full" / "a.zip").write_bytes(b"PK")
    refused(prepare(tmp_path / "full", tmp_path / "out"), "archives, which are not unpacked: a.zip")
    refused(prepare(dicom / "a", Path("/proc/mask2ct")), "cannot be written")
    refused(
        prepare(dicom / "a", tmp_path / "out", "--key_file", tmp_path / "out" / "key.csv"),
        "lies in OUT",
    )


# --- volumes, AIIB23, OSIC ---


def test_volumes_are_resampled_and_same_names_refused(tmp_path: Path) -> None:
    hu, source = chest()[0], tmp_path / "in"
    volume(source / "one.nii.gz", hu)
    volume(source / "x" / "two.nii.gz", hu)
    volume(source / "y" / "two.nii", hu)
    volume(source / "three.nii.gz", hu.astype(np.float32) / 4000)
    low = hu.copy()
    low[:2] = -3000
    volume(source / "four.nii.gz", low)
    (source / "five.nrrd").write_bytes(b"NRRD0004\nnothing")
    done = prepare(source, tmp_path / "out", "--ids", "keep", "--spacing", "9,9,9")
    assert done.code == 3
    for part in ("2 scans have one name", "not in HU", "five.nrrd cannot be read"):
        assert part in done.text, done.text
    assert sorted(p.name for p in (tmp_path / "out" / "img").iterdir()) == [
        "four.nii.gz",
        "one.nii.gz",
    ]
    image = nib.load(tmp_path / "out" / "img" / "one.nii.gz")
    assert image.shape == (40, 32, 32) and np.allclose(image.header.get_zooms(), 9)
    report = {r["case"]: r for r in rows(tmp_path / "out" / "report.csv")}
    assert (
        "values down to -3000 HU were padding" in report["four"]["warnings"]
        and "four" not in report["one"]["warnings"]
    )


def test_masks_among_the_scans_are_noticed_at_once(tmp_path: Path) -> None:
    hu, labels = chest()
    for name in ("PAT 1", "PAT 2"):
        volume(tmp_path / "Köln" / "CT scans" / f"{name}.nii.gz", hu)
        volume(tmp_path / "Köln" / "Masken" / f"{name}.nii.gz", labels)
    done = prepare(tmp_path / "Köln", tmp_path / "out")
    assert done.code == 2 and "2 names twice, in CT scans and in Masken" in done.text
    assert f'--mask_dir ("{tmp_path / "Köln" / "Masken"}"?)' in done.text
    assert not (tmp_path / "out").exists()


def test_masks_by_name(tmp_path: Path) -> None:
    hu, labels = chest()
    for name in ("a", "b"):
        volume(tmp_path / "in" / f"{name}.nii.gz", hu)
    volume(tmp_path / "masks" / "a.nii.gz", labels * 2)
    done = prepare(
        tmp_path / "in", tmp_path / "out", "--ids", "keep", "--mask_dir", tmp_path / "masks"
    )
    assert done.code == 3 and "b: It has no mask of its name" in done.text
    warning = "1 mask holds other labels (2, 4, 6) than 1 left lung, 2 right lung"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert warning in done.text and warning in page
    assert "Label 4" in page and "0.00 l" not in page  # nothing is called a lung of no volume
    row = rows(tmp_path / "out" / "report.csv")[0]
    assert row["left_l"] == row["airway_ml"] == "" and float(row["label_2_ml"]) > 100
    assert np.array_equal(
        np.asarray(nib.load(tmp_path / "out" / "gtlung" / "a.nii.gz").dataobj), labels * 2
    )


def test_aiib23(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for k in (1, 2):
        volume(root / "img" / f"AIIB23_{k}.nii.gz", chest()[0])
        volume(root / "gtlung" / f"AIIB23_{k}.nii.gz", chest()[1])
    book = openpyxl.Workbook()
    for line in (
        ["Mapping ID", "AGE", "Patient Name"],
        ["AIIB23_1", 70.0, "Sally"],
        ["AIIB23_9", "N/A", ""],
    ):
        book.active.append(line)
    book.save(root / "data_info.xlsx")
    done = prepare(root, tmp_path / "out")
    assert done.code == 0 and "'Mapping ID'" in done.text and "No row for 1 of 2 scans" in done.text
    assert "No scan for 1 of 2 ids" in done.text
    table = rows(tmp_path / "out" / "clinical.csv")
    assert [(r["File Name"], r["AGE"]) for r in table] == [("AIIB23_1", "70"), ("AIIB23_2", "")]


def test_scans_of_one_patient_never_land_in_two_splits(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for k in range(1, 5):
        volume(root / f"scan{k}.nii.gz", chest()[0])
    table = tmp_path / "table.csv"
    table.write_text("Scan,Patient\nscan1,P1\nscan2,P1\nscan3,P2\nscan4,P3\n")
    refused(prepare(root, tmp_path / "out", "--table", str(table)), "'Patient'", "--patient_column")
    words = ("--table", str(table), "--patient_column", "Patient")
    done = prepare(root, tmp_path / "out", *words)
    assert done.code == 0, done.text
    patients = [row["Patient"] for row in rows(tmp_path / "out" / "clinical.csv")]
    assert len(patients) == 4 and len(set(patients)) == 3


def test_a_row_of_a_patient_with_several_scans(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("P1/first", "P1/second", "P2/third"):
        volume(root / f"{name}.nii.gz", chest()[0])
    table = tmp_path / "table.csv"
    table.write_text("Person,AGE,File Name\nP1,50,x.dcm\nP2,60,y.dcm\n")
    words = (root, tmp_path / "out", "--table", str(table), "--ids", "keep")
    refused(prepare(*words), "'P1' in its column 'Person'", "--patient_column 'Person'")
    done = prepare(*words, "--patient_column", "Person")
    assert done.code == 0, done.text
    found = {row["File Name"]: row for row in rows(tmp_path / "out" / "clinical.csv")}
    assert {name: row["AGE"] for name, row in found.items()} == {
        "first": "50",
        "second": "50",
        "third": "60",
    }
    assert found["first"]["Patient"] == found["second"]["Patient"] != found["third"]["Patient"]
    (tmp_path / "out" / "splits.json").write_text("{")
    refused(prepare(*words, "--patient_column", "Person"), "splits.json", "is damaged")


def test_several_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    hu, labels = chest()
    volume(tmp_path / "in" / "a.nii.gz", hu)
    for folder in ("new", "old"):
        volume(tmp_path / "masks" / folder / "a.nii.gz", labels)
    done = prepare(tmp_path / "in", tmp_path / "out", "--mask_dir", tmp_path / "masks")
    assert done.code == 3 and "2 masks have one name" in done.text
    assert str(tmp_path) not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_cohort_of_ones_own_is_not_taken_for_aiib23(tmp_path: Path) -> None:
    for folder, number in (("img", 0), ("gtlung", 1)):
        volume(tmp_path / "in" / folder / "Miller.nii.gz", chest()[number])
    table = tmp_path / "table.csv"
    table.write_text("File,Name,AGE\nMiller,John Miller,61\n")
    done = prepare(tmp_path / "in", tmp_path / "out", "--table", str(table))
    assert done.code == 0 and "(volumes)" in done.text, done.text
    text = (tmp_path / "out" / "clinical.csv").read_text()
    assert "Miller" not in text and "61" in text
    assert not list((tmp_path / "out" / "img").glob("*Miller*"))


def test_osic_takes_the_visit_nearest_to_the_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "train" / "ID007", patient="ID007")
    (tmp_path / "in" / "train.csv").write_text(
        "Patient,Weeks,FVC,Age\nID007,-4,2500,60\nID007,1,2400,60\nID007,9,2300,60\nID008,0,1,1\n"
    )
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.code == 0, done.text
    row = rows(tmp_path / "out" / "clinical.csv")[0]
    assert (row["File Name"], row["Weeks"], row["FVC"]) == ("ID007", "1", "2400")
    made = nib.load(tmp_path / "out" / "gtlung" / "ID007.nii.gz")
    given = np.where(np.asarray(made.dataobj) == 2, 9, 0).astype(np.uint8)
    volume(tmp_path / "masks" / "ID007.nii.gz", given, made.affine)
    done = prepare(tmp_path / "in", tmp_path / "other", "--mask_dir", tmp_path / "masks")
    assert done.code == 0, done.text
    loaded = nib.load(tmp_path / "other" / "gtlung" / "ID007.nii.gz")
    assert np.array_equal(np.asarray(loaded.dataobj), given)
