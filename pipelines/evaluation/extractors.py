"""Networks that turn slices and volumes into features, for distances between sets of scans.

random       a fixed random convolutional network; needs no weights (2D and 3D)
inception    torchvision Inception v3, last average pooling (Heusel et al. 2017, arXiv 1706.08500)
vgg          torchvision VGG16, last feature map averaged
radimagenet  ResNet-50 trained on RadImageNet (Mei et al. 2022), as published or as MONAI uses it
swav         ResNet-50 of a SwAV checkpoint (Caron et al. 2020, arXiv 2006.09882)
medicalnet   3D ResNet-10 to -50 of MedicalNet (Chen et al. 2019, arXiv 1904.00625), in MONAI's
network
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

from pipelines.evaluation.random_network import RandomNetwork
from util.cli import UserError, format_list

CHOICES_2D = ("random", "inception", "vgg", "radimagenet", "swav")
CHOICES_3D = ("random", "medicalnet")
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a checkpoint holds beside the layers that make features.
HEADS = (
    "fc.",
    "classifier.",
    "AuxLogits.",
    "projection_head.",
    "prototypes.",
    "conv_seg.",
    "num_batches_tracked",
)
BATCH = 32
KERAS_EPSILON = 1.001e-5

State = dict[str, Tensor]


@dataclass(frozen=True)
class Extractor:
    """A frozen network in evaluation mode.

    Attributes:
        name: What it is, in short.
        about: What it is, with the file of its weights.
        digest: First digits of the sha256 of its weights: figures of other digests are not
            comparable.
        network: Takes `prepare`d input and gives `(N, F)`.
        prepare: Takes `(N, 1, ...)` in [-1, 1].
    """

    name: str
    about: str
    digest: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """`(N, F)` features of `(N, 1, H, W)` slices or `(N, 1, X, Y, Z)` volumes in [-1, 1]."""
        parts = [
            self.network(self.prepare(part.to(self.device))).float().cpu()
            for part in images.split(BATCH)
        ]
        return torch.cat(parts).numpy()


def weights_digest(network: nn.Module) -> str:
    """The first 12 digits of the sha256 of all weights, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def make_extractor(choice: str, device: torch.device, dimensions: int = 2) -> Extractor:
    """The extractor that a choice names.

    Args:
        choice: `random`, or `NAME:FILE` with a local file of weights (`.pth`, `.pt`, `.tar`,
            `.safetensors`); names are those of `CHOICES_2D` or `CHOICES_3D`.
        device: Where it computes.
        dimensions: 2 for slices, 3 for volumes.

    Raises:
        UserError: An unknown name, missing weights, or weights of another network.
    """
    flag, choices = (
        ("--extractor", CHOICES_2D) if dimensions == 2 else ("--extractor_3d", CHOICES_3D)
    )
    name, _, weights = choice.partition(":")
    if name not in choices:
        raise UserError(f"{flag} is {choice!r}; it must begin with one of: {', '.join(choices)}.")
    if name == "random":
        if weights:
            raise UserError(
                f"{flag} {choice}: the random network takes no weights; give `{flag} random`."
            )
        network: nn.Module = RandomNetwork(dimensions)
        prepare: Callable[[Tensor], Tensor] = nn.Identity()
        title = f"fixed random network in {dimensions}D (no learned weights)"
    else:
        source = f"{flag} {choice}"
        network, prepare = MAKERS[name](_read(name, weights, source), source)
        title = f"{name} ({Path(weights).name})"
    network = network.to(device).eval().requires_grad_(False)
    return Extractor(f"{name} network", title, weights_digest(network), network, prepare, device)


def _read(name: str, weights: str, source: str) -> State:
    """The tensors of a weights file without wrappers' prefixes and without heads; nothing in the
    file can run.
    """
    path = Path(weights)
    if not weights or not path.is_file():
        raise UserError(
            f"{source}: the extractor {name} needs its weights, and {weights or 'no file'} is "
            f"{'not there' if weights else 'given'}. Write {name}:FILE, or use random, which needs "
            "none."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file raises, in torch, pickle or zipfile
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{source}: {path} cannot be read as weights ({reason}). Save a plain state dictionary."
        ) from None
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        inner = next((found[k] for k in ("state_dict", "model", "net") if k in found), None)
        if inner is None:
            raise UserError(
                f"{source}: {path} holds no weights by name; it holds: "
                f"{format_list(list(map(str, found)))}."
            )
        found = inner
    if not isinstance(found, Mapping):
        raise UserError(
            f"{source}: {path} holds no weights by name. Save the network's state_dict()."
        )
    plain = {str(k).removeprefix("module."): v for k, v in found.items() if isinstance(v, Tensor)}
    return {k: v for k, v in plain.items() if not any(head in k for head in HEADS)}


def _fit(network: nn.Module, state: State, source: str) -> nn.Module:
    """Loads weights that must fit exactly, heads apart."""
    own = {k: v for k, v in network.state_dict().items() if not any(head in k for head in HEADS)}
    missing, surplus = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or surplus or wrong:
        raise UserError(
            f"{source} holds the weights of another network (missing: "
            f"{format_list(missing, 2) or 'none'}; not known: {format_list(surplus, 2) or 'none'}; of "
            f"another shape: {format_list(wrong, 2) or 'none'}). Choose the extractor that they belong "
            "to."
        )
    network.load_state_dict(state, strict=False, assign=True)
    return network


def _imagenet(size: int | None) -> Callable[[Tensor], Tensor]:
    """Three equal channels, normalised as for ImageNet, and resized where the network needs it."""
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_SD))

    def prepare(images: Tensor) -> Tensor:
        images = ((images + 1) / 2).expand(-1, 3, -1, -1)
        images = (images - mean.to(images)) / sd.to(images)
        return (
            images
            if size is None
            else F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        )

    return prepare


def _inception(state: State, source: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    network = tv.inception_v3(weights=None, aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    return _fit(network, state, source), _imagenet(299)


def _vgg(state: State, source: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    with torch.device("meta"):  # its classifier, most of its weights, is not needed
        features = tv.vgg16(weights=None, init_weights=False).features
    own = {k.removeprefix("features."): v for k, v in state.items()}
    return nn.Sequential(
        _fit(features, own, source), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ), _imagenet(None)


def _resnet50() -> tv.ResNet:
    network = tv.resnet50(weights=None)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


def _swav(state: State, source: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    return _fit(_resnet50(), state, source), _imagenet(None)


def _radimagenet(state: State, source: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Published weights count the layers (`backbone.4.0.conv1`); those that MONAI uses were
    converted from Keras.
    """
    names = dict(
        enumerate(("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"))
    )
    for number, name in names.items():
        state = {
            k.replace(f"backbone.{number}.", f"{name}.", 1)
            if k.startswith(f"backbone.{number}.")
            else k: v
            for k, v in state.items()
        }
    network = _resnet50()
    if "conv1.bias" in state:
        _as_keras(network)
    return _fit(network, state, source), _imagenet(None)


def _as_keras(network: tv.ResNet) -> None:
    """Biases, and strides in the first convolution of a block, as Keras has them."""
    for module in network.modules():
        if isinstance(module, tv.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def _medicalnet(state: State, source: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The first of MedicalNet's depths whose weights these are."""
    choices = ((resnet10, "B"), (resnet18, "A"), (resnet34, "A"), (resnet50, "B"))
    for make, shortcut in choices:
        build = partial(
            make,
            spatial_dims=3,
            n_input_channels=1,
            feed_forward=False,
            shortcut_type=shortcut,
            bias_downsample=shortcut == "A",
        )
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in build().state_dict().items() if "num_batches" not in k}
        if shapes == {k: v.shape for k, v in state.items()}:
            return _fit(build(), state, source), nn.Identity()
    raise UserError(
        f"{source} holds the weights of no MedicalNet ResNet-10, -18, -34 or -50; it begins with: "
        f"{format_list(sorted(state), 3)}."
    )


MAKERS: Mapping[str, Callable[[State, str], tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
    "inception": _inception,
    "vgg": _vgg,
    "radimagenet": _radimagenet,
    "swav": _swav,
    "medicalnet": _medicalnet,
}
