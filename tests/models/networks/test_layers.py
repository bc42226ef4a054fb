"""The layers of networks: norms, convolutions, injected noise, and their precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from models.networks.filters import tube_noise
from models.networks.fusion import FUSIONS, FusionUnit
from models.networks.layers import (
    ChannelNorm,
    Conv3d,
    NoiseInjection,
    PointwiseConv3d,
    ScalarConv3d,
    halve_noise,
    make_norm,
)
from tests.networks import GENERATOR, UNITS, WIDTH, text, wake


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


def test_a_convolution_can_be_exported() -> None:
    """In an export tensors hold no values, which oneDNN refuses."""
    layer, x = Conv3d(2, 3, 3, padding=1).eval(), torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), layer(x))
