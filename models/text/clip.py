"""Parts of the cohort's CLIP (Radford et al. 2021, arXiv 2103.00020)."""

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
# If the end token has the id 2, transformers pools at the largest id instead of at the end. So
# <unk> has the id 2.
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<start>",
    "unk_token": "<unk>",
    "eos_token": "<end>",
}
MIN_SHARE = 1e-3  # of a label in a cell of the grid
MIN_VOXELS = 1e-6
RANK_TOLERANCE = 1e-5  # of cosine similarities that count as equal


def make_tokenizer(
    texts: Sequence[str], limit: int, vocabulary: int = 2000
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which knows every character and splits numbers into digits.

    Args:
        texts: The training prompts.
        limit: Largest number of tokens that the model takes.
        vocabulary: Largest number of entries.
    """
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    # So a word has the same token at the start of a text and within it.
    tokenizer.normalizer = normalizers.Prepend(" ")
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = SPECIAL_TOKENS["bos_token"]
    end = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=limit, **SPECIAL_TOKENS
    )


def make_text_model(
    tokenizer: PreTrainedTokenizerFast, layers: int = 2
) -> CLIPTextModelWithProjection:
    """Build a small CLIP text model with random weights for a tokenizer."""
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
    """Small 3D network that embeds density: means of intensities and features over each label.

    The means are standardised over the batch, because patients differ little compared with what
    they have in common.

    Args:
        labels: K, channels of the one-hot mask.
        channels: Features of the two levels.
        grid: Cells along the three axes, in each of which intensities are averaged.
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
        """Embed volumes.

        Args:
            image: `(B, 1, X, Y, Z)` in [-1, 1].
            mask: `(B, K, X, Y, Z)` one-hot, or shares of labels.

        Returns:
            `(B, WIDTH)`.
        """
        share = F.adaptive_avg_pool3d(mask, self.grid).clamp_min(MIN_SHARE)
        intensity = F.adaptive_avg_pool3d(image * mask, self.grid) / share  # (B, K, *grid)
        features = self.features(torch.cat([image, mask], 1))
        coarse_mask = F.adaptive_avg_pool3d(mask, features.shape[2:])
        means = average_by_label(features, coarse_mask)
        return self.head(torch.cat([intensity.flatten(1), means], 1))


def average_by_label(features: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of C features over each of K labels, `(B, K*C)`; zero for an absent label."""
    weight = mask.flatten(2)
    total = torch.einsum("bcv,bkv->bkc", features.flatten(2), weight)
    return (total / weight.sum(-1, keepdim=True).clamp_min(MIN_VOXELS)).flatten(1)


def contrastive_loss(volumes: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3).

    Args:
        volumes: Embeddings `(B, C)`.
        texts: Embeddings of the same cases, `(B, C)`.
        log_scale: Logarithm of the inverse temperature.
    """
    logits = log_scale.exp() * F.normalize(volumes, dim=1) @ F.normalize(texts, dim=1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def retrieval(volumes: Tensor, texts: Tensor) -> dict[str, float]:
    """Return top-1 and top-5 accuracy of retrieval, as the mean of both directions.

    Args:
        volumes: Embeddings `(N, C)`.
        texts: Embeddings of the same cases, `(N, C)`.

    Returns:
        `pairs`, `top1`, `top5`, and their values by chance, `chance_top1` and `chance_top5`.
    """
    similarity = F.normalize(volumes, dim=1) @ F.normalize(texts, dim=1).T
    n = len(similarity)
    ranks = torch.cat([_ranks(similarity), _ranks(similarity.T)])
    return {
        "pairs": n,
        "top1": (ranks < 1).float().mean().item(),
        "top5": (ranks < 5).float().mean().item(),
        "chance_top1": 1 / n,
        "chance_top5": min(1.0, 5 / n),
    }


def _ranks(similarity: Tensor) -> Tensor:
    """Return the rank of each row's partner, on the diagonal; equal prompts share their ranks."""
    partner = similarity.diagonal()[:, None]
    better = (similarity > partner + RANK_TOLERANCE).sum(1)
    not_worse = (similarity >= partner - RANK_TOLERANCE).sum(1)  # with the partner itself
    return (better + not_worse - 1) / 2
