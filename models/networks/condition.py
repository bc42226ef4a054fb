"""What all networks do with a condition: mask, coordinates, and the region where text acts."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks.fusion import FusionUnit
from models.networks.label_embedding import mask_channels
from models.text.base_encoder import TextEmbedding
from options.train_options import GeneratorOptions

MaybeTensor = TypeVar("MaybeTensor", Tensor, "Tensor | None")


def input_channels(options: GeneratorOptions, n_labels: int) -> int:
    """Return the channels of the condition: mask, and coordinates if they are used."""
    return mask_channels(n_labels) + 3 * options.coord_channels


def organ_region(mask: Tensor, body: int | None) -> Tensor:
    """Return where a mask `(B, K, X, Y, Z)` has an organ's label, `(B, 1, X, Y, Z)`.

    The mask is one-hot, embedded, or of one channel with the numbers of labels. Background, the
    first channel, and the channel of the body, if there is one, are no organs.
    """
    if mask.shape[1] == 1:
        organs = mask > 0 if body is None else (mask > 0) & (mask != body)
        return organs.to(mask.dtype)
    region = 1 - mask[:, :1]
    return region if body is None else region - mask[:, body : body + 1]


def repeat_batch(x: MaybeTensor, times: int) -> MaybeTensor:
    """Return the batch `times` times, one after the other, in its memory format."""
    return x if x is None or times == 1 else torch.cat([x] * times)


def fuse(unit: FusionUnit, x: Tensor, text: TextEmbedding, region: Tensor | None) -> Tensor:
    """Fuse text into features within a region.

    A prompt may fit one patient only. A network could then memorise with it what the mask does not
    determine, such as the shape of the body. Text within labelled voxels cannot do that.

    Args:
        x: Features `(B, C, X, Y, Z)`.
        text: Embedding of B prompts.
        region: `(B, 1, X, Y, Z)`, 1 where text has an effect; None for everywhere.
    """
    fused = unit(x, text)
    return fused if region is None else torch.lerp(x, fused, region.to(x.dtype))


def halve_region(region: Tensor | None) -> Tensor | None:
    """Return the region at half the resolution.

    A coarse voxel belongs to it only if all of its voxels do; otherwise text would leak out.
    """
    return None if region is None else -F.max_pool3d(-region, 2)
