"""The generator and its parts: shapes, text, and gradients of all parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.base_model import MODELS, BatchText
from models.networks.filters import tube_noise
from models.networks.fusion import FUSIONS, AttentionFusion, FusionUnit
from models.networks.generator import Generator, size_multiple
from models.networks.text_effect import TextResidualHead
from models.pix2pixhd_model import Pix2PixHDModel
from models.text.base_encoder import TextEmbedding
from tests.networks import (
    GENERATOR,
    LABELS,
    UNITS,
    WIDTH,
    batch,
    nothing_known,
    text,
    train_options,
    wake,
)
from util.cli import UserError

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


def test_tubes_and_noise_keep_full_precision_in_bf16() -> None:
    network = make_generator()
    made = batch(train_options(), 1, (16, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        shared = network._share(None, made["mask"], made["coords"], made["noise"])
        volume = network(made["mask"], made["coords"], made["noise"], text().select(0))
    assert torch.equal(shared.noises[0][:, :-2], made["noise"])
    assert torch.equal(shared.noises[0][:, -2:], tube_noise(made["noise"]))
    assert volume.dtype == torch.float32


@pytest.mark.parametrize(
    ("registry", "choices"), [(FUSIONS, FUSIONS.names()), (MODELS, ["pix2pixhd"])]
)
def test_unknown_names_list_the_choices(registry: Any, choices: list[str]) -> None:
    with pytest.raises(UserError, match=r"--\w+ is 'spade'; it must be one of") as error:
        registry["spade"]
    assert all(name in str(error.value) for name in choices)
