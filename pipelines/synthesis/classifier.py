"""A small 3D DenseNet that classifies volumes, to measure the utility of a cohort."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.nets.densenet import DenseNet
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import RandGaussianNoise, RandShiftIntensity
from monai.transforms.spatial.array import RandAffine
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from options.utility_options import ClassifierOptions

MAX_SHIFT = 2  # voxels by which a volume is moved in training
MAX_TURN = 0.09  # radians
MAX_SCALE = 0.05
NOISE_SD = 0.02  # of the window's half
MAX_BRIGHTNESS = 0.05


@dataclass(frozen=True)
class LabelledVolumes:
    """Volumes as cells `(N, 2, X, Y, Z)`, or as features `(N, F)`, with their classes `(N,)`."""

    volumes: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __add__(self, other: LabelledVolumes) -> LabelledVolumes:
        """Return both, `self` first."""
        volumes = torch.cat([self.volumes, other.volumes])
        return LabelledVolumes(volumes, torch.cat([self.targets, other.targets]))


def make_classifier(channels: int, classes: int, width: int) -> nn.Module:
    """Build a DenseNet (Huang et al. 2017, arXiv 1608.06993) of two blocks.

    Returns:
        A network of `(B, C, X, Y, Z)` with logits `(B, classes)`.
    """
    return DenseNet(
        3,
        channels,
        classes,
        init_features=width,
        growth_rate=width,
        block_config=(2, 2),
        norm="batch",
        dropout_prob=0.1,
    )


def train_classifier(
    data: LabelledVolumes,
    classes: int,
    options: ClassifierOptions,
    seed: int,
    device: torch.device,
    name: str,
    real: int = 0,
) -> nn.Module:
    """Train a classifier.

    Args:
        data: The training volumes; targets are 0 to `classes` - 1.
        classes: Number of classes.
        options: How it is trained.
        seed: Decides weights, order and shifts.
        device: The device it is trained on.
        name: Title of the progress bar.
        real: Number of real scans, which come first, where there are synthetic ones, too. The last
            steps see them alone (`options.finish`), so that they decide the boundary between
            classes, whatever distinguishes synthetic volumes. 0 otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    augmentation = usual_augmentation(seed) if options.augment else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = make_classifier(data.volumes.shape[1], classes, options.width).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps)
        mixed_steps = round(options.steps * (1 - options.finish)) if real else options.steps
        for step in tqdm(range(options.steps), name, unit="step", leave=False, disable=None):
            count = len(data) if step < mixed_steps else real
            chosen = choose_batch(data.targets[:count], options, generator)
            volumes = data.volumes[chosen]
            if augmentation is None:
                volumes = random_shift(volumes, generator)
            else:
                volumes = torch.stack([torch.as_tensor(augmentation(v)) for v in volumes])
            volumes = volumes.to(device)
            weight = None
            if options.class_weights:
                weight = class_weights(data.targets[:count], classes).to(device)
            loss = F.cross_entropy(network(volumes), data.targets[chosen].to(device), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def choose_batch(targets: Tensor, options: ClassifierOptions, generator: torch.Generator) -> Tensor:
    """Return the numbers of the volumes of a step, `(batch,)`."""
    if not options.oversample:
        return torch.randint(len(targets), (options.batch,), generator=generator)
    weights = class_weights(targets, int(targets.max()) + 1)[targets]
    return torch.multinomial(weights, options.batch, replacement=True, generator=generator)


def usual_augmentation(seed: int) -> Compose:
    """Return MONAI's random affine maps, noise and brightness, for volumes `(C, X, Y, Z)`."""
    augmentation = Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=(MAX_TURN,) * 3,
                translate_range=(MAX_SHIFT,) * 3,
                scale_range=(MAX_SCALE,) * 3,
                padding_mode="border",
            ),
            RandGaussianNoise(prob=0.5, std=NOISE_SD),
            RandShiftIntensity(MAX_BRIGHTNESS, prob=0.5),
        ]
    )
    return augmentation.set_random_state(seed)


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """Return weights `(classes,)` that balance the classes; 0 for a class without a volume."""
    counts = torch.bincount(targets, minlength=classes).float()
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp_min(1)), 0)


def random_shift(volumes: Tensor, generator: torch.Generator) -> Tensor:
    """Move volumes `(B, C, X, Y, Z)` by a random number of voxels.

    They are never flipped, because the sides of a chest differ.
    """
    shifts = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (3,), generator=generator)
    x, y, z = (int(shift) for shift in shifts)
    return torch.roll(volumes, (x, y, z), (2, 3, 4))


def predict(network: nn.Module, volumes: Tensor, device: torch.device, batch: int = 16) -> Tensor:
    """Return probabilities `(N, classes)` on the CPU."""
    with torch.inference_mode():
        parts = [network(part.to(device)).softmax(1).cpu() for part in volumes.split(batch)]
    return torch.cat(parts)
