"""Whole volumes for generation, and the way back from the model's grid to that of the source
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from data.cache import load_case
from data.cohort import Case
from data.geometry import Shape, Volume, coordinate_grid, crop, resample
from data.volumes import one_hot, read_header, to_unit
from options.base_options import DataOptions


@dataclass(frozen=True)
class VolumeSample:
    """One case, padded: `image` (1, X, Y, Z) in [-1, 1] or None, `mask` (K, X, Y, Z) one-hot,
    `coords` (3, X, Y, Z).

    `inside` takes the case out of the padding; `affine` and `labels` (X', Y', Z') belong to what is
    inside.
    """

    case: Case
    image: torch.Tensor | None
    mask: torch.Tensor
    coords: torch.Tensor
    inside: tuple[slice, slice, slice]
    labels: np.ndarray
    affine: np.ndarray

    def unpad(self, array: np.ndarray) -> np.ndarray:
        """What lies inside the padding of an array (..., X, Y, Z)."""
        index = (..., *self.inside)
        return array[index]

    def restore(self, array: np.ndarray) -> np.ndarray:
        """A padded array (X, Y, Z) on the canonicalised grid of the mask file, as `write_like`
        takes it.
        """
        header = read_header(self.case.mask)
        volume = Volume(np.ascontiguousarray(self.unpad(array)), self.affine)
        return resample(volume, grid=(header.shape, header.affine), order=1).array


def padded_size(shape: Sequence[int], least: Sequence[int], multiple: Sequence[int]) -> Shape:
    """The smallest size that holds `shape` and `least` and is a multiple of `multiple` along each
    axis.
    """
    x, y, z = (-(-max(n, low) // m) * m for n, low, m in zip(shape, least, multiple, strict=True))
    return x, y, z


class VolumeDataset(Dataset[VolumeSample]):
    """Cases as whole volumes, padded on all sides with air and background.

    Args:
        cases: Which ones; images may be absent.
        labels: The run's labels, background first.
        options: HU window and spacing.
        least: Each axis is padded to this size at least (the patch the network was trained on).
        multiple: ... and to a multiple of this (the network's downsampling).

    Raises:
        UserError: On access: a file that cannot be read, or a mask with a label that the run does
            not know.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        labels: Sequence[int],
        options: DataOptions,
        least: Sequence[int] = (1, 1, 1),
        multiple: Sequence[int] = (1, 1, 1),
    ) -> None:
        self.cases, self.labels, self.options = list(cases), tuple(labels), options
        self.least, self.multiple = least, multiple

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> VolumeSample:
        case = self.cases[index]
        image, mask = load_case(case, self.options.spacing)
        size = padded_size(mask.shape, self.least, self.multiple)
        start = tuple(-((wide - n) // 2) for wide, n in zip(size, mask.shape, strict=True))
        x, y, z = (slice(-s, -s + n) for s, n in zip(start, mask.shape, strict=True))
        unit = None
        if image is not None:
            unit = torch.from_numpy(
                crop(to_unit(image.array, self.options.hu_window), start, size, -1)
            )[None]
        return VolumeSample(
            case=case,
            image=unit,
            mask=one_hot(crop(mask.array, start, size, 0), self.labels, case.mask),
            coords=coordinate_grid(mask.shape, start, size),
            inside=(x, y, z),
            labels=mask.array,
            affine=mask.affine,
        )
