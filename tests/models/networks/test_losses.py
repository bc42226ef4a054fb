"""The discriminators, the loss terms, and what the model makes of their weights."""

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


def judge(**changes: Any) -> tuple[MultiScaleDiscriminator, dict[str, Tensor]]:
    torch.manual_seed(0)
    options = train_options(**changes)
    return MultiScaleDiscriminator(options.discriminator, LABELS, WIDTH), batch(
        options, 2, (16, 16, 16)
    )


def scores(
    network: MultiScaleDiscriminator, volume: Tensor, mask: Tensor, pooled: Tensor
) -> list[Tensor]:
    return [judgement.scores for judgement in network(volume, mask, pooled)[0]]


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether every scale says something else."""
    return all(bool((a - b).abs().max() > 1e-5) for a, b in zip(one, other, strict=True))


# --- discriminators -------------------------------------------------------------------------------
# --------------------


def test_every_scale_sees_volume_mask_and_text() -> None:
    network, made = judge(num_D=2)
    plain = scores(network, made["image"], made["mask"], text().pooled)
    assert (
        len(plain) == 2
        and plain[1].shape[2] < plain[0].shape[2]
        and plain[0].dtype == torch.float32
    )
    assert differ(plain, scores(network, made["image"].flip(2), made["mask"], text().pooled))
    assert differ(plain, scores(network, made["image"], made["mask"].roll(1, 1), text().pooled))
    assert differ(plain, scores(network, made["image"], made["mask"], text(seed=1).pooled))


def test_text_is_hidden_on_demand() -> None:
    network, made = judge(text_D=False)
    assert all(".text." not in name for name, _ in network.named_parameters())
    said, other = (
        scores(network, made["image"], made["mask"], text(seed=s).pooled) for s in (0, 1)
    )
    assert torch.equal(said[0], other[0])


def test_mismatched_text_is_judged_like_any_text() -> None:
    network, made = judge(num_D=2)
    other = text(seed=1).pooled
    _, mismatches = network(made["image"], made["mask"], text().pooled, other)
    alone = scores(network, made["image"], made["mask"], other)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mismatches, alone, strict=True))


def test_one_condition_serves_real_and_generated() -> None:
    network, made = judge(num_D=2)
    both, pooled = torch.cat([made["image"], made["image"].flip(3)]), text().pooled.repeat(2, 1)
    shared = scores(network, both, made["mask"], pooled)
    written_out = scores(network, both, made["mask"].repeat(2, 1, 1, 1, 1), pooled)
    assert all(torch.equal(a, b) for a, b in zip(shared, written_out, strict=True))


def test_features_of_every_layer_are_given() -> None:
    network, made = judge(num_D=2, n_layers_D=2)
    judged, mismatches = network(made["image"], made["mask"], text().pooled)
    assert [len(j.features) for j in judged] == [3, 3] and not mismatches
    assert [f.shape[1] for f in judged[0].features] == [
        4,
        8,
        16,
    ]  # doubled with every layer, from --ndf on


# --- terms ----------------------------------------------------------------------------------------
# --------------------


def test_adversarial_losses_by_hand() -> None:
    found = [torch.tensor([0.5, 2.0]), torch.tensor([-2.0])]
    assert discriminator_loss("lsgan", found, real=True) == pytest.approx(((0.25 + 1) / 2 + 9) / 2)
    assert discriminator_loss("lsgan", found, real=False) == pytest.approx(((0.25 + 4) / 2 + 4) / 2)
    assert discriminator_loss("hinge", found, real=True) == pytest.approx(((0.5 + 0) / 2 + 3) / 2)
    assert discriminator_loss("hinge", found, real=False) == pytest.approx(((1.5 + 3) / 2 + 0) / 2)
    assert generator_loss("lsgan", found) == discriminator_loss("lsgan", found, real=True)
    assert generator_loss("hinge", found) == pytest.approx((-1.25 + 2) / 2)


def test_feature_matching_pulls_the_generated_alone() -> None:
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


class SmallVgg(nn.Module):
    """Stands in for VGG19, whose weights are 550 MB: layers of the same kind at the same places."""

    def __init__(self) -> None:
        super().__init__()
        widths = {
            0: (3, 4),
            2: (4, 4),
            5: (4, 4),
            7: (4, 4),
            10: (4, 4),
            12: (4, 4),
            14: (4, 4),
            16: (4, 4),
        }
        self.features = nn.Sequential(
            *(
                nn.Conv2d(*widths[i], 3, padding=1)
                if i in widths
                else nn.MaxPool2d(2)
                if i in (4, 9)
                else nn.ReLU(inplace=True)
                for i in range(18)
            )
        )


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
    found = loss(fake, real)
    found.backward()
    assert found > 0 and loss(real, real) == 0
    assert fake.grad is not None and not any(p.requires_grad for p in loss.parameters())
    # Slices of each plane are looked at.
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
# ------------------------


def test_an_error_counts_more_where_the_mask_has_a_label() -> None:
    real, background = torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    background[..., 0] = 0
    fake = torch.full_like(real, 0.5)
    assert voxel_loss(fake, real, background, beta=0.0, label_weight=1.0).item() == pytest.approx(
        0.5
    )
    assert voxel_loss(fake, real, background, beta=0.0, label_weight=5.0).item() == pytest.approx(
        0.5 * (5 + 1) / 2
    )
    small = voxel_loss(fake / 10, real, background, beta=0.1, label_weight=1.0).item()
    assert small == pytest.approx(0.05**2 / 2 / 0.1)


# --- weights --------------------------------------------------------------------------------------
# --------------------


def step_of(**changes: Any) -> tuple[Pix2PixHDModel, dict[str, Tensor], list[str]]:
    """One step's model, terms, and the networks that were updated."""
    torch.manual_seed(0)
    options = train_options(**changes)
    model, updated = Pix2PixHDModel(options, LABELS, WIDTH), list[str]()
    terms: dict[str, Tensor] = {}
    for name, loss, own_terms in model.training_step(
        batch(options), BatchText(text(), text(seed=1))
    ):
        updated.append(name)
        loss.backward()
        terms.update(own_terms)
    return model, terms, updated


def test_every_weight_switches_its_term_off(vgg_weights: Path) -> None:
    model, terms, updated = step_of(lambda_perceptual=1.0, perceptual_weights=str(vgg_weights))
    assert set(terms) == {"D", "G_gan", "G_feat", "G_l1", "G_perceptual"} and updated == ["D", "G"]
    model, terms, updated = step_of(lambda_gan=0.0, lambda_feat=0.0)
    assert set(terms) == {"G_l1"} and updated == ["G"] and set(model.raw) == {"G"}
    model, terms, _ = step_of(lambda_l1=0.0, lambda_feat=0.0)
    assert set(terms) == {"D", "G_gan"} and model.perceptual is None
    assert set(step_of(lambda_gan=0.0)[1]) == {"D", "G_feat", "G_l1"}


def test_generators_step_leaves_the_discriminator_alone() -> None:
    torch.manual_seed(0)
    options = train_options()
    model = Pix2PixHDModel(options, LABELS, WIDTH)
    grads: list[Tensor | None] = []

    for name, loss, _ in model.training_step(batch(options), BatchText(text(), text(seed=1))):
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
