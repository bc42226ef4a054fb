"""Texture statistics against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from util.metrics.regions import chest_regions
from util.metrics.texture import (
    POWER_BANDS,
    STATISTICS,
    detail_correlation,
    detail_ratio,
    radial_power,
    region_statistics,
    statistics_by_region,
    vessel_share,
)

SHAPE = (48, 48, 48)
SPACING = (2.0, 2.0, 2.0)
BALL = np.linalg.norm(np.indices(SHAPE) - 23.5, axis=0) < 22


def noise(sd: float, seed: int = 0) -> np.ndarray:
    return -850 + np.random.default_rng(seed).normal(0, sd, SHAPE)


def test_white_noise() -> None:
    hu = noise(20)
    stats = region_statistics(hu, BALL, SPACING)
    assert tuple(stats) == STATISTICS
    assert stats["mean_hu"] == pytest.approx(-850, abs=1)
    assert stats["detail_sd_hu"] == pytest.approx(20, rel=0.03)
    assert stats["percentile_5_hu"] == pytest.approx(-850 - 1.645 * 20, abs=1)
    assert stats["percentile_99.5_hu"] == pytest.approx(-850 + 2.576 * 20, abs=2)
    assert stats["share_below_-910_hu"] == pytest.approx(0.00135, abs=0.0008)


def test_gradients_and_the_pleura_are_not_detail() -> None:
    hu = np.where(BALL, -850 + 1.0 * np.indices(SHAPE)[1] * SPACING[1], 40.0)
    stats = region_statistics(hu, BALL, SPACING)
    assert hu[BALL].std() > 15
    assert stats["detail_sd_hu"] < 1.5
    assert max(radial_power(hu, BALL, SPACING).values()) < 1e-6


def test_sparse_holes_with_the_mean_kept() -> None:
    holes = BALL & (np.random.default_rng(1).random(SHAPE) < 0.07)
    hu = noise(10)
    before = region_statistics(hu, BALL, SPACING)
    hu[holes] -= 150
    hu[BALL] += 150 * holes[BALL].mean()
    after = region_statistics(hu, BALL, SPACING)
    assert after["mean_hu"] == pytest.approx(before["mean_hu"], abs=1e-6)
    rise = after["share_below_-950_hu"] - before["share_below_-950_hu"]
    assert rise == pytest.approx(holes[BALL].mean(), abs=0.01)
    assert after["detail_sd_hu"] > 3 * before["detail_sd_hu"]


def test_regions_of_one_volume_are_smoothed_within_their_tissue() -> None:
    labels = np.where(BALL, 1 + (np.indices(SHAPE)[0] < 24), 0)
    labels[22:26, 22:26, 20:40] = 3
    hu = np.where(labels == 0, 40.0, np.where(labels == 3, -1000.0, noise(20)))
    masks = chest_regions(labels, SPACING)
    stats = statistics_by_region(hu, masks, SPACING)
    assert set(stats) == set(masks)
    assert stats["lungs"] == region_statistics(hu, masks["lungs"], SPACING)
    for part in ("left_lung", "upper", "rim", "core"):
        assert stats[part]["detail_sd_hu"] == pytest.approx(20, rel=0.05)
    assert stats["outside"]["detail_sd_hu"] < 1e-6
    assert stats["airway"]["detail_sd_hu"] < 1e-6


def test_partial_volume_at_the_pleura_is_neither_detail_nor_vessels() -> None:
    edge = BALL & ~ndimage.binary_erosion(BALL)
    hu = np.where(edge, -400.0, -850.0)
    assert hu[BALL].std() > 100
    assert region_statistics(hu, BALL, SPACING)["detail_sd_hu"] < 1e-6
    assert vessel_share(hu, BALL) == 0
    assert max(radial_power(hu, BALL, SPACING).values()) < 1e-6


def test_a_region_at_the_border_keeps_its_detail() -> None:
    masks = chest_regions(BALL.astype(int), (10.0, 10.0, 10.0))
    stats = statistics_by_region(noise(20), masks, (10.0, 10.0, 10.0))
    assert stats["rim"]["detail_sd_hu"] == pytest.approx(20, rel=0.1)


def test_anisotropic_voxels_larger_than_the_smoothing() -> None:
    stats = region_statistics(noise(20), BALL, (1.0, 8.0, 8.0))
    assert stats["detail_sd_hu"] == pytest.approx(20, rel=0.1)


def test_white_noise_has_equal_power_in_all_bands() -> None:
    power = radial_power(noise(20), np.ones(SHAPE, bool), SPACING)
    assert set(power) == set(POWER_BANDS)
    assert power[POWER_BANDS[0]] == pytest.approx(400 * 8, rel=0.4)  # few coefficients
    for band in POWER_BANDS[1:]:
        assert power[band] == pytest.approx(400 * 8, rel=0.1)


@pytest.mark.parametrize("at", range(4))
def test_a_sine_lies_in_its_band(at: int) -> None:
    low, high = POWER_BANDS[at]
    phase = 2 * np.pi * np.sqrt(low * high) * np.indices(SHAPE)[0] * SPACING[0]
    power = radial_power(-850 + 30 * np.sin(phase), BALL, SPACING)
    assert max(power, key=lambda band: power[band]) == POWER_BANDS[at]
    if at < 2:
        assert power[POWER_BANDS[3]] < 0.001 * power[POWER_BANDS[at]]


def test_bands_beyond_the_grid_are_left_out() -> None:
    assert set(radial_power(noise(20), BALL, (4.0, 4.0, 4.0))) == set(POWER_BANDS[:3])


def test_vessels() -> None:
    hu = np.full(SHAPE, -850.0)
    inside = ndimage.binary_erosion(BALL)
    hu[BALL & (np.indices(SHAPE)[0] == 10)] = -600
    assert vessel_share(hu, BALL) == (hu[inside] > -700).mean()
    assert vessel_share(hu + 400, BALL) == vessel_share(hu, BALL) > 0


def test_correlation_between_seeds() -> None:
    shared, one, two = noise(20, 1), noise(20, 2), noise(20, 3)
    ramp = 5.0 * np.indices(SHAPE)[1]
    assert detail_correlation(ramp + one, ramp + two, BALL, SPACING) == pytest.approx(0, abs=0.03)
    mixed = detail_correlation(shared + one, shared + two, BALL, SPACING)
    assert mixed == pytest.approx(0.5, abs=0.03)
    assert detail_correlation(ramp, ramp, BALL, SPACING) == 1
    assert detail_correlation(np.zeros(SHAPE), one, BALL, SPACING) == 0


def test_nothing_without_lungs() -> None:
    empty = np.zeros(SHAPE, bool)
    assert region_statistics(noise(20), empty, SPACING) == {}
    assert radial_power(noise(20), empty, SPACING) == {}
    assert np.isnan(vessel_share(noise(20), empty))
    assert np.isnan(detail_correlation(noise(20), noise(20, 1), empty, SPACING))
    assert detail_ratio(noise(20), noise(20, 1), empty, SPACING) is None


def test_detail_of_generated_over_real() -> None:
    assert detail_ratio(noise(10), noise(40, 1), BALL, SPACING) == pytest.approx(0.25, rel=0.05)
    assert detail_ratio(noise(10), np.zeros(SHAPE), BALL, SPACING) is None
