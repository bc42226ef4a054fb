"""Files of a results folder: never written twice, and read from this folder alone."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from options.picture_options import PictureOptions
from pipelines.generation import case_writer
from pipelines.pictures.figure import draw_case
from pipelines.pictures.panels import cohort_panels
from tests.commands import TrainedRun, refused
from util.cli import UserError


def test_a_file_is_never_written_twice(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where two values had one name, which the names prevent."""
    monkeypatch.setattr(case_writer, "_value_names", lambda values: dict.fromkeys(values, "same"))
    done = trained_run.test(tmp_path, "--vary", "SEX=Male,Female", "--how_many", "1")
    refused(done, "SEX=same.nii.gz would be written twice", "Rename the case")


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A results folder with one volume, beside a volume of somebody else."""
    out = tmp_path / "results"
    (out / "volumes").mkdir(parents=True)
    (tmp_path / "cohort" / "gtlung").mkdir(parents=True)
    volume = nib.Nifti1Image(np.zeros((8, 9, 7), np.int16), np.eye(4))
    for path in (out / "volumes/a.nii.gz", tmp_path / "other.nii.gz"):
        nib.save(volume, path)
    nib.save(volume, tmp_path / "cohort" / "gtlung" / "b.nii.gz")
    return out


def write_row(folder: Path, file: str, case: str = "a") -> None:
    values = {"file": file, "case": case, "kind": "own"}
    with (folder / "volumes.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, case_writer.VOLUME_COLUMNS, restval="")
        writer.writeheader()
        writer.writerow(values)


def test_a_picture_reads_only_its_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    options = PictureOptions(RESULTS=str(folder), out=str(out))
    (folder / "volumes" / "link.nii.gz").symlink_to(tmp_path / "other.nii.gz")
    for file in ("../other.nii.gz", str(tmp_path / "other.nii.gz"), "volumes/link.nii.gz"):
        write_row(folder, file)
        with pytest.raises(UserError, match="does not lie in"):
            draw_case(options)
        assert not out.exists()
    write_row(folder, "volumes/a.nii.gz")
    assert draw_case(options) == out and Image.open(out).size[0] > 0
    options = PictureOptions(RESULTS=str(folder), out=str(tmp_path / "new" / "a.png"))
    assert draw_case(options).is_file()
    with pytest.raises(UserError, match="--column 'SEX' was not varied for a; there are: none"):
        draw_case(replace(options, column="SEX"))
    with pytest.raises(UserError, match=r"must end in \.png or \.svg"):
        draw_case(replace(options, out="picture.pdf"))


@pytest.mark.parametrize("case", ["../../other", "*", "b*"])
def test_a_case_names_no_file_elsewhere(case: str, folder: Path, tmp_path: Path) -> None:
    """The name of a case is looked up among the cohort's files; it is neither path nor pattern."""
    pictures = []
    for number, name in enumerate((case, "b")):
        write_row(folder, "volumes/a.nii.gz", name)
        out = tmp_path / f"{number}.png"
        dataroot = str(tmp_path / "cohort")
        draw_case(PictureOptions(RESULTS=str(folder), dataroot=dataroot, out=str(out)))
        pictures.append(Image.open(out).size)
    assert pictures[0][0] < pictures[1][0] or pictures[0][1] < pictures[1][1]  # one panel less


def test_a_phantom_is_called_no_real_scan(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    (root / "img").mkdir()
    shutil.copy(tmp_path / "other.nii.gz", root / "img" / "b.nii.gz")
    assert [panel.title for panel in cohort_panels(root, "b")] == ["mask", "real scan"]
    titles = [panel.title for panel in cohort_panels(root, "b", scan_title="target")]
    assert titles == ["mask", "target"]
