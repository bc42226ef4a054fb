"""The cohort's own CLIP (Radford et al. 2021, arXiv 2103.00020): volume encoder, text encoder,
tokenizer, loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

WIDTH = 64
# transformers pools at the largest id instead of at the end when the end token is number 2, so
# <unk> takes that number.
SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "unk_token": "<unk>", "eos_token": "<end>"}


def make_tokenizer(
    texts: Sequence[str], limit: int, vocabulary: int = 2000
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts, for which no character is unknown and a number is
    its digits.

    Args:
        texts: The training prompts.
        limit: Most tokens that the model takes.
        vocabulary: Most entries.
    """
    special = list(SPECIAL.values())
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Prepend(
        " "
    )  # a word is the same token at the start and within
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    start, end = (
        (SPECIAL[k], tokenizer.token_to_id(SPECIAL[k])) for k in ("bos_token", "eos_token")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **SPECIAL)


def make_text_model(
    tokenizer: PreTrainedTokenizerFast, layers: int = 2
) -> CLIPTextModelWithProjection:
    """A small CLIP text model, untrained, for this tokenizer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class VolumeEncoder(nn.Module):
    """A small 3D network, made to see density: intensities and features are averaged over each
    label of the mask.

    The averages are standardised over the batch, for patients differ in them by little beside what
    all have in common.

    Args:
        labels: Channels of the one-hot mask.
        channels: Features of the two levels.
        grid: Places of the chest in which intensities are averaged apart, along the three axes.
    """

    def __init__(
        self,
        labels: int,
        channels: tuple[int, int] = (8, 16),
        grid: tuple[int, int, int] = (2, 2, 3),
    ) -> None:
        super().__init__()
        self.grid = grid
        self.features = nn.Sequential(
            nn.Conv3d(1 + labels, channels[0], 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv3d(channels[0], channels[1], 3, stride=2, padding=1),
            nn.SiLU(),
        )
        width = labels * (channels[1] + math.prod(grid))
        self.head = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Dropout(0.2),
            nn.Linear(width, 2 * WIDTH),
            nn.SiLU(),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """`(B,C)` of `image` `(B,1,X,Y,Z)` in [-1, 1] and `mask` `(B,K,X,Y,Z)`."""
        local = F.adaptive_avg_pool3d(image * mask, self.grid) / F.adaptive_avg_pool3d(
            mask, self.grid
        ).clamp_min(1e-3)
        features = self.features(torch.cat([image, mask], 1))
        share = F.adaptive_avg_pool3d(mask, features.shape[2:])
        return self.head(torch.cat([local.flatten(1), average(features, share)], 1))


def average(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of each of C features over each of K labels, `(B,K*C)`; zero for an absent label."""
    weight = mask.flatten(2)
    total = torch.einsum("bcv,bkv->bkc", features.flatten(2), weight)
    return (total / weight.sum(-1, keepdim=True).clamp_min(1e-6)).flatten(1)


def contrastive_loss(volumes: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of paired embeddings `(B,C)`; `scale` is the logarithm of the inverse
    temperature.
    """
    logits = scale.exp() * F.normalize(volumes, dim=1) @ F.normalize(texts, dim=1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def retrieval(volumes: Tensor, texts: Tensor) -> dict[str, float]:
    """Share of pairs `(N,C)` whose partner is the best, or among the five best, of all N (both ways
    averaged).
    """
    similar = F.normalize(volumes, dim=1) @ F.normalize(texts, dim=1).T
    own = similar.diagonal()[:, None]
    n = len(similar)
    # Equal prompts share their ranks: half of those as good as the own one (up to rounding) stand
    # before it.
    ranks = torch.cat(
        [((s > own + 1e-5).sum(1) + (s >= own - 1e-5).sum(1) - 1) / 2 for s in (similar, similar.T)]
    )
    return {
        "pairs": n,
        "top1": (ranks < 1).float().mean().item(),
        "top5": (ranks < 5).float().mean().item(),
        "chance_top1": 1 / n,
        "chance_top5": min(1.0, 5 / n),
    }
