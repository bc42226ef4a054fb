"""Maps of the cross-attention: how much each voxel attends to each phrase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inference import Sample, VolumeGenerator
from models.networks.fusion import AttentionFusion
from models.text.phrase_encoder import PhraseEncoder
from util.cli import UserError
from util.phrasing import strip_phrase

MAX_VOXELS = 2**22  # of a volume that is attended to at once
NO_PHRASE = "no phrase"  # the null token
DERIVED = "combinations and curves of phrases"  # tokens that follow from phrases


@dataclass(frozen=True)
class PhraseMap:
    """Share of the attention that a phrase receives, `(X, Y, Z)` in 0 to 1."""

    phrase: str
    share: Tensor


class _MeanMaps:
    """Mean of attention maps of any resolution over units, steps and heads."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self.total: Tensor | None = None
        self.count = 0

    def __call__(self, weights: Tensor) -> None:
        """Add the weights `(1, L, x, y, z)` of a unit."""
        full = F.interpolate(weights.float(), self.size, mode="trilinear", align_corners=False)
        self.total = full[0] if self.total is None else self.total + full[0]
        self.count += 1


@contextmanager
def recorded_attention(network: nn.Module, size: Sequence[int]) -> Iterator[_MeanMaps]:
    """Collect the attention of all units of a network while the block runs.

    Raises:
        UserError: The network has no cross-attention.
    """
    units = [unit for unit in network.modules() if isinstance(unit, AttentionFusion)]
    if not units:
        raise UserError(
            "This run has no cross-attention, so that there are no attention maps. Train a run "
            "with --fusion both (the default) or --fusion attention."
        )
    maps = _MeanMaps(size)
    for unit in units:
        unit.on_weights = maps
    try:
        yield maps
    finally:
        for unit in units:
            unit.on_weights = None


def phrase_maps(
    generator: VolumeGenerator, sample: Sample, phrases: Sequence[str]
) -> list[PhraseMap]:
    """Return the attention to each phrase while a volume is generated, the mean over all units.

    A share says where a phrase is looked up, not what it changes there.

    Args:
        generator: Generates with the run's network.
        sample: The case.
        phrases: The texts of the prompt's phrases.

    Raises:
        UserError: The run has no cross-attention or no phrases as tokens, the text is empty, or
            the volume is too large to be attended to at once.
    """
    if not isinstance(generator.encoder, PhraseEncoder):
        raise UserError(
            "The tokens of this run are not phrases (--text_mode sentence), so that there are no "
            "attention maps of phrases."
        )
    named = [phrase for phrase in phrases if strip_phrase(phrase)]
    if not named:
        raise UserError("The text is empty, so that there is no phrase to attend to.")
    size = sample.mask_input(torch.device("cpu")).shape[2:]
    if torch.Size(size).numel() > MAX_VOXELS:
        raise UserError(
            f"The volume has {'x'.join(map(str, size))} voxels; attention maps are made of at most "
            f"{MAX_VOXELS} at once. Choose a smaller one."
        )
    whole = replace(generator.window, tile=(), by_memory=False)
    network = generator.model.inference_network
    with recorded_attention(network, size) as maps:
        replace(generator, window=whole)(sample, list(phrases))
    assert maps.total is not None
    share = (maps.total / maps.count).cpu()
    names = [NO_PHRASE, *named]
    found = [PhraseMap(name, share[k]) for k, name in enumerate(names)]
    if len(share) > len(names):
        found.append(PhraseMap(DERIVED, share[len(names) :].sum(0)))
    return found
