"""Whole volumes for generation, and the way back to the grid of the source file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch.utils.data import Dataset

from data.cache import load_case
from data.cohort import Case
from data.geometry import Shape, Volume, crop, resample
from data.volumes import label_channels, read_header, to_hu, to_unit
from options.base_options import DataOptions
from util.volume_inputs import CoordinateInput, LabelInput


@dataclass(frozen=True)
class VolumeSample:
    """One case as a whole volume, padded for the network.

    Attributes:
        image: `(1, X, Y, Z)` in [-1, 1], or None where the case has no scan.
        channels: `(X, Y, Z)` uint8, the channel of each voxel in the one-hot mask.
        n_labels: K, channels of the one-hot mask.
        inside: Slices of the padded grid that hold the case.
        labels: `(X', Y', Z')` mask labels without the padding.
        affine: `(4, 4)` of the grid without the padding, voxel index to RAS mm.
        window: HU at -1 and 1.
    """

    case: Case
    image: torch.Tensor | None
    channels: torch.Tensor
    n_labels: int
    inside: tuple[slice, slice, slice]
    labels: np.ndarray
    affine: np.ndarray
    window: tuple[float, float]

    @property
    def name(self) -> str:
        """The case's id."""
        return self.case.id

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Sides of a voxel, mm."""
        x, y, z = voxel_sizes(self.affine).tolist()
        return x, y, z

    def mask_input(self, device: torch.device) -> LabelInput:
        """Return the mask, one-hot `(1, K, X, Y, Z)`, as boxes on a device."""
        return LabelInput(self.channels, self.n_labels, device)

    def coords_input(self, device: torch.device) -> CoordinateInput:
        """Return coordinates `(1, 3, X, Y, Z)` in the unpadded volume as boxes on a device."""
        start = [-(side.start or 0) for side in self.inside]
        return CoordinateInput(self.channels.shape, start, self.labels.shape, device)

    def to_hu(self, volume: torch.Tensor | np.ndarray) -> np.ndarray:
        """Return a padded volume `(X, Y, Z)` in [-1, 1] as HU without the padding."""
        return to_hu(np.asarray(volume)[self.inside], self.window)

    def to_source_grid(self, hu: np.ndarray) -> np.ndarray:
        """Resample `(X', Y', Z')` onto the mask file's grid in RAS, as `write_like` takes it."""
        header = read_header(self.case.mask)
        volume = Volume(np.ascontiguousarray(hu, dtype=np.float32), self.affine)
        return resample(volume, grid=(header.shape, header.affine), order=1).array


def padded_size(shape: Sequence[int], minimum: Sequence[int], multiple: Sequence[int]) -> Shape:
    """Return the smallest multiple of `multiple` that holds `shape` and `minimum`, per axis."""
    sizes = []
    for length, low, step in zip(shape, minimum, multiple, strict=True):
        sizes.append(-(-max(length, low) // step) * step)
    x, y, z = sizes
    return x, y, z


class VolumeDataset(Dataset[VolumeSample]):
    """Cases as whole volumes, padded on all sides with air and background.

    Args:
        cases: Cases, with or without a CT.
        labels: The run's labels, background first.
        options: HU window and spacing.
        minimum: Smallest padded size (the patch the network was trained on).
        multiple: The padded size is a multiple of this (the network's downsampling).

    Raises:
        UserError: On access: a file cannot be read, or a mask has a label that the run does not
            have.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        labels: Sequence[int],
        options: DataOptions,
        minimum: Sequence[int] = (1, 1, 1),
        multiple: Sequence[int] = (1, 1, 1),
    ) -> None:
        self.cases = list(cases)
        self.labels = tuple(labels)
        self.options = options
        self.minimum = minimum
        self.multiple = multiple

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[VolumeSample]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> VolumeSample:
        case = self.cases[index]
        scan, mask = load_case(case, self.options.spacing)
        size = padded_size(mask.shape, self.minimum, self.multiple)
        start = tuple(-((wide - n) // 2) for wide, n in zip(size, mask.shape, strict=True))
        x, y, z = (slice(-s, -s + n) for s, n in zip(start, mask.shape, strict=True))
        image = None
        if scan is not None:
            unit = to_unit(scan.array, self.options.hu_window)
            image = torch.from_numpy(crop(unit, start, size, -1))[None]
        return VolumeSample(
            case=case,
            image=image,
            channels=label_channels(crop(mask.array, start, size, 0), self.labels, case.mask),
            n_labels=len(self.labels),
            inside=(x, y, z),
            labels=mask.array,
            affine=mask.affine,
            window=self.options.hu_window,
        )
