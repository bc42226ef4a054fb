"""Rows of effects.csv, and metrics of one volume."""

from __future__ import annotations

import numpy as np
import pytest

from util.metrics.effects import EFFECT_COLUMNS, Contrast, effect_rows, region_effects
from util.metrics.fidelity import metric_rows, texture_notes
from util.metrics.regions import chest_regions
from util.metrics.texture import statistics_by_region

SHAPE = (40, 40, 40)
SPACING = (2.0, 2.0, 2.0)
LABELS = (np.linalg.norm(np.indices(SHAPE) - 19.5, axis=0) < 18).astype(int)
MASKS = chest_regions(LABELS, SPACING)


def lungs(sd: float, seed: int = 0, mean: float = -850) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(0, sd, SHAPE)


def draw(first: np.ndarray, second: np.ndarray) -> dict[str, dict[str, float]]:
    before, after = (statistics_by_region(hu, MASKS, SPACING) for hu in (first, second))
    return region_effects(second - first, before, after, MASKS)


def test_texture_with_the_mean_kept_is_an_effect() -> None:
    rows = effect_rows(Contrast("a", "C", "0", "1"), [draw(lungs(10), lungs(30, 1))], MASKS)
    assert [row["region"] for row in rows] == list(MASKS)
    row = next(row for row in rows if row["region"] == "lungs")
    assert tuple(row) == EFFECT_COLUMNS
    assert row["voxels"] == (LABELS == 1).sum()
    assert row["mean_diff_hu"] == pytest.approx(0, abs=1)
    assert row["change_detail_sd_hu"] == pytest.approx(20, rel=0.05)
    assert row["change_percentile_5_hu"] == pytest.approx(-1.645 * 20, rel=0.1)
    assert row["change_share_below_-910_hu"] == pytest.approx(0.0228, abs=0.005)
    assert (row["draws"], row["mc_error_hu"]) == (1, "")


def test_effects_are_means_over_draws_with_their_error() -> None:
    rises = (10.0, 20.0, 60.0)
    first = lungs(10)
    draws = [draw(first, first + rise) for rise in rises]
    for row in effect_rows(Contrast("a", "C", "0", "1"), draws, MASKS):
        assert row["draws"] == 3
        assert row["mean_diff_hu"] == pytest.approx(30)
        assert row["mc_error_hu"] == pytest.approx(np.std(rises, ddof=1) / np.sqrt(3), abs=1e-4)
        assert row["change_detail_sd_hu"] == pytest.approx(0, abs=1e-4)


def test_metrics_of_a_smooth_volume_beside_its_scan() -> None:
    rows = metric_rows("a", lungs(5), lungs(50, 1), LABELS == 1, (-1000.0, 400.0), SPACING)
    values = {str(row["metric"]): float(row["value"]) for row in rows if row["region"] == "lungs"}
    assert values["detail_sd_hu"] == pytest.approx(5, rel=0.05)
    assert values["real_detail_sd_hu"] == pytest.approx(50, rel=0.05)
    power = [name for name in values if name.startswith("power_")]
    assert power == [f"power_{name}_mm" for name in ("64_to_32", "32_to_16", "16_to_8", "8_to_4")]
    assert values["power_16_to_8_mm"] == pytest.approx(25 * 8, rel=0.1)
    assert {f"real_{name}" for name in (*power, "vessel_share")} <= set(values)
    assert "mean_hu" not in values and "mean_lung_attenuation_hu" in values


def test_the_body_is_found_by_hu_alone() -> None:
    """Arbitrary units are all above -400, so that the whole volume is compared, by that name."""
    labelled = LABELS == 1
    real = np.where(labelled, 500.0, 0.0)
    made = real + 10.0 * labelled
    args = ("a", made, real, labelled, (0.0, 1000.0), SPACING)
    errors = {
        row["region"]: row["value"]
        for row in metric_rows(*args, is_ct=False)
        if row["metric"] == "mae_hu"
    }
    assert errors["volume"] == pytest.approx(10 * labelled.mean(), abs=1e-4)
    assert set(errors) == {"volume", "lungs"} and errors["lungs"] == 10
    assert {row["region"] for row in metric_rows(*args)} == {"body", "lungs"}


def test_sentences_on_texture() -> None:
    assert texture_notes(0.6, 0.8) == texture_notes(None, None) == []
    (smooth,) = texture_notes(0.1, None)
    assert "too smooth" in smooth and "0.10" in smooth
    (rough,) = texture_notes(6.3, 0.1)
    assert "too rough" in rough and "6.3 times" in rough
    (alike,) = texture_notes(None, 0.99)
    assert "hardly vary" in alike and "0.99" in alike
