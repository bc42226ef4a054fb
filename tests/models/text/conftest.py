"""Language models as fixtures of the tests of text encoders."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from models.text.clip import make_tokenizer
from models.text.encoders import TextEncoder, build_text_encoder
from options.base_options import TextOptions
from tests.language_models import MINILM, TRAINING, clip_config


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    encoder = build_text_encoder(TextOptions(text_encoder=MINILM))
    encoder.fit(TRAINING)
    return encoder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer([", ".join(p) for p in TRAINING], limit=40)


@pytest.fixture(scope="module")
def clip_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPTextModelWithProjection(clip_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
