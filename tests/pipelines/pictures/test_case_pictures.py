"""scripts/make_pictures.py on a results folder."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.commands import command, refused
from util.files import read_csv, write_csv

SHAPE = (20, 16, 12)
COLUMNS = ("file", "case", "kind", "column", "value", "from", "to")


@pytest.fixture()
def results(tmp_path: Path) -> Path:
    """A results folder of one case, with its cohort beside it."""
    folder = tmp_path / "results"
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:16, 3:13, 2:10] = 1
    hu = np.where(mask > 0, -850, 40).astype(np.int16)
    change = np.where(mask > 0, 12.0, 0).astype(np.float32)
    volumes = {
        "own": hu,
        "a": hu,
        "b": (hu + change).astype(np.int16),
        "difference": change,
    }
    for path, array in (
        (tmp_path / "cohort" / "img" / "c.nii.gz", hu),
        (tmp_path / "cohort" / "gtlung" / "c.nii.gz", mask),
        *((folder / f"{name}.nii.gz", array) for name, array in volumes.items()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    common = {"case": "c", "column": "SMOKING"}
    rows = [
        {"file": "own.nii.gz", "case": "c", "kind": "own"},
        {"file": "a.nii.gz", "kind": "varied", "value": "Never", **common},
        {"file": "b.nii.gz", "kind": "varied", "value": "Current", **common},
        {
            "file": "difference.nii.gz",
            "kind": "difference",
            "from": "Never",
            "to": "Current",
            **common,
        },
    ]
    write_csv(folder / "volumes.csv", COLUMNS, rows)
    return folder


def test_pictures_to_take_away(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (results, "--dataroot", tmp_path / "cohort", "--out", out, "--frames", "5")
    formats = [word for name in ("gif", "png", "svg", "top") for word in ("--formats", name)]
    done = command("scripts/make_pictures.py", *words, *formats)
    assert done.code == 0, done.text
    with Image.open(out / "c__SMOKING.gif") as animation:
        assert len(ImageSequence.all_frames(animation)) == 5
    assert len(list((out / "c__SMOKING_slices").iterdir())) == 5
    assert "SMOKING" in (out / "c__SMOKING.svg").read_text()
    assert (out / "c__SMOKING_top.png").stat().st_size > 1000


def test_attributes_whose_names_are_alike_in_files(results: Path, tmp_path: Path) -> None:
    """One would replace the pictures of the other."""
    table = results / "volumes.csv"
    rows = read_csv(table)
    other = [{**row, "column": "FEV1 [%]"} for row in rows if row["column"]]
    named = [{**row, "column": row["column"] and "FEV1 (%)"} for row in rows]
    write_csv(table, COLUMNS, [*named, *other])
    out = tmp_path / "out"
    done = command("scripts/make_pictures.py", results, "--out", out, "--formats", "svg")
    assert done.code == 0, done.text
    texts = [path.read_text() for path in out.iterdir()]
    assert len(texts) == 2
    assert sorted("FEV1 [%]" in text for text in texts) == [False, True]


def test_pictures_that_cannot_be(results: Path, tmp_path: Path) -> None:
    refused(command("scripts/make_pictures.py", tmp_path), "volumes.csv does not exist")
    refused(
        command("scripts/make_pictures.py", results, "--column", "AGE"),
        "'AGE' was not varied for c",
        "SMOKING",
    )
    refused(command("scripts/make_pictures.py", results, "--case", "x"), "--case 'x' is not in")


@pytest.mark.parametrize("script", ["make_picture.py", "make_pictures.py"])
def test_a_cohort_on_another_grid_is_refused(results: Path, tmp_path: Path, script: str) -> None:
    """Else the scan alone would be drawn, without the volumes."""
    for folder in ("img", "gtlung"):
        path = tmp_path / "cohort" / folder / "c.nii.gz"
        finer = np.asarray(nib.load(path).dataobj).repeat(2, 0)
        nib.save(nib.Nifti1Image(finer, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    words = (results, "--dataroot", tmp_path / "cohort", "--out", tmp_path / "out.png")
    refused(
        command(f"scripts/{script}", *words),
        "of case c has the shape (40, 16, 12), its volumes in the results have (20, 16, 12)",
        "leave --dataroot out",
    )
