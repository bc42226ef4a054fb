"""A GAN edits a scan by the difference of two generated volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from models.base_model import MODELS
from models.editing import EditScan, InversionEditor, ResidualEditor, make_editor
from models.inference import RUN_ENTRIES, VolumeGenerator  # noqa: F401  (registers the models)
from models.sliding_window import SlidingWindow
from models.text.base_encoder import TextEmbedding
from tests.networks import LABELS, WIDTH, train_options
from util.cli import UserError
from util.volume_inputs import CoordinateInput, LabelInput

SIZE = (8, 8, 8)


@dataclass
class Sample:
    """A mask with two labels."""

    name: str = "case"

    def mask_input(self, device: torch.device) -> LabelInput:
        channels = torch.zeros(SIZE, dtype=torch.uint8)
        channels[4:] = 1
        return LabelInput(channels, LABELS, device)

    def coords_input(self, device: torch.device) -> CoordinateInput:
        return CoordinateInput(SIZE, (0, 0, 0), SIZE, device)


class Encoder:
    """Random tokens for every prompt."""

    def encode(self, prompts: Sequence[Sequence[str]]) -> TextEmbedding:
        tokens = torch.stack(
            [
                torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(len(prompt[0])))
                for prompt in prompts
            ]
        )
        return TextEmbedding(tokens, torch.ones(len(prompts), 1, dtype=torch.bool), tokens.sum(1))


@pytest.fixture()
def generator() -> VolumeGenerator:
    torch.manual_seed(0)
    gan = MODELS["pix2pixhd"](train_options(), LABELS, WIDTH, training=False)
    for parameter in gan.raw["G"].parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    encoder: Any = Encoder()
    return VolumeGenerator(gan, encoder, SlidingWindow((), gan.size_multiple), torch.device("cpu"))


def test_a_scan_is_kept_and_the_difference_of_two_texts_is_added(
    generator: VolumeGenerator,
) -> None:
    image = 0.2 * torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(1))
    scan = EditScan(Sample(), image, ("own",))
    editor = make_editor(generator, 1.0)
    assert isinstance(editor, ResidualEditor)
    assert editor(scan, ("own",)).sub(image[0]).abs().max() < 1e-5
    edited = editor(scan, ("another",))
    own, other = generator.variants(scan.sample, [("own",), ("another",)])
    torch.testing.assert_close(edited, (image[0] + other - own).clamp(-1, 1), atol=1e-5, rtol=0)
    assert edited.sub(image[0])[4:].abs().max() > 1e-3
    assert torch.equal(edited, ResidualEditor(generator, 1.0)(scan, ("another",)))
    torch.testing.assert_close(editor.own_volume(scan), own, atol=1e-5, rtol=0)
    half = ResidualEditor(generator, 0.5)(scan, ("another",))
    change = (edited - image[0]).norm().item()
    assert (half - image[0]).norm().item() == pytest.approx(change / 2, rel=0.02)


def test_inversion_needs_a_diffusion_model(generator: VolumeGenerator) -> None:
    with pytest.raises(UserError, match="not a diffusion model"):
        InversionEditor(generator, 1.0)
