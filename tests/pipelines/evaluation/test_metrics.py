"""Metrics of an evaluation against known values: baselines, HU, masks, diversity, text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation.baselines import (
    Metric,
    ResamplingPlan,
    bootstrap_mean,
    centred_interval,
    compare_with_baseline,
)
from pipelines.evaluation.density import (
    density_metrics,
    lung_density,
    lung_spectrum,
    lung_texture,
    texture_metrics,
)
from pipelines.evaluation.distances import FrechetDistance
from pipelines.evaluation.diversity import diversity_metrics, ms_ssim
from pipelines.evaluation.measurements import (
    HU_BINS,
    VolumeMeasurements,
)
from pipelines.evaluation.memorisation import (
    CopyVerdict,
    NearestScan,
)
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.text_effect import (
    AttributePredictor,
    PredictedAttribute,
    TooFewScansError,
    text_metrics,
)
from pipelines.evaluation.verdict import interpret_metric, verdict_sentence
from tests.measured_volumes import RNG, group, measured
from util.metrics.texture import POWER_BANDS, SPECTRUM_BANDS, radial_power

# --- baselines


@pytest.mark.parametrize(("synthetic", "size"), [(3, 3), (4, 4), (20, 4)])
def test_draws_take_parts_that_share_nothing(synthetic: int, size: int) -> None:
    """Halves, or parts as large as the synthetic set where that is smaller."""
    plan = ResamplingPlan.from_counts(9, synthetic, 20, 1)
    for one, two in plan.parts:
        assert (
            len(one) == len(two) == size
            and not set(one) & set(two)
            and set(one) | set(two) <= set(range(9))
        )
    for one, two in plan.matched:
        assert len(one) == len(two) == size
        assert set(one) <= set(range(9)) and set(two) <= set(range(9, 9 + synthetic))
    again, second_seed = (ResamplingPlan.from_counts(9, synthetic, 20, seed) for seed in (1, 2))
    assert plan.parts[0][0].tolist() == again.parts[0][0].tolist()
    assert plan.parts[0][0].tolist() != second_seed.parts[0][0].tolist()


def test_few_volumes_of_the_same_kind_lie_within_the_baseline() -> None:
    """FID grows as sets shrink, so the baseline must be of sets as small as the synthetic one."""
    values = np.random.default_rng(3).normal(size=(120, 1, 8))
    plan = ResamplingPlan.from_counts(100, 20, 60, 0)
    metric = compare_with_baseline("realism", "few", FrechetDistance(values), plan)
    assert metric.matched == pytest.approx(metric.baseline, rel=0.3)
    assert interpret_metric(metric) == "within the baseline"


def test_baseline_of_equal_sets_holds_their_distance() -> None:
    values = np.concatenate(
        [
            RNG.normal(size=(40, 1, 3)),
            RNG.normal(size=(40, 1, 3)),
            RNG.normal(2, 1, size=(40, 1, 3)),
        ]
    )
    distance = FrechetDistance(values)
    plan = ResamplingPlan.from_counts(40, 40, 60, 0)
    equal = compare_with_baseline("realism", "equal", distance, plan)
    assert equal.baseline * 0.3 < equal.matched < equal.baseline * 3
    assert equal.low < equal.value < equal.high
    shifted = compare_with_baseline(
        "realism", "other", lambda a, b: distance(a, np.where(b >= 40, b + 40, b)), plan
    )
    assert (
        shifted.matched > shifted.baseline_high
        and interpret_metric(shifted) == "beyond the baseline"
    )


def test_intervals_hold_the_value() -> None:
    low, high = centred_interval(5.0, np.array([9.0, 10.0, 11.0]))
    assert low < 5 < high and np.isnan(centred_interval(5.0, np.array([np.nan]))[0])
    low, high = bootstrap_mean(np.array([1.0, 2, 3, np.nan]), 100, 0)
    assert 1 <= low < 2 < high <= 3 and np.isnan(bootstrap_mean(np.array([1.0]), 100, 0)[0])


@pytest.mark.parametrize(
    ("metric", "reading"),
    [
        (Metric("hu", "x", -3.0, baseline_high=4, better="zero"), "within the baseline"),
        (Metric("hu", "x", -5.0, baseline_high=4, better="zero"), "beyond the baseline"),
        (Metric("text", "x", 0.7, baseline_high=0.6, better="high"), "text shows"),
        (Metric("text", "x", 9.0, baseline_high=8.5, better="low"), "no more than chance"),
    ],
)
def test_readings(metric: Metric, reading: str) -> None:
    assert interpret_metric(replace(metric, baseline=2.0)) == reading
    assert interpret_metric(metric) == ""


def test_the_verdict_names_what_decides_it() -> None:
    metrics = [
        Metric("realism", "2.5D FID, random", 9.0, matched=8.0, baseline=2.0, baseline_high=3.0),
        Metric("hu", "Mean lung attenuation (HU), synthetic minus real", -3.0, -5.0, -1.0),
        Metric("texture", "Detail SD of the lungs (HU), synthetic minus real", -9.0, -10.0, -8.0),
        Metric("text", "AGE read from volumes (rank correlation)", 0.7, better="high"),
        Metric("text", "SEX read from volumes (AUC)", 0.5, better="high"),
        Metric("text", "AGE read from volumes of empty prompts (r)", 0.9, better="high"),
    ]
    judged = [
        metrics[0],
        *(replace(m, baseline=1.0, baseline_high=4.0, better="zero") for m in metrics[1:3]),
        *(replace(m, baseline=0.5, baseline_high=0.6) for m in metrics[3:]),
    ]
    copies = [CopyVerdict(NearestScan("a", distance, 0.5), None) for distance in (0.1, 0.9)]
    assert verdict_sentence(judged, copies) == (
        "Called copies of training scans: 1 of 2 volumes. Told apart from real scans: 2 of 3 "
        "measures lie beyond the baseline. The text of AGE shows in the volumes. The text of SEX "
        "shows no more than chance. 2.5D FID, random: 8, between parts of the real scans 2; mean "
        "lung attenuation -3.0 HU [-5.0, -1.0]; detail SD -9.0 HU [-10.0, -8.0]."
    )
    near = [replace(m, baseline_high=10.0) for m in judged[:3]]
    text = verdict_sentence(near, copies[1:])
    assert "No copy of a training scan among 1 volume." in text
    assert "Not told apart from real scans: all 3 measures" in text
    few = verdict_sentence(judged, None, "2 scans are too few")
    assert few.startswith("No verdict: 2 scans are too few. 2.5D FID") and "apart" not in few


def test_tables_keep_their_column_names() -> None:
    row = Metric("hu", "x", 1.0, baseline=2.0, baseline_high=3.0).row()
    assert row["floor"] == 2.0 and row["floor_high"] == 3.0 and "baseline" not in row


# --- HU


def test_a_shift_of_30_hu_moves_the_metrics_by_30() -> None:
    real, shifted = group(6, seed=3), group(6, "made", mean=-820.0, seed=3)
    plan = ResamplingPlan.from_counts(6, 6, 20, 0)
    metrics = {f.name: f for f in density_metrics(real, shifted, plan)}
    for name in (
        "Lung histogram, Wasserstein-1 (HU)",
        "Mean lung attenuation (HU), synthetic minus real",
        "15th percentile of the lungs (HU), synthetic minus real",
    ):
        assert metrics[name].value == pytest.approx(30, abs=0.1), name
    assert abs(metrics["SD of lung voxels (HU), synthetic minus real"].value) < 0.1
    gates = [f.value for name, f in metrics.items() if "lung median" in name]
    assert gates == [1.0, 1.0]
    itself = {
        f.name: f.value for f in density_metrics(real, real, plan) if "lung median" not in f.name
    }
    assert set(itself.values()) == {0.0}


def test_smooth_lungs_are_far_from_real_ones_in_detail_alone() -> None:
    lungs = np.ones((32, 32, 32), bool)
    ramp = -850 + 3.0 * np.indices(lungs.shape)[1]
    spacing = (2.0, 2.0, 2.0)

    def textured(sd: float, count: int, seed: int) -> list[VolumeMeasurements]:
        rng = np.random.default_rng(seed)
        volumes = []
        for volume in group(count, seed=seed):
            hu = ramp + rng.normal(0, sd, lungs.shape)
            power = radial_power(hu, lungs, spacing, (*POWER_BANDS, *SPECTRUM_BANDS))
            texture = lung_texture(hu, lungs, spacing, power)
            spectrum = lung_spectrum(power)
            volumes.append(
                replace(volume, density={**volume.density, **texture}, spectrum=spectrum)
            )
        return volumes

    real, smooth = textured(40, 6, 1), textured(8, 6, 2)
    plan = ResamplingPlan.from_counts(6, 6, 20, 0)
    metrics = {f.name: f for f in texture_metrics(real, smooth, plan)}
    detail = metrics["Detail SD of the lungs (HU), synthetic minus real"]
    assert detail.value == pytest.approx(-32, rel=0.05) and detail.baseline_high < 1
    powers = [f.value for name, f in metrics.items() if name.startswith("Power of the lungs")]
    assert len(powers) == 4
    assert powers[2:] == pytest.approx([np.log10(1 / 25)] * 2, abs=0.05)


def test_volumes_without_lungs_are_left_out() -> None:
    assert lung_texture(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), bool), (2, 2, 2), {}) == {}
    density, histogram = lung_density(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), bool))
    assert density == {} and histogram.sum() == 0 and len(histogram) == len(HU_BINS)


# --- masks, diversity, text


def test_overlap_of_shifted_lungs() -> None:
    mask = np.zeros((30, 20, 20), np.uint8)
    mask[3:11, 4:14, 4:14], mask[17:25, 4:14, 4:14] = 1, 2
    same = overlap(mask, mask, (2, 2, 3))
    assert same["dice_lungs"] == same["dice_left_lung"] == 1 and same["hd95_mm_right_lung"] == 0
    moved = overlap(mask, np.roll(mask, 2, 1), (2, 2, 3))
    assert moved["dice_lungs"] == pytest.approx(0.8) and moved["hd95_mm_lungs"] == pytest.approx(
        4.0
    )
    none = overlap(mask, np.zeros_like(mask), (2, 2, 3))
    assert none["dice_lungs"] == 0 and np.isnan(none["hd95_mm_lungs"])


@pytest.mark.parametrize("side", [5, 8, 16, 17, 27, 33, 64])
def test_ms_ssim_of_thin_volumes(side: int) -> None:
    volume = np.random.default_rng(side).normal(-800, 100, (70, 66, side))
    assert ms_ssim(volume, volume, (-1000, 400)) == pytest.approx(1, abs=1e-5)


def test_ms_ssim_and_volumes_that_are_all_alike() -> None:
    one = RNG.normal(-500, 200, (20, 24, 16))
    assert ms_ssim(one, one, (-1000, 400)) == pytest.approx(1, abs=1e-5)
    assert ms_ssim(one, RNG.normal(-500, 200, one.shape), (-1000, 400)) < 0.5
    real = group(5, seed=4)
    collapsed = [
        VolumeMeasurements(**{**vars(v), "small": real[0].small}) for v in group(5, seed=5)
    ]
    pairs, again, detail = diversity_metrics(real, collapsed, [collapsed], (-1000, 400), 0)
    assert pairs.value == pytest.approx(1, abs=1e-3)
    assert interpret_metric(pairs) == "more alike than real pairs"
    assert again.value == pytest.approx(1, abs=1e-3)
    assert detail.value == pytest.approx(1, abs=1e-2) and abs(detail.baseline) < 0.3


def test_text_effect_is_read_where_it_is_and_not_in_controls() -> None:
    rows = {f"case{i}": "smoker" if i % 2 else "never" for i in range(40)}
    means = {"smoker": -800.0, "never": -860.0}

    def volumes(values: dict[str, str], seed: int) -> list[VolumeMeasurements]:
        rng = np.random.default_rng(seed)
        return [measured(case, rng, mean=means[v]) for case, v in values.items()]

    attribute = PredictedAttribute.from_values("SMOKING", rows, False)
    rng = np.random.default_rng(9)
    shuffled = dict(zip(rows, rng.permutation(list(rows.values())), strict=True))
    sets = {
        "volumes": volumes(rows, 1),
        "empty": volumes(dict.fromkeys(rows, "never"), 2),
        "shuffled": volumes(shuffled, 3),
    }
    text, empty, shuffled_control = text_metrics(attribute, volumes(rows, 0), sets, 40, 0)
    assert text.value > 0.95 and text.ceiling > 0.95 and interpret_metric(text) == "text shows"
    assert (
        0.25 < empty.value < 0.75
        and 0.2 < shuffled_control.value < 0.8
        and 0.4 < text.baseline < 0.6
    )


def test_numbers_are_read_by_their_error() -> None:
    ages = {f"case{i}": str(40 + i) for i in range(40)}
    attribute = PredictedAttribute.from_values("AGE", ages, True)
    rng = np.random.default_rng(0)
    scans = [measured(case, rng, mean=-900 + float(age)) for case, age in ages.items()]
    order, error = text_metrics(attribute, scans, {"volumes": scans}, 20, 0)
    assert error.better == "low" and error.value < 5 < error.baseline
    assert order.value > 0.9 > order.baseline_high and abs(order.baseline) < 0.2
    assert interpret_metric(error) == interpret_metric(order) == "text shows"
    lighter = [measured(case, rng, mean=-1000 + float(age)) for case, age in ages.items()]
    order, error = text_metrics(attribute, scans, {"volumes": lighter}, 20, 0)
    # An offset of all volumes moves the error alone.
    assert order.value > 0.9 and error.value > 20


def test_columns_without_two_values_are_refused() -> None:
    with pytest.raises(TooFewScansError, match=r"'SEX' has 1 value .*needs two"):
        PredictedAttribute.from_values("SEX", {"a": "F", "b": "F", "c": ""}, False)
    with pytest.raises(TooFewScansError, match=r"'SEX': at least two values with 5"):
        PredictedAttribute.from_values("SEX", {**{f"a{i}": "F" for i in range(9)}, "b": "M"}, False)


def test_a_number_cannot_be_read_from_a_word() -> None:
    values = {str(number): str(number) for number in range(40)}
    attribute = PredictedAttribute.from_values("PACKS", values, number=True)
    predictor = AttributePredictor(attribute, [], {})
    assert [v for v in ("12", "0,5", "many", "") if predictor.can_read(v)] == ["12", "0,5"]
    assert attribute.encode(["12", "0,5"]).tolist() == [12.0, 0.5]
