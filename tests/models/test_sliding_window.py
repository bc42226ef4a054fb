"""Sliding windows: what they give back, where tiles start, and that tiles agree with the whole."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from models.base_model import Condition
from models.diffusion_model import DiffusionModel
from models.pix2pixhd_model import Pix2PixHDModel
from models.sliding_window import (
    MAX_WHOLE_BYTES,
    ScaledInput,
    SlidingWindow,
    TileReach,
    pad_edge,
    round_up,
)
from tests.networks import LABELS, WIDTH, batch, text, train_options
from util.cli import UserError


def same(x: Tensor, *others: Tensor) -> Tensor:
    return x.clone()


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 16, 8), (17, 23, 9), (5, 40, 16)])
@pytest.mark.parametrize("tile", [(), (8, 8, 8), (16, 8, 16), (12, 8, 4)])
@pytest.mark.parametrize("tiles_at_once", [1, 5])
def test_nothing_done_gives_the_volume_back(
    size: tuple[int, ...], tile: tuple[int, ...], tiles_at_once: int
) -> None:
    x = torch.randn(1, 2, *size)
    found = SlidingWindow(tile, 2, batch=tiles_at_once)(same, x)
    assert found.shape == x.shape and torch.allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_tiles_start_on_multiples_of_the_stride(overlap: float) -> None:
    size, seen = (37, 21, 50), list[Tensor]()
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))[
        None
    ]

    def note(tile: Tensor) -> Tensor:
        seen.extend(tile[:, :, 0, 0, 0].clone())
        assert tile.shape[2:] == (16, 16, 16)
        return tile.clone()

    SlidingWindow((16, 16, 16), 4, overlap)(note, places)
    starts = {tuple(int(v) for v in start) for start in seen}
    step = round(16 * (1 - overlap))
    axes = [range(0, max(1, n - 16 + step), step) for n in size]
    assert starts == set(product(*axes))
    assert all(v % 4 == 0 for start in starts for v in start)


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.7, 0.9])
def test_overlaps_that_binary_fractions_cannot_hold(overlap: float) -> None:
    x = torch.randn(1, 1, 55, 40, 40)
    assert torch.allclose(SlidingWindow((40, 40, 40), 4, overlap)(same, x), x, atol=1e-5)


def test_several_tensors_are_cut_alike() -> None:
    a, b = torch.randn(1, 2, 20, 12, 16), torch.randn(1, 3, 20, 12, 16)
    found = SlidingWindow((8, 8, 8), 2)(lambda x, y: x[:, :1] * y[:, 2:], a, b)
    assert torch.allclose(found, a[:, :1] * b[:, 2:], atol=1e-5)


def test_tiles_are_blended_smoothly() -> None:
    """A function that is off by a constant in every second call leaves no edge as high as that
    constant.
    """
    calls = []

    def uneven(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x + len(calls) % 2

    found = SlidingWindow((32, 8, 8), 4, batch=1)(uneven, torch.zeros(1, 1, 96, 8, 8))
    assert found.max() > 0.9 and found.diff(dim=2).abs().max() < 0.3


@pytest.mark.parametrize(
    ("tile", "overlap"), [((8, 16, 16), 0.5), ((16, 16, 16), 0.6), ((16, 16, 16), 0.9)]
)
def test_tiles_that_cannot_be_aligned_are_refused(
    tile: tuple[int, int, int], overlap: float
) -> None:
    with pytest.raises(
        UserError,
        match=r"--tile \d+ with --overlap .* multiple of 8\. Use --tile 16 with --overlap 0\.5",
    ):
        SlidingWindow(tile, 8, overlap)


def test_padding_repeats_the_border() -> None:
    mask = torch.zeros(1, 3, 5, 4, 4)
    mask[:, 1] = 1
    padded = pad_edge(mask, (8, 4, 9))
    assert padded.shape == (1, 3, 8, 4, 9) and torch.equal(
        padded.sum(1), torch.ones(1, 8, 4, 9)
    )  # still one-hot


def whole_against_tiles(**changes: Any) -> float:
    """Mean absolute difference, in shares of the picture's SD, of a random network's volume whole
    and in tiles.
    """
    torch.manual_seed(0)
    options = train_options(fusion="both", **changes)
    model = Pix2PixHDModel(options, LABELS, WIDTH, training=False)
    network = model.raw["G"].eval()
    made, said = batch(options, 1, (64, 16, 16)), text(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        whole, tiled = (
            model.generate(
                Condition(made["mask"], made["coords"], said), made["noise"], SlidingWindow(tile, 2)
            )
            for tile in ((), (32, 16, 16))
        )
    return float((whole - tiled).abs().mean() / whole.std())


def test_tiles_agree_with_the_whole_by_default() -> None:
    assert whole_against_tiles() < 0.02
    assert whole_against_tiles(norm="instance") > 5 * whole_against_tiles()


@pytest.mark.parametrize("size", [(16, 16, 16), (40, 17, 9)])
@pytest.mark.parametrize("tiles_at_once", [1, 3])
def test_every_step_is_reported_and_can_end_the_computation(
    size: tuple[int, ...], tiles_at_once: int
) -> None:
    said: list[tuple[int, int]] = []
    x = torch.randn(1, 1, *size)

    def note(number: int, steps: int) -> None:
        said.append((number, steps))

    SlidingWindow((16, 8, 8), 2, batch=tiles_at_once, on_tile=note)(same, x)
    assert said == [(number, len(said)) for number in range(len(said))]
    said.clear()
    window = SlidingWindow((16, 8, 8), 2, on_tile=note)
    reach = TileReach(2, 4)
    window.run_exactly(same, [ScaledInput(x)], reach, torch.empty_like(x))
    assert said == [(number, len(said)) for number in range(len(said))]

    def stop(number: int, steps: int) -> None:
        if number == 1:
            raise KeyError

    with pytest.raises(KeyError):
        SlidingWindow((8, 8, 8), 2, batch=1, on_tile=stop)(same, x)


def test_small_volumes_are_not_cut_where_tiles_would_be_blended() -> None:
    window = SlidingWindow((16, 16, 16), 4, by_memory=True)
    size = (64, 64, 48)
    voxel_bytes = MAX_WHOLE_BYTES // 64**2 // 48
    assert window.whole_if_small(size, voxel_bytes).tile == ()
    assert window.whole_if_small(size, voxel_bytes + 1) == window
    asked = SlidingWindow((16, 16, 16), 4)
    assert asked.whole_if_small(size, 1) == asked


@pytest.mark.parametrize(("norm", "calls"), [("layer", 1), ("group", 27)])
def test_diffusion_takes_small_volumes_at_once(norm: str, calls: int) -> None:
    """But not where a norm depends on all voxels of a tile."""
    options = train_options(norm=norm)
    model = DiffusionModel(options, LABELS, WIDTH, training=False)
    seen = list[int]()
    model.raw["G"].register_forward_hook(lambda *_: seen.append(1))
    window = SlidingWindow((16, 16, 16), 4, batch=1, by_memory=True)
    whole = batch(options, 1, (32, 32, 32))
    condition = Condition(whole["mask"], whole["coords"], text(1))
    with torch.no_grad():
        sampled = model._on_sampled_grid(condition, window)
        model._run_tiles(torch.randn(1, 1, 32, 32, 32), torch.zeros(1), *sampled)
    assert len(seen) == calls


@pytest.mark.parametrize(("tile", "multiple", "factor"), [(50, 16, 4), (30, 8, 8), (14, 4, 4)])
def test_coarser_tiles_are_those_that_run(tile: int, multiple: int, factor: int) -> None:
    """Of a tile that is rounded up, a coarser grid has the rounded one."""
    window = SlidingWindow((tile, tile, tile), multiple)
    coarser = window.coarser(factor)
    assert coarser.tile == (round_up(tile, multiple) // factor,) * 3
    assert coarser.multiple == multiple // factor
