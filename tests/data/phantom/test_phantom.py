"""The phantom cohort: size and place of planted effects, masks, and repeated rendering."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from data.phantom.cohort import NOISE_HU, PhantomCohort, PhantomScan
from data.phantom.effects import load_effects
from data.phantom.rows import COLUMNS, KEY, PATIENT
from data.phantom.write import make_phantom_cohort
from options.parser import parse
from options.phantom_options import PhantomOptions
from tests.commands import program, refused
from util.cli import UserError

SMALL = PhantomOptions(OUT="", cases=12, size=(40, 32, 28), test_cases=3, val_cases=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    return make_phantom_cohort(replace(SMALL, OUT=str(out)))


@pytest.fixture(scope="module")
def cohort(folder: Path) -> PhantomCohort:
    return PhantomCohort.from_folder(folder)


def lungs(scan: PhantomScan) -> NDArray[np.bool_]:
    return (scan.mask == 1) | (scan.mask == 2)


def change(
    cohort: PhantomCohort, case: str, column: str, before: str, after: str
) -> tuple[NDArray[np.float32], PhantomScan]:
    scan = cohort.render(case, {column: before})
    return cohort.render(case, {column: after}).hu - scan.hu, scan


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "clinical.csv").open(newline="") as file:
        return {row[KEY]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("column", "before", "after", "hu"),
    [
        ("SMOKING HISTORY", "Never smoker", "Current smoker", 41.0),
        ("SMOKING HISTORY", "Never smoker", "Ex smoker", 18.0),
        ("AGE", "45", "80", -33.25),
        ("DIAGNOSIS", "HP", "IPF", 21.6),
        ("DIAGNOSIS", "", "IPF", 26.6),
        ("label", "1", "0", 6.0),
    ],
)
def test_effect_has_its_mean_in_the_lungs_and_is_nowhere_else(
    cohort: PhantomCohort, column: str, before: str, after: str, hu: float
) -> None:
    for case in cohort.case_ids[:3]:
        difference, scan = change(cohort, case, column, before, after)
        assert difference[lungs(scan)].mean() == pytest.approx(hu, abs=0.05)
        assert np.abs(difference[~lungs(scan)]).max() == 0


def test_effects_are_where_the_table_says(cohort: PhantomCohort) -> None:
    case = cohort.case_ids[0]
    smoking, scan = change(cohort, case, "SMOKING HISTORY", "Never smoker", "Current smoker")
    inside = lungs(scan)
    height = np.cumsum(np.ones(inside.shape), axis=2)
    low, high = np.quantile(height[inside], [1 / 3, 2 / 3])
    upper = inside & (height > high)
    lower = inside & (height < low)
    assert smoking[upper].mean() > 3 * smoking[lower].mean() > 0
    died, _ = change(cohort, case, "label", "1", "0")
    assert died[lower].mean() > 3 * died[upper].mean() > 0

    fine = replace(cohort, size=(90, 68, 72), spacing=(4.0, 4.0, 4.0))
    fibrosis, scan = change(fine, case, "DIAGNOSIS", "", "IPF")
    depth = ndimage.distance_transform_edt(scan.mask > 0, fine.spacing)
    inside = lungs(scan)
    height = np.cumsum(np.ones(inside.shape), axis=2)
    base = inside & (height < np.quantile(np.nonzero(inside)[2], 0.3))
    assert fibrosis[base & (depth < 10)].mean() > 2 * fibrosis[base & (depth > 20)].mean()


def test_null_column_changes_no_bit(cohort: PhantomCohort) -> None:
    difference, _ = change(cohort, cohort.case_ids[0], str(cohort.effects.null_column), "No", "Yes")
    assert not difference.any()


def test_labels_are_on_their_sides(folder: Path) -> None:
    for path in sorted((folder / "gtlung").iterdir()):
        mask = np.asarray(nib.load(path).dataobj)
        affine = nib.load(path).affine
        assert set(np.unique(mask)) == {0, 1, 2, 3}
        left, right, airway = (
            apply_affine(affine, np.argwhere(mask == label))[:, 0].mean() for label in (1, 2, 3)
        )
        assert left < airway < right  # RAS: the left lung lies at negative x
        assert (mask == 1).sum() < (mask == 2).sum()  # the heart takes its place on the left


def test_scan_is_a_chest_in_hu(cohort: PhantomCohort) -> None:
    fine = replace(cohort, size=(64, 64, 48), spacing=(5.625, 4.21875, 6.0), patient_sd=0.0)
    healthy = {"SMOKING HISTORY": "Never smoker", "AGE": "65", "DIAGNOSIS": "", "label": "1"}
    for case in cohort.case_ids[:3]:
        noisy = fine.render(case, healthy)
        clean = fine.render(case, healthy, noise=False)
        noise = noisy.hu - clean.hu
        lung = lungs(clean)
        assert -860 < clean.hu[lung].mean() < -780
        assert noise[lung].std() == pytest.approx(NOISE_HU, rel=0.1)
        assert clean.hu[lung].std() > 1.5 * noise[lung].std()
        assert (noisy.hu[lung] < -1000).mean() < 0.005
        assert clean.hu[clean.mask == 3].mean() < -850
        assert clean.hu[0, 0].max() == -1000  # air round the body
        y = np.cumsum(np.ones(lung.shape), axis=1)
        front = lung & (y > np.quantile(y[lung], 0.7))
        back = lung & (y < np.quantile(y[lung], 0.3))
        assert clean.hu[back].mean() > clean.hu[front].mean() + 20  # gravity


def test_files_are_what_render_makes(folder: Path, cohort: PhantomCohort) -> None:
    for case in (cohort.case_ids[0], cohort.case_ids[-1]):
        scan = cohort.render(case)
        image, mask = (nib.load(folder / name / f"{case}.nii.gz") for name in ("img", "gtlung"))
        assert image.get_data_dtype() == np.int16 and mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.rint(scan.hu))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), scan.mask)
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_same_settings_give_the_same_cohort_and_another_seed_does_not(
    folder: Path, tmp_path: Path
) -> None:
    options = replace(SMALL, OUT=str(tmp_path / "a"))
    make_phantom_cohort(options)
    for name in ("clinical.csv", "splits.json", "phantom.json", "img/phantom_004.nii.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (folder / name).read_bytes()
    out = make_phantom_cohort(replace(options, OUT=str(tmp_path / "b"), cases=7, seed=2))
    first, second = (PhantomCohort.from_folder(f).render("phantom_001") for f in (folder, out))
    assert not np.array_equal(first.mask, second.mask)


def test_cells_are_missing_in_training_rows_only(folder: Path, cohort: PhantomCohort) -> None:
    written = table(folder)
    filled = 0
    n_emptied = 0
    for case in cohort.case_ids:
        complete = cohort.row(case)
        assert tuple(written[case]) == COLUMNS
        emptied = [c for c in COLUMNS if written[case][c] != complete[c]]
        assert all(written[case][c] == "" for c in emptied)
        if case in cohort.splits["train"]:
            filled += sum(1 for c in COLUMNS if complete[c] and c not in (KEY, PATIENT))
            n_emptied += len(emptied)
        else:
            assert not emptied
    assert n_emptied == round(0.12 * filled)


def test_splits_cover_the_cases_once(folder: Path, cohort: PhantomCohort) -> None:
    splits = json.loads((folder / "splits.json").read_text())
    assert {k: len(v) for k, v in splits.items()} == {"train": 7, "val": 2, "test": 3}
    assert sorted(c for cases in splits.values() for c in cases) == sorted(cohort.case_ids)


def test_patient_sd_moves_whole_lungs(cohort: PhantomCohort) -> None:
    without = replace(cohort, patient_sd=0.0)
    offsets = []
    for case in cohort.case_ids:
        scan = cohort.render(case, noise=False)
        difference = scan.hu - without.render(case, noise=False).hu
        assert not difference[~lungs(scan)].any()
        offsets.append(difference[lungs(scan)].mean())
    assert np.ptp(offsets) > 5


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Smoking", "Yes", "not a column"),
        ("DIAGNOSIS", "COPD", "IPF"),
        ("AGE", "old", "number"),
        ("AGE", "nan", "number"),
    ],
)
def test_render_refuses_impossible_cells(
    cohort: PhantomCohort, column: str, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cohort.render(cohort.case_ids[0], {column: value})


def test_default_effects_have_sources_and_no_null_effect() -> None:
    effects = load_effects()
    assert effects.null_column == "RISK OCCUPATIONAL"
    assert all(entry["source"] for entry in effects.raw["effects"].values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("effects: {COLOUR: {levels: {Red: {hu: 1}}}}", "'COLOUR' is not known"),
        (
            "effects: {SEX: {levels: {Man: {hu: 1}}}}",
            "'Man' is not known; allowed: 'Male', 'Female'",
        ),
        ("effects: {SEX: {levels: {Male: {hu: 1, pattern: sideways}}}}", "pattern is 'sideways'"),
        ("effects: {SEX: {levels: {Male: {hu: much}}}}", "`hu` must be a number"),
        ("effects: {SEX: {levels: {Male: {hu: 5000}}}}", "between -500 and 500"),
        ("effects: {SEX: {per_unit: {hu: 1, reference: 0}}}", "use `levels`"),
        ("effects: {AGE: {per_unit: {hu: 1}}}", "`reference` must be a number"),
        ("effects: {AGE: {source: x}}", "either `levels` or `per_unit`"),
        ("effects: {label: {levels: {0: {hu: 1}}}}", "put numbers in quotes"),
        ("null_column: SEX\neffects: {SEX: {levels: {Male: {hu: 1}}}}", "must not have effects"),
        ("null_column: COLOUR", "null_column is 'COLOUR'"),
        ("- a list", "must be a table"),
        ("effects: {", "not valid YAML"),
    ],
)
def test_effects_file_is_checked(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "effects.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_effects(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_effects(tmp_path / "absent.yaml")


def test_effects_file_replaces_signs_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "effects.yaml"
    path.write_text("effects: {SEX: {levels: {Male: {hu: -12.0, pattern: upper_dorsal}}}}")
    options = replace(SMALL, OUT=str(tmp_path / "c"), cases=6, effects=str(path))
    cohort = PhantomCohort.from_folder(make_phantom_cohort(options))
    path.unlink()  # the cohort has a copy
    difference, scan = change(cohort, "phantom_001", "SEX", "Female", "Male")
    assert difference[lungs(scan)].mean() == pytest.approx(-12, abs=0.05)
    assert not change(cohort, "phantom_001", "AGE", "45", "80")[0].any()


def test_same_settings_are_reused_others_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(SMALL, OUT=str(tmp_path / "d"), cases=6)
    image = make_phantom_cohort(options) / "img" / "phantom_001.nii.gz"
    written = image.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        make_phantom_cohort(options)
    assert "already" in caplog.text and image.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"seed 1 there, 5 now.*--overwrite"):
        make_phantom_cohort(replace(options, seed=5))
    make_phantom_cohort(replace(options, seed=5, overwrite=True))
    assert image.stat().st_mtime_ns != written


def test_killed_run_is_not_taken_for_a_cohort_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(SMALL, OUT=str(tmp_path / "e"), cases=6)
    original = PhantomCohort.render

    def dies(self: PhantomCohort, case: str, *rest: object) -> PhantomScan:
        if case == "phantom_003":
            raise KeyboardInterrupt
        return original(self, case)

    monkeypatch.setattr(PhantomCohort, "render", dies)
    with pytest.raises(KeyboardInterrupt):
        make_phantom_cohort(options)
    monkeypatch.undo()
    with pytest.raises(UserError, match="make_phantoms"):
        PhantomCohort.from_folder(options.OUT)
    make_phantom_cohort(options)
    assert len(PhantomCohort.from_folder(options.OUT).case_ids) == 6
    assert len(list((tmp_path / "e" / "img").iterdir())) == 6


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "precious.nii.gz").write_text("scan")
    with pytest.raises(UserError, match=r"holds no phantom\.json"):
        make_phantom_cohort(replace(SMALL, OUT=str(tmp_path), overwrite=True))
    assert (tmp_path / "img" / "precious.nii.gz").read_text() == "scan"


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 6"):
        make_phantom_cohort(replace(SMALL, OUT=str(tmp_path / "f"), cases=5))
    with pytest.raises(UserError, match="miss the lungs"):
        make_phantom_cohort(replace(SMALL, OUT=str(tmp_path / "f"), spacing=(0.2, 0.2, 0.2)))
    with pytest.raises(UserError, match="OUT"):
        parse(PhantomOptions, "", [])
    assert not (tmp_path / "f").exists()


def test_command_runs_from_the_root(tmp_path: Path) -> None:
    flags = ["--cases", "2", "--size", "24,24,20", "--test_cases", "1", "--val_cases", "0"]
    done = program("scripts/make_phantoms.py", str(tmp_path / "g"), *flags)
    assert done.code == 0, done.text
    assert len(list((tmp_path / "g" / "img").iterdir())) == 2
    refused(program("scripts/make_phantoms.py", str(tmp_path / "h"), "--seed", "x"), "--seed")
