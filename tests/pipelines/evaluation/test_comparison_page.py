"""The page that shows the same cases by several runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from options.compare_options import CompareCommand, CompareOptions
from options.test_options import CaseOptions, ModelOptions
from pipelines.evaluation import compare_models
from pipelines.evaluation.compare_models import write_comparison_page, write_pictures
from tests.pages import shows_picture_first
from util.cli import UserError
from util.files import write_csv, write_json

SHAPE = (20, 16, 12)
COLUMNS = ("file", "case", "kind", "column", "value", "from", "to")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])), path)


def test_the_same_case_by_each_run(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:16, 3:13, 2:10] = 1
    hu = np.where(mask > 0, -850, 40).astype(np.int16)
    save(tmp_path / "cohort" / "img" / "c.nii.gz", hu)
    save(tmp_path / "cohort" / "gtlung" / "c.nii.gz", mask)
    out = tmp_path / "out"
    folders = {}
    for number, name in enumerate(("gan", "diffusion"), 1):
        folders[name] = out / name / "test_latest"
        save(folders[name] / "own.nii.gz", hu + np.int16(10 * number))
        save(folders[name] / "d.nii.gz", np.where(mask > 0, 20.0 * number, 0).astype(np.float32))
        rows = [
            {"file": "own.nii.gz", "case": "c", "kind": "own"},
            {
                "file": "d.nii.gz",
                "case": "c",
                "kind": "difference",
                "column": "AGE",
                "from": "45",
                "to": "80",
            },
        ]
        write_csv(folders[name] / "volumes.csv", COLUMNS, rows)
    pictures = write_pictures(out, folders, str(tmp_path / "cohort"))
    frame = pd.DataFrame({"run": ["gan", "diffusion"], "cases": [1, 1]})
    frame["lungs: sd_hu"], frame["lungs: real_sd_hu"] = [50.0, 52.0], [57.5, 57.5]
    frame["lungs: mae_hu"] = [61.2, 80.0]
    page = shows_picture_first(visit, write_comparison_page(out, frame, pictures))
    sentence = "Mean absolute error in the lungs, HU: gan 61.2, diffusion 80."
    assert page.inner_text(".headline") == f"2 runs on the same 1 case. {sentence}"
    page.locator(".case .panel[data-state=ready]").nth(5).wait_for()
    titles = page.locator(".case .title").all_inner_texts()
    assert titles == ["real scan", "gan", "diffusion", "gan", "diffusion", "mask"]
    box = page.locator(".case .stage").nth(4).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    values = page.locator(".case .value").all_inner_texts()
    assert values[1:5] == ["−840 HU", "−830 HU", "+20.0 HU", "+40.0 HU"]
    cells = [row.split("\t") for row in page.locator("tr").all_inner_texts()]
    assert cells == [
        ["metric", "real scans", "gan", "diffusion"],
        ["cases", "", "1", "1"],
        ["lungs: SD of density, HU", "57.5", "50", "52"],
        ["lungs: mean absolute error, HU", "", "61.2", "80"],
    ]


def test_runs_of_other_splits_are_not_compared() -> None:
    compare_models.check_cases({"a": ["1", "2"], "b": ["1", "2"]})
    with pytest.raises(UserError, match=r"a and c were trained .* \(1, 2; 3, 4\).*--split all"):
        compare_models.check_cases({"a": ["1", "2"], "b": ["1", "2"], "c": ["3", "4"]})


def test_runs_on_other_voxels_have_a_caution(tmp_path: Path) -> None:
    for name, spacing in (("a", None), ("b", None), ("c", [3.0, 3.0, 3.0])):
        data = {"data": {"spacing": spacing, "hu_window": [-1000.0, 400.0]}}
        write_json(tmp_path / name / "options.json", data)
    model = ModelOptions(checkpoints_dir=str(tmp_path))

    def cautions(*names: str) -> list[str]:
        command = CompareCommand(CompareOptions(str(tmp_path), names), CaseOptions(), model)
        return compare_models.grid_cautions(command)

    assert cautions("a", "b") == []
    (text,) = cautions("a", "c")
    assert text.startswith("The runs differ in --spacing (a: none; c: 3.0, 3.0, 3.0).")
    page = write_comparison_page(tmp_path, pd.DataFrame({"run": ["a", "c"]}), cautions=[text])
    assert "a: none; c: 3.0, 3.0, 3.0" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "cause"), [(("a", "a"), "--run names a more than once"), (("a", "b"), "OUT")]
)
def test_what_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: tuple[str, ...], cause: str
) -> None:
    (tmp_path / "results" / "a").mkdir(parents=True)  # of test.py: must not be replaced
    monkeypatch.setattr(compare_models, "check_modalities", lambda command: None)
    command = CompareCommand(CompareOptions(str(tmp_path / "results"), flags))
    with pytest.raises(UserError, match=cause):
        compare_models.compare_models(command, lambda options: tmp_path)
