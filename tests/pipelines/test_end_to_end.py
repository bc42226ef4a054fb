"""Testing as a user does it, on a few small phantoms: what is written, and that it is the truth."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data.volumes import load_volume
from tests.commands import ROOT, TrainedRun, command, refused, train
from tests.generated_volumes import SMOKING, generate, own_cases, volumes
from util.files import read_csv
from util.locks import locked_folder
from util.metrics.effects import EFFECT_COLUMNS

CASES = ROOT.parent / "shared" / "cases"
LEVELS = ("Never smoker", "Ex smoker", "Current smoker")
WINDOW = (-1000, 400)


# --- what test.py writes ---


def test_files_and_columns(results: Path, cohort_dir: Path) -> None:
    cases = own_cases(cohort_dir)
    pairs = [
        ("Never smoker", "Ex smoker"),
        ("Never smoker", "Current smoker"),
        ("Ex smoker", "Current smoker"),
    ]
    expected = {f"{case}.nii.gz" for case in cases}
    expected |= {
        f"{case}__SMOKING_HISTORY={v}.nii.gz".replace(" ", "_") for case in cases for v in LEVELS
    }
    expected |= {
        f"{case}__SMOKING_HISTORY={a}_to_{b}.nii.gz".replace(" ", "_")
        for case in cases
        for a, b in pairs
    }
    assert set(volumes(results)) == expected
    listed = read_csv(results / "volumes.csv")
    assert list(listed[0]) == [
        "file",
        "case",
        "kind",
        "column",
        "value",
        "from",
        "to",
        "prompt",
        "seed",
    ]
    assert {row["file"] for row in listed} == {f"volumes/{name}" for name in expected}
    varied = [row for row in listed if row["kind"] == "varied" and row["case"] == cases[0]]
    assert [row["value"] for row in varied] == list(LEVELS)
    assert all(f"SMOKING HISTORY is {row['value']}" in row["prompt"] for row in varied)
    differences = [row for row in listed if row["kind"] == "difference" and row["case"] == cases[0]]
    assert [(row["from"], row["to"]) for row in differences] == pairs
    effects, metrics = read_csv(results / "effects.csv"), read_csv(results / "metrics.csv")
    assert list(effects[0])[:8] == [
        "case",
        "column",
        "from",
        "to",
        "region",
        "voxels",
        "mean_diff_hu",
        "sd_over_voxels_hu",
    ]
    assert list(effects[0]) == list(EFFECT_COLUMNS)
    assert {"lungs", "left_lung", "right_lung", "outside"} <= {row["region"] for row in effects}
    assert list(metrics[0]) == ["case", "region", "metric", "value"]
    assert {row["case"] for row in metrics} == set(cases)
    assert (results / "index.html").is_file()


def test_volumes_lie_on_their_masks(results: Path, cohort_dir: Path) -> None:
    for row in read_csv(results / "volumes.csv"):
        mask_path = cohort_dir / "gtlung" / f"{row['case']}.nii.gz"
        made, mask = nib.load(results / row["file"]), nib.load(mask_path)
        assert made.shape == mask.shape and np.array_equal(made.affine, mask.affine)
        seen, other = sitk.ReadImage(str(results / row["file"])), sitk.ReadImage(str(mask_path))
        assert seen.GetDirection() == other.GetDirection() and seen.GetOrigin() == other.GetOrigin()
        voxels = np.asarray(made.dataobj)
        if row["kind"] == "difference":
            assert made.get_data_dtype() == np.float32
        else:
            assert (
                made.get_data_dtype() == np.int16
                and WINDOW[0] <= voxels.min() <= voxels.max() <= WINDOW[1]
            )


def test_effects_are_the_means_of_the_differences(results: Path, cohort_dir: Path) -> None:
    files = {
        (r["case"], r["from"], r["to"]): r["file"]
        for r in read_csv(results / "volumes.csv")
        if r["from"]
    }
    for row in read_csv(results / "effects.csv"):
        mask = load_volume(cohort_dir / "gtlung" / f"{row['case']}.nii.gz").array
        difference = load_volume(results / files[row["case"], row["from"], row["to"]]).array
        where = {"lungs": (mask == 1) | (mask == 2), "left_lung": mask == 1}.get(row["region"])
        if where is not None:
            assert int(row["voxels"]) == where.sum()
            assert float(row["mean_diff_hu"]) == pytest.approx(difference[where].mean(), abs=1e-3)


def test_effects_over_draws_of_the_noise(
    trained_run: TrainedRun, results: Path, tmp_path: Path
) -> None:
    folder = generate(
        trained_run, tmp_path, "--vary", SMOKING, "--draws", "3", "--how_many", "1", "--page"
    )
    case = read_csv(folder / "metrics.csv")[0]["case"]
    once = [row for row in read_csv(results / "effects.csv") if row["case"] == case]
    thrice = read_csv(folder / "effects.csv")
    assert len(thrice) == len(once)
    assert {row["draws"] for row in thrice} == {"3"} and {row["draws"] for row in once} == {"1"}
    assert all(row["mc_error_hu"] == "" for row in once)
    assert any(float(row["mc_error_hu"]) > 0 for row in thrice)
    metrics = {row["metric"]: row["value"] for row in read_csv(folder / "metrics.csv")}
    assert -1 <= float(metrics["noise_correlation"]) <= 1
    assert volumes(folder).items() <= volumes(results).items()  # those of the first noise


def test_draws_need_a_results_folder(trained_run: TrainedRun, tmp_path: Path) -> None:
    mask = next((trained_run.cohort / "gtlung").glob("*.nii.gz"))
    flags = ("--mask", str(mask), "--out", str(tmp_path / "a.nii.gz"), "--draws", "2")
    refused(command("test.py", *trained_run.flags(), *flags), "--draws")


def test_metrics_compare_with_the_real_scan(results: Path, cohort_dir: Path) -> None:
    case = own_cases(cohort_dir)[0]
    made = load_volume(results / "volumes" / f"{case}.nii.gz").array.astype(float)
    real = load_volume(cohort_dir / "img" / f"{case}.nii.gz").array.clip(*WINDOW)
    lungs = np.isin(load_volume(cohort_dir / "gtlung" / f"{case}.nii.gz").array, (1, 2))
    found = {
        (r["region"], r["metric"]): float(r["value"])
        for r in read_csv(results / "metrics.csv")
        if r["case"] == case
    }
    assert found["lungs", "mae_hu"] == pytest.approx(
        abs(made - real)[lungs].mean(), abs=0.6
    )  # HU are rounded on disk


# --- names of files ---


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run on the cases of `80_names` and on "p 1" and "p_1", which become one name when safe."""
    source = CASES / "80_names" / "cohort"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    root = tmp_path_factory.mktemp("names")
    cohort = Path(shutil.copytree(source, root / "cohort"))
    for kind in ("img", "gtlung"):
        for name in ("p 1", "p_1"):
            shutil.copy(cohort / kind / "Müller_01.nii.gz", cohort / kind / f"{name}.nii.gz")
    with (cohort / "clinical.csv").open("a") as table:
        table.write("p 1,60,M,Never smoker,IPF\np_1,61,F,Ex smoker,HP\n")
    done = train(cohort, root / "ck", "--template", "auto", "--max_steps", "1", "--val_cases", "0")
    assert done.code == 0, done.text
    return TrainedRun(root / "ck", "new", cohort)


def test_no_two_volumes_have_one_name(odd_names: TrainedRun, tmp_path: Path) -> None:
    vary = ("--vary", "SEX=男,女", "--vary", "DIAGNOSIS=<50%,>50%,<50%_to_>50%")
    done = odd_names.test(tmp_path, "--split", "all", *vary)
    assert done.code == 0, done.text
    folder = tmp_path / "new" / "all_latest"
    listed = read_csv(folder / "volumes.csv")
    written = {row["file"].casefold() for row in listed}
    assert len(listed) == 16 * (1 + 3 + 6)
    assert len(written) == len(listed) == len(volumes(folder))
    own = {row["case"]: row["file"] for row in listed if row["kind"] == "own"}
    assert len(own) == 16 and own["p_1"] == "volumes/p_1.nii.gz"
    assert own["q'uote"] == "volumes/q_uote.nii.gz" and own["-dash"] == "volumes/-dash.nii.gz"
    few = odd_names.test(tmp_path / "few", "--split", "all", "--how_many", "3")
    assert few.code == 0, few.text
    for row in read_csv(tmp_path / "few" / "new" / "all_latest" / "volumes.csv"):
        assert row["file"] == own[row["case"]]  # whatever else is generated


def test_one_column_is_varied_once(trained_run: TrainedRun, tmp_path: Path) -> None:
    done = trained_run.test(tmp_path, "--vary", "SEX=M,F", "--vary", "SEX=F,M")
    refused(done, "--vary is given 2 times for 'SEX'", "written twice")
    assert not list(tmp_path.iterdir())


def test_a_results_folder_in_use_is_refused(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = tmp_path / trained_run.name / "test_latest"
    with locked_folder(folder, "--results_dir"):
        refused(trained_run.test(tmp_path), "test_latest is in use by", f"process {os.getpid()} on")
    assert not folder.exists()


# --- counterfactuals ---


def test_the_same_text_gives_the_same_bytes(
    trained_run: TrainedRun,
    results: Path,
    cohort_dir: Path,
    tmp_path: Path,
) -> None:
    """A null edit: M and Male are one phrase; and the level that a row has already gives its own
    volume.
    """
    folder = generate(trained_run, tmp_path, "--vary", "SEX=M,Male")
    made = volumes(folder)
    for case in own_cases(cohort_dir):
        assert made[f"{case}__SEX=M.nii.gz"] == made[f"{case}__SEX=Male.nii.gz"]
        assert not load_volume(folder / "volumes" / f"{case}__SEX=M_to_Male.nii.gz").array.any()
    table = {row["File Name"]: row for row in read_csv(cohort_dir / "clinical.csv")}
    written = volumes(results)
    for case in own_cases(cohort_dir):
        level = table[case]["SMOKING HISTORY"].replace(" ", "_")
        assert written[f"{case}.nii.gz"] == written[f"{case}__SMOKING_HISTORY={level}.nii.gz"]


def test_two_runs_give_the_same_bytes(
    trained_run: TrainedRun, results: Path, tmp_path: Path
) -> None:
    again = generate(trained_run, tmp_path / "again", "--vary", SMOKING, "--draws", "1")
    assert volumes(again) == volumes(results)
    for name in ("volumes.csv", "effects.csv", "metrics.csv"):
        assert (again / name).read_bytes() == (results / name).read_bytes()
    other = generate(trained_run, tmp_path / "other", "--seed", "1")
    assert volumes(other).items().isdisjoint(volumes(results).items())


def test_set_and_prompt_change_the_own_row(
    trained_run: TrainedRun, results: Path, tmp_path: Path
) -> None:
    own = {row["case"]: row for row in read_csv(results / "volumes.csv") if row["kind"] == "own"}
    folder = generate(
        trained_run,
        tmp_path / "set",
        "--set",
        "AGE=41",
        "--set",
        "SMOKING HISTORY=Never smoker",
        "--how_many",
        "1",
    )
    (row,) = read_csv(folder / "volumes.csv")
    assert row["column"] == "AGE;SMOKING HISTORY" and row["value"] == "41;Never smoker"
    assert "Patient age: 41." in row["prompt"] and "PACK-YEARS" not in row["prompt"]
    assert own[row["case"]]["prompt"] != row["prompt"]
    folder = generate(
        trained_run,
        tmp_path / "prompt",
        "--prompt",
        "Patient age: 77. SMOKING HISTORY is Ex smoker",
    )
    texts = {row["prompt"] for row in read_csv(folder / "volumes.csv")}
    assert texts == {"Lung CT scan : Patient age: 77. SMOKING HISTORY is Ex smoker."}


def test_a_quoted_value_may_hold_a_comma(trained_run: TrainedRun, tmp_path: Path) -> None:
    done = trained_run.test(tmp_path, "--vary", 'DIAGNOSIS="IPF, advanced",HP', "--how_many", "1")
    assert done.code == 0 and "no training case has DIAGNOSIS=IPF, advanced" in done.text
    listed = read_csv(tmp_path / trained_run.name / "test_latest" / "volumes.csv")
    assert [row["value"] for row in listed if row["kind"] == "varied"] == ["IPF, advanced", "HP"]
    assert listed[1]["file"].endswith("__DIAGNOSIS=IPF__advanced.nii.gz")


def test_several_variations_are_not_crossed(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = generate(
        trained_run, tmp_path, "--vary", "SEX=Male,Female", "--vary", "AGE=45,80", "--how_many", "1"
    )
    assert [row["kind"] for row in read_csv(folder / "volumes.csv")] == [
        "own",
        *(["varied"] * 2 + ["difference"]) * 2,
    ]


# --- results that are there already ---


def test_results_are_not_replaced_unasked(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = generate(trained_run, tmp_path, "--how_many", "1")
    (folder / "volumes" / "mine.txt").write_text("note")
    done = trained_run.test(tmp_path, "--how_many", "2")
    assert done.code == 2 and "--overwrite" in done.text and str(folder) in done.text
    assert len(volumes(folder)) == 2
    assert trained_run.test(tmp_path, "--how_many", "2", "--overwrite").code == 0
    assert len(volumes(folder)) == 2 and "mine.txt" not in volumes(folder)
    (folder / "results.json").unlink()
    done = trained_run.test(tmp_path, "--overwrite")
    assert done.code == 2 and "by hand" in done.text and len(volumes(folder)) == 2
