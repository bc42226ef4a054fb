"""Frames and planted effects on synthetic volumes with a known truth."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.planted import planted_effect_rows, planted_share
from pipelines.atlas.statistics.population import FRAME, LungFrame, PopulationMaps
from pipelines.atlas.statistics.regional import LOCAL_OUTCOMES, RegionOutcomes
from util.metrics.regions import chest_regions

AGE = AtlasAttribute(
    "AGE", "demographic", "number", ("40", "50", "60", "70", "80"), {"60": 150}, "years"
)


def test_contrasts_weigh_an_attributes_values() -> None:
    pair, slope = contrasts_of(AGE)
    line = {v: 3.0 * float(v) + 7 for v in AGE.values}
    assert sum(w * line[v] for v, w in pair.weights.items()) == pytest.approx(120)
    assert sum(w * line[v] for v, w in slope.weights.items()) == pytest.approx(3)
    assert len(slope.weights) == 5 and slope.start == ""


def chest(shift: int, side: int) -> np.ndarray:
    labels = np.zeros((24, 20, 20), np.uint8)
    (
        labels[2:10, 4 : 4 + side, shift : shift + side],
        labels[13:22, 4 : 4 + side, shift : shift + side],
    ) = 1, 2
    return labels


def test_patients_of_other_sizes_meet_in_one_frame() -> None:
    """The lower half of one lung is the same place for every patient and size of lung."""
    maps = PopulationMaps()
    for shift, side in ((2, 16), (4, 10)):
        labels = chest(shift, side)
        volume = np.zeros(labels.shape)
        volume[:12, :, : shift + side // 2] = 10
        frame = LungFrame(labels, (1, 2))
        maps.add(("effect", "x", ""), frame(volume))
        maps.add(("permuted", "x", "p1"), frame(volume))
        maps.add(("permuted", "x", "p2"), frame(-volume))
    averaged = {(one.kind, one.contrast): one.array for one in maps.summary_maps()}
    mean = averaged["effect", "x"]
    assert mean.shape == FRAME and np.isfinite(mean).mean() > 0.9
    assert np.nanmean(mean[5:35, 32, 4:30]) == pytest.approx(10) and np.nanmean(
        mean[5:35, 32, 44:]
    ) == pytest.approx(0)
    assert np.nanmax(np.abs(mean[41:])) == 0  # the other lung
    np.testing.assert_allclose(
        averaged["permuted", "x"], mean
    )  # one network's, not a mean in which chance cancels out
    assert averaged["effect_sd", "x"].shape == FRAME


def test_a_frame_of_lobes_or_of_one_label_holds_all_lung() -> None:
    labels = chest(2, 16)
    whole = LungFrame(np.where(labels > 0, 1, 0), (1,))(np.ones(labels.shape))
    assert (
        np.nanmin(whole) == pytest.approx(1) and np.isnan(whole).any()
    )  # between the lungs there is none


@pytest.mark.parametrize("label", [1, 2])
def test_one_lung_lies_in_its_own_half_of_the_frame(label: int) -> None:
    labels = chest(2, 16)
    mapped = LungFrame(np.where(labels == label, label, 0), (1, 2))(np.full(labels.shape, 7.0))
    halves = mapped[:40], mapped[40:]
    assert np.nanmean(halves[label - 1]) == pytest.approx(7)
    assert np.isnan(halves[2 - label]).all()


def test_planted_effects_are_compared_region_by_region() -> None:
    lungs, lower = np.ones((2, 2, 4), bool), np.zeros((2, 2, 4), bool)
    lower[:, :, 0] = True
    assert planted_share({"lungs": lungs, "lower": lower}, "lower") == {"lungs": 0.25, "lower": 1.0}
    rows = {
        r["region"]: r
        for r in planted_effect_rows(
            {"lower": 20.0, "elsewhere": 0.0}, {"lower": 18.0, "elsewhere": 2.0}
        )
    }
    assert rows["lower"]["recovered"] == pytest.approx(0.9) and rows["lower"][
        "leaked_hu"
    ] == pytest.approx(-2)
    assert rows["elsewhere"]["recovered"] is None and rows["elsewhere"]["leaked_hu"] == 2


def test_local_outcomes_average_to_those_of_the_region() -> None:
    labels = chest(2, 16)
    rng = np.random.default_rng(0)
    volume = np.where(labels > 0, -850 + rng.normal(0, 80, labels.shape), 0).astype(np.float32)
    outcomes = RegionOutcomes.from_masks(chest_regions(labels, (5, 5, 5)), (5, 5, 5))
    local = {name: outcomes.local(volume, name) for name in LOCAL_OUTCOMES}
    values = outcomes.measure(volume)
    assert set(local) == {"detail_sd", "share_below_950", "share_above_700"}
    for name in ("share_below_950", "share_above_700"):
        mean = local[name][labels > 0].mean()
        assert mean == pytest.approx(values[name, "lungs"]) and 0 < mean < 100
        assert not local[name][labels == 0].any()
    # The mean size of normal noise is 0.8 of its SD.
    size = local["detail_sd"][labels > 0].mean() / values["detail_sd", "lungs"]
    assert size == pytest.approx(0.8, abs=0.05)
    nothing = RegionOutcomes.from_masks({"outside": labels == 0}, (5, 5, 5))
    assert not nothing.local(volume, "detail_sd").any()
