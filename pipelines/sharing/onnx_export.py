"""The network of a GAN as ONNX, compared with PyTorch before the file is kept.

Inputs are the one-hot mask, coordinates, noise and the embedded text; the output is the volume in
HU. Tokenizing and embedding stay outside: the text encoder is a folder of transformers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.volumes import to_hu
from models.inference import LoadedRun
from models.networks.generator import Generator
from models.text.base_encoder import TextEmbedding
from util.cli import UserError
from util.files import atomic_path

log = logging.getLogger(__name__)

INPUTS = ("mask", "coords", "noise", "tokens", "valid", "pooled")
OUTPUT = "hu"
OPSET = 20
MAX_DIFFERENCE_HU = 0.1  # between ONNX and PyTorch, of any voxel


class OnnxGenerator(nn.Module):
    """The generator with plain tensors in place of a `TextEmbedding`, and HU as output."""

    def __init__(self, generator: Generator, window: tuple[float, float]) -> None:
        super().__init__()
        self.generator = generator
        self.window = window

    def forward(
        self,
        mask: Tensor,
        coords: Tensor,
        noise: Tensor,
        tokens: Tensor,
        valid: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        """Return `(1, 1, X, Y, Z)` HU; shapes as in `Generator.forward` and `TextEmbedding`."""
        text = TextEmbedding(tokens, valid, pooled)
        return to_hu(self.generator(mask, coords, noise, text), self.window)


def export_onnx(run: LoadedRun, out: Path, size: Sequence[int]) -> Path:
    """Export a GAN's network for volumes of one size; prompts may have any number of phrases.

    Raises:
        UserError: The run is not a GAN, the size does not suit the network, a package is missing,
            or ONNX computes something else than PyTorch.
    """
    network, multiple = run.network, run.generator.model.size_multiple
    if not isinstance(network, Generator):
        raise UserError(
            f"--to onnx: the run {run.folder.name} is of --model {run.options.generator.model}, "
            "which generates in many steps; only the network of pix2pixhd can be exported."
        )
    if any(side % multiple for side in size):
        raise UserError(
            f"--onnx_size is {','.join(map(str, size))}; each side must be a multiple of "
            f"{multiple}, by which the network halves it."
        )
    wrapped = OnnxGenerator(network.cpu().eval(), run.options.data.hu_window)
    _check_packages()
    for name in ("onnxscript", "onnx_ir"):  # they log every constant that is folded
        logging.getLogger(name).setLevel(logging.WARNING)
    phrases = torch.export.Dim("phrases", min=1, max=512)
    shapes = {name: None for name in INPUTS} | {"tokens": {1: phrases}, "valid": {1: phrases}}
    inputs = {number: example_inputs(run, size, number) for number in (3, 7)}
    with atomic_path(out) as temporary:
        with torch.no_grad():
            # Before the export, which would leave tensors of its own in caches of filters.
            expected = {number: wrapped(*values) for number, values in inputs.items()}
            program = torch.onnx.export(
                wrapped,
                inputs[3],
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
            )
        assert program is not None
        facts = {"labels": list(run.labels), "hu_window": list(run.options.data.hu_window)}
        program.model.metadata_props["mask2ct"] = json.dumps(facts)
        program.save(str(temporary), external_data=False)
        difference = max(
            _difference(temporary, values, expected[number]) for number, values in inputs.items()
        )
        if difference > MAX_DIFFERENCE_HU:
            raise UserError(
                f"--to onnx: ONNX differs from PyTorch by up to {difference:.2f} HU, so the file "
                "is not kept. Use another version of the packages onnx, onnxscript and onnxruntime."
            )
    log.info("Wrote %s; it differs from PyTorch by at most %.4f HU.", out, difference)
    return out


def example_inputs(run: LoadedRun, size: Sequence[int], n_phrases: int) -> tuple[Tensor, ...]:
    """Return random inputs of the network, by a fixed seed.

    Args:
        size: Voxels of a volume.
        n_phrases: Phrases of the prompt; the last one is padding.
    """
    random = torch.Generator().manual_seed(n_phrases)
    width, n_labels = run.generator.encoder.width, len(run.labels)
    labels = torch.randint(n_labels, (1, *size), generator=random)
    mask = nn.functional.one_hot(labels, n_labels).movedim(-1, 1).float()
    axes = [torch.linspace(-1, 1, side) for side in size]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    noise = torch.randn(1, run.generator.model.noise_channels, *size, generator=random)
    valid = torch.arange(n_phrases)[None] < n_phrases - 1
    tokens = torch.randn(1, n_phrases, width, generator=random) * valid[..., None]
    return mask, coords, noise, tokens, valid, tokens.sum(1)


def _difference(file: Path, inputs: tuple[Tensor, ...], expected: Tensor) -> float:
    """Return the largest difference of a voxel between ONNX and PyTorch, HU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}  # without those that the network ignores
    values = {
        name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True) if name in known
    }
    return float(abs(session.run([OUTPUT], values)[0] - expected.numpy()).max())


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--to onnx needs the package {error.name}, which is not installed. Install it: pip "
            "install onnx onnxscript onnxruntime."
        ) from None
