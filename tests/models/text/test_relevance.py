"""Relevance of columns, and the weights of phrases and cases that follow from it."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.affines import voxel_sizes

from data.cohort import Case
from data.load_cohort import load_cohort
from data.lung_density import PARTS, TEXTURE_PARTS, lung_means, text_statistics
from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume, write_like
from models.networks.generator import Generator
from models.pix2pixhd_model import Pix2PixHDModel
from models.text.phrase_encoder import PhraseEncoder
from models.text.relevance import Relevance, estimate_relevance, prompt_features, regress
from models.text.table_encoder import TableEncoder
from options.base_options import DataOptions
from options.phantom_options import PhantomOptions
from tests.atlas_run import discover, table
from tests.commands import TINY, TrainedRun, command
from tests.networks import LABELS, WIDTH, batch, text, train_options, wake
from util.metrics.regions import chest_regions
from util.metrics.texture import STATISTICS, statistics_by_region
from util.training.checkpoint import find, load_state

PATIENTS = 60
VARIED = {
    "SMOKING HISTORY": "Never smoker,Current smoker",
    "RISK OCCUPATIONAL": "No,Yes",
    "SEX": "Male,Female",
    "RISK PRECIPITINS": "No,Yes",
}

Prompts = list[list[tuple[str, str]]]
Densities = list[dict[str, float]]


def patients() -> Prompts:
    """Complete prompts of an age, of a habit with an effect, and of a blood group without."""
    draw = np.random.default_rng(0)
    return [
        [
            (f"Patient age: {draw.integers(40, 80)}.", "AGE"),
            (f"SMOKING is {draw.choice(['Yes', 'No'])}", "SMOKING"),
            (f"BLOOD GROUP is {draw.choice(['A', 'B', '0'])}", "BLOOD"),
        ]
        for _ in range(PATIENTS)
    ]


@pytest.fixture(scope="module")
def training_prompts() -> Prompts:
    """Their prompts as training sees them, a tenth left out."""
    draw = np.random.default_rng(1)
    return [[phrase for phrase in prompt if draw.random() > 0.1] for prompt in patients()]


def make_densities(noise: float) -> Densities:
    """Mean HU of their scans: smoking +40, a year of age -1, half of both in the lower region."""
    draw = np.random.default_rng(2)
    densities = []
    for (age, _), (smoking, _), _ in patients():
        hu = -800 + 40 * smoking.endswith("Yes") - float(age.split()[-1].rstrip("."))
        upper = hu + noise * draw.standard_normal()
        lower = hu / 2 + noise * draw.standard_normal()
        densities.append({"upper": upper, "lower": lower})
    return densities


def fitted_encoder(prompts: Prompts) -> TableEncoder:
    encoder = TableEncoder()
    encoder.fit([[text for text, _ in prompt] for prompt in prompts])
    return encoder


@pytest.fixture()
def encoder(training_prompts: Prompts) -> PhraseEncoder:
    return fitted_encoder(training_prompts)


def relevance_of(
    encoder: PhraseEncoder, training_prompts: Prompts, densities: Densities
) -> Relevance:
    rows, columns = prompt_features(encoder, training_prompts)
    return regress(rows, columns, np.array([[d["upper"], d["lower"]] for d in densities]))


def column_values(
    encoder: PhraseEncoder, training_prompts: Prompts, densities: Densities
) -> dict[str, float]:
    return relevance_of(encoder, training_prompts, densities).by_group


def test_columns_with_an_effect_differ_from_one_without(
    encoder: PhraseEncoder, training_prompts: Prompts
) -> None:
    relevance = column_values(encoder, training_prompts, make_densities(noise=10.0))
    assert min(relevance["AGE"], relevance["SMOKING"]) > 0.8 and relevance["BLOOD"] < 0.2, relevance


# With much noise, missing values hide little.
@pytest.mark.parametrize(("noise", "low", "high"), [(2.0, 0.0, 0.1), (60.0, 0.7, 1.0)])
def test_rows_are_weighted_by_what_missing_values_hide(
    encoder: PhraseEncoder, training_prompts: Prompts, noise: float, low: float, high: float
) -> None:
    weights = relevance_of(encoder, training_prompts, make_densities(noise)).row_weights
    for weight, prompt in zip(weights, training_prompts, strict=True):
        columns = {column for _, column in prompt}
        if {"AGE", "SMOKING"} <= columns:
            assert weight > 0.95, (columns, weight)
        else:
            assert low <= weight <= high, (columns, weight)


def test_more_phrases_than_scans_stay_finite() -> None:
    draw = np.random.default_rng(3)
    rows = [
        {
            (f"{column} is {draw.integers(9)}", False): 1.0
            for column in "ABCDEFGH"
            if draw.random() > 0.2
        }
        for _ in range(20)
    ]
    groups = {feature: feature[0][0] for row in rows for feature in row}
    assert len(groups) > 2 * len(rows)
    for responses in (
        draw.standard_normal((20, 3)),
        np.repeat(draw.standard_normal((20, 1)), 3, axis=1),
        np.ones((20, 3)),
    ):
        relevance = regress(rows, groups, responses)
        assert set(relevance.by_group) == set("ABCDEFGH")
        assert all(0 <= value <= 1 for value in relevance.by_group.values())
        assert np.isfinite(relevance.row_weights).all() and (relevance.row_weights > 0).all()


def test_empty_cells_of_a_mostly_empty_column_are_not_missing_values() -> None:
    prompts = patients()
    densities = make_densities(noise=2.0)
    for k in range(0, PATIENTS, 3):
        prompts[k].append(("PACEMAKER", "DEVICE"))
        densities[k] = {region: value + 50 for region, value in densities[k].items()}
    relevance = relevance_of(fitted_encoder(prompts), prompts, densities)
    assert relevance.by_group["DEVICE"] > 0.9 and relevance.row_weights.min() > 0.95


def test_more_noise_determines_less(encoder: PhraseEncoder, training_prompts: Prompts) -> None:
    clear = column_values(encoder, training_prompts, make_densities(10.0))
    noisy = column_values(encoder, training_prompts, make_densities(60.0))
    assert noisy["SMOKING"] < clear["SMOKING"] and noisy["AGE"] < clear["AGE"], (clear, noisy)


def test_shuffled_rows_determine_little(encoder: PhraseEncoder, training_prompts: Prompts) -> None:
    densities = make_densities(noise=10.0)
    order = np.random.default_rng(1).permutation(PATIENTS)
    assert (
        max(column_values(encoder, training_prompts, [densities[i] for i in order]).values()) < 0.5
    )


def test_neither_unit_nor_level_of_density_matters(
    encoder: PhraseEncoder, training_prompts: Prompts
) -> None:
    densities = make_densities(noise=20.0)
    scaled = [{region: 3 * hu + 5000 for region, hu in density.items()} for density in densities]
    expected = column_values(encoder, training_prompts, densities)
    assert column_values(encoder, training_prompts, scaled) == pytest.approx(expected, abs=1e-6)


def test_phrases_have_the_weight_of_their_columns(
    encoder: PhraseEncoder,
    training_prompts: Prompts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompts = [["Patient age: 70.", "SMOKING is Yes"], ["BLOOD GROUP is A"]]
    before = encoder.encode(prompts)
    densities = make_densities(noise=10.0)
    with caplog.at_level(logging.INFO):
        weights = estimate_relevance(encoder, training_prompts, densities)
    assert not encoder.phrase_weights
    encoder.set_phrase_weights(weights.phrase_weights)
    after = encoder.encode(prompts)
    relevance = column_values(encoder, training_prompts, densities)
    assert "the factor of their phrases: SMOKING 0.9" in caplog.text
    factors = [[relevance["AGE"], relevance["SMOKING"]], [relevance["BLOOD"], 0.0]]
    torch.testing.assert_close(after.tokens, before.tokens * torch.tensor(factors)[..., None])
    torch.testing.assert_close(after.pooled, after.tokens.sum(1))
    again = TableEncoder()
    again.load_state(*encoder.state())
    torch.testing.assert_close(again.encode(prompts).tokens, after.tokens)


def test_an_unseen_phrase_has_the_weight_of_the_nearest(training_prompts: Prompts) -> None:
    class Letters(TableEncoder):
        """Embeds by the first letter, so that the nearest phrase is known."""

        base = 128

        def embed(self, phrases: list[str]) -> torch.Tensor:  # type: ignore[override]
            return torch.stack([torch.eye(128)[ord(p[0])] for p in phrases])

    encoder = Letters()
    encoder.fit([[text for text, _ in prompt] for prompt in training_prompts])
    encoder.set_phrase_weights(
        {phrase: 0.25 if phrase.startswith("B") else 0.75 for phrase in encoder.phrases}
    )
    size = encoder.encode([["BLOOD GROUP is AB"], ["SMOKES now"]]).pooled.norm(dim=1)
    assert size[0] / size[1] == pytest.approx(1 / 3)


def test_few_scans_or_scans_without_lungs_change_nothing(
    encoder: PhraseEncoder, training_prompts: Prompts
) -> None:
    densities = make_densities(noise=10.0)
    few = estimate_relevance(encoder, training_prompts[:19], densities[:19])
    assert few.case_weights == [1.0] * 19 and not few.phrase_weights
    without_lungs = estimate_relevance(encoder, training_prompts, [{} for _ in densities])
    assert without_lungs.case_weights == [1.0] * PATIENTS and not without_lungs.phrase_weights
    without_words = estimate_relevance(encoder, [[] for _ in densities], densities)
    assert without_words.case_weights == [1.0] * PATIENTS and not without_words.phrase_weights
    one_left_out = estimate_relevance(encoder, training_prompts, [{}, *densities[1:]])
    assert one_left_out.case_weights[0] == 1.0 and one_left_out.phrase_weights


def test_the_weight_of_a_case_scales_the_gradient_of_the_text_unit_only() -> None:
    options = train_options()
    results = []
    for weight in (None, torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.25])):
        torch.manual_seed(0)
        model = Pix2PixHDModel(options, LABELS, WIDTH).raw["G"]
        wake(model, 0.1)  # more would leave the range, where nothing has a gradient
        inputs = batch(options)
        embedding = replace(text(), weight=weight)
        volume = model(inputs["mask"], inputs["coords"], inputs["noise"], embedding)
        volume.square().sum().backward()
        assert isinstance(model, Generator) and model.effect is not None
        results.append((volume.detach(), model.effect.head.weight.grad, model.head.weight.grad))
    volumes, text_grads, rest_grads = zip(*results, strict=True)
    assert torch.equal(volumes[0], volumes[1]) and torch.equal(volumes[0], volumes[2])
    assert torch.equal(rest_grads[0], rest_grads[1]) and torch.equal(rest_grads[0], rest_grads[2])
    assert not torch.allclose(text_grads[1], text_grads[0])
    torch.testing.assert_close(text_grads[2], text_grads[0] / 4)


def test_a_run_saves_its_weights_and_warns_of_low_relevance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.atlas.statistics.sensitivity.TABLES", 1)  # of three
    cohort = make_phantom_cohort(
        PhantomOptions(
            OUT=str(tmp_path / "cohort"),
            cases=26,
            size=(24, 24, 16),
            seed=1,
            test_cases=2,
            val_cases=1,
            missing=0.12,
            patient_sd=0.0,
        )
    )
    words = ("--dataroot", cohort, "--checkpoints_dir", tmp_path / "ck", *TINY)
    for name, flags in (("weighted", ()), ("unweighted", ("--no-text_relevance",))):
        done = command("train.py", "--name", name, *words, *flags)
        assert done.code == 0, done.text
        logged = re.search("the factor of their phrases: (.*)\\.\n", done.text)
        relevance: dict[str, float] = {}
        for entry in [] if logged is None else logged[1].split(", "):
            column, value = entry.rsplit(" ", 1)
            relevance[column] = float(value)
        state = load_state(find(tmp_path / "ck" / name / "latest"))
        assert (
            bool(relevance)
            == bool(state["encoder_values"]["shares"])
            == bool(state["weights"])
            == (not flags)
        )
        assert all(0 < w <= 1 for w in state["weights"].values())
        run = TrainedRun(tmp_path / "ck", name, cohort)
        irrelevant = {column for column, value in relevance.items() if value < 0.195}
        done = run.test(tmp_path / "results", *(f"--vary={c}={v}" for c, v in VARIED.items()))
        assert done.code == 0, done.text
        warned_of = {c for c in VARIED if f"hardly determine the effect of {c}" in done.text}
        assert warned_of == irrelevant & set(VARIED)
        done = discover(run, tmp_path / name, "--columns", ",".join(VARIED))
        assert done.code == 0, done.text
        warned = set(table(tmp_path / name, "cautions").query("kind == 'silent'")["column"])
        assert warned == irrelevant & set(VARIED) and bool(warned) == (not flags)


@pytest.mark.parametrize("prepared", [False, True])
def test_statistics_are_those_of_the_files(
    prepared: bool, cohort_dir: Path, tmp_path: Path
) -> None:
    data = DataOptions(dataroot=str(cohort_dir))
    case = load_cohort(data, seed=0).cases[0]
    (values,) = text_statistics([case], data, tmp_path if prepared else None, body=4)
    scan, mask = load_volume(cohort_dir / "img" / f"{case.id}.nii.gz"), load_volume(case.mask)
    hu = np.clip(scan.array, *data.hu_window)
    sides = voxel_sizes(mask.affine)
    regions = chest_regions(mask.array, sides)
    expected = statistics_by_region(hu, regions, sides)
    assert len(values) == len(TEXTURE_PARTS) * len(STATISTICS)
    for part in TEXTURE_PARTS:
        for name, value in expected[part].items():
            if name == "detail_sd_hu":
                assert values[f"{part} log_detail_sd"] == pytest.approx(np.log(value), abs=1e-3)
            else:
                assert values[f"{part} {name}"] == pytest.approx(value, abs=1e-3)


def test_statistics_need_a_scan_with_lungs(cohort_dir: Path, tmp_path: Path) -> None:
    data = DataOptions(dataroot=str(cohort_dir))
    case = load_cohort(data, seed=0).cases[0]
    mask = load_volume(case.mask)
    empty = tmp_path / "empty.nii.gz"
    write_like(empty, np.zeros(mask.shape, np.uint8), case.mask, np.uint8)
    cases = [replace(case, image=None), replace(case, mask=empty)]
    assert text_statistics(cases, data) == [{}, {}]


def test_statistics_are_of_all_that_text_may_change(cohort_dir: Path, tmp_path: Path) -> None:
    """An organ that every mask labels counts; the body and the rest where text acts everywhere."""
    data = DataOptions(dataroot=str(cohort_dir))
    case = replace(load_cohort(data, seed=0).cases[0], body=None)
    labels = load_volume(case.mask).array.astype(np.uint8)
    x, y, z = np.argwhere(labels == 0)[len(labels)]
    labels[x, y, z], heart = 7, tmp_path / "heart.nii.gz"
    labels[labels == 0] = 4
    write_like(heart, labels, case.mask, np.uint8)
    organ = replace(case, mask=heart)

    def parts(cases: list[Case], **region: Any) -> list[set[str]]:
        found = text_statistics(cases, data, **region)
        return [{name.split()[0] for name in values} - set(TEXTURE_PARTS) for values in found]

    assert parts([organ], body=4) == [{"label_7"}]
    assert parts([organ, case], body=4) == [set(), set()]
    assert parts([organ], body=4, everywhere=True) == [{"label_4", "label_7"}]
    assert parts([case], everywhere=True) == [{"outside"}]


def test_texture_is_evidence_in_any_unit(encoder: PhraseEncoder, training_prompts: Prompts) -> None:
    """Smoking changes the detail alone; the share of holes is 0 in all scans."""
    draw = np.random.default_rng(5)
    means: Densities = []
    statistics: Densities = []
    for _, (smoking, _), _ in patients():
        means.append({part: draw.normal(-850, 20) for part in ("upper", "lower")})
        detail = 3.0 + 0.3 * smoking.endswith("Yes") + draw.normal(0, 0.1)
        texture = {"upper log_detail_sd": detail, "upper share_below_-950_hu": 0.0}
        statistics.append({**means[-1], **texture})
    before = estimate_relevance(encoder, training_prompts, means).phrase_weights
    after = estimate_relevance(encoder, training_prompts, statistics).phrase_weights
    assert before["SMOKING is Yes"] < 0.5 and after["SMOKING is Yes"] > 0.9
    assert after["BLOOD GROUP is A"] < 0.3
    scaled = [{**s, "upper log_detail_sd": s["upper log_detail_sd"] * 1e-4} for s in statistics]
    assert estimate_relevance(encoder, training_prompts, scaled).phrase_weights == pytest.approx(
        after, abs=1e-6
    )


def test_without_any_variation_nothing_is_weighted(
    encoder: PhraseEncoder, training_prompts: Prompts
) -> None:
    same = [{"upper": -850.0, "lower": 0.0}] * len(training_prompts)
    weights = estimate_relevance(encoder, training_prompts, same)
    assert weights.phrase_weights == {} and set(weights.case_weights) == {1.0}


@pytest.mark.parametrize("prepared", [False, True])
def test_lung_means_are_those_of_the_files(
    prepared: bool, cohort_dir: Path, tmp_path: Path
) -> None:
    data = DataOptions(dataroot=str(cohort_dir))
    case = load_cohort(data, seed=0).cases[0]
    (density,) = lung_means([case], data, tmp_path if prepared else None)
    hu = load_volume(cohort_dir / "img" / f"{case.id}.nii.gz").array
    mask = load_volume(case.mask).array
    expected = float(np.clip(hu, *data.hu_window)[np.isin(mask, (1, 2))].mean())
    assert set(density) == set(PARTS)
    assert density["lungs"] == pytest.approx(expected, abs=0.5)
