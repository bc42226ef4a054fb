"""Patches for training; sample i depends on the seed and on i alone.

Workers cut HU and labels, 3 bytes a voxel. One-hot mask, coordinates and noise are made from them
on the device, see `PatchDataset.inputs`.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import random_affine
from data.cache import cache_cases
from data.cohort import Case
from data.geometry import crop
from data.volumes import check_labels, to_unit
from options.base_options import DataOptions, PatchOptions, TextOptions
from util import seeding
from util.volume_inputs import mask_input, patch_coordinates

log = logging.getLogger(__name__)

Phrases = Sequence[str]
BACKGROUND = 0
N_DRAWS = 4  # uniform numbers per sample
MAX_WORKERS = 8  # more do not load faster than a GPU trains


class PatchSample(TypedDict):
    """One patch.

    Attributes:
        hu: CT (x, y, z) in HU, int16, or float32 where a scan has other values.
        channels: Channel of each voxel in the one-hot mask (x, y, z), uint8.
        start: First voxel of the patch in its volume (3,), may be negative.
        shape: Size of the volume (3,).
        key: Key of the patch's random numbers (2,), see `util.seeding`.
        prompt: Phrases of the case, after dropout.
        mismatched_prompt: Phrases of another case, at least one of which is wrong for this one.
        case: Id of the case.
    """

    hu: torch.Tensor
    channels: torch.Tensor
    start: torch.Tensor
    shape: torch.Tensor
    key: torch.Tensor
    prompt: list[str]
    mismatched_prompt: list[str]
    case: str


class PatchBatch(TypedDict):
    """B samples: stacked tensors (B, ...) and lists of B entries, see `PatchSample`."""

    hu: torch.Tensor
    channels: torch.Tensor
    start: torch.Tensor
    shape: torch.Tensor
    key: torch.Tensor
    prompts: list[list[str]]
    mismatched_prompts: list[list[str]]
    cases: list[str]


def collate_patches(samples: Sequence[PatchSample]) -> PatchBatch:
    """Stack samples to a batch."""
    values: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        for key, value in sample.items():
            values[key].append(value)
    return PatchBatch(
        hu=_stack_volumes(values["hu"]),
        channels=torch.stack(values["channels"]),
        start=torch.stack(values["start"]),
        shape=torch.stack(values["shape"]),
        key=torch.stack(values["key"]),
        prompts=values["prompt"],
        mismatched_prompts=values["mismatched_prompt"],
        cases=values["case"],
    )


def _stack_volumes(volumes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack volumes, as float32 unless all are int16."""
    same = all(volume.dtype == torch.int16 for volume in volumes)
    return torch.stack(list(volumes) if same else [volume.float() for volume in volumes])


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


@dataclass(frozen=True)
class PatchSettings:
    """All that decides how patches are drawn.

    Attributes:
        data: HU window, spacing, lung labels.
        patch: Size, share on the lungs, augmentation.
        text: Dropout and shuffling of phrases.
        seed: Decides every draw, together with the sample's number.
        noise_channels: N, channels of the generator's noise.
    """

    data: DataOptions
    patch: PatchOptions
    text: TextOptions
    seed: int = 0
    noise_channels: int = 0


class PatchDataset(Dataset[PatchSample]):
    """Random patches, indexed by the global number of the sample since training began.

    Its length is one pass over the cases.

    Args:
        cases: Training cases; each needs an image.
        prompts: The phrases of each case by id, in full.
        labels: The run's labels, background first.
        settings: How patches are drawn.
        cache: Folder of prepared volumes; filled here.

    Raises:
        UserError: A mask has a label that is not among `labels`, or the disk is full.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        prompts: Mapping[str, Phrases],
        labels: Sequence[int],
        settings: PatchSettings,
        cache: Path,
    ) -> None:
        self.ids = [case.id for case in cases]
        self.prompts = [list(prompts[case.id]) for case in cases]
        self.labels = np.array(labels, np.uint8)
        self.window = settings.data.hu_window
        self.patch = settings.patch
        self.text = settings.text
        self.seed = settings.seed
        self.noise_channels = settings.noise_channels
        self.volumes = cache_cases(cases, settings.data, cache)
        self._channel = np.zeros(256, np.uint8)
        self._channel[self.labels] = np.arange(len(labels))
        for case, volume in zip(cases, self.volumes, strict=True):
            check_labels(volume.labels(), labels, case.mask)
        self._warn_large_patches()

    def _warn_large_patches(self) -> None:
        largest = np.zeros(3, int)
        for volume in self.volumes:
            largest = np.maximum(largest, volume.shape())
            if (largest >= self.patch.patch_size).all():
                return
        log.warning(
            "--patch_size %s is larger than every volume (at most %s voxels), so each patch is "
            "partly empty; a smaller one takes less time and memory.",
            ",".join(map(str, self.patch.patch_size)),
            ",".join(map(str, largest)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> PatchSample:
        epoch, position = divmod(index, len(self.ids))
        k = int(_epoch_order(self.seed, epoch, len(self.ids))[position])
        rng = np.random.default_rng([self.seed, 2, index])
        start = self._draw_start(k, rng)
        hu, mask = self._cut(k, start, rng)
        return PatchSample(
            hu=torch.from_numpy(hu),
            channels=torch.from_numpy(self._channel[mask]),
            start=torch.tensor(start),
            shape=torch.tensor(self.volumes[k].shape()),
            key=seeding.noise_key(self.seed, f"sample {index}"),
            prompt=self._drop_phrases(self.prompts[k], rng),
            mismatched_prompt=self._draw_mismatched_prompt(k, rng),
            case=self.ids[k],
        )

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what networks take, on the device that a batch was moved to.

        Args:
            batch: See `PatchBatch`.

        Returns:
            `image` (B, 1, x, y, z) in [-1, 1]; `mask` (B, K, x, y, z), see `mask_input`; `coords`
            (B, 3, x, y, z), see `coordinate_grid`; `noise` (B, N, x, y, z) standard normal; `draws`
            (B, 4) uniform, for a diffusion model's time and dropout; and prompts and case names.
        """
        size = batch["hu"].shape[1:]
        return {
            "image": to_unit(batch["hu"].float(), self.window)[:, None],
            "mask": mask_input(batch["channels"], len(self.labels)),
            "coords": patch_coordinates(batch["start"], batch["shape"], size),
            "noise": seeding.noise_box(batch["key"], self.noise_channels, (0, 0, 0), size),
            "draws": seeding.uniform_draws(batch["key"], N_DRAWS),
            **{name: batch[name] for name in ("prompts", "mismatched_prompts", "cases")},
        }

    def _draw_start(self, k: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw the first voxel of a patch, which may be negative.

        The patch is centred on a lung voxel with probability `lung_patch_prob`, else it lies
        anywhere. A volume smaller than the patch lies in its middle.
        """
        shape = np.array(self.volumes[k].shape())
        size = np.array(self.patch.patch_size)
        last = np.maximum(shape - size, 0)
        points = self.volumes[k].lung_points()
        if len(points) and rng.random() < self.patch.lung_patch_prob:
            start = points[rng.integers(len(points))] - size // 2
        else:
            start = rng.integers(0, last + 1)
        start = np.clip(start, 0, last)
        start = np.where(shape < size, -((size - shape) // 2), start)
        return tuple(int(v) for v in start)

    def _cut(
        self, k: int, start: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return CT in HU and labels of a patch (x, y, z); air and background lie outside."""
        image = self.volumes[k].image()
        mask = self.volumes[k].mask()
        size = self.patch.patch_size
        air = self.window[0]
        if self.patch.augment and rng.random() < self.patch.augment:
            hu, labels = random_affine(image, mask, start, size, air, rng)
            return np.rint(hu).astype(image.dtype) if image.dtype.kind == "i" else hu, labels
        return crop(image, start, size, air), crop(mask, start, size, BACKGROUND)

    def _drop_phrases(self, phrases: Phrases, rng: np.random.Generator) -> list[str]:
        """Leave out each phrase with probability `attribute_dropout`, and shuffle them if asked."""
        stays = rng.random(len(phrases)) >= self.text.attribute_dropout
        remaining = list(compress(phrases, stays))
        if self.text.shuffle_phrases:
            return [remaining[j] for j in rng.permutation(len(remaining))]
        return remaining

    def _draw_mismatched_prompt(self, k: int, rng: np.random.Generator) -> list[str]:
        """Draw another case's phrases, at least one of which is not among those of case k.

        Returns:
            The phrases; none where all cases agree.
        """
        factual = set(self.prompts[k])
        first = int(rng.integers(len(self.ids)))
        for prompt in [*self.prompts[first:], *self.prompts[:first]]:
            if not factual.issuperset(prompt):
                remaining = self._drop_phrases(prompt, rng)
                return list(prompt) if factual.issuperset(remaining) else remaining
        return []


class _GlobalBatches(Sampler[list[int]]):
    """Sample numbers of this process's batches, see `patch_loader`."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int, world: int) -> None:
        self.firsts = range(start + rank * batch_size, stop, batch_size * world)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for first in self.firsts:
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return len(self.firsts)


def _ignore_signals(worker: int) -> None:
    """Leave signals to the trainer.

    Ctrl-C, a batch system's SIGTERM and a closed terminal's SIGHUP reach every process; a worker
    that died of them would end training without a checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Return the number of processes that load patches: as asked, or by the cores.

    A CPU is busy with the step itself, beside which a patch costs nothing; a GPU leaves the cores
    free.

    Args:
        asked: Number of workers, or None for a choice.
        device: Where the step is computed.
    """
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or "1")  # set by torchrun
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, (cores or 1) // processes - 1))


def patch_loader(
    dataset: PatchDataset,
    start: int,
    stop: int,
    batch_size: int,
    *,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """Load batches of the samples `start` to `stop`, in order.

    A global batch is `world * batch_size` consecutive samples, of which each process takes its
    consecutive share. So several processes together see the batches that one would see. The global
    random state is left alone.

    Args:
        dataset: The patches.
        start: Global number of the first sample; a resumed run starts where it stopped.
        stop: Global number after the last; `stop - start` is a multiple of the global batch.
        batch_size: Samples of this process in a batch.
        workers: Processes that prepare batches.
        rank: Number of this process.
        world: Number of processes.
    """
    if (stop - start) % (batch_size * world):
        raise ValueError(
            f"{stop - start} samples are not a multiple of the global batch, {batch_size * world}"
        )
    return DataLoader(
        dataset,
        batch_sampler=_GlobalBatches(start, stop, batch_size, rank, world),
        num_workers=workers,
        collate_fn=collate_patches,
        generator=torch.Generator().manual_seed(dataset.seed),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
    )
