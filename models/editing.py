"""Counterfactuals of real scans: by inversion to noise, or by the difference of two texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.inference import Sample, VolumeGenerator

Prompt = Sequence[str]  # the texts of its phrases


@dataclass(frozen=True)
class EditScan:
    """A real scan.

    Attributes:
        image: `(1, X, Y, Z)` in [-1, 1].
        prompt: Its factual prompt.
        noise_key: Decides the noise of generated volumes in place of the sample's name.
    """

    sample: Sample
    image: Tensor
    prompt: tuple[str, ...]
    noise_key: str = ""


@dataclass(frozen=True)
class EditChecks:
    """Volumes `(X, Y, Z)` in [-1, 1] that show how well a scan is edited.

    Attributes:
        cycles: The scan inverted and regenerated without change, by the number of cycles.
        edited: The scan with another text, by the text's name.
        returned: The edited scans edited back to the factual prompt, by the same names.
    """

    cycles: dict[str, Tensor]
    edited: dict[str, Tensor]
    returned: dict[str, Tensor]


class Editor(ABC):
    """Real scans with another text.

    All texts of a scan start from one state; that of the latest scan is kept.

    Attributes:
        METHOD: How volumes are made, for the page that shows them.

    Args:
        generator: Generates and inverts.
        strength: Noise level up to which a scan is inverted, or factor of the difference that is
            added to it.
    """

    METHOD: ClassVar[str]

    def __init__(self, generator: VolumeGenerator, strength: float) -> None:
        self.generator = generator
        self.strength = strength
        self._scan: EditScan | None = None
        self._state = torch.empty(0)
        self._edits: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, scan: EditScan, prompt: Prompt) -> Tensor:
        """Return the scan with another text, `(X, Y, Z)` in [-1, 1]."""
        if self._scan is not scan:
            self._scan = scan
            self._state = self._invert(scan, scan.image, scan.prompt)
            self._edits = {}
        key = tuple(prompt)
        if key not in self._edits:
            self._edits[key] = self._regenerate(scan, self._state, prompt)
        return self._edits[key]

    def edit_checks(self, scan: EditScan, prompts: Mapping[str, Prompt], cycles: int) -> EditChecks:
        """Return the volumes that tell how well a scan is edited.

        Args:
            prompts: The texts it is edited to, by name.
            cycles: Largest number of cycles without change; 0 leaves out all but the edits.
        """
        counts = sorted({1, cycles}) if cycles else []
        unchanged = {str(count): self.cycle(scan, count) for count in counts}
        edited = {name: self(scan, prompt) for name, prompt in prompts.items()}
        returned = {}
        if cycles:
            returned = {name: self.edit_back(scan, edited[name], prompts[name]) for name in prompts}
        return EditChecks(unchanged, edited, returned)

    def cycle(self, scan: EditScan, count: int) -> Tensor:
        """Return the scan inverted and regenerated without change `count` times."""
        volume = self(scan, scan.prompt)
        for _ in range(count - 1):
            state = self._invert(scan, volume[None], scan.prompt)
            volume = self._regenerate(scan, state, scan.prompt)
        return volume

    def edit_back(self, scan: EditScan, edited: Tensor, prompt: Prompt) -> Tensor:
        """Return an edited scan `(X, Y, Z)`, whose text is `prompt`, with its factual prompt."""
        return self._regenerate(scan, self._invert(scan, edited[None], prompt), scan.prompt)

    def own_volume(self, scan: EditScan) -> Tensor | None:
        """Return what the run makes of the scan's mask and text where edits rest on it, `(X,Y,Z)`.

        In [-1, 1]; None where it is not generated.
        """
        return None

    @abstractmethod
    def _invert(self, scan: EditScan, image: Tensor, prompt: Prompt) -> Tensor:
        """Return the state from which `_regenerate` makes `image` `(1, X, Y, Z)` again."""

    @abstractmethod
    def _regenerate(self, scan: EditScan, state: Tensor, prompt: Prompt) -> Tensor:
        """Return a volume `(X, Y, Z)` in [-1, 1] with a text from a state."""


class InversionEditor(Editor):
    """Inversion of scans to noise and regeneration with another text, by a diffusion model.

    Raises:
        UserError: The model cannot invert.
    """

    METHOD = (
        "Each volume is the patient's own scan, inverted to noise with its own text and sampled "
        "again with the changed one. The volume called regenerated is sampled with the scan's own "
        "text: what differs there from the scan is the error of the method."
    )

    def __init__(self, generator: VolumeGenerator, strength: float) -> None:
        generator.model.check_inversion()
        super().__init__(generator, strength)

    def _invert(self, scan: EditScan, image: Tensor, prompt: Prompt) -> Tensor:
        return self.generator.invert(image, scan.sample, prompt, self.strength)

    def _regenerate(self, scan: EditScan, state: Tensor, prompt: Prompt) -> Tensor:
        return self.generator.regenerate(state, scan.sample, prompt, self.strength)


class ResidualEditor(Editor):
    """Scans plus the difference of two generated volumes with the same noise.

    The patient's anatomy and texture stay, and the difference of the two texts comes on top.
    """

    METHOD = (
        "Each volume is the patient's own scan plus the difference of two generated volumes: one "
        "with the changed text minus one with the scan's own text. Anatomy and focal findings of "
        "the scan stay, also where the changed text contradicts them. The volume called "
        "regenerated has the scan's own text and is the scan itself."
    )

    def _invert(self, scan: EditScan, image: Tensor, prompt: Prompt) -> Tensor:
        return image - self.strength * self._generate(scan, prompt)

    def _regenerate(self, scan: EditScan, state: Tensor, prompt: Prompt) -> Tensor:
        return (state + self.strength * self._generate(scan, prompt)).clamp(-1, 1)[0]

    def own_volume(self, scan: EditScan) -> Tensor:
        """Return the generated volume that is subtracted, `(X, Y, Z)`."""
        return self._generate(scan, scan.prompt)[0]

    def _generate(self, scan: EditScan, prompt: Prompt) -> Tensor:
        return self.generator(scan.sample, prompt, scan.noise_key)[None]


def make_editor(generator: VolumeGenerator, strength: float) -> Editor:
    """Return the editor that suits a model: by inversion where it can invert scans."""
    kind = InversionEditor if generator.model.invertible else ResidualEditor
    return kind(generator, strength)
