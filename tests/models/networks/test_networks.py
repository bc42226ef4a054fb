"""The generator and its parts: shapes, text, and gradients of all parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from models.base_model import MODELS, BatchText
from models.networks.filters import tube_noise
from models.networks.fusion import FUSIONS, AttentionFusion, FusionUnit
from models.networks.generator import Generator, size_multiple
from models.networks.layers import (
    ChannelNorm,
    Conv3d,
    NoiseInjection,
    PointwiseConv3d,
    ScalarConv3d,
    halve_noise,
    make_norm,
)
from models.networks.text_effect import TextResidualHead
from models.pix2pixhd_model import Pix2PixHDModel
from models.text.base_encoder import TextEmbedding
from tests.networks import GENERATOR, LABELS, WIDTH, batch, nothing_known, text, train_options, wake
from util.cli import UserError

UNITS = ("concat", "affine", "additive", "attention", "both")
# Thresholds of events multiply rounding: random parameters are larger than learned ones.
ROUNDING = 1e-4


def make_generator(**changes: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(train_options(**changes).generator, LABELS, WIDTH)


def generate(
    network: Generator,
    embedding: TextEmbedding,
    size: tuple[int, int, int] = (8, 8, 8),
    seed: int = 0,
) -> Tensor:
    options = train_options(noise_channels=network.options.noise_channels)
    inputs = batch(options, len(embedding.pooled), size, seed)
    volume: Tensor = network(inputs["mask"], inputs["coords"], inputs["noise"], embedding)
    return volume


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"fusion": fusion, "fusion_at": at}
            for fusion in FUSIONS.names()
            for at in ("bottleneck", "all", "output")
        ),
        *({"norm": norm} for norm in ("layer", "rms", "group", "instance", "batch", "none")),
        *({"padding": padding} for padding in ("zeros", "reflect", "replicate")),
        *({"n_local_enhancers": n, "fusion": "both"} for n in (1, 2)),
        {"n_downsample_global": 2, "n_blocks_global": 0},
        {"skip": False},
        {"skip": False, "n_local_enhancers": 1},
        {"noise_channels": 0},
        {"noise_channels": 0, "n_local_enhancers": 1},
        {"noise_channels": 3},
        {"coord_channels": False},
        {"coord_channels": False, "text_position": False},
        {"text_position": False},
        {"ngf": 3},
        {"ngf": 5, "fusion": "attention", "attention_heads": 3},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_choice_gives_a_volume(changes: dict[str, Any]) -> None:
    network = make_generator(**changes)
    size = (16, 8, 24)
    assert all(s % size_multiple(network.options) == 0 for s in size)
    volume = generate(network, text(), size)
    assert volume.shape == (2, 1, *size) and volume.dtype == torch.float32
    assert torch.isfinite(volume).all() and volume.abs().max() <= 1 and volume.std() > 0


def test_channels_follow_ngf() -> None:
    for ngf in (4, 8):
        network = make_generator(ngf=ngf, n_downsample_global=2, n_local_enhancers=1)
        widths = {
            name: layer.out_channels
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Conv3d)
        }
        # The one layer whose width does not depend on ngf.
        assert widths.pop("effect.place.0") == TextResidualHead.HIDDEN
        # An enhancer and two downsamplings double it three times.
        assert max(widths.values()) == ngf * 2**3
        assert network.head.in_channels == ngf


def test_half_precision_ends_in_full_precision() -> None:
    network = make_generator()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        volume = generate(network, text())
    assert volume.dtype == torch.float32
    assert (volume.bfloat16().float() != volume).any()  # finer than bf16 resolves
    assert (volume - generate(network, text())).abs().max() < 0.05


def test_checkpointed_activations_change_nothing() -> None:
    grads, outs = [], []
    for save in (False, True):
        network = make_generator(
            checkpoint_activations=save, n_local_enhancers=1, fusion="both", n_downsample_global=2
        )
        wake(network)
        outs.append(generate(network, text(), (16, 16, 8)))
        outs[-1].square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    assert torch.equal(*outs)
    assert all(
        torch.equal(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None
    )
    assert [g is None for g in grads[0]] == [g is None for g in grads[1]]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSIONS.names())
def test_units_start_as_identity_and_learn(name: str) -> None:
    torch.manual_seed(0)
    unit: FusionUnit = FUSIONS[name](8, WIDTH, GENERATOR)
    x, embedding, goal = torch.randn(2, 8, 4, 4, 4), text(), torch.randn(2, 8, 4, 4, 4)
    assert torch.equal(unit(x, embedding), x)
    if name == "none":
        return
    optimizer = torch.optim.SGD(unit.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (unit(x, embedding) - goal).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unit.parameters())
    assert (unit(x, embedding) - unit(x, text(seed=1))).abs().max() > 1e-4


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("at", ["bottleneck", "all", "output"])
def test_text_reaches_the_volume(name: str, at: str) -> None:
    network = make_generator(fusion=name, fusion_at=at)
    assert torch.equal(generate(network, text()), generate(network, text(seed=1)))
    wake(network)
    assert (generate(network, text()) - generate(network, text(seed=1))).abs().max() > 1e-4


def test_without_fusion_text_does_nothing() -> None:
    network = make_generator(fusion="none")
    wake(network)
    assert torch.equal(generate(network, text()), generate(network, text(seed=1)))


@pytest.mark.parametrize("name", UNITS)
def test_padding_of_prompts_does_nothing(name: str) -> None:
    network = make_generator(fusion=name)
    wake(network)
    short = text()
    filler = torch.full((2, 2, WIDTH), 7.0)  # beyond a prompt's end, where nothing is valid
    long = TextEmbedding(
        torch.cat([short.tokens, filler], 1), nn.functional.pad(short.valid, (0, 2)), short.pooled
    )
    assert torch.allclose(generate(network, short), generate(network, long), atol=ROUNDING)


@pytest.mark.parametrize("name", UNITS)
def test_order_of_phrases_does_nothing(name: str) -> None:
    network = make_generator(fusion=name)
    wake(network)
    embedding = text(tokens=4)
    turned = TextEmbedding(embedding.tokens.flip(1), embedding.valid.flip(1), embedding.pooled)
    assert torch.allclose(generate(network, embedding), generate(network, turned), atol=ROUNDING)


@pytest.mark.parametrize("name", FUSIONS.names())
def test_empty_prompts_give_finite_values(name: str) -> None:
    network = make_generator(fusion=name)
    wake(network)
    volume = generate(network, nothing_known())
    volume.mean().backward()
    assert torch.isfinite(volume).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "adds_up"), [("additive", True), ("affine", False)])
def test_effects_of_phrases_add_up(name: str, adds_up: bool) -> None:
    torch.manual_seed(0)
    unit = FUSIONS[name](8, WIDTH, replace(GENERATOR, text_hidden=0))
    wake(unit)
    x, one, two, nothing = torch.randn(2, 8, 4, 4, 4), text(), text(seed=1), nothing_known()
    pooled = one.pooled + two.pooled
    both = unit(x, TextEmbedding(pooled[:, None], torch.ones(2, 1, dtype=torch.bool), pooled))
    apart = unit(x, one) + unit(x, two) - unit(x, nothing)
    assert torch.allclose(both, apart, atol=1e-3) == adds_up


def test_voxels_attend_to_tokens() -> None:
    """Each voxel selects, of two tokens in any order, that of its sign, and copies its value."""
    torch.manual_seed(0)
    unit = AttentionFusion(8, WIDTH, GENERATOR)
    optimizer = torch.optim.Adam(unit.parameters(), lr=3e-2)

    def task() -> tuple[Tensor, TextEmbedding, Tensor]:
        side = torch.randint(0, 2, (16, 2, 2, 4))
        values = torch.randn(16, 2)
        x = torch.zeros(16, 8, 2, 2, 4)
        x[:, 0] = side * 2.0 - 1
        tokens = torch.zeros(16, 2, WIDTH)
        tokens[:, :, 0] = values
        tokens[:, 0, 1] = -1.0
        tokens[:, 1, 1] = 1.0
        embedding = TextEmbedding(
            tokens.flip(1), torch.ones(16, 2, dtype=torch.bool), tokens.sum(1)
        )
        return x, embedding, torch.gather(values, 1, side.flatten(1)).reshape(side.shape)

    for _ in range(100):
        x, embedding, goal = task()
        loss = (unit(x, embedding)[:, 1] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, embedding, goal = task()
    assert (unit(x, embedding)[:, 1] - goal).square().mean() < 0.05 * goal.square().mean()


@pytest.mark.parametrize("changes", [{}, {"n_local_enhancers": 1, "skip": False}])
def test_two_draws_are_two_passes(changes: dict[str, Any]) -> None:
    network = wake(make_generator(**changes))
    made = batch(train_options(), 2, draws=2)
    first, second = made["noise"].chunk(2, 1)
    with torch.no_grad():
        together = network(made["mask"], made["coords"], torch.cat([first, second]), text())
        apart = [network(made["mask"], made["coords"], noise, text()) for noise in (first, second)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)
    assert (apart[0] - apart[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("width", [8, 6])  # as many channels as heads times their width, and fewer
def test_folded_attention_is_attention(width: int) -> None:
    torch.manual_seed(0)
    unit = AttentionFusion(width, WIDTH, GENERATOR)
    wake(unit)
    voxels = torch.randn(3, 40, width, requires_grad=True)
    said = text(3, tokens=4)
    valid = torch.nn.functional.pad(said.valid, (1, 0), value=True)
    valid[0, 1:] = False  # an empty prompt, with padding tokens that are not zeros
    valid[1, 3:] = False
    tokens = torch.nn.functional.pad(said.tokens, (0, 0, 1, 0))
    results = []
    for attend in (unit._attend, unit._attend_folded):
        k, v = unit._split_heads(unit.key(tokens)), unit._split_heads(unit.value(tokens))
        out = attend(voxels, k, v, valid)
        inputs = [voxels, *unit.parameters()]
        gradients = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        results.append((out, gradients))
    (plain, plain_gradients), (folded, folded_gradients) = results
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-4)
    for a, b in zip(folded_gradients, plain_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = unit._attend_folded(voxels.bfloat16(), k, v, valid)
    assert (half - plain).abs().max() < 0.03 * plain.abs().max()


# --- region of the text ---------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"n_local_enhancers": 1}, {"fusion": "none"}])
def test_without_an_organ_text_changes_nothing(changes: dict[str, Any]) -> None:
    """Whatever the text enters by, gains of the noise included; the body is no organ."""
    torch.manual_seed(0)
    network = Generator(train_options(**changes).generator, LABELS, WIDTH, LABELS - 1)
    wake(network)
    made = batch(train_options(), 2)
    empty = torch.zeros_like(made["mask"])
    empty[:, 0, :4], empty[:, -1, 4:] = 1, 1
    with torch.no_grad():
        first, second = (
            network(empty, made["coords"], made["noise"], text(seed=seed)) for seed in (0, 1)
        )
    assert torch.equal(first, second) and first.std() > 0


def test_text_changes_organs_and_stays_near_them() -> None:
    """Beyond the reach of the convolutions after it, nothing changes."""
    network = wake(make_generator(n_downsample_global=1, n_blocks_global=1))
    made = batch(train_options(), 2, (48, 8, 8))
    mask = torch.zeros_like(made["mask"])
    mask[:, 1, :8], mask[:, 0, 8:] = 1, 1
    with torch.no_grad():
        first, second = (
            network(mask, made["coords"], made["noise"], text(seed=seed)) for seed in (0, 1)
        )
    change = (first - second).abs()
    assert change[:, :, :8].mean() > 1e-2 and not change[:, :, 24:].any()


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "both"},
        {"fusion": "concat", "n_local_enhancers": 1},
        {"fusion": "both", "norm": "rms", "norm_D": "layer"},
        {"norm": "none", "skip": False},
        {"norm": "group", "norm_D": "instance", "num_D": 2},
        {"text_D": False},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_parameter_has_a_gradient(changes: dict[str, Any]) -> None:
    """The gradients are larger than rounding errors."""
    torch.manual_seed(0)
    options = train_options(**changes)
    model = Pix2PixHDModel(options, LABELS, WIDTH)
    wake(model.raw["G"], 0.1)  # more would leave the range, where nothing has a gradient
    optimizers = {
        name: torch.optim.SGD(network.parameters(), lr=0.05) for name, network in model.raw.items()
    }
    largest: dict[str, float] = {}

    for step in range(2):
        texts = BatchText(text(seed=step), text(seed=step + 9))
        made = batch(options, 2, (16, 16, 16), step, draws=model.draws)
        mask = made["mask"]
        mask[:, 1] += mask[:, 0]  # text acts where no background is near
        mask[:, 0] = 0
        mask[:, :, :4], mask[:, 0, :4] = 0, 1
        for name, loss, _ in model.training_step(made, texts):
            optimizers[name].zero_grad()
            loss.backward()
            for key, parameter in model.raw[name].named_parameters():
                gradient = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
                largest[f"{name}.{key}"] = max(largest.get(f"{name}.{key}", 0.0), gradient)
            optimizers[name].step()
    idle = {key: value for key, value in largest.items() if value < 1e-6}
    assert not idle and len(largest) == sum(
        len(list(network.parameters())) for network in model.raw.values()
    )


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_channel_norm_is_per_voxel(kind: str) -> None:
    norm, x = ChannelNorm(6, kind), torch.randn(2, 6, 4, 4, 4)
    whole = norm(x)
    assert torch.allclose(norm(x[..., 1:2, 2:3, 3:4]), whole[..., 1:2, 2:3, 3:4], atol=1e-6)
    assert torch.allclose(whole.square().mean(1), torch.ones(2, 4, 4, 4), atol=1e-3)
    with pytest.raises(ValueError, match="unknown"):
        make_norm("weight", 6)


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.norm())


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance", "batch"])
def test_half_precision_keeps_the_gradients_of_norms(kind: str) -> None:
    """A sum in bf16 over this many voxels would stop growing half way."""
    torch.manual_seed(0)
    norm, x, g = make_norm(kind, 8), torch.randn(2, 8, 32, 32, 24), torch.randn(2, 8, 32, 32, 24)
    expected = torch.autograd.grad(norm(x), list(norm.parameters()), g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        volume = norm(x.bfloat16())
    gradients = torch.autograd.grad(volume, list(norm.parameters()), g.to(volume.dtype))
    assert all(relative_error(a, b) < 0.01 for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(
    "layer",
    [
        Conv3d(8, 8, 3, padding=1),
        Conv3d(8, 8, 4, 2, 2),
        Conv3d(8, 8, 4, 1, 2),
        ScalarConv3d(8, 4, 2),
    ],
)
@pytest.mark.parametrize("size", [(2, 2, 2), (2, 8, 3), (3, 3, 1), (8, 8, 1), (4, 4, 4)])
def test_half_precision_is_safe_with_few_voxels(layer: Conv3d, size: tuple[int, ...]) -> None:
    """The oneDNN gradient of bf16 weights is garbage where the input is smaller than the kernel."""
    x = torch.randn(2, 8, *size)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    for dirt in (1e5, -1e5):
        dirty = [torch.full((n,), dirt) for n in (64, 512, 4096, 32768) for _ in range(4)]
        del dirty
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gradients = torch.autograd.grad(layer(x).float().square().sum(), layer.weight)[0]
        assert relative_error(gradients, expected) < 0.05


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (4, 2)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_scalar_convolution_is_a_convolution(size: int, padding: int, mode: Any) -> None:
    torch.manual_seed(0)
    fast = ScalarConv3d(5, size, padding, mode)
    plain = nn.Conv3d(5, 1, size, padding=padding, padding_mode=mode)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 5, 6, 5, 7, requires_grad=True)
    grads = [
        torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
        for layer in (fast, plain)
    ]
    assert torch.allclose(fast(x), plain(x), atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "layer",
    [
        Conv3d(8, 6, 3, padding=1),
        Conv3d(8, 6, 3, stride=2, padding=1, bias=False),
        Conv3d(8, 6, 4, 1, 2),
        Conv3d(8, 6, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_convolutions_without_gradients_are_the_same(layer: Conv3d, batch_size: int) -> None:
    x = torch.randn(batch_size, 8, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    expected = nn.Conv3d.forward(layer, x)
    with torch.no_grad():
        direct = layer(x)
    torch.testing.assert_close(direct, expected, atol=1e-5, rtol=1e-5)
    if layer.padding_mode == "zeros":
        assert direct.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("memory_format", [torch.channels_last_3d, torch.contiguous_format])
def test_pointwise_convolution_is_a_convolution(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    fast, plain = PointwiseConv3d(5, 3), nn.Conv3d(5, 3, 1)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 5, 6, 5, 7).contiguous(memory_format=memory_format).requires_grad_()
    y = fast(x)
    torch.testing.assert_close(y, plain(x))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", UNITS)
def test_a_residual_passes_a_head_as_one_product(name: str) -> None:
    torch.manual_seed(0)
    unit: FusionUnit = FUSIONS[name](8, WIDTH, GENERATOR)
    wake(unit)
    x, head = torch.randn(2, 8, 3, 4, 5), PointwiseConv3d(8, 1, bias=False)
    expected = head(unit(x, text()) - x)
    torch.testing.assert_close(
        unit.projected_residual(x, text(), head.weight), expected, atol=1e-5, rtol=1e-4
    )


def test_text_multiplies_the_noise_inside_the_region() -> None:
    torch.manual_seed(0)
    unit = NoiseInjection(6, 3, WIDTH)
    wake(unit)
    x, noise, said = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 3, 4, 4, 4), text()
    region = (torch.rand(2, 1, 4, 4, 4) > 0.5).float()
    assert unit.sparse is not None and unit.gain is not None
    rare = unit.SPARSE_SCALE * (noise - unit.THRESHOLD).clamp_min(0)
    kinds = [
        torch.einsum("cn,bnxyz->bcxyz", layer.weight, field)
        for layer, field in ((unit.strength, noise), (unit.sparse, rare))
    ]
    gains = unit.gain(said.pooled * WIDTH**-0.5).exp()[..., None, None, None].chunk(2, 1)
    inside = sum(gain * kind for gain, kind in zip(gains, kinds, strict=True))
    torch.testing.assert_close(unit(x, noise, said, None), x + inside, atol=1e-5, rtol=1e-4)
    expected = x + torch.where(region > 0, inside, sum(kinds))
    torch.testing.assert_close(unit(x, noise, said, region), expected, atol=1e-5, rtol=1e-4)
    many = torch.randn(1, 1, 64, 64, 64)
    rare = unit.SPARSE_SCALE * (many - unit.THRESHOLD).clamp_min(0)
    assert (
        float(rare.std()) == pytest.approx(1, abs=0.05) and float((rare > 0).float().mean()) < 0.11
    )


def test_noise_around_the_region_has_its_own_strengths_and_tubes_stay_inside() -> None:
    torch.manual_seed(0)
    unit = NoiseInjection(6, 3, WIDTH, tubes=2, around=True)
    x, noise, said = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 5, 4, 4, 4), text()
    region = (torch.rand(2, 1, 4, 4, 4) > 0.5).float()
    torch.testing.assert_close(unit(x, noise, said, 0 * region), x)  # at the start
    wake(unit)
    assert unit.around is not None and unit.tubes is not None
    rare = unit.SPARSE_SCALE * (noise[:, :3] - unit.THRESHOLD).clamp_min(0)
    fields = torch.cat([noise[:, :3], rare], 1)
    outside = x + torch.einsum("cn,bnxyz->bcxyz", unit.around.weight, fields)
    expected = torch.where(region > 0, unit(x, noise, said, None), outside)
    torch.testing.assert_close(unit(x, noise, said, region), expected, atol=1e-5, rtol=1e-4)
    without = torch.cat([noise[:, :3], 0 * noise[:, 3:]], 1)
    change = unit(x, noise, said, region) - unit(x, without, said, region)
    assert change.abs().mean() > 0.1 and not change[(region == 0).expand_as(change)].any()


def test_tubes_and_noise_keep_full_precision_in_bf16() -> None:
    network = make_generator()
    made = batch(train_options(), 1, (16, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        shared = network._share(None, made["mask"], made["coords"], made["noise"])
        volume = network(made["mask"], made["coords"], made["noise"], text().select(0))
    assert torch.equal(shared.noises[0][:, :-2], made["noise"])
    assert torch.equal(shared.noises[0][:, -2:], tube_noise(made["noise"]))
    assert volume.dtype == torch.float32


def test_tubes_are_rare_thin_and_long() -> None:
    torch.manual_seed(0)
    for field in tube_noise(torch.randn(1, 4, 64, 64, 64))[0]:
        assert float(field.mean()) == pytest.approx(0, abs=0.1)
        assert float(field.std()) == pytest.approx(1, abs=0.15)
        inside = (field > 2).numpy()
        assert 0.02 < inside.mean() < 0.1
        assert ndimage.distance_transform_edt(inside).max() < 4
        parts, _ = ndimage.label(inside, np.ones((3, 3, 3)))
        extents = [max(s.stop - s.start for s in box) for box in ndimage.find_objects(parts)]
        assert max(extents) > 24


def test_noise_at_half_resolution_is_standard_normal() -> None:
    assert halve_noise(torch.randn(1, 1, 32, 32, 32)).std() == pytest.approx(1, abs=0.05)
    assert halve_noise(torch.randn(1, 0, 8, 8, 8)).shape == (1, 0, 4, 4, 4)


@pytest.mark.parametrize(
    ("registry", "choices"), [(FUSIONS, FUSIONS.names()), (MODELS, ["pix2pixhd"])]
)
def test_unknown_names_list_the_choices(registry: Any, choices: list[str]) -> None:
    with pytest.raises(UserError, match=r"--\w+ is 'spade'; it must be one of") as error:
        registry["spade"]
    assert all(name in str(error.value) for name in choices)


def test_a_convolution_can_be_exported() -> None:
    """In an export tensors hold no values, which oneDNN refuses."""
    layer, x = Conv3d(2, 3, 3, padding=1).eval(), torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), layer(x))
