"""Discriminators, loss terms, and the weights of the terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.base_model import BatchText
from models.networks.discriminator import DiscriminatorOutput, MultiScaleDiscriminator
from models.networks.losses import (
    PerceptualLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    voxel_loss,
)
from models.pix2pixhd_model import Pix2PixHDModel
from tests.networks import LABELS, WIDTH, batch, text, train_options
from util.cli import UserError


def make_discriminator(**changes: Any) -> tuple[MultiScaleDiscriminator, dict[str, Tensor]]:
    """A discriminator and a batch for it."""
    torch.manual_seed(0)
    options = train_options(**changes)
    network = MultiScaleDiscriminator(options.discriminator, LABELS, WIDTH)
    return network, batch(options, 2, (16, 16, 16))


def scores(
    network: MultiScaleDiscriminator, volume: Tensor, mask: Tensor, pooled: Tensor
) -> list[Tensor]:
    return [output.scores for output in network(volume, mask, pooled)[0]]


def all_differ(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether the scores differ at every scale."""
    return all(bool((a - b).abs().max() > 1e-5) for a, b in zip(first, second, strict=True))


# --- discriminators -------------------------------------------------------------------------------


def test_every_scale_sees_volume_mask_and_text() -> None:
    network, inputs = make_discriminator(num_D=2)
    plain = scores(network, inputs["image"], inputs["mask"], text().pooled)
    assert len(plain) == 2 and plain[1].shape[2] < plain[0].shape[2]
    assert plain[0].dtype == torch.float32
    assert all_differ(
        plain, scores(network, inputs["image"].flip(2), inputs["mask"], text().pooled)
    )
    assert all_differ(
        plain, scores(network, inputs["image"], inputs["mask"].roll(1, 1), text().pooled)
    )
    assert all_differ(plain, scores(network, inputs["image"], inputs["mask"], text(seed=1).pooled))


def test_without_text_D_the_text_has_no_effect() -> None:
    network, inputs = make_discriminator(text_D=False)
    assert all(".text." not in name for name, _ in network.named_parameters())
    first = scores(network, inputs["image"], inputs["mask"], text(seed=0).pooled)
    second = scores(network, inputs["image"], inputs["mask"], text(seed=1).pooled)
    assert torch.equal(first[0], second[0])


def test_mismatched_text_is_scored_like_any_text() -> None:
    network, inputs = make_discriminator(num_D=2)
    mismatched = text(seed=1).pooled
    _, mismatched_scores = network(inputs["image"], inputs["mask"], text().pooled, mismatched)
    alone = scores(network, inputs["image"], inputs["mask"], mismatched)
    for a, b in zip(mismatched_scores, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_one_condition_serves_real_and_generated() -> None:
    network, inputs = make_discriminator(num_D=2)
    both = torch.cat([inputs["image"], inputs["image"].flip(3)])
    pooled = text().pooled.repeat(2, 1)
    shared = scores(network, both, inputs["mask"], pooled)
    written_out = scores(network, both, inputs["mask"].repeat(2, 1, 1, 1, 1), pooled)
    assert all(torch.equal(a, b) for a, b in zip(shared, written_out, strict=True))


def test_features_of_every_layer_are_returned() -> None:
    network, inputs = make_discriminator(num_D=2, n_layers_D=2)
    outputs, mismatched_scores = network(inputs["image"], inputs["mask"], text().pooled)
    assert [len(output.features) for output in outputs] == [3, 3] and not mismatched_scores
    channels = [f.shape[1] for f in outputs[0].features]
    assert channels == [4, 8, 16]  # doubled with every layer, from ndf on


# --- terms ----------------------------------------------------------------------------------------


def test_adversarial_losses_by_hand() -> None:
    pred = [torch.tensor([0.5, 2.0]), torch.tensor([-2.0])]
    assert discriminator_loss("lsgan", pred, real=True) == pytest.approx(((0.25 + 1) / 2 + 9) / 2)
    assert discriminator_loss("lsgan", pred, real=False) == pytest.approx(((0.25 + 4) / 2 + 4) / 2)
    assert discriminator_loss("hinge", pred, real=True) == pytest.approx(((0.5 + 0) / 2 + 3) / 2)
    assert discriminator_loss("hinge", pred, real=False) == pytest.approx(((1.5 + 3) / 2 + 0) / 2)
    assert generator_loss("lsgan", pred) == discriminator_loss("lsgan", pred, real=True)
    assert generator_loss("hinge", pred) == pytest.approx((-1.25 + 2) / 2)


def test_feature_matching_has_gradients_of_generated_volumes_only() -> None:
    fake, real = (torch.randn(2, 3, 4, 4, 4, requires_grad=True) for _ in range(2))
    nothing = torch.zeros(())
    same = feature_matching_loss(
        [DiscriminatorOutput(nothing, [real])], [DiscriminatorOutput(nothing, [real])]
    )
    loss = feature_matching_loss(
        [DiscriminatorOutput(nothing, [fake, fake])], [DiscriminatorOutput(nothing, [real, real])]
    )
    loss.backward()
    assert same == 0 and loss.item() == pytest.approx((fake - real).abs().mean().item())
    assert fake.grad is not None and real.grad is None


def test_feature_matching_of_two_draws_is_an_energy_score() -> None:
    """Its expectation is least for draws of the distribution of the scans' features."""
    generator = torch.Generator().manual_seed(0)

    def outputs(count: int, sd: float) -> list[DiscriminatorOutput]:
        features = sd * torch.randn(count, 2, 16, 16, 16, generator=generator)
        return [DiscriminatorOutput(torch.zeros(()), [features])]

    fake, real = outputs(4, 1.0), outputs(2, 1.0)
    first, second = fake[0].features[0].chunk(2)
    y = real[0].features[0]
    expected = ((first - y).abs().mean() + (second - y).abs().mean()) / 2
    expected = expected - (first - second).abs().mean() / 2
    assert feature_matching_loss(fake, real, 2).item() == pytest.approx(expected.item(), rel=1e-5)
    by_sd = {
        sd: feature_matching_loss(outputs(8, sd), outputs(4, 1.0), 2).item()
        for sd in (0.0, 0.5, 1.0, 1.5)
    }
    assert min(by_sd, key=lambda sd: by_sd[sd]) == 1.0
    one = feature_matching_loss(outputs(4, 0.0), outputs(4, 1.0), 1).item()
    assert one < feature_matching_loss(outputs(4, 1.0), outputs(4, 1.0), 1).item()


class SmallVgg(nn.Module):
    """Replacement of VGG19, whose weights have 550 MB: the same kinds of layers in order."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(18):
            if i in (0, 2, 5, 7, 10, 12, 14, 16):
                layers.append(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1))
            elif i in (4, 9):
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)


@pytest.fixture()
def vgg_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    monkeypatch.setattr(torchvision.models, "vgg19", SmallVgg)
    torch.save(SmallVgg().state_dict(), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


def test_perceptual_loss_compares_slices(vgg_weights: Path) -> None:
    loss = PerceptualLoss(str(vgg_weights))
    fake, real = (torch.rand(2, 1, 16, 16, 8) * 2 - 1 for _ in range(2))
    fake.requires_grad_()
    value = loss(fake, real)
    value.backward()
    assert value > 0 and loss(real, real) == 0
    assert fake.grad is not None and not any(p.requires_grad for p in loss.parameters())
    for axis in (2, 3, 4):
        seen = fake.grad.abs().sum([d for d in range(5) if d != axis])
        assert (seen > 0).sum() >= PerceptualLoss.SLICES


def test_perceptual_weights_must_be_there_and_fit(vgg_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"lambda_perceptual needs VGG19 weights, and .*absent\.pth is not there"
    ):
        PerceptualLoss(str(tmp_path / "absent.pth"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not hold torchvision's VGG19"):
        PerceptualLoss(str(tmp_path / "other.pth"))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.pth cannot be read as weights"):
        PerceptualLoss(str(tmp_path / "broken.pth"))


def test_perceptual_weights_cannot_run_code(vgg_weights: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"features.0.weight": Payload()}, tmp_path / "payload.pth")
    with pytest.raises(UserError, match=r"payload\.pth"):
        PerceptualLoss(str(tmp_path / "payload.pth"))
    assert not (tmp_path / "executed").exists()


# --- voxels ---------------------------------------------------------------------------------------


def test_errors_in_labelled_voxels_have_a_larger_weight() -> None:
    real = torch.zeros(1, 1, 2, 2, 2)
    background = torch.ones(1, 1, 2, 2, 2)
    background[..., 0] = 0
    fake = torch.full_like(real, 0.5)
    alike = voxel_loss(fake, real, background, beta=0.0, label_weight=1.0).item()
    assert alike == pytest.approx(0.5)
    weighted = voxel_loss(fake, real, background, beta=0.0, label_weight=5.0).item()
    assert weighted == pytest.approx(0.5 * (5 + 1) / 2)
    small = voxel_loss(fake / 10, real, background, beta=0.1, label_weight=1.0).item()
    assert small == pytest.approx(0.05**2 / 2 / 0.1)


# --- weights --------------------------------------------------------------------------------------


def take_step(**changes: Any) -> tuple[Pix2PixHDModel, dict[str, Tensor], list[str]]:
    """Return the model after one step, its loss terms, and the updated networks."""
    torch.manual_seed(0)
    options = train_options(**changes)
    model = Pix2PixHDModel(options, LABELS, WIDTH)
    updated: list[str] = []
    terms: dict[str, Tensor] = {}
    texts = BatchText(text(), text(seed=1))
    for name, loss, network_terms in model.training_step(batch(options, draws=model.draws), texts):
        updated.append(name)
        loss.backward()
        terms.update(network_terms)
    return model, terms, updated


def test_every_weight_switches_its_term_off(vgg_weights: Path) -> None:
    scores = {"G_mean", "G_patch", "G_quantile"}
    model, terms, updated = take_step(
        lambda_l1=1.0, lambda_perceptual=1.0, perceptual_weights=str(vgg_weights)
    )
    assert set(terms) == {"D", "G_gan", "G_feat", "G_l1", "G_perceptual"} | scores
    assert updated == ["D", "G"]
    model, terms, updated = take_step(lambda_gan=0.0, lambda_feat=0.0)
    assert set(terms) == scores and updated == ["G"] and set(model.raw) == {"G"}
    model, terms, _ = take_step(lambda_feat=0.0, lambda_mean=0.0, lambda_patch=0.0)
    assert set(terms) == {"D", "G_gan", "G_quantile"} and model.perceptual is None
    assert set(take_step(lambda_gan=0.0)[1]) == {"D", "G_feat"} | scores


def test_without_scores_one_volume_is_drawn() -> None:
    distance = {"lambda_mean": 0.0, "lambda_patch": 0.0, "lambda_quantile": 0.0, "lambda_l1": 80.0}
    model, terms, _ = take_step(**distance)
    assert model.draws == 1 and set(terms) == {"D", "G_gan", "G_feat", "G_l1"}
    assert {take_step(**distance | {name: 1.0})[0].draws for name in tuple(distance)[:3]} == {2}


def test_equal_draws_cannot_be_rewarded_for_their_spread() -> None:
    for name in ("lambda_patch", "lambda_quantile"):
        off = {"lambda_patch": 0.0, "lambda_quantile": 0.0, name: 1.0}
        with pytest.raises(UserError, match=r"--noise_channels 0 .* Set both to 0"):
            Pix2PixHDModel.check_options(train_options(noise_channels=0, **off))
    no_spread = train_options(noise_channels=0, lambda_patch=0.0, lambda_quantile=0.0)
    Pix2PixHDModel.check_options(no_spread)
    take_step(noise_channels=0, lambda_patch=0.0, lambda_quantile=0.0)


def test_the_generator_step_gives_the_discriminator_no_gradients() -> None:
    torch.manual_seed(0)
    options = train_options()
    model = Pix2PixHDModel(options, LABELS, WIDTH)
    grads: list[Tensor | None] = []

    texts = BatchText(text(), text(seed=1))
    for name, loss, _ in model.training_step(batch(options, draws=model.draws), texts):
        if name == "G":
            model.raw["D"].zero_grad()
        loss.backward()
        if name == "G":
            grads.extend(p.grad for p in model.raw["D"].parameters())
    assert grads and all(g is None for g in grads)
    assert all(p.requires_grad for p in model.raw["D"].parameters())


def test_testing_builds_no_discriminator() -> None:
    options = train_options(lambda_perceptual=1.0, perceptual_weights="absent")
    assert set(Pix2PixHDModel(options, LABELS, WIDTH, training=False).raw) == {"G"}
