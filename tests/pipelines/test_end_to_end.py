"""Training and testing as a user does them, on a few small phantoms: what is written, and that it
is the truth.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from safetensors.torch import load_file

from data.volumes import load_volume
from tests.commands import ROOT, TINY, TrainedRun, command, refused, train
from util.files import read_csv
from util.locks import locked_folder
from util.metrics.effects import EFFECT_COLUMNS

CASES = ROOT.parent / "shared" / "cases"
SMOKING = "SMOKING HISTORY=Never smoker,Ex smoker,Current smoker"
LEVELS = ("Never smoker", "Ex smoker", "Current smoker")
WINDOW = (-1000, 400)


def rows(path: Path) -> list[dict[str, str]]:
    return read_csv(path)


def volumes(folder: Path) -> dict[str, bytes]:
    """Name and content of every volume written."""
    return {path.name: path.read_bytes() for path in sorted((folder / "volumes").iterdir())}


def own_cases(cohort: Path, split: str = "test") -> list[str]:
    found: list[str] = json.loads((cohort / "splits.json").read_text())[split]
    return found


def generate(run: TrainedRun, results: Path, *words: str, cohort: Path | None = None) -> Path:
    """The folder of a `test.py` that must succeed."""
    done = run.test(results, *words, cohort=cohort)
    assert done.code == 0, done.text
    return results / run.name / "test_latest"


@pytest.fixture(scope="module")
def results(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test results with a page and three smoking levels."""
    folder = tmp_path_factory.mktemp("results")
    return generate(trained_run, folder, "--vary", SMOKING, "--draws", "1", "--page")


# --- training ---


def test_training_leaves_a_whole_run(trained_run: TrainedRun) -> None:
    folder = trained_run.folder
    options = json.loads((folder / "options.json").read_text())
    assert options["optim"]["max_steps"] == 4 and options["patch"]["patch_size"] == [16, 16, 8]
    state = json.loads((folder / "latest" / "state.json").read_text())
    assert state["step"] == 4 and state["labels"] == [0, 1, 2, 3]
    assert {"G", "D", "average", "optimizer_G", "optimizer_D"} <= set(state["parts"])
    assert all((folder / "latest" / f"{part}.safetensors").is_file() for part in state["parts"])
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = {"val_lung_mae_hu", "val_lung_detail_ratio", "val_lung_noise_correlation"}
    assert any(measured <= set(line) for line in lines)
    assert any("loss_G_quantile" in line for line in lines)
    assert (folder / "web" / "index.html").is_file() and (folder / "splits.json").is_file()


def test_a_finished_run_that_goes_on_is_left_as_it_is(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    shutil.copytree(trained_run.checkpoints, tmp_path / "ck")
    weights = tmp_path / "ck" / trained_run.name / "latest" / "G.safetensors"
    before = weights.read_bytes()
    done = command(
        "train.py",
        "--name",
        trained_run.name,
        "--checkpoints_dir",
        tmp_path / "ck",
        "--continue_train",
    )
    assert done.code == 0 and "4 steps" in done.text
    assert weights.read_bytes() == before


def test_a_run_goes_on_with_its_own_splits(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """Cases that joined the folder since then must not push test cases into training."""
    (cohort_copy / "splits.json").unlink()
    flags = ("--dataroot", cohort_copy, "--name", "r", "--checkpoints_dir", tmp_path / "ck")
    assert command("train.py", *flags, *TINY).code == 0
    before = (tmp_path / "ck" / "r" / "splits.json").read_text()
    for kind in ("img", "gtlung"):
        shutil.copy(
            cohort_copy / kind / "phantom_001.nii.gz", cohort_copy / kind / "phantom_000.nii.gz"
        )
    done = command("train.py", *flags, "--continue_train", "--max_steps", "5")
    assert done.code == 0, done.text
    assert (tmp_path / "ck" / "r" / "splits.json").read_text() == before


def test_dry_run_reports_and_writes_nothing(cohort_dir: Path, tmp_path: Path) -> None:
    done = command(
        "train.py",
        "--dataroot",
        cohort_dir,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path / "ck",
        *TINY,
        "--dry_run",
    )
    assert done.code == 0, done.text
    assert (
        "M parameters" in done.text and "GiB" in done.text and "--patch_size 16,16,8" in done.text
    )
    assert re.search(r"On \d+ CPU cores?, a step takes .* s without its data", done.text)
    assert re.search(
        r"about [1-9]\d* \w+(, and v|\. V)alidation \(\d+ times\) .*[1-9]\d* s", done.text
    )
    assert not (tmp_path / "ck").exists()


def test_coarse_to_fine(trained_run: TrainedRun, cohort_dir: Path) -> None:
    """A run with a local enhancer starts from another's global generator, and keeps it as it is for
    an epoch.
    """
    words = (
        "--n_local_enhancers",
        "1",
        "--load_global",
        trained_run.name,
        "--niter_fix_global",
        "1",
        "--patch_size",
        "16,16,16",
        "--batch_size",
        "3",
        "--max_steps",
        "3",
        "--val_cases",
        "0",
    )
    refused(
        train(cohort_dir, trained_run.checkpoints, *words, name="fine"),
        "--ngf is 4",
        "Give --ngf 2",
    )
    done = train(cohort_dir, trained_run.checkpoints, *words, "--ngf", "2", name="fine")
    assert done.code == 0, done.text
    coarse = load_file(trained_run.folder / "latest" / "average.safetensors")
    fine = load_file(trained_run.checkpoints / "fine" / "latest" / "G.safetensors")
    prefix = "global_generator."
    shared = {k.removeprefix(prefix): v for k, v in fine.items() if k.startswith(prefix)}
    kept = {k.removeprefix(prefix): v for k, v in coarse.items() if k.startswith(prefix)}
    assert shared.keys() == kept.keys() and all(v.equal(kept[k]) for k, v in shared.items())
    assert set(fine) - {f"{prefix}{k}" for k in shared}
    assert "<svg" in (trained_run.checkpoints / "fine" / "web" / "losses_0.svg").read_text()


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
    listed = rows(results / "volumes.csv")
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
    effects, metrics = rows(results / "effects.csv"), rows(results / "metrics.csv")
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
    for row in rows(results / "volumes.csv"):
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
        for r in rows(results / "volumes.csv")
        if r["from"]
    }
    for row in rows(results / "effects.csv"):
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
    case = rows(folder / "metrics.csv")[0]["case"]
    once = [row for row in rows(results / "effects.csv") if row["case"] == case]
    thrice = rows(folder / "effects.csv")
    assert len(thrice) == len(once)
    assert {row["draws"] for row in thrice} == {"3"} and {row["draws"] for row in once} == {"1"}
    assert all(row["mc_error_hu"] == "" for row in once)
    assert any(float(row["mc_error_hu"]) > 0 for row in thrice)
    metrics = {row["metric"]: row["value"] for row in rows(folder / "metrics.csv")}
    assert -1 <= float(metrics["noise_correlation"]) <= 1
    for name, content in volumes(folder).items():  # those of the first noise
        assert (results / "volumes" / name).read_bytes() == content


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
        for r in rows(results / "metrics.csv")
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
    listed = rows(folder / "volumes.csv")
    written = {row["file"].casefold() for row in listed}
    assert len(listed) == 16 * (1 + 3 + 6)
    assert len(written) == len(listed) == len(volumes(folder))
    own = {row["case"]: row["file"] for row in listed if row["kind"] == "own"}
    assert len(own) == 16 and own["p_1"] == "volumes/p_1.nii.gz"
    assert own["q'uote"] == "volumes/q_uote.nii.gz" and own["-dash"] == "volumes/-dash.nii.gz"
    few = odd_names.test(tmp_path / "few", "--split", "all", "--how_many", "3")
    assert few.code == 0, few.text
    for row in rows(tmp_path / "few" / "new" / "all_latest" / "volumes.csv"):
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
    table = {row["File Name"]: row for row in rows(cohort_dir / "clinical.csv")}
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
    own = {row["case"]: row for row in rows(results / "volumes.csv") if row["kind"] == "own"}
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
    (row,) = rows(folder / "volumes.csv")
    assert row["column"] == "AGE;SMOKING HISTORY" and row["value"] == "41;Never smoker"
    assert "Patient age: 41." in row["prompt"] and "PACK-YEARS" not in row["prompt"]
    assert own[row["case"]]["prompt"] != row["prompt"]
    folder = generate(
        trained_run,
        tmp_path / "prompt",
        "--prompt",
        "Patient age: 77. SMOKING HISTORY is Ex smoker",
    )
    texts = {row["prompt"] for row in rows(folder / "volumes.csv")}
    assert texts == {"Lung CT scan : Patient age: 77. SMOKING HISTORY is Ex smoker."}


def test_a_quoted_value_may_hold_a_comma(trained_run: TrainedRun, tmp_path: Path) -> None:
    done = trained_run.test(tmp_path, "--vary", 'DIAGNOSIS="IPF, advanced",HP', "--how_many", "1")
    assert done.code == 0 and "no training case has DIAGNOSIS=IPF, advanced" in done.text
    listed = rows(tmp_path / trained_run.name / "test_latest" / "volumes.csv")
    assert [row["value"] for row in listed if row["kind"] == "varied"] == ["IPF, advanced", "HP"]
    assert listed[1]["file"].endswith("__DIAGNOSIS=IPF__advanced.nii.gz")


def test_several_variations_are_not_crossed(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = generate(
        trained_run, tmp_path, "--vary", "SEX=Male,Female", "--vary", "AGE=45,80", "--how_many", "1"
    )
    assert [row["kind"] for row in rows(folder / "volumes.csv")] == [
        "own",
        *(["varied"] * 2 + ["difference"]) * 2,
    ]


# --- where volumes come from ---


def test_from_masks_alone(
    trained_run: TrainedRun, results: Path, cohort_copy: Path, tmp_path: Path
) -> None:
    shutil.rmtree(cohort_copy / "img")
    folder = generate(
        trained_run, tmp_path / "res", "--vary", SMOKING, "--page", cohort=cohort_copy
    )
    assert volumes(folder) == volumes(results)
    assert "mean_lung_attenuation_hu" in {row["metric"] for row in rows(folder / "metrics.csv")}
    assert not {"mae_hu", "psnr_db", "ssim"} & {
        row["metric"] for row in rows(folder / "metrics.csv")
    }
    assert (folder / "index.html").is_file()


def test_one_mask_and_a_text(trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path) -> None:
    mask, out = (
        cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz",
        tmp_path / "new" / "one.nii.gz",
    )
    words = (
        "--mask",
        str(mask),
        "--prompt",
        "Patient age: 60.",
        "--out",
        str(out),
        *trained_run.flags(),
    )
    done = command("test.py", *words)
    assert done.code == 0, done.text
    made, source = nib.load(out), nib.load(mask)
    assert made.shape == source.shape and np.array_equal(made.affine, source.affine)
    assert list(out.parent.iterdir()) == [out]
    assert command("test.py", *words).code == 2
    assert command("test.py", *words, "--overwrite", "--dicom").code == 0
    series = out.parent / "one_dicom"
    assert len(list(series.iterdir())) == source.shape[2]
    assert (out.parent / "one_dicom_mask.dcm").is_file()


def test_volumes_are_written_as_dicom(trained_run: TrainedRun, tmp_path: Path) -> None:
    folder = generate(trained_run, tmp_path, "--vary", SMOKING, "--how_many", "1", "--dicom")
    for row in rows(folder / "volumes.csv"):
        series = folder / "dicom" / Path(row["file"]).name.removesuffix(".nii.gz")
        assert series.is_dir() == (row["kind"] != "difference")
        if series.is_dir():
            image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
            voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[::-1, ::-1]
            assert np.array_equal(voxels, load_volume(folder / row["file"]).array)
            header = nib.load(folder / row["file"]).header
            assert (float(header["cal_min"]), float(header["cal_max"])) == (-1350.0, 150.0)
    assert len(list((folder / "dicom").glob("*_mask.dcm"))) == 1


def test_a_sheared_mask_is_no_dicom(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "sheared.nii.gz"
    source = nib.load(cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz")
    affine = source.affine.copy()
    affine[0, 2] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), affine), mask)
    words = ("--mask", str(mask), "--results_dir", str(tmp_path / "results"))
    refused(
        command("test.py", *words, *trained_run.flags(), "--dicom"),
        "not perpendicular",
        "leave --dicom out",
    )
    assert not list(tmp_path.glob("results/*/*/volumes"))


def test_one_mask_is_a_cohort_of_one_case(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    mask = cohort_dir / "gtlung" / f"{own_cases(cohort_dir)[0]}.nii.gz"
    prompt = "Patient age: 60. SMOKING HISTORY is Ex smoker. Gender: Male."
    words = ("--mask", str(mask), "--results_dir", str(tmp_path), *trained_run.flags())
    done = command("test.py", *words, "--prompt", prompt, "--vary", SMOKING, "--vary", "AGE=45,80")
    assert done.code == 0, done.text
    (folder,) = tmp_path.glob("*/*")
    assert folder.name == f"{own_cases(cohort_dir)[0]}_latest" and (folder / "index.html").is_file()
    prompts = {row["value"]: row["prompt"] for row in rows(folder / "volumes.csv") if row["prompt"]}
    start = "Lung CT scan :"
    assert prompts[""] == f"{start} {prompt}"
    assert prompts["Never smoker"].replace(",", ".") == f"{start} {prompt.replace('Ex', 'Never')}"
    assert prompts["80"] == f"{start} {prompt.replace('60', '80')}"
    effects = {(row["column"], row["from"], row["to"]) for row in rows(folder / "effects.csv")}
    assert ("AGE", "45", "80") in effects and len(volumes(folder)) == len(
        rows(folder / "volumes.csv")
    )
    alone = ("--set", "SEX=M", "--vary", "AGE=45,80", "--overwrite", "--no-page")
    done = command("test.py", *words, *alone)
    assert done.code == 0, done.text
    factual, *varied = [row["prompt"] for row in rows(folder / "volumes.csv")][:3]
    assert "Male" in factual and all("Male" in prompt for prompt in varied)


def as_xlsx(cohort: Path) -> None:
    table = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    numbers = table.assign(
        AGE=table["AGE"].map(lambda v: float(v) if v else None)
    )  # spreadsheets hold numbers
    numbers.to_excel(cohort / "clinical.xlsx", index=False)
    (cohort / "clinical.csv").unlink()


def as_mha(cohort: Path) -> None:
    for path in [*cohort.glob("img/*"), *cohort.glob("gtlung/*")]:
        sitk.WriteImage(
            sitk.ReadImage(str(path)), str(path.with_name(path.name.replace(".nii.gz", ".mha")))
        )
        path.unlink()


def as_lps(cohort: Path) -> None:
    for path in [*cohort.glob("img/*"), *cohort.glob("gtlung/*")]:
        image = nib.load(path)
        turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        assert nib.aff2axcodes(turned.affine) == ("L", "P", "S")
        nib.save(turned, path)


@pytest.mark.parametrize("change", [as_xlsx, as_mha, as_lps])
def test_other_formats_give_the_same_volumes(
    change: Callable[[Path], None],
    trained_run: TrainedRun,
    results: Path,
    cohort_copy: Path,
    tmp_path: Path,
) -> None:
    change(cohort_copy)
    folder = generate(trained_run, tmp_path / "res", "--vary", SMOKING, cohort=cohort_copy)
    for name in volumes(results):
        made, expected = (
            load_volume(folder / "volumes" / name),
            load_volume(results / "volumes" / name),
        )
        assert np.array_equal(made.array, expected.array), name
        assert np.allclose(made.affine, expected.affine, atol=1e-4)
    if change is as_lps:
        assert nib.aff2axcodes(nib.load(folder / "volumes" / name).affine) == ("L", "P", "S")


def test_training_on_other_formats(cohort_copy: Path, tmp_path: Path) -> None:
    as_mha(cohort_copy)
    as_xlsx(cohort_copy)
    done = command(
        "train.py",
        "--dataroot",
        cohort_copy,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path / "ck",
        *TINY,
        "--max_steps",
        "2",
    )
    assert done.code == 0, done.text


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
