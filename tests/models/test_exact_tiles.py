"""Tiles with a halo have the values of the whole volume, for every network that allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base_model import Condition
from models.networks.filters import TUBE_SIGMAS, noise_reach, tube_noise
from models.networks.generator import receptive_halo
from models.networks.texture_head import FIELD_SIGMAS, random_fields
from models.pix2pixhd_model import Pix2PixHDModel
from models.sliding_window import SlidingWindow, TileReach, fitting_tile
from models.text.base_encoder import TextEmbedding
from tests.networks import LABELS, WIDTH, batch, text, train_options, wake
from util.seeding import noise_key
from util.volume_inputs import CoordinateInput, LabelInput, NoiseInput

HU = 700  # of one unit
CPU = torch.device("cpu")


def make_model(**changes: Any) -> Pix2PixHDModel:
    torch.manual_seed(0)
    model = Pix2PixHDModel(train_options(**changes), LABELS, WIDTH, training=False)
    model.raw["G"].eval()
    wake(model.raw["G"], 0.1)  # larger ones multiply rounding more than learned ones do
    return model


def generate(
    model: Pix2PixHDModel, inputs: dict[str, Tensor], said: TextEmbedding, **window: Any
) -> Tensor:
    condition = Condition(inputs["mask"], inputs["coords"], said)
    tiler = SlidingWindow(multiple=model.size_multiple, **window)
    with torch.no_grad():
        return model.generate_variants(condition, inputs["noise"], tiler)


@pytest.mark.parametrize(
    ("changes", "tile"),
    [
        ({}, (24, 16, 16)),
        ({"text_texture": False}, (24, 16, 16)),
        ({"n_downsample_global": 2, "n_blocks_global": 3}, (32, 24, 32)),
        ({"n_downsample_global": 3, "ngf": 2}, (48, 16, 16)),
        ({"n_local_enhancers": 1, "n_blocks_local": 2}, (40, 16, 16)),
        ({"norm": "rms", "padding": "reflect", "skip": False}, (24, 16, 16)),
        ({"norm": "batch", "fusion_at": "output", "text_position": False}, (16, 16, 16)),
        ({"noise_channels": 0, "text_region": "everywhere"}, (24, 16, 16)),
    ],
    ids=str,
)
def test_tiles_have_the_values_of_the_whole(changes: dict[str, Any], tile: Any) -> None:
    model = make_model(**changes)
    inputs = batch(model.options, 1, (80, 32, 16))
    inputs["mask"] = torch.nn.functional.interpolate(inputs["mask"][..., :20, :8, :4], (80, 32, 16))
    whole = generate(model, inputs, text(1), tile=())
    with torch.no_grad():
        passed = model.generator(inputs["mask"], inputs["coords"], inputs["noise"], text(1))
    torch.testing.assert_close(whole, passed, atol=1e-5, rtol=1e-5)
    tiled = generate(model, inputs, text(1), tile=tile)
    assert (tiled - whole).abs().max() * HU < 0.01
    assert whole.std() > 0.01


def test_random_fields_of_a_tile_are_those_of_the_whole_beyond_its_halo() -> None:
    """At the border of the volume, fields are of the voxels that are there, in tiles as well."""
    noise = torch.randn(1, 4, 48, 16, 12, generator=torch.Generator().manual_seed(0))
    whole = random_fields(noise)
    halo = receptive_halo(train_options(noise_tubes=False).generator)
    assert halo == noise_reach(max(FIELD_SIGMAS)) == 8
    first, middle = random_fields(noise[:, :, :24]), random_fields(noise[:, :, 12:36])
    torch.testing.assert_close(first[:, :, :-halo], whole[:, :, : 24 - halo])
    torch.testing.assert_close(middle[:, :, halo:-halo], whole[:, :, 12 + halo : 36 - halo])
    assert (middle[:, :, halo - 1] - whole[:, :, 11 + halo]).abs().max() > 1e-3


def test_tubes_of_a_tile_are_those_of_the_whole_beyond_its_halo() -> None:
    noise = torch.randn(1, 4, 48, 16, 12, generator=torch.Generator().manual_seed(0))
    halo = receptive_halo(train_options(text_texture=False).generator)
    assert halo == noise_reach(max(TUBE_SIGMAS)) + 2 == 10
    whole, middle = tube_noise(noise), tube_noise(noise[:, :, 10:38])
    torch.testing.assert_close(middle[:, :, 8:-8], whole[:, :, 18:30])
    assert (middle[:, :, 7] - whole[:, :, 17]).abs().max() > 1e-3


def test_a_texture_looks_beyond_the_network() -> None:
    textured, plain = (
        receptive_halo(train_options(text_texture=on, noise_tubes=False).generator)
        for on in (True, False)
    )
    assert textured is not None and plain is not None and textured > plain


def test_a_norm_over_the_volume_has_no_halo() -> None:
    options = train_options().generator
    assert receptive_halo(options) is not None
    for norm in ("instance", "group"):
        assert receptive_halo(replace(options, norm=norm)) is None


def test_the_halo_of_the_presets_allows_tiles() -> None:
    """Two passes of the encoder and a halo cost at most 2.5 times a pass of the whole."""
    options = train_options().generator
    for depth, blocks in ((2, 3), (2, 4), (3, 4)):
        halo = receptive_halo(replace(options, n_downsample_global=depth, n_blocks_global=blocks))
        assert halo is not None and (128 / (128 - 2 * halo)) ** 3 < 2.5


def test_several_prompts_are_one_batch() -> None:
    model = make_model()
    inputs = batch(model.options, 1, (48, 16, 16))
    inputs["mask"][:, :, :24] = 0
    inputs["mask"][:, 0, :24] = 1  # no organ there
    said = text(3)
    together = generate(model, inputs, said, tile=(16, 16, 16))
    assert together.shape == (3, 1, 48, 16, 16)
    apart = [generate(model, inputs, said.select(k), tile=(16, 16, 16)) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert torch.equal(together[0, :, :8], together[1, :, :8])


def test_boxes_are_parts_of_the_whole() -> None:
    model = make_model()
    size = (48, 16, 24)
    channels = torch.randint(0, LABELS, size, dtype=torch.uint8)
    boxed = (
        LabelInput(channels, LABELS, CPU),
        CoordinateInput(size, (-3, 0, -1), (40, 16, 20), CPU),
        NoiseInput(noise_key(0, "case"), model.noise_channels, size, CPU),
    )
    tensors = [item.box((0, 0, 0), size) for item in boxed]
    tiler = SlidingWindow((16, 16, 16), model.size_multiple)
    with torch.no_grad():
        from_boxes, from_tensors = (
            model.generate_variants(Condition(mask, coords, text(1)), noise, tiler)
            for mask, coords, noise in (boxed, tensors)
        )
    assert torch.equal(from_boxes, from_tensors)


def test_tiles_are_chosen_by_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.sliding_window.MAX_CPU_BYTES", 64**3 * 100)
    assert fitting_tile((48, 48, 48), 8, 8, 100, CPU) == (48, 48, 48)
    large = fitting_tile((512, 512, 600), 8, 8, 100, CPU)
    assert 0.8 * 64**3 < np.prod(large) <= 64**3 and min(large) >= 40
    assert fitting_tile((512, 8, 600), 8, 8, 100, CPU)[1] == 8
    assert fitting_tile((512, 512, 600), 32, 8, 10**6, CPU) == (72, 72, 72)


@pytest.mark.parametrize("size", [(64, 64, 40), (72, 40, 24), (64, 16, 8)])
def test_the_tile_that_computes_least_is_chosen(
    size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume slightly too large for the memory is cut once, not along every axis."""
    halo, multiple = 8, 8
    monkeypatch.setattr("models.sliding_window.MAX_CPU_BYTES", 0.95 * np.prod(size))
    tile = fitting_tile(size, halo, multiple, 1, CPU)

    def work(lengths: Sequence[int]) -> int:
        tiles = SlidingWindow(tuple(lengths), multiple, 0)._boxes(size, TileReach(halo, 1), CPU)
        return sum(int(np.prod(box.size)) for box in tiles)

    sides = [range(min(side, 24), side + 1, multiple) for side in size]
    fitting = [lengths for lengths in product(*sides) if np.prod(lengths) <= 0.95 * np.prod(size)]
    assert work(tile) == min(map(work, fitting))
