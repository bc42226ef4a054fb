"""Relevance of columns, and the weights of phrases and cases that follow from it."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.load_cohort import load_cohort
from data.lung_density import PARTS, lung_means
from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume
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
from util.training.checkpoint import find, load_state

PATIENTS = 60
VARIED = {
    "SMOKING HISTORY": "Never smoker,Current smoker",
    "RISK OCCUPATIONAL": "No,Yes",
    "SEX": "Male,Female",
    "RISK PRECIPITINS": "No,Yes",
}


Told = list[list[tuple[str, str]]]


def patients() -> Told:
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
def told() -> Told:
    """Their prompts as training sees them, a tenth left out."""
    draw = np.random.default_rng(1)
    return [[said for said in prompt if draw.random() > 0.1] for prompt in patients()]


def means(noise: float) -> list[dict[str, float]]:
    """Densities of their scans: smoking +40 HU, a year of age -1 HU, in the lower region half as
    much.
    """
    draw = np.random.default_rng(2)
    made = []
    for (age, _), (smoking, _), _ in patients():
        here = -800 + 40 * smoking.endswith("Yes") - float(age.split()[-1].rstrip("."))
        made.append(
            {
                "upper": here + noise * draw.standard_normal(),
                "lower": here / 2 + noise * draw.standard_normal(),
            }
        )
    return made


@pytest.fixture()
def encoder(told: Told) -> PhraseEncoder:
    made = TableEncoder()
    made.fit([[text for text, _ in said] for said in told])
    return made


def relevance_of(encoder: PhraseEncoder, told: Told, found: list[dict[str, float]]) -> Relevance:
    rows, columns = prompt_features(encoder, told)
    return regress(rows, columns, np.array([[m["upper"], m["lower"]] for m in found]))


def shares(encoder: PhraseEncoder, told: Told, found: list[dict[str, float]]) -> dict[str, float]:
    return relevance_of(encoder, told, found).by_group


def test_columns_with_an_effect_are_told_from_one_without(
    encoder: PhraseEncoder, told: Told
) -> None:
    found = shares(encoder, told, means(noise=10.0))
    assert min(found["AGE"], found["SMOKING"]) > 0.8 and found["BLOOD"] < 0.2, found


def test_rows_count_by_what_their_empty_cells_hide(encoder: PhraseEncoder, told: Told) -> None:
    for noise, least, most in (
        (2.0, 0.0, 0.1),
        (60.0, 0.7, 1.0),
    ):  # beside much noise, little is hidden
        weights = relevance_of(encoder, told, means(noise)).row_weights
        lacking = [{"AGE", "SMOKING", "BLOOD"} - {column for _, column in said} for said in told]
        for one, missing in zip(weights, lacking, strict=True):
            assert (least <= one <= most) if missing & {"AGE", "SMOKING"} else one > 0.95, (
                noise,
                missing,
                one,
            )


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
        found = regress(rows, groups, responses)
        assert set(found.by_group) == set("ABCDEFGH")
        assert all(0 <= value <= 1 for value in found.by_group.values())
        assert np.isfinite(found.row_weights).all() and (found.row_weights > 0).all()


def test_a_cell_that_is_mostly_empty_is_no_gap(told: Told) -> None:
    rare = [
        [*said, ("PACEMAKER", "DEVICE")] if k % 3 == 0 else said
        for k, said in enumerate(patients())
    ]
    encoder = TableEncoder()
    encoder.fit([[text for text, _ in said] for said in rare])
    found = means(noise=2.0)
    for k in range(0, PATIENTS, 3):
        found[k] = {region: value + 50 for region, value in found[k].items()}
    relevance = relevance_of(encoder, rare, found)
    assert relevance.by_group["DEVICE"] > 0.9 and relevance.row_weights.min() > 0.95


def test_more_noise_determines_less(encoder: PhraseEncoder, told: Told) -> None:
    sure, unsure = (shares(encoder, told, means(noise)) for noise in (10.0, 60.0))
    assert unsure["SMOKING"] < sure["SMOKING"] and unsure["AGE"] < sure["AGE"], (sure, unsure)


def test_shuffled_rows_determine_little(encoder: PhraseEncoder, told: Told) -> None:
    found = means(noise=10.0)
    order = np.random.default_rng(1).permutation(PATIENTS)
    assert max(shares(encoder, told, [found[i] for i in order]).values()) < 0.5


def test_neither_unit_nor_level_of_density_matters(encoder: PhraseEncoder, told: Told) -> None:
    found = means(noise=20.0)
    other = [{region: 3 * value + 5000 for region, value in m.items()} for m in found]
    assert shares(encoder, told, found) == pytest.approx(shares(encoder, told, other), abs=1e-6)


def test_phrases_have_the_weight_of_their_columns(
    encoder: PhraseEncoder,
    told: Told,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = [["Patient age: 70.", "SMOKING is Yes"], ["BLOOD GROUP is A"]]
    before = encoder.encode(said)
    found = means(noise=10.0)
    with caplog.at_level(logging.INFO):
        weights = estimate_relevance(encoder, told, found)
    assert not encoder.phrase_weights
    encoder.set_phrase_weights(weights.phrase_weights)
    after, known = encoder.encode(said), shares(encoder, told, found)
    assert "the factor of their phrases: SMOKING 0.9" in caplog.text
    expected = torch.tensor([[known["AGE"], known["SMOKING"]], [known["BLOOD"], 0.0]])
    torch.testing.assert_close(after.tokens, before.tokens * expected[..., None])
    torch.testing.assert_close(after.pooled, after.tokens.sum(1))
    again = TableEncoder()
    again.load_state(*encoder.state())
    torch.testing.assert_close(again.encode(said).tokens, after.tokens)


def test_an_unseen_phrase_has_the_weight_of_the_nearest(told: Told) -> None:
    class Letters(TableEncoder):
        """Embeds by first letter, so that nearness is plain."""

        base = 128

        def embed(self, phrases: list[str]) -> torch.Tensor:  # type: ignore[override]
            return torch.stack([torch.eye(128)[ord(p[0])] for p in phrases])

    encoder = Letters()
    encoder.fit([[text for text, _ in said] for said in told])
    encoder.set_phrase_weights(
        {phrase: 0.25 if phrase.startswith("B") else 0.75 for phrase in encoder.phrases}
    )
    size = encoder.encode([["BLOOD GROUP is AB"], ["SMOKES now"]]).pooled.norm(dim=1)
    assert size[0] / size[1] == pytest.approx(1 / 3)


def test_few_scans_or_scans_without_lungs_change_nothing(
    encoder: PhraseEncoder, told: Told
) -> None:
    found = means(noise=10.0)
    few = estimate_relevance(encoder, told[:19], found[:19])
    assert few.case_weights == [1.0] * 19 and not few.phrase_weights
    without_lungs = estimate_relevance(encoder, told, [{} for _ in found])
    assert without_lungs.case_weights == [1.0] * PATIENTS and not without_lungs.phrase_weights
    one_left_out = estimate_relevance(encoder, told, [{}, *found[1:]])
    assert one_left_out.case_weights[0] == 1.0 and one_left_out.phrase_weights


def test_text_learns_from_a_scan_by_its_weight() -> None:
    """The value is the same whatever the weight; the rest of the network learns wholly."""
    options = train_options()
    found = {}
    for weight in (None, torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.25])):
        torch.manual_seed(0)
        model = Pix2PixHDModel(options, LABELS, WIDTH).raw["G"]
        wake(model)
        made = batch(options)
        volume = model(made["mask"], made["coords"], made["noise"], replace(text(), weight=weight))
        volume.square().sum().backward()
        assert isinstance(model, Generator) and model.effect is not None
        of_text, rest = model.effect.head.weight.grad, model.head.weight.grad
        assert of_text is not None and rest is not None
        found[str(weight)] = volume.detach(), of_text, rest
    (whole, of_text, rest), (one, first, same), (quarter, less, still) = found.values()
    assert torch.equal(whole, one) and torch.equal(whole, quarter)
    torch.testing.assert_close(less, of_text / 4)
    assert (
        not torch.allclose(first, of_text) and torch.equal(rest, same) and torch.equal(rest, still)
    )


def test_a_run_keeps_what_it_weighed_and_says_so(tmp_path: Path) -> None:
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
    for name, flags in (("own", ()), ("alike", ("--no-text_relevance",))):
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
def test_lung_means_are_those_of_the_files(
    prepared: bool, cohort_dir: Path, tmp_path: Path
) -> None:
    data = DataOptions(dataroot=str(cohort_dir))
    case = load_cohort(data, seed=0).cases[0]
    (found,) = lung_means([case], data, tmp_path if prepared else None)
    hu, mask = (
        load_volume(cohort_dir / "img" / f"{case.id}.nii.gz").array,
        load_volume(case.mask).array,
    )
    assert set(found) == set(PARTS)
    assert found["lungs"] == pytest.approx(
        float(np.clip(hu, *data.hu_window)[np.isin(mask, (1, 2))].mean()), abs=0.5
    )
