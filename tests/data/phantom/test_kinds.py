"""Cohorts with effects of every kind: what is planted, where, and how it is rendered again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import voxel_sizes

from data.load_cohort import load_cohort
from data.phantom.kinds.cohort import RECORD, KindsCohort, make_kinds_cohort, phantom_chests
from data.phantom.kinds.columns import CONTROL, GROUPS, NULL, RARE_CASES, draw_rows
from data.phantom.rows import YES_NO
from data.volumes import load_volume
from options.base_options import DataOptions
from util.cli import UserError
from util.files import read_json, write_json
from util.metrics.regions import body_mask, chest_regions
from util.metrics.texture import statistics_by_region

SIZE = (48, 48, 32)
SPLITS = {"train": ("a", "b", "c", "d"), "test": ("e",)}
Statistics = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KindsCohort]:
    root = tmp_path_factory.mktemp("kinds")
    cases = [case for names in SPLITS.values() for case in names]
    chests = list(phantom_chests(cases, 1, SIZE))
    return {
        name: KindsCohort.from_folder(make_kinds_cohort(root / name, name, SPLITS, chests, 1))
        for name in GROUPS
    }


def effect(cohort: KindsCohort, column: str, setting: Mapping[str, str]) -> Statistics:
    """Return by region how a column's Yes changes the statistics of the test case."""
    before, after = (cohort.render("e", {**setting, column: value}) for value in YES_NO)
    spacing = voxel_sizes(before.affine)
    masks = chest_regions(before.mask, spacing)
    masks["body"] = body_mask(before.hu) & masks["outside"]
    start, end = (statistics_by_region(scan.hu, masks, spacing) for scan in (before, after))
    return {r: {name: end[r][name] - start[r][name] for name in end[r]} for r in end}


@pytest.fixture(scope="module")
def planted(cohorts: dict[str, KindsCohort]) -> dict[str, Statistics]:
    """Effects by group and column, with every other column at No."""
    effects = {}
    for name, group in GROUPS.items():
        binary = [column.name for column in group.all_columns if column.values == YES_NO]
        others = dict.fromkeys(binary, "No")
        if name == "interaction":
            others["SEX"] = "Male"
        for column in binary:
            effects[f"{name} {column}"] = effect(cohorts[name], column, others)
    return effects


def test_texture_changes_detail_and_not_the_mean(planted: dict[str, Statistics]) -> None:
    lines = planted["texture RETICULATION"]["lungs"]
    assert lines["detail_sd_hu"] == pytest.approx(20, abs=5)
    assert lines["mean_hu"] == pytest.approx(0, abs=0.5)
    holes = planted["texture EMPHYSEMA"]["lungs"]
    assert holes["share_below_-950_hu"] == pytest.approx(0.07, abs=0.02)
    assert holes["mean_hu"] == pytest.approx(0, abs=0.5)
    for region in ("left_lung", "right_lung", "upper", "lower"):
        assert abs(planted["texture EMPHYSEMA"][region]["mean_hu"]) < 3


def test_sparse_disease_lies_where_it_should(planted: dict[str, Statistics]) -> None:
    fibrosis = planted["sparse FIBROSIS"]
    assert fibrosis["lungs"]["mean_hu"] == pytest.approx(34, abs=7)
    assert fibrosis["lower"]["mean_hu"] == pytest.approx(75, abs=15)
    assert fibrosis["upper"]["mean_hu"] == 0
    assert planted["sparse EMPHYSEMA"]["lungs"]["mean_hu"] == pytest.approx(-11, abs=3)
    assert planted["sparse EMPHYSEMA"]["lower"]["mean_hu"] == 0
    assert planted["sparse NODULES"]["lungs"]["percentile_99.5_hu"] > 50


def test_effects_of_one_side_and_one_sex(
    cohorts: dict[str, KindsCohort], planted: dict[str, Statistics]
) -> None:
    right = planted["interaction ASPIRATION"]
    assert right["right_lung"]["mean_hu"] == pytest.approx(29, abs=1)
    assert right["left_lung"]["mean_hu"] == 0
    assert planted["interaction EXPOSURE"]["lungs"]["mean_hu"] == pytest.approx(38, abs=1)
    women = effect(cohorts["interaction"], "EXPOSURE", {"SEX": "Female"})
    assert women["lungs"]["mean_hu"] == 0


def test_age_is_u_shaped(cohorts: dict[str, KindsCohort]) -> None:
    def density(age: int) -> float:
        scan = cohorts["interaction"].render("e", {"AGE": str(age)})
        return float(scan.hu[np.isin(scan.mask, (1, 2))].mean())

    assert density(40) - density(62) == pytest.approx(43, abs=1)
    assert density(85) - density(62) == pytest.approx(43, abs=1)


def test_rare_and_local_effects(planted: dict[str, Statistics]) -> None:
    toxicity = planted["rare DRUG TOXICITY"]
    assert toxicity["lower"]["mean_hu"] == pytest.approx(80, abs=4)
    assert toxicity["upper"]["mean_hu"] < 4
    assert planted["rare PULMONARY HYPERTENSION"]["lungs"]["detail_sd_hu"] < -0.5
    pneumonia = planted["rare LOBAR PNEUMONIA"]
    assert pneumonia["left_lung"]["mean_hu"] == 0
    assert pneumonia["upper"]["mean_hu"] > 40 and abs(pneumonia["lower"]["mean_hu"]) < 1
    assert planted["rare BRONCHITIS"]["lungs"]["percentile_99.5_hu"] > 10
    fat = planted["fat OBESITY"]
    assert fat["lungs"]["mean_hu"] == 0 and fat["body"]["mean_hu"] == pytest.approx(-23, abs=6)


def test_every_cohort_has_control_and_null(planted: dict[str, Statistics]) -> None:
    for name in GROUPS:
        assert planted[f"{name} {CONTROL.name}"]["lungs"]["mean_hu"] == pytest.approx(28, abs=1)
        assert not any(planted[f"{name} {NULL.name}"]["lungs"].values())


def test_columns_are_balanced_and_independent() -> None:
    cases = [f"c{i}" for i in range(84)]
    rows = draw_rows(GROUPS["rare"], cases, np.random.default_rng(0))
    values = np.array(
        [[rows[case][c.name] == "Yes" for c in GROUPS["rare"].all_columns] for case in cases]
    )
    rare, *others = values.T.astype(float)
    assert rare.sum() == RARE_CASES
    correlation = np.corrcoef(others) - np.eye(len(others))
    assert np.abs(correlation).max() < 0.15
    assert np.abs(np.mean(others, axis=1) - 0.5).max() < 0.05


def test_files_are_the_rendering_and_load_as_a_cohort(cohorts: dict[str, KindsCohort]) -> None:
    cohort = cohorts["sparse"]
    loaded = load_cohort(DataOptions(dataroot=str(cohort.root)), seed=0)
    assert loaded.splits["train"] == SPLITS["train"]
    assert loaded.labels == (0, 1, 2, 3, 4) and loaded.body_label == 4  # found in the scans
    case = next(case for case in loaded.cases if case.id == "e")
    assert case.row["FIBROSIS"] == cohort.rows["e"]["FIBROSIS"]
    assert case.image is not None
    np.testing.assert_allclose(load_volume(case.image).array, cohort.render("e").hu, atol=0.51)


def test_a_finished_cohort_is_kept(cohorts: dict[str, KindsCohort]) -> None:
    root = cohorts["fat"].root
    before = (root / RECORD).stat().st_mtime_ns
    make_kinds_cohort(root, "fat", SPLITS, (), 1)
    assert (root / RECORD).stat().st_mtime_ns == before


def test_bad_input(cohorts: dict[str, KindsCohort], tmp_path: Path) -> None:
    render = partial(cohorts["fat"].render, "e")
    for changes in ({"NOTHING": "Yes"}, {"OBESITY": "Maybe"}):
        with pytest.raises(UserError, match="is not a"):
            render(changes)
    with pytest.raises(UserError, match="'x' is not a case"):
        cohorts["fat"].render("x")
    shutil.copy(cohorts["fat"].root / RECORD, tmp_path)
    write_json(tmp_path / RECORD, read_json(tmp_path / RECORD) | {"version": 0})
    with pytest.raises(UserError, match="another version"):
        KindsCohort.from_folder(tmp_path)
