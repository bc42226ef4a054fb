"""Dense disease in real and in generated volumes: both must show what was planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from data.cohort import Case
from data.phantom.anatomy import PhantomPatient, build_anatomy
from data.text.counterfactuals import RowText
from data.text.prompts import Prompt, Template
from data.text.template import Column
from data.volume_dataset import VolumeSample
from data.volumes import load_volume
from options.base_options import DataOptions
from pipelines.atlas.analysis import measure_masks
from pipelines.atlas.measure import (
    AtlasMeasurements,
    CaseCounterfactuals,
    Generators,
    MeasurementPlan,
    lung_volume_ml,
    real_outcomes,
)
from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.outcomes import outcome_frame
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from pipelines.atlas.statistics.vessels import find_vessels
from util.metrics.regions import chest_regions

REALCT = Path(__file__).resolve().parents[4] / "shared" / "realct"
WINDOW = (-1000.0, 400.0)
LESION = AtlasAttribute("LESION", "exposure", "category", ("no", "yes"), {})
PLAN = MeasurementPlan(
    Template(
        "lesion", {"LESION": Column("LESION", phrases={"no": "no lesion", "yes": "a lesion"})}
    ),
    DataOptions(),
    [LESION],
    contrasts_of(LESION),
)

Hu = NDArray[np.float32]
Regions = dict[str, NDArray[np.bool_]]


def sample_of(hu: Hu, labels: NDArray[np.integer], affine: NDArray[np.floating]) -> VolumeSample:
    """A scan without padding."""
    low, high = WINDOW
    image = torch.from_numpy((2 * (hu - low) / (high - low) - 1).astype(np.float32))[None]
    x, y, z = map(slice, hu.shape)
    case = Case("one", None, Path("mask.nii.gz"), {"LESION": "no"})
    channels = torch.zeros(hu.shape, dtype=torch.uint8)
    return VolumeSample(case, image, channels, 1, (x, y, z), labels, affine, WINDOW)


def ball(regions: Regions, spacing: NDArray[np.floating], radius: float) -> NDArray[np.bool_]:
    """A ball of lung, radius in mm, around the deepest point of the lower right lung."""
    side = regions["lower"] & regions["right_lung"]
    depth = ndimage.distance_transform_edt(side, sampling=spacing)
    grids = np.indices(side.shape).reshape(3, -1).T - np.argwhere(depth == depth.max())[0]
    distance = np.linalg.norm(grids * spacing, axis=1).reshape(side.shape)
    return np.asarray(regions["lungs"] & (distance <= radius))


def honeycomb(hu: Hu, regions: Regions, spacing: NDArray[np.floating]) -> Hu:
    rim = regions["lower"] & regions["rim"]
    walls = rim & (np.random.default_rng(0).random(hu.shape) < 0.3)
    return np.where(walls, np.float32(-450), hu)


def consolidation(hu: Hu, regions: Regions, spacing: NDArray[np.floating]) -> Hu:
    return np.where(ball(regions, spacing, 35), np.float32(30), hu)


def ground_glass(hu: Hu, regions: Regions, spacing: NDArray[np.floating]) -> Hu:
    return np.where(ball(regions, spacing, 45), hu + 200, hu).clip(*WINDOW)


def emphysema(hu: Hu, regions: Regions, spacing: NDArray[np.floating]) -> Hu:
    """Holes at -985 HU in a tenth of the upper thirds."""
    holes = regions["upper"] & (np.random.default_rng(0).random(hu.shape) < 0.1)
    return np.where(holes, np.float32(-985), hu)


LESIONS = (honeycomb, consolidation, ground_glass, emphysema)
# Each outcome of a region's voxels, computed by itself.
TRUTHS: dict[str, Callable[[Hu], float]] = {
    "mean": lambda hu: float(hu.mean(dtype=float)),
    "percentile_5": lambda hu: float(np.percentile(hu, 5)),
    "percentile_95": lambda hu: float(np.percentile(hu, 95)),
    "percentile_99.5": lambda hu: float(np.percentile(hu, 99.5)),
    "share_below_950": lambda hu: 100 * float((hu < -950).mean()),
    "share_below_910": lambda hu: 100 * float((hu < -910).mean()),
    "share_above_700": lambda hu: 100 * float((hu > -700).mean()),
}


def check_lesion(
    hu: Hu, labels: NDArray[np.integer], affine: Hu, lesion: Callable[..., Hu]
) -> None:
    """Compare planted, real and generated differences in every region of the lungs."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    regions = chest_regions(labels, spacing)
    diseased = lesion(hu, regions, spacing)
    healthy = sample_of(hu, labels, affine)

    def generate(_: VolumeSample, prompt: Prompt) -> Hu:
        return diseased if "a lesion" in prompt.sentence else hu

    measured = AtlasMeasurements()
    networks = Generators("run", generate, [], None, [])
    text = RowText(healthy.case.row, PLAN.template)
    CaseCounterfactuals(PLAN, healthy, text, networks, measured).measure()
    generated = {(row["outcome"], row["region"]): row["effect"] for row in measured.effects}
    before = real_outcomes(healthy, PLAN)
    after = real_outcomes(sample_of(diseased, labels, affine), PLAN)
    assert before is not None and after is not None
    for outcome, measure in TRUTHS.items():
        for region in ("lungs", "lower", "right_lung", "core", "rim"):
            mask = regions[region]
            truth = measure(diseased[mask]) - measure(hu[mask])
            near = pytest.approx(truth, rel=0.02, abs=0.1)
            assert generated[outcome, region] == near, (outcome, region)
            assert after[outcome, region] - before[outcome, region] == near, (outcome, region)
    place = "upper" if lesion is emphysema else "lower"
    assert abs(generated["mean", place]) > 8
    detail = after["detail_sd", place] - before["detail_sd", place]
    assert generated["detail_sd", place] == pytest.approx(detail, abs=0.1)


def test_the_lungs_of_a_mask_hold_its_labelled_lesions(tmp_path: Path) -> None:
    """Their volume, their shape and their place in the frame are those without the label."""
    patient = PhantomPatient.random(np.random.default_rng(3))
    labels = build_anatomy(patient, (40, 30, 32), (9.0, 9.0, 9.0)).labels
    affine, spacing = np.diag([9.0, 9, 9, 1]), np.full(3, 9.0)
    with_lesion = labels.copy()
    with_lesion[ball(chest_regions(labels, (9.0, 9.0, 9.0)), spacing, 25)] = 4
    assert (with_lesion == 4).sum() > 20
    hu = np.where(labels > 0, -850, 40).astype(np.float32)
    plan = replace(PLAN, data=DataOptions(lesion_labels=(4,)))
    networks = Generators("run", lambda *_: hu, [], None, [])
    text = RowText({"LESION": "no"}, PLAN.template)
    volumes, frames, shapes = [], [], []
    for name, mask in (("plain", labels), ("lesion", with_lesion)):
        sample = sample_of(hu, mask, affine)
        volumes.append(lung_volume_ml(sample, plan.data))
        case = CaseCounterfactuals(plan, sample, text, networks, AtlasMeasurements())
        assert case.frame is not None
        frames.append(case.frame.weight)
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), path)
        cases = [Case(name, None, path, {"LESION": "no"})]
        study = SimpleNamespace(
            plan=plan,
            cohort=SimpleNamespace(cases=cases),
            compared=cases,
            every=[],
            words=[],
            formatted_row=lambda case: case.row,
        )
        shapes.append(measure_masks(study).outcomes.iloc[0])  # type: ignore[arg-type]
    assert volumes[0] == volumes[1]
    np.testing.assert_array_equal(frames[0], frames[1])
    pd.testing.assert_series_equal(shapes[0], shapes[1], check_names=False)


@pytest.mark.parametrize("lesion", LESIONS)
def test_lesions_of_a_phantom_are_whole_on_both_sides(lesion: Callable[..., Hu]) -> None:
    patient = PhantomPatient.random(np.random.default_rng(3))
    anatomy = build_anatomy(patient, (60, 45, 48), (6.0, 6.0, 6.0))
    check_lesion(anatomy.hu.clip(*WINDOW), anatomy.labels, np.diag([6.0, 6, 6, 1]), lesion)


@pytest.mark.skipif(not REALCT.is_dir(), reason="the real scans (../shared/realct) are not here")
@pytest.mark.parametrize("lesion", LESIONS)
def test_lesions_of_a_real_chest_are_whole_on_both_sides(lesion: Callable[..., Hu]) -> None:
    name = "LIDC-IDRI-0001.nii.gz"
    scan, mask = load_volume(REALCT / "img" / name), load_volume(REALCT / "gtlung" / name)
    step = tuple(slice(None, None, max(1, round(4 / s))) for s in np.diag(scan.affine)[:3])
    affine = np.diag([*(s * p.step for s, p in zip(np.diag(scan.affine), step, strict=False)), 1])
    hu = scan.array[step].astype(np.float32).clip(*WINDOW)
    check_lesion(hu, mask.array[step].astype(np.uint8), affine, lesion)


def right_lung() -> tuple[Hu, NDArray[np.uint8], NDArray[np.floating]]:
    """The right lung of a real chest at 2 mm, its labels and its affine."""
    name = "LIDC-IDRI-0001.nii.gz"
    scan, mask = load_volume(REALCT / "img" / name), load_volume(REALCT / "gtlung" / name)
    labels = np.where(mask.array == 2, np.uint8(2), np.uint8(0))
    box = ndimage.find_objects(labels == 2, 1)[0]
    return scan.array[box].astype(np.float32).clip(*WINDOW), labels[box], scan.affine


@pytest.mark.skipif(not REALCT.is_dir(), reason="the real scans (../shared/realct) are not here")
@pytest.mark.parametrize("lesion", LESIONS[:3])
def test_lesions_of_a_real_chest_stay_without_its_vessels(lesion: Callable[..., Hu]) -> None:
    """Vessels go by their shape, and dense disease stays, on both sides."""
    hu, labels, affine = right_lung()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    regions = chest_regions(labels, spacing)
    diseased = lesion(hu, regions, spacing)
    plan = replace(PLAN, without_vessels=True)
    real = []
    for volume in (hu, diseased):
        values = real_outcomes(sample_of(volume, labels, affine), plan)
        assert values is not None
        real.append(values)
    outcomes = plan.outcomes(sample_of(hu, labels, affine), hu)
    generated = [outcomes.measure(volume) for volume in (hu, diseased)]
    for before, after in (real, generated):
        for region in ("lungs", "lower", "core", "rim"):
            truth = float((diseased - hu)[regions[region]].mean())
            change = after["mean_without_vessels", region] - before["mean_without_vessels", region]
            assert change == pytest.approx(truth, rel=0.1, abs=3), region


@pytest.mark.skipif(not REALCT.is_dir(), reason="the real scans (../shared/realct) are not here")
def test_vessels_of_a_real_chest_are_found() -> None:
    hu, labels, affine = right_lung()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    regions = chest_regions(labels, spacing)
    vessels = find_vessels(hu, regions, spacing.tolist())
    dense = regions["core"] & (hu > -700)
    assert (vessels & dense).sum() > 0.4 * dense.sum()
    assert 0.01 < vessels[regions["core"]].mean() < 0.1 and not vessels[~regions["core"]].any()
    assert np.median(hu[vessels]) > np.median(hu[regions["core"]]) + 200


def test_a_tube_is_a_vessel_and_neither_a_ball_nor_speckle_is() -> None:
    shape, spacing = (50, 40, 40), (1.5, 1.5, 2.0)
    regions = {"lungs": np.ones(shape, bool), "core": np.ones(shape, bool)}
    x, y, z = (np.indices(shape).T * spacing).T
    flat = np.random.default_rng(0).normal(-850, 20, shape)
    tube = (y - 30) ** 2 + (z - 40) ** 2 < 3**2
    ball = (x - 35) ** 2 + (y - 30) ** 2 + (z - 40) ** 2 < 20**2
    speckle = np.random.default_rng(1).random(shape) < 0.3
    found = find_vessels(np.where(tube, 40, flat), regions, spacing)
    assert found[tube].mean() > 0.7 and found[~tube].mean() < 0.02
    for disease, hu in ((ball, 30), (speckle, -450)):
        assert find_vessels(np.where(disease, hu, flat), regions, spacing)[disease].mean() < 0.01
    assert not find_vessels(flat, regions, spacing).any()
    assert not find_vessels(flat, {"lungs": regions["lungs"]}, spacing).any()  # no central lung


@pytest.mark.parametrize(
    ("lesion", "outcome"),
    [(honeycomb, "mean"), (honeycomb, "percentile_95"), (emphysema, "share_below_950")],
)
def test_a_cohort_with_disease_shows_it(lesion: Callable[..., Hu], outcome: str) -> None:
    """Right sign, and an interval that holds the truth."""
    anatomy = build_anatomy(
        PhantomPatient.random(np.random.default_rng(3)), (45, 34, 36), (8.0,) * 3
    )
    regions = chest_regions(anatomy.labels, (8.0, 8.0, 8.0))
    rng = np.random.default_rng(1)
    measured, truth, values = {}, [], {}
    for number in range(40):
        hu = anatomy.hu + rng.normal(rng.normal(0, 15), 20, anatomy.hu.shape).astype(np.float32)
        values[str(number)] = {"LESION": "yes" if number % 2 else "no"}
        if number % 2:
            diseased = lesion(hu, regions, np.full(3, 8.0))
            lungs = regions["lungs"]
            truth.append(TRUTHS[outcome](diseased[lungs]) - TRUTHS[outcome](hu[lungs]))
            hu = diseased
        one = real_outcomes(sample_of(hu, anatomy.labels, np.diag([8.0, 8, 8, 1])), PLAN)
        assert one is not None
        measured[str(number)] = one
    scans = RealScans(
        outcome_frame(measured),
        pd.DataFrame.from_dict(values, orient="index"),
        pd.Series(5000.0, list(measured)),
        pd.Series(list(measured), list(measured)),
    )
    real = estimate_contrasts(scans, PLAN.contrasts, Roles({"LESION": LESION}, frozenset(), ""))
    is_shown = (real["primary"] == "yes") & (real["region"] == "lungs")
    row = real[is_shown & (real["outcome"] == outcome)].iloc[0]
    assert 0 < row["low"] < np.mean(truth) < row["high"]
