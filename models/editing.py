"""Counterfactuals of real scans: a scan is led back to the noise that gives it, and made again with
another text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.inference import VolumeGenerator


@dataclass(frozen=True)
class EditScan:
    """A real scan: `image` `(1, X, Y, Z)` in [-1, 1], `mask` `(K, X, Y, Z)`, `coords` `(3, X, Y,
    Z)`, and its own text.
    """

    case: str
    image: Tensor
    mask: Tensor
    coords: Tensor
    prompt: tuple[str, ...]


class Editor:
    """Makes scans again with a text changed.

    Args:
        generator: Generates and inverts.
        strength: Noise level up to which a scan is taken back.

    Raises:
        UserError: The model cannot invert.
    """

    def __init__(self, generator: VolumeGenerator, strength: float) -> None:
        generator.model.check_editing()
        self.generator, self.strength = generator, strength
        self._scan: EditScan | None = (
            None  # the one at hand, with its inversion and what was made of it
        )
        self._state, self._made = torch.empty(0), dict[tuple[str, ...], Tensor]()

    def __call__(self, scan: EditScan, prompt: Sequence[str]) -> Tensor:
        """The scan with another text, `(X, Y, Z)` in [-1, 1]; all texts of a scan start from one
        inversion.
        """
        if self._scan is not scan:
            self._scan, self._state, self._made = (
                scan,
                self._invert(scan, scan.image, scan.prompt),
                {},
            )
        if tuple(prompt) not in self._made:
            self._made[tuple(prompt)] = self._make(scan, self._state, prompt)
        return self._made[tuple(prompt)]

    def proofs(
        self, scan: EditScan, prompts: Mapping[str, Sequence[str]], cycles: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """What tells how well a scan is edited.

        Args:
            scan: The scan.
            prompts: The texts it is edited to, by name.
            cycles: Largest number of cycles without change; 0 leaves out all but the edits.

        Returns:
            The scan after 1 and after `cycles` cycles without change; edited; edited and edited
            back.
        """
        same = {str(n): self.cycles(scan, n) for n in sorted({1, cycles})} if cycles else {}
        edited = {name: self(scan, words) for name, words in prompts.items()}
        returned = {
            name: self.back(scan, edited[name], prompts[name]) for name in prompts if cycles
        }
        return same, edited, returned

    def cycles(self, scan: EditScan, count: int) -> Tensor:
        """The scan inverted and made again without change so many times."""
        made = self(scan, scan.prompt)
        for _ in range(count - 1):
            made = self._make(scan, self._invert(scan, made[None], scan.prompt), scan.prompt)
        return made

    def back(self, scan: EditScan, edited: Tensor, prompt: Sequence[str]) -> Tensor:
        """An edited scan `(X, Y, Z)`, whose text is `prompt`, edited to what it was."""
        return self._make(scan, self._invert(scan, edited[None], prompt), scan.prompt)

    def _invert(self, scan: EditScan, image: Tensor, prompt: Sequence[str]) -> Tensor:
        return self.generator.invert(
            image, scan.mask, scan.coords, scan.case, prompt, self.strength
        )

    def _make(self, scan: EditScan, state: Tensor, prompt: Sequence[str]) -> Tensor:
        return self.generator.regenerate(
            state, scan.mask, scan.coords, scan.case, prompt, self.strength
        )
