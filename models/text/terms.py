"""Terms beside the phrases: curves of numbers, and products of two columns.

A token is linear in its number, and effects of phrases add up in the text's residual. So an effect
that is U-shaped in age, or that acts in one sex only, needs terms of its own, as in a regression.
They are offered to the regression of relevance (`models.text.relevance`), in which each has a prior
variance of its own. Those that the training scans determine become tokens beside the phrases'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from util.cli import UserError
from util.schema import misfit

Array = NDArray[np.float64]
# Quantiles of the training values at which a spline's pieces meet (Harrell 2015, table 2.3).
KNOT_QUANTILES = (0.05, 0.35, 0.65, 0.95)
TERM_TYPES = {
    "phrases": list[str],
    "weight": float,
    "knots": list[float],
    "line": list[float],
}


@dataclass(frozen=True)
class Term:
    """A token that follows from one or two phrases of a prompt.

    Attributes:
        phrases: One phrase with a number (a curve), or two phrases (their product).
        weight: Factor of the token, 0 to 1.
        knots: Of a curve, in standardised numbers; empty for a product.
        line: Of a curve: offset and slope that are subtracted, and the SD of what remains.
    """

    phrases: tuple[str, ...]
    weight: float
    knots: tuple[float, ...] = ()
    line: tuple[float, ...] = ()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Term:
        """Restore the result of `to_values`; raise `UserError` for other types."""
        problem = misfit(values, TERM_TYPES)
        if not problem:
            sizes = (len(values["phrases"]), len(values["knots"]), len(values["line"]))
            if sizes not in ((1, 3, 3), (2, 0, 0)) or 0 in values["line"][2:]:
                problem = "a term is neither a curve nor a product"
        if problem:
            raise UserError(f"terms: {problem}")
        parts = {name: tuple(values[name]) for name in ("phrases", "knots", "line")}
        return cls(weight=values["weight"], **parts)

    def to_values(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "phrases": list(self.phrases),
            "weight": self.weight,
            "knots": list(self.knots),
            "line": list(self.line),
        }

    def value(self, sizes: Sequence[float | None]) -> float:
        """Return the term's value for the standardised numbers of its phrases (None: no number)."""
        if not self.knots:
            return float(np.prod([1.0 if z is None else z for z in sizes]))
        z = np.array([sizes[0] or 0.0])
        offset, slope, sd = self.line
        return float((_bend(z, self.knots)[0] - offset - slope * z[0]) / sd)

    def embed(self, embeddings: Tensor) -> Tensor:
        """Return the term's direction `(C,)` from its phrases' embeddings `(n, C)`.

        The direction of a product is the product; that of a curve is the phrase's own embedding
        with its halves exchanged, which differs from it and from that of its size.
        """
        if self.knots:
            direction = embeddings[0].roll(embeddings.shape[1] // 2)
        else:
            direction = embeddings.prod(0)
        return direction / direction.square().mean().sqrt().clamp_min(1e-6)


def fit_curve(phrase: str, z: Array) -> list[Term]:
    """Return the curves of a number with standardised training values `z`; none for few values."""
    terms = []
    knots = np.quantile(z, KNOT_QUANTILES)
    if len(np.unique(knots)) < len(knots):
        return []
    for i in range(len(knots) - 2):
        chosen = (float(knots[i]), float(knots[-2]), float(knots[-1]))
        bend = _bend(z, chosen)
        slope, offset = np.polyfit(z, bend, 1)
        sd = float((bend - offset - slope * z).std())
        if sd > 1e-6:
            terms.append(Term((phrase,), 1.0, chosen, (float(offset), float(slope), sd)))
    return terms


def _bend(z: Array, knots: Sequence[float]) -> Array:
    """Return a term of a cubic spline that is linear beyond its outer knots (Harrell, eq. 2.25)."""
    first, before, last = knots
    cubes = [np.clip(z - knot, 0, None) ** 3 for knot in (first, before, last)]
    width = last - before
    bend = cubes[0] - cubes[1] * (last - first) / width + cubes[2] * (before - first) / width
    return np.asarray(bend / max(last - first, 1e-6) ** 2)


def term_tokens(
    terms: Sequence[Term],
    located: Mapping[str, float | None],
    embed: Callable[[Sequence[str]], Tensor],
) -> list[Tensor]:
    """Return the tokens `(C,)` that a prompt's phrases add.

    Args:
        located: The prompt's phrases with their standardised numbers.
        embed: Function of phrases to embeddings `(n, C)`.
    """
    tokens = []
    for term in terms:
        if all(phrase in located for phrase in term.phrases):
            value = term.value([located[phrase] for phrase in term.phrases])
            direction = term.embed(embed(term.phrases))
            tokens.append(term.weight * value * direction)
    return tokens


def stack_tokens(tokens: Sequence[Tensor], width: int) -> Tensor:
    """Return tokens `(n, width)`, with zeros in the channels of sizes."""
    if not tokens:
        return torch.zeros(0, width)
    stacked = torch.stack(list(tokens))
    return F.pad(stacked, (0, width - stacked.shape[1]))
