"""Separable filters of volumes, as matrix products along the axes."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

TRUNCATE = 2.5  # SD at which a Gaussian is cut off
TUBE_SIGMAS = (1.6, 3.2)  # SD in voxels of the Gaussians of `tube_noise`
TUBE_WIDTH = 0.3  # w, in SD of the smooth fields


def gaussian_smooth(x: Tensor, sigma: float) -> Tensor:
    """Smooth `(B, 1, X, Y, Z)` with a Gaussian of this SD in voxels; the border is repeated."""
    return filter_axes(x, "gaussian", sigma)


def smooth_noise(x: Tensor, sigma: float) -> Tensor:
    """Smooth standard normal noise `(B, 1, X, Y, Z)`; each voxel has SD 1 again."""
    return filter_axes(x, "noise", sigma)


def tube_noise(noise: Tensor) -> Tensor:
    """Return fields of thin random tubes, `(B, F, X, Y, Z)`, of mean 0 and SD 1.

    Two smooth Gaussian fields Z_1 and Z_2 both vanish along curves (their zero sets are surfaces,
    which cross). exp(-(Z_1^2 + Z_2^2) / 2 w^2) is near 1 around these and 0 elsewhere; the radius
    of the tubes is 1.4 w times the SD of the Gaussian that the noise is smoothed with.

    Args:
        noise: `(B, N, X, Y, Z)` standard normal, N at least 2.
    """
    # In float64: products of other sizes, as of a tile, round in another way, and tubes are steep.
    square = TUBE_WIDTH**2
    mean, mean_square = square / (square + 1), square / (square + 2)
    scale = (mean_square - mean**2) ** -0.5
    fields = []
    for k, sigma in enumerate(TUBE_SIGMAS):
        channels = ((2 * k + i) % noise.shape[1] for i in range(2))
        first, second = (smooth_noise(noise[:, c, None].double(), sigma) for c in channels)
        tubes = (-(first.square() + second.square()) / (2 * square)).exp()
        fields.append((scale * (tubes - mean)).to(noise.dtype))
    return torch.cat(fields, 1)


def noise_reach(sigma: float) -> int:
    """Return how many voxels far `smooth_noise` looks."""
    return int(TRUNCATE * sigma + 0.5)  # as in MONAI


def box_mean(x: Tensor, side: int) -> Tensor:
    """Return the mean over cubes of `side` voxels, an odd number, around each voxel.

    At the border it is the mean of the voxels that are there.
    """
    return filter_axes(x, "box", side)


def filter_axes(x: Tensor, kind: str, size: float) -> Tensor:
    """Filter `(B, 1, X, Y, Z)` along each axis by a product with a matrix.

    That is ten times as fast on a CPU as convolutions of one channel.
    """
    of_x, of_y, of_z = (
        _filter_matrix(kind, size, side, x.device).to(x.dtype) for side in x.shape[2:]
    )
    x = of_y.T @ (x @ of_z)
    return (of_x.T @ x.flatten(3)).view_as(x)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what generation made first must serve a later training
def _filter_matrix(kind: str, size: float, length: int, device: torch.device) -> Tensor:
    """Return the matrix `(length, length)` that filters rows of this length.

    Args:
        kind: `gaussian`, whose border is repeated; `noise`, a Gaussian of the voxels that are there
            whose weights have squares that add up to 1; or `box`, a mean of the voxels that are
            there.
        size: SD of the Gaussian, or side of the box, in voxels.
        length: Voxels along the axis.
        device: Where the matrix is needed.
    """
    rows = torch.eye(length)[:, None]
    if kind in ("gaussian", "noise"):
        tail = noise_reach(size)
        kernel = torch.signal.windows.gaussian(2 * tail + 1, std=size)
        mode = "replicate" if kind == "gaussian" else "constant"
        rows = F.conv1d(F.pad(rows, (tail, tail), mode), (kernel / kernel.sum())[None, None])
        if kind == "noise":
            rows = rows / rows.square().sum(0, keepdim=True).sqrt()
    else:
        side = int(size)
        rows = F.avg_pool1d(rows, side, 1, side // 2)
        rows = rows / rows.sum(0, keepdim=True)
    return rows[:, 0].to(device)
