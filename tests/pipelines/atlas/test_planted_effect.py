"""Planted effects: the scans of the copy contain them, and the report says how much returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from data.load_cohort import load_cohort
from data.table import read_table
from data.text.prompts import cohort_prompts, load_template
from data.volumes import load_volume
from options.base_options import DataOptions
from pipelines.atlas.planted_report import read_planted
from tests.atlas_run import means
from tests.commands import TrainedRun, command, files, refused, train
from util.cli import UserError
from util.metrics.regions import chest_regions


def plant(cohort: Path, out: Path, *words: str) -> Path:
    done = command("scripts/plant.py", "--dataroot", cohort, "--out", out, *words)
    assert done.code == 0, done.text
    return out


@pytest.fixture(scope="module")
def planted(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(
        cohort_dir, tmp_path_factory.mktemp("plant") / "planted", "--hu", "20", "--region", "lower"
    )


def test_scans_of_those_with_it_change_in_the_region_alone(planted: Path, cohort_dir: Path) -> None:
    record = json.loads((planted / "plant.json").read_text())
    values = record["cases"]
    assert sorted(values.values()) == ["No"] * 6 + ["Yes"] * 6 and record["region"] == "lower"
    for case, value in values.items():
        name = f"{case}.nii.gz"
        assert (planted / "gtlung" / name).samefile(cohort_dir / "gtlung" / name)
        before, after = load_volume(cohort_dir / "img" / name), load_volume(planted / "img" / name)
        assert np.allclose(before.affine, after.affine)
        where = chest_regions(load_volume(planted / "gtlung" / name).array, (1, 1, 1))["lower"]
        expected = 20.0 * where if value == "Yes" else np.zeros(where.shape)
        assert np.array_equal(after.array.astype(float) - before.array, expected)
        assert (planted / "img" / name).samefile(cohort_dir / "img" / name) == (value == "No")
    assert nib.load(planted / "img" / name).get_data_dtype() == np.int16


def test_the_table_gains_a_column_and_nothing_else_changes(planted: Path, cohort_dir: Path) -> None:
    before, after = (
        pd.read_csv(p / "clinical.csv", dtype=str, keep_default_na=False)
        for p in (cohort_dir, planted)
    )
    assert after.drop(columns="PLANTED").equals(before)
    values = json.loads((planted / "plant.json").read_text())["cases"]
    assert dict(zip(after["File Name"], after["PLANTED"], strict=True)) == values
    assert (planted / "splits.json").read_text() == (cohort_dir / "splits.json").read_text()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hu": "20"}, "hu"),
        ({"region": None}, "region"),
        ({"column": 7}, "column"),
        ({"from": ["No"]}, "from"),
        (None, "instead of a mapping"),
    ],
)
def test_a_damaged_record_is_named(
    change: dict[str, Any] | None, part: str, planted: Path, tmp_path: Path
) -> None:
    record = json.loads((planted / "plant.json").read_text())
    (tmp_path / "plant.json").write_text(json.dumps(record))
    assert read_planted(tmp_path) == record
    (tmp_path / "plant.json").write_text(
        json.dumps([record] if change is None else record | change)
    )
    with pytest.raises(UserError, match=rf"plant\.json is damaged.*{part}") as error:
        read_planted(tmp_path)
    assert "Plant the effect again" in str(error.value)


def test_prompts_tell_it_too_and_fractions_are_kept(cohort_copy: Path, tmp_path: Path) -> None:
    (cohort_copy / "prompts.csv").write_text('File Name,Prompt\nphantom_001,"Old man, smoker."\n')
    out = plant(cohort_copy, tmp_path / "out", "--hu=-2.5", "--column", "SPIKE", "--share", "0.9")
    value = json.loads((out / "plant.json").read_text())["cases"]["phantom_001"]
    assert f"Old man, smoker, SPIKE is {value}." in (out / "prompts.csv").read_text()
    case = next(
        c for c, v in json.loads((out / "plant.json").read_text())["cases"].items() if v == "Yes"
    )
    before, after = (load_volume(p / "img" / f"{case}.nii.gz").array for p in (cohort_copy, out))
    assert np.unique(after - before).tolist() == [-2.5, 0]


def test_the_copy_is_read_as_the_cohort(cohort_copy: Path, tmp_path: Path) -> None:
    """It has detached voxels, a rejected case, splits elsewhere, and prompts spelt otherwise."""
    splits = json.loads((cohort_copy / "splits.json").read_text())
    rejected, *train_cases = splits["train"]
    (cohort_copy / "splits.json").rename(tmp_path / "splits.json")
    (cohort_copy / "review.csv").write_text(f"case,mark,note\n{rejected},reject,\n")
    (cohort_copy / "prompts.csv").write_text(f"File Name,Prompt\n{train_cases[0].upper()},Old.\n")
    for folder in ("img", "gtlung"):
        path = cohort_copy / folder / f"{train_cases[0]}.nii.gz"
        header = path.with_name(f"{train_cases[0]}.mhd")
        sitk.WriteImage(sitk.ReadImage(str(path)), str(header))
        path.unlink()
        header.with_suffix(".raw").rename(header.with_name(f"voxels of {train_cases[0]}.raw"))
        text = header.read_text().replace("ElementDataFile = ", "ElementDataFile = voxels of ")
        header.write_text(text)
    out = plant(cohort_copy, tmp_path / "out", "--splits", str(tmp_path / "splits.json"))
    copy = load_cohort(DataOptions(dataroot=str(out)))
    assert copy.splits["train"] == tuple(train_cases) and len(copy.splits["test"]) > 0
    value = json.loads((out / "plant.json").read_text())["cases"][train_cases[0]]
    prompts = cohort_prompts(copy, load_template("auto"))
    assert prompts[train_cases[0]].texts == ["Old", f"PLANTED is {value}."]


def test_prompts_that_cannot_be_read_are_named(cohort_copy: Path, tmp_path: Path) -> None:
    for prompts, message in (
        (b"Prompt\n", "lacks the columns File Name"),
        ("File Name,Prompt\nphantom_001,Müller\n".encode("latin-1"), "line 2 holds the byte 0xfc"),
        (b"File Name,Prompt\nphantom_001," + b"x" * 200_000, "row 2, cannot be read"),
    ):
        (cohort_copy / "prompts.csv").write_bytes(prompts)
        words = ("--dataroot", cohort_copy, "--out", tmp_path / "out", "--hu", "50")
        refused(command("scripts/plant.py", *words), "prompts.csv", message)
        assert not (tmp_path / "out").exists()


def test_formulas_of_a_table_stay_texts(cohort_copy: Path, tmp_path: Path) -> None:
    """A spreadsheet shows them as they are, and a copy of the cohort reads as the cohort."""
    frame = pd.read_csv(cohort_copy / "clinical.csv", dtype=str, keep_default_na=False)
    frame.loc[0, "DIAGNOSIS"] = "=1+1"
    frame.loc[1, "DIAGNOSIS"] = "-x"
    frame.to_csv(cohort_copy / "clinical.csv", index=False)
    out = plant(cohort_copy, tmp_path / "out", "--hu", "50", "--column", "@SPIKE")
    header, *lines = (out / "clinical.csv").read_text().splitlines()
    assert header.endswith(",'@SPIKE") and "'=1+1" in lines[0] and "'-x" in lines[1]
    before, after = (read_table(p / "clinical.csv", "File Name") for p in (cohort_copy, out))
    assert after.columns == (*before.columns, "@SPIKE")
    for case, row in before.rows.items():
        assert {**after.rows[case], "@SPIKE": ""} == {**row, "@SPIKE": ""}


def test_scans_of_one_patient_all_have_it_or_none(cohort_copy: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(cohort_copy / "clinical.csv", dtype=str, keep_default_na=False)
    frame["Mapping ID"] = [f"P{k // 2}" for k in range(len(frame))]
    frame.to_csv(cohort_copy / "clinical.csv", index=False)
    (cohort_copy / "splits.json").unlink()
    out = plant(cohort_copy, tmp_path / "out", "--patient_column", "Mapping ID")
    after = pd.read_csv(out / "clinical.csv", dtype=str)
    assert (after.groupby("Mapping ID")["PLANTED"].nunique() == 1).all() and after[
        "PLANTED"
    ].nunique() == 2


def test_what_is_refused(cohort_dir: Path, tmp_path: Path) -> None:
    def planting(*words: str | Path) -> None:
        refused(command("scripts/plant.py", "--dataroot", cohort_dir, *words[:-1]), str(words[-1]))

    planting("--out is not given")
    planting("--out", tmp_path / "x", "--column", "AGE", "must be the name of a new column")
    planting("--out", cohort_dir, "is not empty")
    planting("--out", cohort_dir / "new", "lies within")
    planting("--out", tmp_path / "x", "--region", "heart", "--region is 'heart'")
    planting("--out", tmp_path / "x", "--lung_labels", "8,9", "no voxel in --region")
    assert not list(tmp_path.iterdir()) and "plant.json" not in files(cohort_dir)


def test_the_report_says_how_much_came_back(planted: Path, tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "ck", "new", planted)
    assert train(planted, run.checkpoints, "--val_cases", "0").code == 0
    words = ("--columns", "PLANTED", "--out", tmp_path / "out")
    done = command("scripts/build_atlas.py", "--dataroot", planted, *run.flags(), *words)
    assert done.code == 0, done.text
    spike = pd.read_csv(tmp_path / "out" / "spike.csv").set_index("region")
    effects = means(tmp_path / "out", "effects").set_index("region")
    assert spike.loc["lower", "planted_hu"] == 20 and spike.loc["upper", "planted_hu"] == 0
    assert 2 < spike.loc["lungs", "planted_hu"] < 12 and spike.loc["elsewhere", "planted_hu"] == 0
    generated = effects.loc["lower", "generated"]
    assert spike.loc["lower", "generated_hu"] == pytest.approx(generated, abs=1e-3)
    assert spike.loc["lower", "recovered"] == pytest.approx(generated / 20, abs=1e-4)
    assert spike.loc["upper", "leaked_hu"] == pytest.approx(
        effects.loc["upper", "generated"], abs=1e-3
    )
    assert (
        json.loads((tmp_path / "out" / "atlas.json").read_text())["spike"][0]["region"]
        == spike.index[0]
    )
