"""Metrics of an evaluation against known values: distances, baselines, HU, masks, text, copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

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
from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.distances import FrechetDistance, KernelDistance, frechet
from pipelines.evaluation.diversity import diversity_metrics, ms_ssim
from pipelines.evaluation.measurements import (
    HU_BINS,
    PLANES,
    REGION_STATISTICS,
    REGIONS,
    VolumeMeasurements,
)
from pipelines.evaluation.memorisation import (
    CopyCheck,
    CopyVerdict,
    NearestScan,
    copy_threshold,
    leave_one_out,
)
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.realism import realism_metrics
from pipelines.evaluation.text_effect import PredictedAttribute, TooFewScansError, text_metrics
from pipelines.evaluation.verdict import interpret_metric, verdict_sentence
from util.cli import UserError
from util.metrics.texture import POWER_BANDS, SPECTRUM_BANDS, radial_power

RNG = np.random.default_rng(0)


def measured(
    case: str, rng: np.random.Generator, move: float = 0.0, mean: float = -850.0
) -> VolumeMeasurements:
    """A volume of random features, all moved by `move`, with lungs around `mean` HU."""
    hu = rng.normal(mean, 40, 3000).astype(np.float32)
    density, histogram = lung_density(hu, np.ones(hu.shape, bool))
    vector = rng.normal(0, 1, 50)
    return VolumeMeasurements(
        case,
        [rng.normal(move, 1, (len(PLANES), 5, 6)).astype(np.float32)],
        [rng.normal(move, 1, 4).astype(np.float32)],
        (vector / np.linalg.norm(vector)).astype(np.float16),
        histogram,
        density,
        np.full(len(REGIONS) * len(REGION_STATISTICS), mean)
        + rng.normal(0, 5, len(REGIONS) * len(REGION_STATISTICS)),
        rng.normal(-500, 100, (12, 12, 12)).astype(np.float16),
        np.full(len(SPECTRUM_BANDS), np.nan),
        {},
    )


def group(
    n: int, prefix: str = "case", move: float = 0.0, mean: float = -850.0, seed: int = 0
) -> list[VolumeMeasurements]:
    rng = np.random.default_rng(seed)
    return [measured(f"{prefix}{i}", rng, move, mean) for i in range(n)]


# --- distances


@pytest.mark.parametrize("n, width", [(200, 8), (20, 40)])  # by eigenvalues, and by singular values
def test_frechet_is_that_of_the_matrix_root(n: int, width: int) -> None:
    mix = RNG.normal(size=(width, width))
    x, y = RNG.normal(size=(n, width)) @ mix, RNG.normal(0.5, 2, size=(n + 7, width)) @ mix
    one, two = np.cov(x.T), np.cov(y.T)
    if n > width:
        root = linalg.sqrtm(one @ two).real
        trace = np.trace(root)
    else:  # a singular product has no root that the library finds exactly
        trace = np.sqrt(np.maximum(linalg.eigvals(one @ two).real, 0)).sum()
    direct = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(one) + np.trace(two) - 2 * trace
    assert frechet(x, y) == pytest.approx(direct, rel=1e-3 if n < width else 1e-8)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6 * np.trace(one))


def test_frechet_of_known_gaussians() -> None:
    x = RNG.normal(size=(20000, 3))
    assert frechet(x, 2 * x + 3) == pytest.approx(3 * 9 + 3 * 1, rel=0.05)
    assert np.isnan(frechet(x[:1], x))


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_kernel_distance_is_the_mean_over_pairs_of_volumes(kernel: str) -> None:
    features = RNG.normal(size=(9, 4, 5))
    features[5:] += 0.7
    names = [f"r{i}" for i in range(5)] + [
        "r0",
        "s1",
        "s2",
        "s3",
    ]  # the first synthetic volume is of the case r0
    real, synthetic = np.arange(5), np.arange(5, 9)
    flat = features[:5].reshape(-1, 5)
    apart = [np.linalg.norm(a - b) for i, a in enumerate(flat) for b in flat[:i]]
    width = 2 * np.median(apart) ** 2

    def k(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return float(
            (p @ q / 5 + 1) ** 3
            if kernel == "polynomial"
            else np.exp(-np.square(p - q).sum() / width)
        )

    def mean(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
        return float(
            np.mean(
                [
                    np.mean([k(p, q) for p in features[i] for q in features[j]])
                    for i in rows
                    for j in columns
                    if names[i] != names[j]
                ]
            )
        )

    direct = mean(real, real) + mean(synthetic, synthetic) - 2 * mean(real, synthetic)
    distance = KernelDistance(features, names, kernel, real)
    assert distance(real, synthetic) == pytest.approx(direct, rel=1e-9)
    assert (
        KernelDistance(features[[*real, *real]], names[:5] * 2, kernel, real)(real, real + 5) == 0
    )
    assert np.isnan(distance(real[:1], synthetic[:1]))


def test_one_vector_a_volume_is_the_usual_unbiased_estimator() -> None:
    x, y = RNG.normal(size=(12, 6)), RNG.normal(0.5, 1, size=(9, 6))
    distance = KernelDistance(
        np.concatenate([x, y])[:, None], [str(i) for i in range(21)], "polynomial"
    )
    kxx, kyy, kxy = ((a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    usual = (
        (kxx.sum() - np.trace(kxx)) / (12 * 11)
        + (kyy.sum() - np.trace(kyy)) / (9 * 8)
        - 2 * kxy.mean()
    )
    assert distance(np.arange(12), np.arange(12, 21)) == pytest.approx(usual, rel=1e-9)


def test_distances_of_sets_rank_and_are_zero_for_a_set_and_itself() -> None:
    real = group(24)
    near, far = group(24, "made", 0.2, seed=1), group(24, "made", 1.0, seed=1)
    plan = ResamplingPlan.from_counts(24, 24, 10, 0)
    by_set = [
        {
            f.name: f
            for f in realism_metrics(real, volumes, plan, {"net": "a"}, {"net3": "b"})
            if f.group == "realism"
        }
        for volumes in (real, near, far)
    ]
    assert {n.split(",")[0] for n in by_set[0]} == {
        "2.5D FID",
        "2.5D KID",
        "2.5D MMD",
        "3D Fréchet distance",
        "3D KID",
        "3D MMD",
    }
    for name in by_set[0]:
        same, one, two = (f[name].value for f in by_set)
        assert abs(same) < 1e-6 and one < two
        assert (
            interpret_metric(by_set[2][name]) == "beyond the baseline"
            and by_set[2][name].low < two < by_set[2][name].high
        )


# --- baselines


def test_draws_take_halves_that_share_nothing() -> None:
    plan = ResamplingPlan.from_counts(9, 3, 20, 1)
    for one, two in plan.halves:
        assert (
            len(one) == len(two) == 4
            and not set(one) & set(two)
            and set(one) | set(two) <= set(range(9))
        )
    assert all(len(b) == 3 and set(b) <= {9, 10, 11} for _, b in plan.matched)
    again, second_seed = (ResamplingPlan.from_counts(9, 3, 20, seed) for seed in (1, 2))
    assert plan.halves[0][0].tolist() == again.halves[0][0].tolist()
    assert plan.halves[0][0].tolist() != second_seed.halves[0][0].tolist()


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
        "1 of 2 volumes are called copies of training scans. Told apart from real scans: 2 of 3 "
        "measures lie beyond the baseline. The text of AGE shows in the volumes. The text of SEX "
        "shows no more than chance. 2.5D FID, random: 8, between halves of the real scans 2; mean "
        "lung attenuation -3.0 HU [-5.0, -1.0]; detail SD -9.0 HU [-10.0, -8.0]."
    )
    near = [replace(m, baseline_high=10.0) for m in judged[:3]]
    text = verdict_sentence(near, copies[1:])
    assert "No copy of a training scan among 1 volumes." in text
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


# --- copies


def lungs_of(seed: int) -> NDArray[np.float32]:
    """A chest of one shape, with vessels of its own."""
    rng = np.random.default_rng(seed)
    hu = np.full((40, 40, 40), 30, np.float32)
    hu[4:36, 4:36, 4:36] = -860
    for place in rng.integers(6, 32, (60, 3)):
        hu[tuple(slice(p, p + 3) for p in place)] = -600
    return hu + rng.normal(0, 20, hu.shape).astype(np.float32)


MASK = np.zeros((40, 40, 40), bool)
MASK[4:36, 4:36, 4:36] = True


def details(volumes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack([detail_vector(v, (4, 4, 4), MASK) for v in volumes])


def test_copies_are_found_and_strangers_in_the_same_mask_are_not() -> None:
    scans = [lungs_of(i) for i in range(12)]
    check = CopyCheck.from_scans([f"t{i}" for i in range(12)], details(scans))
    assert check.conclusive
    hidden = [
        scans[3],
        scans[5] + 30,
        scans[7] + RNG.normal(0, 20, scans[7].shape).astype(np.float32),
    ]
    for verdict, name in zip(
        check(details(hidden), sources=["t3", "t5", "t7"]), ("t3", "t5", "t7"), strict=True
    ):
        assert verdict.copy and verdict.alarm and verdict.image.case == name
    assert not any(v.copy for v in check(details([lungs_of(100 + i) for i in range(20)])))


def test_left_out_scans_are_compared_as_new_ones_are() -> None:
    train = RNG.normal(size=(7, 30)) + 1
    distances = leave_one_out(train)
    for i in range(7):
        rest = np.delete(train, i, 0)
        check = CopyCheck.from_scans([str(k) for k in range(6)], rest)
        fresh = check.image.distances(train[i : i + 1])[0]
        assert np.allclose(np.delete(distances[i], i), fresh, atol=1e-5)


def test_features_find_copies_that_lie_elsewhere_but_not_those_of_the_own_mask() -> None:
    features = RNG.normal(size=(30, 10))
    check = CopyCheck.from_scans([f"t{i}" for i in range(30)], RNG.normal(size=(30, 80)), features)
    query, image = features[:1] + 1e-3, RNG.normal(size=(1, 80))
    (stranger,) = check(image, query)
    assert (
        stranger.copy
        and stranger.feature is not None
        and stranger.feature.case == "t0"
        and not stranger.image.copied
    )
    (same_mask,) = check(image, query, sources=["t0"])
    assert not same_mask.copy and same_mask.feature is not None and same_mask.feature.case != "t0"


def test_the_reference_of_copies() -> None:
    train, test = RNG.normal(size=(10, 40)), RNG.normal(size=(6, 40))
    names = [f"t{i}" for i in range(10)]
    assert len(CopyCheck.from_scans(names, train, test_image=test).image.reference) == 6
    assert (
        len(CopyCheck.from_scans(names, train, test_image=test[:3]).image.reference) == 10
    )  # too few: leave one out
    twice = np.concatenate([train, train + 1e-6])
    patients = names * 2
    with_patients = CopyCheck.from_scans(
        [*names, *(f"{n}b" for n in names)], twice, patients=patients
    )
    assert with_patients.image.reference.min() > 0.1  # scans of one patient are no reference
    two = CopyCheck.from_scans(names[:2], train[:2])
    assert not two.conclusive and two.image.threshold == pytest.approx(
        two.image.reference.min() / 2
    )
    with pytest.raises(UserError, match="at least two training scans"):
        CopyCheck.from_scans(names[:1], train[:1])


def test_the_threshold_allows_for_few_distances() -> None:
    many, few = (np.exp(np.random.default_rng(0).normal(0, 0.1, n)) for n in (400, 6))
    assert 0.6 < copy_threshold(many) < 0.75 and copy_threshold(few) < copy_threshold(many)
    assert copy_threshold(np.array([])) == 0


def test_detail_ignores_level_and_needs_lungs() -> None:
    hu = lungs_of(1)
    one, two = detail_vector(hu, (4, 4, 4), MASK), detail_vector(hu + 30, (4, 4, 4), MASK)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5) and float(one @ two) > 0.999
    assert not detail_vector(hu, (4, 4, 4), np.zeros_like(MASK)).any()
