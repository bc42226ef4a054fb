"""The template of text encoders works as it stands, and is offered only where it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from models.text.encoders import build_text_encoder
from models.text.template_encoder import MAX_WORDS, TemplateEncoder
from options.base_options import TextOptions
from util.cli import UserError

OPTIONS = TextOptions(text_encoder="template")
PROMPTS = [["Smoking is Never", "Age: 60."], ["Smoking is Current"], []]


def test_shapes_and_empty_prompts() -> None:
    encoder = build_text_encoder(OPTIONS)
    encoder.fit(PROMPTS)
    text = encoder.encode(PROMPTS)
    assert text.tokens.shape == (3, 2, encoder.width) and text.pooled.shape == (3, encoder.width)
    assert text.valid.tolist() == [[True, True], [True, False], [False, False]]
    assert not text.tokens[~text.valid].any() and not text.pooled[2].any()
    assert text.tokens[text.valid].square().mean().sqrt().item() == pytest.approx(1, abs=1e-5)
    assert build_text_encoder(OPTIONS).encode([[]]).tokens.shape == (1, 1, encoder.width)


def test_state_carries_everything() -> None:
    first = TemplateEncoder(OPTIONS)
    first.fit(PROMPTS)
    second = TemplateEncoder(OPTIONS)
    second.load_state(*first.state())
    second.check_identity(first.identity)
    assert torch.equal(first.encode(PROMPTS).tokens, second.encode(PROMPTS).tokens)


def test_limits_are_errors() -> None:
    encoder = TemplateEncoder(OPTIONS)
    with pytest.raises(UserError, match=f"at most {MAX_WORDS}"):
        encoder.validate([["word " * (MAX_WORDS + 1)]])
    with pytest.raises(UserError, match="text_mode phrases"):
        build_text_encoder(TextOptions(text_encoder="template", text_mode="sentence"))


def test_is_offered_only_where_it_is_imported() -> None:
    code = "import models.text.encoders as e; print('template' in e.ENCODERS)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
