"""Prompts as sets of phrases: one token a phrase, no order, numbers by their size.

A token is `[e ; z e / rms(e)]`. For most phrases e is the phrase's own standardised embedding and z
= 0. A phrase that holds exactly one number, in a wording that training has seen with several
numbers ("Patient age: #"), has the e of that wording, and z is the number standardised over the
training prompts: what depends on size is linear in it, and 63 lies between 60 and 66 whether or not
training has seen it (after xVal, Golkar et al. 2023, arXiv 2310.02989).

A phrase that differs from one of training in nothing but capitals, punctuation or "is" is that
phrase ("AGE is 63" and "Age: 63."), whatever the language model would make of it; other wordings
are left to the language model.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.text.base_encoder import Prompts, TextEmbedding, TextEncoder, Values
from util.phrasing import normalise_phrase, strip_phrase

# A number that stands alone: no part of a word (T2, COVID-19), of a date, or of a list joined by
# commas without space.
NUMBER = re.compile(r"(?<![\w.,/:-])[-+]?\d+(?:\.\d+)?(?![\w/:]|[-.,]\w)")
SEVERAL = 3  # fewer different numbers than this are codes, not sizes


class Wordings:
    """Texts of training by what they say, where that tells them apart."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = sorted(set(texts))
        counts = Counter(map(normalise_phrase, self.texts))
        self._known = {
            normalise_phrase(text): text
            for text in self.texts
            if counts[normalise_phrase(text)] == 1
        }
        self._own = frozenset(self.texts)

    def __call__(self, text: str) -> str:
        """The text of training that says the same; the text itself where there is none."""
        return text if text in self._own else self._known.get(normalise_phrase(text), text)


class Numbers:
    """The wordings with a number that training has seen, each with mean, SD and its most central
    phrase.
    """

    def __init__(self) -> None:
        self._stems: dict[str, dict[str, Any]] = {}
        self._wordings = Wordings()

    @property
    def stems(self) -> dict[str, dict[str, Any]]:
        return self._stems

    @stems.setter
    def stems(self, stems: dict[str, dict[str, Any]]) -> None:
        self._stems, self._wordings = stems, Wordings(stems)

    def fit(self, prompts: Prompts) -> None:
        seen: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for phrase in (strip_phrase(p) for prompt in prompts for p in prompt):
            if parsed := parse_number(phrase):
                seen[parsed[0]].append((parsed[1], phrase))
        stems = {}
        for stem, pairs in sorted(seen.items()):
            if len({value for value, _ in pairs}) >= SEVERAL:
                values = torch.tensor([v for v, _ in pairs], dtype=torch.float64)
                mean, sd = values.mean().item(), values.std(correction=0).item()
                central = min(pairs, key=lambda pair: (abs(pair[0] - mean), pair[1]))[1]
                stems[stem] = {"mean": mean, "sd": sd, "phrase": central}
        self.stems = stems

    def locate(self, phrase: str) -> tuple[str, float]:
        """The phrase whose embedding stands for this one, and z."""
        parsed = parse_number(phrase)
        known = self.stems.get(self._wordings(parsed[0])) if parsed else None
        if parsed is None or known is None:
            return phrase, 0.0
        return known["phrase"], (parsed[1] - known["mean"]) / known["sd"]


def parse_number(phrase: str) -> tuple[str, float] | None:
    """The phrase with `#` for its number, and the number; None unless it holds exactly one."""
    found = list(NUMBER.finditer(phrase))
    if len(found) != 1:
        return None
    start, end = found[0].span()
    return f"{phrase[:start]}#{phrase[end:]}", float(found[0].group())


class PhraseEncoder(TextEncoder):
    """Base of encoders that embed phrase by phrase; pooled is the sum of the tokens.

    Args:
        numbers: Whether sizes of numbers get channels of their own (doubles the width).
    """

    def __init__(self, numbers: bool) -> None:
        self.numbers = Numbers() if numbers else None
        self.phrase_weights: Mapping[str, float] = {}
        self._wordings = Wordings()
        self.forget()

    @property
    def phrases(self) -> list[str]:
        """The distinct phrases of training; a wording with a number stands once."""
        return self._wordings.texts

    @property
    @abstractmethod
    def base(self) -> int:
        """Channels of a phrase's own embedding."""

    @abstractmethod
    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Standardised embeddings `(N, base)` of distinct phrases."""

    @abstractmethod
    def learn(self, phrases: Sequence[str]) -> None:
        """Learns how to standardise from the distinct phrases of training."""

    @property
    def width(self) -> int:
        return self.base if self.numbers is None else 2 * self.base

    def fit(self, prompts: Prompts) -> None:
        if self.numbers is not None:
            self.numbers.fit(prompts)
        self._wordings = Wordings(
            self._sized(p)[0] for prompt in prompts for p in prompt if strip_phrase(p)
        )
        self.learn(self.phrases)
        self.set_phrase_weights({})

    def set_phrase_weights(self, weights: Mapping[str, float]) -> None:
        """Makes phrases of training as loud as this says (see `models.text.relevance`); all count
        whole where it is empty.
        """
        self.phrase_weights = weights
        self.forget()

    def state(self) -> tuple[dict[str, Tensor], Values]:
        numbers = {} if self.numbers is None else self.numbers.stems
        return {}, {
            "numbers": numbers,
            "phrases": self.phrases,
            "shares": dict(self.phrase_weights),
        }

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if self.numbers is not None:
            self.numbers.stems = dict(values["numbers"])
        self._wordings = Wordings(values.get("phrases", ()))
        self.set_phrase_weights(values.get("shares", {}))

    def forget(self) -> None:
        """Empties the table of embedded phrases, after what they are standardised by has
        changed.
        """
        self._index: dict[str, int] = {}
        self._rows, self._token_weights = torch.zeros(0, self.base), torch.zeros(0)

    def encode(self, prompts: Prompts) -> TextEmbedding:
        located = [[self.locate(p) for p in prompt if strip_phrase(p)] for prompt in prompts]
        new = [
            p
            for p in dict.fromkeys(p for prompt in located for p, _ in prompt)
            if p not in self._index
        ]
        if new:
            self._index.update({p: len(self._index) + i for i, p in enumerate(new)})
            rows = self.embed(new)
            self._rows, self._token_weights = (
                torch.cat([self._rows, rows]),
                torch.cat([self._token_weights, self._weights_of(new, rows)]),
            )
        size = len(located), max([1, *map(len, located)])
        index, z = torch.zeros(size, dtype=torch.long), torch.zeros(*size, 1)
        valid = torch.zeros(size, dtype=torch.bool)
        for i, prompt in enumerate(located):
            index[i, : len(prompt)] = torch.tensor(
                [self._index[p] for p, _ in prompt], dtype=torch.long
            )
            z[i, : len(prompt), 0] = torch.tensor([size for _, size in prompt])
            valid[i, : len(prompt)] = True
        if not valid.any():
            return TextEmbedding(
                torch.zeros(*size, self.width), valid, torch.zeros(size[0], self.width)
            )
        tokens = self._rows[index] * valid[..., None]
        if self.numbers is not None:
            rms = tokens.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
            tokens = torch.cat([tokens, z * tokens / rms], -1)
        tokens = tokens * self._token_weights[index][..., None]
        return TextEmbedding(tokens, valid, tokens.sum(1))

    def _sized(self, phrase: str) -> tuple[str, float]:
        return (
            (strip_phrase(phrase), 0.0)
            if self.numbers is None
            else self.numbers.locate(strip_phrase(phrase))
        )

    def locate(self, phrase: str) -> tuple[str, float]:
        """The phrase of training that stands for this one, if there is one, and z."""
        text, z = self._sized(phrase)
        return self._wordings(text), z

    def _weights_of(self, phrases: Sequence[str], rows: Tensor) -> Tensor:
        """The share of each phrase; one that training has not seen has that of the phrase nearest
        to it.
        """
        if not self.phrase_weights:
            return torch.ones(len(phrases))
        near = (
            F.normalize(rows, dim=-1) @ F.normalize(self.embed(list(self.phrase_weights)), dim=-1).T
        )
        shares = list(self.phrase_weights.values())
        return torch.tensor(
            [
                self.phrase_weights.get(p, shares[int(n)])
                for p, n in zip(phrases, near.argmax(1), strict=True)
            ]
        )
