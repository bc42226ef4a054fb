"""A small classifier of volumes, to see what a cohort is good for: MONAI's DenseNet in 3D."""

from __future__ import annotations

import torch
from monai.networks.nets import DenseNet
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from options.utility_options import ClassifierOptions

MAX_SHIFT = 2  # voxels; a volume is moved by at most so many in training


def make_classifier(channels: int, classes: int, width: int) -> nn.Module:
    """A DenseNet (Huang et al. 2017, arXiv 1608.06993) of two blocks; `(B,C,X,Y,Z)` to
    `(B,classes)` logits.
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
    volumes: Tensor,
    targets: Tensor,
    classes: int,
    options: ClassifierOptions,
    seed: int,
    device: torch.device,
    name: str,
    real: int = 0,
) -> nn.Module:
    """A trained classifier.

    Args:
        volumes: `(N,C,X,Y,Z)`.
        targets: `(N,)`, 0 to `classes` - 1.
        classes: Number of classes.
        options: How it is trained.
        seed: Decides weights, order and shifts.
        device: Where.
        name: For the progress bar.
        real: So many volumes, the first ones, are real scans: the last steps see them alone
            (`options.finish`), so that the scans that count decide where classes part, whatever
            sets synthetic ones apart. 0 where there are no others.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = make_classifier(volumes.shape[1], classes, options.width).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps)
        alone = round(options.steps * (1 - options.finish)) if real else options.steps
        weights = {
            n: class_weights(targets[:n], classes).to(device)
            for n in (len(volumes), real or len(volumes))
        }
        for step in tqdm(range(options.steps), name, unit="step", leave=False, disable=None):
            count = len(volumes) if step < alone else real
            chosen = torch.randint(count, (options.batch,), generator=draw)
            moved = random_shift(volumes[chosen], draw).to(device)
            weight = weights[count] if options.class_weights else None
            loss = F.cross_entropy(network(moved), targets[chosen].to(device), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """Weights `(classes,)` that make classes count alike; a class without a volume gets none."""
    counts = torch.bincount(targets, minlength=classes).float()
    return torch.where(counts > 0, len(targets) / (classes * counts.clamp_min(1)), 0)


def random_shift(volumes: Tensor, draw: torch.Generator) -> Tensor:
    """Volumes `(B,C,X,Y,Z)` moved by a random number of voxels; never flipped, for a chest has
    sides.
    """
    x, y, z = (int(v) for v in torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (3,), generator=draw))
    return torch.roll(volumes, (x, y, z), (2, 3, 4))


def predict(network: nn.Module, volumes: Tensor, device: torch.device, batch: int = 16) -> Tensor:
    """Probabilities `(N,classes)` on the CPU."""
    with torch.inference_mode():
        parts = [network(part.to(device)).softmax(1).cpu() for part in volumes.split(batch)]
    return torch.cat(parts)
