"""Networks that turn slices and volumes into features, for distances between sets of scans.

random       a fixed random convolutional network; needs no weights (2D and 3D)
inception    torchvision Inception v3, last average pooling (Heusel et al. 2017, arXiv 1706.08500)
vgg          torchvision VGG16, last feature map averaged
radimagenet  ResNet-50 trained on RadImageNet (Mei et al. 2022), as published or as MONAI uses it
swav         ResNet-50 of a SwAV checkpoint (Caron et al. 2020, arXiv 2006.09882)
medicalnet   3D ResNet-10 to -50 of MedicalNet (Chen et al. 2019, arXiv 1904.00625) in MONAI
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision.models as tv
from monai.networks.nets import resnet10, resnet18, resnet34, resnet50
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import read_weights
from pipelines.evaluation.random_network import RandomNetwork
from util.cli import UserError, format_list
from util.training.checkpoint import weight_differences

CHOICES_2D = ("random", "inception", "vgg", "radimagenet", "swav")
CHOICES_3D = ("random", "medicalnet")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)
# Parts of names in a checkpoint that do not belong to the layers that make features.
HEADS = (
    "fc.",
    "classifier.",
    "AuxLogits.",
    "projection_head.",
    "prototypes.",
    "conv_seg.",
    "num_batches_tracked",
)
RESNET_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
BATCH = 32
KERAS_EPSILON = 1.001e-5

State = dict[str, Tensor]
Prepare = Callable[[Tensor], Tensor]
Builder = Callable[[State, str], tuple[nn.Module, Prepare]]


@dataclass(frozen=True)
class Extractor:
    """A frozen network in evaluation mode.

    Attributes:
        name: Short name.
        about: Name with the file of its weights.
        digest: First digits of the sha256 of its weights; metrics of different digests cannot be
            compared.
        network: A network of prepared input that returns `(N, F)`.
        prepare: A function of `(N, 1, ...)` in [-1, 1] that returns the network's input.
        device: The device it runs on.
    """

    name: str
    about: str
    digest: str
    network: nn.Module
    prepare: Prepare
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return features `(N, F)` of `(N, 1, H, W)` slices or `(N, 1, X, Y, Z)` in [-1, 1]."""
        parts = []
        for part in images.split(BATCH):
            parts.append(self.network(self.prepare(part.to(self.device))).float().cpu())
        return torch.cat(parts).numpy()


def weights_digest(network: nn.Module) -> str:
    """Return the first 12 digits of the sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def make_extractor(choice: str, device: torch.device, dimensions: int = 2) -> Extractor:
    """Build the extractor that a choice names.

    Args:
        choice: `random`, or `NAME:FILE` with a local file of weights (`.pth`, `.pt`, `.tar`,
            `.safetensors`); names are those of `CHOICES_2D` or `CHOICES_3D`.
        device: The device it runs on.
        dimensions: 2 for slices, 3 for volumes.

    Raises:
        UserError: An unknown name, missing weights, or weights of another network.
    """
    flag = "--extractor" if dimensions == 2 else "--extractor_3d"
    choices = CHOICES_2D if dimensions == 2 else CHOICES_3D
    name, _, weights = choice.partition(":")
    if name not in choices:
        raise UserError(f"{flag} is {choice!r}; it must begin with one of: {', '.join(choices)}.")
    network: nn.Module
    prepare: Prepare
    if name == "random":
        if weights:
            raise UserError(
                f"{flag} {choice}: the random network takes no weights; give `{flag} random`."
            )
        network = RandomNetwork(dimensions)
        prepare = nn.Identity()
        about = f"fixed random network in {dimensions}D (no learned weights)"
    else:
        source = f"{flag} {choice}"
        network, prepare = BUILDERS[name](_read_features(name, weights, source), source)
        about = f"{name} ({Path(weights).name})"
    network = network.to(device).eval().requires_grad_(False)
    return Extractor(f"{name} network", about, weights_digest(network), network, prepare, device)


def _read_features(name: str, weights: str, source: str) -> State:
    """Return the tensors of a weights file without prefixes of wrappers and without heads."""
    if not weights:
        raise UserError(
            f"{source}: the extractor {name} needs its weights, and no file is given. Write "
            f"{name}:FILE, or use random, which needs none."
        )
    state = {}
    for key, tensor in read_weights(Path(weights), source).items():
        key = key.removeprefix("module.")
        if not _is_head(key):
            state[key] = tensor
    return state


def _is_head(key: str) -> bool:
    return any(head in key for head in HEADS)


def _load_exactly(network: nn.Module, state: State, source: str) -> nn.Module:
    """Load weights that must fit exactly, apart from heads."""
    expected = {k: v for k, v in network.state_dict().items() if not _is_head(k)}
    if differences := weight_differences(expected, state):
        raise UserError(
            f"{source} holds the weights of another network ({'; '.join(differences)}). Choose the "
            "extractor that they belong to."
        )
    network.load_state_dict(state, strict=False, assign=True)
    return network


def _prepare_imagenet(size: int | None) -> Prepare:
    """Return a function that repeats the channel, normalises it as for ImageNet, and resizes it."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    sd = torch.tensor(IMAGENET_SD).view(1, 3, 1, 1)

    def prepare(images: Tensor) -> Tensor:
        images = ((images + 1) / 2).expand(-1, 3, -1, -1)
        images = (images - mean.to(images)) / sd.to(images)
        if size is None:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)

    return prepare


def _build_inception(state: State, source: str) -> tuple[nn.Module, Prepare]:
    network = tv.inception_v3(weights=None, aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    return _load_exactly(network, state, source), _prepare_imagenet(299)


def _build_vgg(state: State, source: str) -> tuple[nn.Module, Prepare]:
    with torch.device("meta"):  # its classifier, most of its weights, is not needed
        features = tv.vgg16(weights=None, init_weights=False).features
    state = {k.removeprefix("features."): v for k, v in state.items()}
    features = _load_exactly(features, state, source)
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network, _prepare_imagenet(None)


def _make_resnet50() -> tv.ResNet:
    network = tv.resnet50(weights=None)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


def _build_swav(state: State, source: str) -> tuple[nn.Module, Prepare]:
    return _load_exactly(_make_resnet50(), state, source), _prepare_imagenet(None)


def _build_radimagenet(state: State, source: str) -> tuple[nn.Module, Prepare]:
    """Build a RadImageNet ResNet-50.

    Published weights count the layers (`backbone.4.0.conv1`); those that MONAI uses were converted
    from Keras.
    """
    for number, name in enumerate(RESNET_LAYERS):
        prefix = f"backbone.{number}."
        state = {
            f"{name}.{k.removeprefix(prefix)}" if k.startswith(prefix) else k: v
            for k, v in state.items()
        }
    network = _make_resnet50()
    if "conv1.bias" in state:
        _convert_to_keras(network)
    return _load_exactly(network, state, source), _prepare_imagenet(None)


def _convert_to_keras(network: tv.ResNet) -> None:
    """Add biases, and move strides to the first convolution of a block, as Keras has them."""
    for module in network.modules():
        if isinstance(module, tv.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def _build_medicalnet(state: State, source: str) -> tuple[nn.Module, Prepare]:
    """Build the first of MedicalNet's depths that the weights fit."""
    shapes = {k: v.shape for k, v in state.items()}
    for make, shortcut in ((resnet10, "B"), (resnet18, "A"), (resnet34, "A"), (resnet50, "B")):
        build = partial(
            make,
            spatial_dims=3,
            n_input_channels=1,
            feed_forward=False,
            shortcut_type=shortcut,
            bias_downsample=shortcut == "A",
        )
        with torch.device("meta"):
            expected = build().state_dict()
        if shapes == {k: v.shape for k, v in expected.items() if not _is_head(k)}:
            return _load_exactly(build(), state, source), nn.Identity()
    raise UserError(
        f"{source} holds the weights of no MedicalNet ResNet-10, -18, -34 or -50; it begins with: "
        f"{format_list(sorted(state), 3)}."
    )


BUILDERS: Mapping[str, Builder] = {
    "inception": _build_inception,
    "vgg": _build_vgg,
    "radimagenet": _build_radimagenet,
    "swav": _build_swav,
    "medicalnet": _build_medicalnet,
}
