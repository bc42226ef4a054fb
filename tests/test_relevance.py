"""How far scans determine what columns do, and how loud phrases are for it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from data.cohort import load_cohort
from data.lung_means import PARTS, lung_means
from data.phantom_cohort import PhantomOptions, make
from data.volumes import load
from models.relevance import features, regress, weigh
from models.text_phrases import PhraseEncoder
from models.text_table import TableEncoder
from options.base_options import DataOptions
from tests.atlas_run import discover, table
from tests.commands import TINY, TrainedRun, command
from util.checkpoint import find, load_state

PATIENTS = 60
VALUES = ("Never smoker,Current smoker", "No,Yes")


@pytest.fixture(scope="module")
def told() -> list[list[tuple[str, str]]]:
    """Prompts of an age, of a habit with an effect, and of a blood group without; a tenth of each left out."""
    draw = np.random.default_rng(0)
    prompts = []
    for _ in range(PATIENTS):
        said = [(f"Patient age: {draw.integers(40, 80)}.", "AGE"), (f"SMOKING is {draw.choice(['Yes', 'No'])}", "SMOKING"),
                (f"BLOOD GROUP is {draw.choice(['A', 'B', '0'])}", "BLOOD")]
        prompts.append([s for s in said if draw.random() > 0.1])
    return prompts


def means(told: list[list[tuple[str, str]]], noise: float, seed: int = 0) -> list[dict[str, float]]:
    draw = np.random.default_rng(seed)
    made = []
    for said in told:
        texts = [text for text, _ in said]
        age = next((float(t.split()[-1].rstrip(".")) for t in texts if t.startswith("Patient age")), 60)
        here = -800 + 40 * ("SMOKING is Yes" in texts) - (age - 60)
        made.append({"upper": here + noise * draw.standard_normal(), "lower": here / 2 + noise * draw.standard_normal()})
    return made


@pytest.fixture()
def encoder(told: list[list[tuple[str, str]]]) -> PhraseEncoder:
    made = TableEncoder()
    made.fit([[text for text, _ in said] for said in told])
    return made


def shares(encoder: PhraseEncoder, told: list[list[tuple[str, str]]], found: list[dict[str, float]]) -> dict[str, float]:
    rows, columns = features(encoder, told)
    return regress(rows, columns, np.array([[m["upper"], m["lower"]] for m in found])).shares


def test_columns_with_an_effect_are_told_from_one_without(encoder: PhraseEncoder, told: list[list[tuple[str, str]]]) -> None:
    found = shares(encoder, told, means(told, noise=10.0))
    assert min(found["AGE"], found["SMOKING"]) > 0.8 and found["BLOOD"] < 0.2, found


def test_more_noise_determines_less(encoder: PhraseEncoder, told: list[list[tuple[str, str]]]) -> None:
    sure, unsure = (shares(encoder, told, means(told, noise)) for noise in (10.0, 60.0))
    assert unsure["SMOKING"] < sure["SMOKING"] and unsure["AGE"] < sure["AGE"], (sure, unsure)


def test_shuffled_rows_determine_little(encoder: PhraseEncoder, told: list[list[tuple[str, str]]]) -> None:
    found = means(told, noise=10.0)
    order = np.random.default_rng(1).permutation(PATIENTS)
    assert max(shares(encoder, told, [found[i] for i in order]).values()) < 0.5


def test_neither_unit_nor_level_of_density_matters(encoder: PhraseEncoder, told: list[list[tuple[str, str]]]) -> None:
    found = means(told, noise=20.0)
    other = [{region: 3 * value + 5000 for region, value in m.items()} for m in found]
    assert shares(encoder, told, found) == pytest.approx(shares(encoder, told, other), abs=1e-6)


def test_phrases_are_as_loud_as_their_columns(
    encoder: PhraseEncoder, told: list[list[tuple[str, str]]], caplog: pytest.LogCaptureFixture,
) -> None:
    said = [["Patient age: 70.", "SMOKING is Yes"], ["BLOOD GROUP is A"]]
    before = encoder.encode(said)
    found = means(told, noise=10.0)
    with caplog.at_level(logging.INFO):
        weigh(encoder, told, found)
    after, known = encoder.encode(said), shares(encoder, told, found)
    assert "loud its phrases are for it: SMOKING 0.9" in caplog.text
    expected = torch.tensor([[known["AGE"], known["SMOKING"]], [known["BLOOD"], 0.0]])
    torch.testing.assert_close(after.tokens, before.tokens * expected[..., None])
    torch.testing.assert_close(after.pooled, after.tokens.sum(1))
    again = TableEncoder()
    again.load_state(*encoder.state())
    torch.testing.assert_close(again.encode(said).tokens, after.tokens)


def test_a_phrase_never_seen_is_as_loud_as_the_nearest(told: list[list[tuple[str, str]]]) -> None:
    class Letters(TableEncoder):
        """Embeds by first letter, so that nearness is plain."""

        base = 128

        def embed(self, phrases: list[str]) -> torch.Tensor:  # type: ignore[override]
            return torch.stack([torch.eye(128)[ord(p[0])] for p in phrases])

    encoder = Letters()
    encoder.fit([[text for text, _ in said] for said in told])
    encoder.weigh({phrase: 0.25 if phrase.startswith("B") else 0.75 for phrase in encoder.phrases})
    size = encoder.encode([["BLOOD GROUP is AB"], ["SMOKES now"]]).pooled.norm(dim=1)
    assert size[0] / size[1] == pytest.approx(1 / 3)


def test_few_scans_or_scans_without_lungs_change_nothing(encoder: PhraseEncoder, told: list[list[tuple[str, str]]]) -> None:
    found = means(told, noise=10.0)
    weigh(encoder, told[:19], found[:19])
    assert not encoder.shares
    weigh(encoder, told, [{} for _ in found])
    assert not encoder.shares
    weigh(encoder, told, [{}, *found[1:]])
    assert encoder.shares


def test_a_run_keeps_what_it_weighed_and_its_atlas_says_so(tmp_path: Path) -> None:
    cohort = make(PhantomOptions(OUT=str(tmp_path / "cohort"), cases=26, size=(24, 24, 16), seed=1, test_cases=2,
                                 val_cases=1, missing=0.12, patient_sd=0.0))
    words = ("--dataroot", cohort, "--checkpoints_dir", tmp_path / "ck", *TINY)
    for name, flags in (("own", ()), ("alike", ("--no-text_relevance",))):
        done = command("train.py", "--name", name, *words, *flags)
        assert done.code == 0, done.text
        assert ("How far the training scans determine" in done.text) == (not flags), done.text
        loud = load_state(find(tmp_path / "ck" / name / "latest"))["encoder_values"]["shares"]
        assert bool(loud) == (not flags)
        run, columns = TrainedRun(tmp_path / "ck", name, cohort), ("SMOKING HISTORY", "RISK OCCUPATIONAL")
        done = run.test(tmp_path / "results", *(f"--vary={c}={v}" for c, v in zip(columns, VALUES, strict=True)))
        assert done.code == 0 and ("hardly told what RISK OCCUPATIONAL" in done.text) == (not flags), done.text
        assert "hardly told what SMOKING HISTORY" not in done.text
        done = discover(run, tmp_path / name, "--columns", ",".join(columns))
        assert done.code == 0, done.text
        warned = table(tmp_path / name, "cautions").query("kind == 'silent'")
        assert warned["column"].tolist() == ([] if flags else ["RISK OCCUPATIONAL"])  # the phantoms' column without effect


def test_lung_means_are_those_of_the_files(cohort_dir: Path) -> None:
    data = DataOptions(dataroot=str(cohort_dir))
    case = load_cohort(data, seed=0).cases[0]
    found, = lung_means([case], data)
    hu, mask = load(cohort_dir / "img" / f"{case.id}.nii.gz").array, load(case.mask).array
    assert set(found) == set(PARTS)
    assert found["lungs"] == pytest.approx(float(np.clip(hu, *data.hu_window)[np.isin(mask, (1, 2))].mean()), abs=0.5)
