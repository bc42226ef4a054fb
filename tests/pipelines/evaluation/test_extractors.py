"""Feature networks: the fixed random one, and weights of others from local files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as tv
from monai.networks.nets import resnet10
from torchvision.models import video

from pipelines.evaluation.distances import frechet
from pipelines.evaluation.extractors import make_extractor
from pipelines.evaluation.random_network import RandomNetwork
from tests.networks import i3resnet_state
from util.cli import UserError

CPU = torch.device("cpu")


def resnet_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        k: v for k, v in tv.resnet50(weights=None).state_dict().items() if not k.startswith("fc.")
    }


@pytest.mark.parametrize("dimensions", [2, 3])
def test_random_network_is_the_same_every_time(dimensions: int) -> None:
    torch.manual_seed(1)
    one = make_extractor("random", CPU, dimensions)
    torch.manual_seed(2)
    two = make_extractor("random", CPU, dimensions)
    images = torch.rand((3, 1, *(20,) * dimensions)) * 2 - 1
    assert one.digest == two.digest and len(one.digest) == 12 and "no learned weights" in one.about
    assert one(images).shape == (3, 144) and np.array_equal(one(images), two(images))
    assert make_extractor("random", CPU, 5 - dimensions).digest != one.digest


def test_random_network_ranks_blur_noise_and_shift() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        torch.from_numpy(rng.normal(-0.8, 0.05, (60, 1, 24, 24)).astype(np.float32))
        for _ in range(2)
    )
    extract = make_extractor("random", CPU)
    for damage in (lambda x, s: x + s * 0.03, lambda x, s: x + s * 0.03 * torch.randn_like(x)):
        torch.manual_seed(0)
        distances = [frechet(extract(first), extract(damage(second, s))) for s in (0, 1, 2, 3)]
        assert distances == sorted(distances)


def test_small_slices_are_taken() -> None:
    assert RandomNetwork(2)(torch.zeros(2, 1, 4, 4)).isfinite().all()
    assert RandomNetwork(3)(torch.zeros(2, 1, 5, 4, 4)).isfinite().all()


def test_swav_and_radimagenet_checkpoints(tmp_path: Path) -> None:
    state = resnet_state()
    order = ("conv1", "bn1", None, None, "layer1", "layer2", "layer3", "layer4")
    numbers = {name: i for i, name in enumerate(order) if name}
    swav = {f"module.{k}": v for k, v in state.items()} | {
        "module.prototypes.weight": torch.zeros(3, 128)
    }
    official = {
        f"backbone.{numbers[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()
    }
    keras = dict(state) | {
        k.replace("weight", "bias"): torch.zeros(len(v)) for k, v in state.items() if v.ndim == 4
    }
    files = {"swav": swav, "radimagenet": official, "radimagenet_keras": keras}
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    extractors = {}
    for name, tensors in files.items():
        torch.save({"state_dict": tensors} if name == "swav" else tensors, tmp_path / f"{name}.pth")
        extractors[name] = make_extractor(f"{name.split('_')[0]}:{tmp_path / name}.pth", CPU)
    assert (
        extractors["swav"].digest
        == extractors["radimagenet"].digest
        != extractors["radimagenet_keras"].digest
    )
    features = {name: extract(images) for name, extract in extractors.items()}
    assert all(f.shape == (2, 2048) and np.isfinite(f).all() for f in features.values())
    assert np.allclose(features["swav"], features["radimagenet"])


def test_medicalnet_checkpoint(tmp_path: Path) -> None:
    network = resnet10(
        spatial_dims=3,
        n_input_channels=1,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}},
        tmp_path / "r10.pth",
    )
    extract = make_extractor(f"medicalnet:{tmp_path / 'r10.pth'}", CPU, 3)
    assert extract(torch.zeros(1, 1, 24, 24, 24)).shape == (1, 512)


def test_chest_ct_network(tmp_path: Path) -> None:
    state = i3resnet_state()
    torch.save({"state_dict": state, "meta": {"n_tensor": len(state)}}, tmp_path / "a.pt")
    whole = {f"encode_image.i3_resnet.{k}": v for k, v in state.items()}
    other = {"encode_text.weight": torch.zeros(2), **whole}
    torch.save(other, tmp_path / "checkpoint.pt")
    extract = make_extractor(f"astra:{tmp_path / 'a.pt'}", CPU, 3, (-1000, 1000))
    merlin = make_extractor(f"merlin:{tmp_path / 'checkpoint.pt'}", CPU, 3)
    assert (extract.name, merlin.name) == ("astra network", "merlin network")
    assert extract.digest == merlin.digest and extract.hu_window == (-1000, 200)
    volume = torch.rand(1, 1, 16, 12, 10) * 2 - 1
    prepared = extract.prepare(volume)
    assert prepared.shape == (1, 3, 160, 224, 224)
    hu = volume[0, 0, 0, 0, 0] * 1000
    assert prepared[0, 0, 0, 0, 0] == pytest.approx(float((hu + 1000) / 1200), abs=1e-5)
    assert prepared.min() >= 0 and prepared.max() == 1  # above 200 HU all is 1
    # The second axis of the input is the volume's first, the third its second.
    steps = extract.prepare(make_volume_with_step(axis=0))[0, 0]
    assert steps[0, :112].max() < steps[0, 112:].min()
    assert not extract.window_warnings((-1000, 400))
    (warning,) = extract.window_warnings((-1000, 100))
    assert "astra (a.pt) was trained on -1000 to 200 HU" in warning
    features = extract.network(prepared[:, :, :16, :64, :64])
    assert features.shape == (1, 16) and features.isfinite().all()


def make_volume_with_step(axis: int) -> torch.Tensor:
    volume = torch.full((1, 1, 8, 8, 8), -0.9)
    volume.narrow(axis + 2, 4, 4)[:] = 0.1
    return volume


def test_chest_ct_network_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no inflated 3D ResNet"):
        make_extractor(f"astra:{path}", CPU, 3)
    torch.save(i3resnet_state() | {"layer2.1.conv3.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="weights of another network"):
        make_extractor(f"astra:{path}", CPU, 3)
    with pytest.raises(UserError, match="none of torchvision's r3d_18"):
        make_extractor(f"video:{path}", CPU, 3)


def test_video_network_sees_axial_slices(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(video.r3d_18(weights=None).state_dict(), tmp_path / "r3d.pth")
    extract = make_extractor(f"video:{tmp_path / 'r3d.pth'}", CPU, 3)
    top = extract.prepare(make_volume_with_step(axis=2))  # the upper slices are dense
    assert top.shape == (1, 3, 64, 112, 112)
    assert top[0, 0, :30].max() < top[0, 0, 34:].min()
    front = extract.prepare(make_volume_with_step(axis=1))
    assert front[0, 0, :, :50].min() > front[0, 0, :, 62:].max()  # front of the patient is up
    assert extract.network(top[:, :, :4, :32, :32]).shape == (1, 512)


def test_inception_and_vgg_checkpoints(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {
            k: v.shape
            for k, v in tv.vgg16(weights=None, init_weights=False).state_dict().items()
            if "features" in k
        }
    states = {
        "vgg": {k: torch.zeros(s) for k, s in shapes.items()}
        | {"classifier.0.bias": torch.zeros(4096)},
        "inception": tv.inception_v3(
            weights=None, aux_logits=True, init_weights=False
        ).state_dict(),
    }
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.pth")
        features = make_extractor(f"{name}:{tmp_path / name}.pth", CPU)(torch.zeros(2, 1, 40, 40))
        assert features.shape == (2, 512 if name == "vgg" else 2048)


@pytest.mark.parametrize(
    "choice, parts",
    [
        ("inception", ("--extractor inception", "needs its weights", "inception:FILE")),
        ("swav:no/such.pth", ("no/such.pth is not there",)),
        ("alexnet", ("must begin with one of", "radimagenet")),
        ("random:x.pth", ("takes no weights",)),
    ],
)
def test_missing_weights_are_refused(choice: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        make_extractor(choice, CPU)
    assert all(part in str(error.value) for part in parts)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(resnet_state(), path)
    with pytest.raises(UserError, match="weights of another network"):
        make_extractor(f"vgg:{path}", CPU)
    with pytest.raises(UserError, match="no MedicalNet"):
        make_extractor(f"medicalnet:{path}", CPU, 3)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read as weights"):
        make_extractor(f"swav:{path}", CPU)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no weights by name"):
        make_extractor(f"swav:{path}", CPU)


def test_weights_cannot_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"state_dict": Payload()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        make_extractor(f"swav:{tmp_path / 'w.pth'}", CPU)
    assert not (tmp_path / "ran").exists()
