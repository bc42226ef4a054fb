"""Patches for training; sample i is a function of (seed, i) and of nothing else."""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import random_affine
from data.cache import cache_cases
from data.cohort import Case
from data.geometry import coordinate_grid, crop
from data.volumes import check_labels, to_unit
from options.base_options import DataOptions, PatchOptions, TextOptions
from util import seeding as noise

log = logging.getLogger(__name__)

Phrases = Sequence[str]
BACKGROUND = 0


class PatchSample(TypedDict):
    """One patch, float32: `image` (1, x, y, z) in [-1, 1], one-hot `mask` (K, ...), `coords` (3,
    ...), `noise` (N, ...).
    """

    image: torch.Tensor
    mask: torch.Tensor
    coords: torch.Tensor
    noise: torch.Tensor
    prompt: list[str]
    other_prompt: list[str]
    case: str


class PatchBatch(TypedDict):
    """Samples stacked: `image` (B, 1, x, y, z), `mask` (B, K, ...), `coords` (B, 3, ...), `noise`
    (B, N, ...), and B lists.

    `other_prompts` say something that is not true of their case (for mismatched pairs).
    """

    image: torch.Tensor
    mask: torch.Tensor
    coords: torch.Tensor
    noise: torch.Tensor
    prompts: list[list[str]]
    other_prompts: list[list[str]]
    cases: list[str]


def collate_patches(samples: Sequence[PatchSample]) -> PatchBatch:
    """Samples to a batch."""
    return PatchBatch(
        image=torch.stack([s["image"] for s in samples]),
        mask=torch.stack([s["mask"] for s in samples]),
        coords=torch.stack([s["coords"] for s in samples]),
        noise=torch.stack([s["noise"] for s in samples]),
        prompts=[s["prompt"] for s in samples],
        other_prompts=[s["other_prompt"] for s in samples],
        cases=[s["case"] for s in samples],
    )


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


class PatchDataset(Dataset[PatchSample]):
    """Random patches, indexed by the global number of the sample since training began; `len` is one
    pass over cases.

    Args:
        cases: Training cases; each needs an image.
        prompts: The phrases of each case by id, in full.
        labels: The run's labels, background first.
        data: HU window, spacing, lung labels.
        patch: Size, share on the lungs, augmentation.
        text: Dropout and shuffling of phrases.
        cache: Folder of prepared volumes; filled here.
        seed: Decides every draw, together with the sample's number.
        noise_channels: N, channels of the generator's noise.

    Raises:
        UserError: A mask with a label that is not among `labels`, or a full disk.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        prompts: Mapping[str, Phrases],
        labels: Sequence[int],
        data: DataOptions,
        patch: PatchOptions,
        text: TextOptions,
        cache: Path,
        seed: int = 0,
        noise_channels: int = 0,
    ) -> None:
        self.noise_channels = noise_channels
        self.ids = [case.id for case in cases]
        self.prompts = [list(prompts[case.id]) for case in cases]
        self.labels = np.array(labels, np.uint8)
        self.window, self.patch, self.text, self.seed = data.hu_window, patch, text, seed
        self.prepared = cache_cases(cases, data, cache)
        for case, prepared in zip(cases, self.prepared, strict=True):
            check_labels(prepared.labels(), labels, case.mask)
        largest = np.max([prepared.shape() for prepared in self.prepared], axis=0)
        if (largest < patch.patch_size).any():
            log.warning(
                "--patch_size %s is larger than every volume (at most %s voxels), and each patch "
                "partly empty; a smaller one takes less time and memory.",
                ",".join(map(str, patch.patch_size)),
                ",".join(map(str, largest)),
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> PatchSample:
        epoch, position = divmod(index, len(self.ids))
        k = int(_order(self.seed, epoch, len(self.ids))[position])
        rng = np.random.default_rng([self.seed, 2, index])
        start = self._start(k, rng)
        hu, mask = self._cut(k, start, rng)
        return PatchSample(
            image=torch.from_numpy(to_unit(hu, self.window))[None],
            mask=torch.from_numpy((mask == self.labels[:, None, None, None]).astype(np.float32)),
            coords=coordinate_grid(self.prepared[k].shape(), start, self.patch.patch_size),
            noise=noise.field(
                self.seed, f"sample {index}", (self.noise_channels, *self.patch.patch_size)
            ),
            prompt=self._dropped(self.prompts[k], rng),
            other_prompt=self._other(k, rng),
            case=self.ids[k],
        )

    def _start(self, k: int, rng: np.random.Generator) -> tuple[int, ...]:
        """First voxel of a crop: around a lung voxel with probability `lung_patch_prob`, else
        anywhere.
        """
        shape, size = np.array(self.prepared[k].shape()), np.array(self.patch.patch_size)
        points = self.prepared[k].lung_points()
        if len(points) and rng.random() < self.patch.lung_patch_prob:
            start = points[rng.integers(len(points))] - size // 2
        else:
            start = rng.integers(0, np.maximum(shape - size, 0) + 1)
        start = np.clip(start, 0, np.maximum(shape - size, 0))
        start = np.where(
            shape < size, -((size - shape) // 2), start
        )  # a small volume lies in the middle of its patch
        return tuple(int(v) for v in start)

    def _cut(
        self, k: int, start: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """CT in HU and labels of a patch, (x, y, z) each; outside the volume there is air and
        background.
        """
        prepared, size, air = self.prepared[k], self.patch.patch_size, self.window[0]
        if self.patch.augment and rng.random() < self.patch.augment:
            return random_affine(prepared.image(), prepared.mask(), start, size, air, rng)
        return crop(prepared.image(), start, size, air), crop(
            prepared.mask(), start, size, BACKGROUND
        )

    def _dropped(self, phrases: Phrases, rng: np.random.Generator) -> list[str]:
        """The phrases with each left out with probability `attribute_dropout`, shuffled where the
        options say so.
        """
        keep = rng.random(len(phrases)) >= self.text.attribute_dropout
        kept = [phrase for phrase, stays in zip(phrases, keep, strict=True) if stays]
        return [kept[j] for j in rng.permutation(len(kept))] if self.text.shuffle_phrases else kept

    def _other(self, k: int, rng: np.random.Generator) -> list[str]:
        """Another case's phrases, of which one at least is not true of case k; none where all cases
        agree.
        """
        own = set(self.prompts[k])
        first = int(rng.integers(len(self.ids)))
        for step in range(len(self.ids)):
            other = self.prompts[(first + step) % len(self.ids)]
            if not own.issuperset(other):
                dropped = self._dropped(other, rng)
                return list(other) if own.issuperset(dropped) else dropped
        return []


class _Steps(Sampler[list[int]]):
    def __init__(self, start: int, stop: int, batch_size: int, rank: int, world: int) -> None:
        self.firsts = range(start + rank * batch_size, stop, batch_size * world)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(first, first + self.batch_size)) for first in self.firsts)

    def __len__(self) -> int:
        return len(self.firsts)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach every process; a worker that died of them would end
    training unsaved.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def patch_loader(
    dataset: PatchDataset,
    start: int,
    stop: int,
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """Batches of the samples `start` to `stop`, in order; N processes together see the batches that
    one would see.

    A global batch is `world * batch_size` consecutive samples, of which each process takes its
    consecutive share.

    Args:
        dataset: The patches.
        start: Global number of the first sample; going on after a stop means to start there.
        stop: Global number after the last; `stop - start` is a multiple of the global batch.
        batch_size: Samples of this process in a batch.
        workers: Processes that prepare batches.
        seed: Seeds the workers (no sample depends on it); the global random state is left alone.
        rank: Number of this process.
        world: Number of processes.
    """
    if (stop - start) % (batch_size * world):
        raise ValueError(
            f"{stop - start} samples are no multiple of the global batch, {batch_size * world}"
        )
    return DataLoader(
        dataset,
        batch_sampler=_Steps(start, stop, batch_size, rank, world),
        num_workers=workers,
        collate_fn=collate_patches,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_trainer,
    )
