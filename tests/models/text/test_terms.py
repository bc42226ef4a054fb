"""Curves of numbers and products of columns become tokens where scans determine them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.text.encoders import build_text_encoder
from models.text.phrase_encoder import PhraseEncoder
from models.text.relevance import column_relevance, estimate_relevance
from models.text.terms import Term, fit_curve
from options.base_options import TextOptions
from util.cli import UserError

PATIENTS = 96
Prompt = list[tuple[str, str]]


def cohort(seed: int = 0) -> tuple[list[Prompt], np.ndarray]:
    """Return prompts of sex, exposure, age and a null column, and their numbers `(N, 3)`."""
    rng = np.random.default_rng(seed)
    man, exposed, null = (rng.permutation(np.resize([0, 1], PATIENTS)) for _ in range(3))
    age = rng.integers(40, 86, PATIENTS)
    prompts = [
        [
            (f"SEX is {'Male' if man[i] else 'Female'}", "SEX"),
            (f"EXPOSURE is {'Yes' if exposed[i] else 'No'}", "EXPOSURE"),
            (f"ALLERGY is {'Yes' if null[i] else 'No'}", "ALLERGY"),
            (f"AGE is {age[i]}", "AGE"),
        ]
        for i in range(PATIENTS)
    ]
    return prompts, np.stack([man, exposed, age], 1)


def fitted(prompts: list[Prompt]) -> PhraseEncoder:
    encoder = build_text_encoder(TextOptions(text_encoder="table"))
    assert isinstance(encoder, PhraseEncoder)
    encoder.fit([[text for text, _ in prompt] for prompt in prompts])
    return encoder


def estimate(prompts: list[Prompt], effects: np.ndarray) -> tuple[PhraseEncoder, set[str]]:
    """Estimate relevance from one statistic with these effects and noise; return earned terms."""
    encoder = fitted(prompts)
    noise = np.random.default_rng(5).normal(size=(PATIENTS, 2))
    statistics = [{"a": 5 * e + n[0], "b": n[1]} for e, n in zip(effects, noise, strict=True)]
    weights = estimate_relevance(encoder, prompts, statistics)
    encoder.set_phrase_weights(weights.phrase_weights, weights.terms)
    kinds = {"curve" if term.knots else "product" for term in weights.terms}
    return encoder, kinds


def test_an_effect_in_one_sex_earns_a_product_and_nothing_else() -> None:
    prompts, numbers = cohort()
    encoder, kinds = estimate(prompts, (numbers[:, 0] * numbers[:, 1]).astype(float))
    assert kinds == {"product"}
    named = {phrase.split(" is ")[0] for term in encoder.terms for phrase in term.phrases}
    assert named == {"SEX", "EXPOSURE"}


def test_a_u_shape_earns_a_curve_and_makes_its_column_relevant() -> None:
    prompts, numbers = cohort()
    encoder, kinds = estimate(prompts, ((numbers[:, 2] - 62) / 22) ** 2)
    assert kinds == {"curve"}
    relevance = column_relevance(encoder, prompts)
    assert relevance["AGE"] > 0.8 > 0.5 > relevance["ALLERGY"]


def test_effects_that_add_up_earn_no_term() -> None:
    prompts, numbers = cohort()
    _, kinds = estimate(prompts, numbers[:, 0] + numbers[:, 1] + (numbers[:, 2] - 62) / 22)
    assert not kinds


def test_terms_are_tokens_beside_the_phrases_and_survive_saving() -> None:
    prompts, numbers = cohort()
    encoder, _ = estimate(prompts, (numbers[:, 0] * numbers[:, 1]).astype(float))
    texts = [[text for text, _ in prompt] for prompt in prompts[:5]]
    embedded = encoder.encode([*texts, ["SEX is Male"], []])
    assert embedded.tokens.shape[1] == 5
    assert embedded.valid.sum(1).tolist() == [5] * 5 + [1, 0]
    assert torch.equal(embedded.pooled, embedded.tokens.sum(1))
    again = fitted(prompts)
    again.load_state(*encoder.state())
    assert torch.equal(again.encode(texts).tokens, encoder.encode(texts).tokens)


def test_a_curve_has_no_line_in_it_and_is_straight_beyond_its_knots() -> None:
    z = np.random.default_rng(1).normal(size=500)
    for term in fit_curve("AGE is 60", z):
        values = np.array([term.value([v]) for v in z])
        assert abs(np.polyfit(z, values, 1)[0]) < 1e-9 and values.std() == pytest.approx(1)
        far = [term.value([v]) for v in (4.0, 5.0, 6.0)]
        assert far[2] - far[1] == pytest.approx(far[1] - far[0])
    assert fit_curve("AGE is 60", np.repeat([0.0, 1.0], 20)) == []


def test_damaged_terms_are_refused() -> None:
    good = Term(("a", "b"), 1.0).to_values()
    assert Term.from_values(good) == Term(("a", "b"), 1.0)
    changes: tuple[dict[str, Any], ...] = (
        {"weight": "1"},
        {"phrases": ["a"]},
        {"phrases": []},
        {"knots": [1.0, 2.0, 3.0]},
    )
    for change in changes:
        with pytest.raises(UserError, match="terms"):
            Term.from_values({**good, **change})
