"""Prompts as sets of phrases: one token per phrase, no order, numbers by their size.

A token is `[e ; z e / rms(e)]`. For most phrases, e is the standardised embedding of the phrase
and z = 0. Some phrases hold exactly one number, in a wording that the training prompts hold with
several numbers ("Patient age: #"). They have the e of that wording, and z is the number
standardised over the training prompts. So the token is linear in the number, and 63 lies between
60 and 66 even if training has not seen it (after xVal, Golkar et al. 2023, arXiv 2310.02989).

A phrase that differs from a training phrase only in capitals, punctuation or "is" is treated as
that phrase ("AGE is 63" and "Age: 63."). The language model embeds all other wordings.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.text.base_encoder import Prompts, TextEmbedding, TextEncoder, Values
from models.text.terms import Term, stack_tokens, term_tokens
from util.cli import UserError
from util.phrasing import normalise_phrase, strip_phrase
from util.schema import misfit

# A number that stands alone: not part of a word (T2, COVID-19), of a date, or of a list joined by
# commas without a space.
NUMBER = re.compile(r"(?<![\w.,/:-])[-+]?\d+(?:\.\d+)?(?![\w/:]|[-.,]\w)")
MIN_NUMBERS = 3  # a wording with fewer different numbers holds codes, not sizes
MIN_RMS = 1e-6
# Types of what `PhraseEncoder.state` and `Numbers.stems` hold.
VALUE_TYPES = {
    "numbers": dict[str, dict[str, Any]],
    "phrases": list[str] | None,
    "shares": dict[str, float] | None,
    "terms": list[dict[str, Any]] | None,
    "synonyms": dict[str, str] | None,
}
STEM_TYPES = {"mean": float, "sd": float, "phrase": str}


class Wordings:
    """Training texts, looked up by their normalised wording where that is unambiguous."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = sorted(set(texts))
        self._texts = frozenset(self.texts)
        counts = Counter(normalise_phrase(text) for text in self.texts)
        self._by_wording: dict[str, str] = {}
        for text in self.texts:
            wording = normalise_phrase(text)
            if counts[wording] == 1:
                self._by_wording[wording] = text

    def __call__(self, text: str) -> str:
        """Return the training text of the same wording; the text itself if there is none."""
        return text if text in self._texts else self._by_wording.get(normalise_phrase(text), text)


class Numbers:
    """Wordings of the training prompts that hold a number.

    Attributes:
        stems: By wording ("Patient age: #"): `mean` and `sd` of its numbers, and the `phrase` whose
            number is nearest to the mean.
    """

    def __init__(self, stems: Mapping[str, dict[str, Any]] | None = None) -> None:
        self.stems = dict(stems or {})
        self._wordings = Wordings(self.stems)

    @classmethod
    def from_prompts(cls, prompts: Prompts) -> Numbers:
        """Collect the wordings that occur with at least `MIN_NUMBERS` different numbers."""
        occurrences: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for prompt in prompts:
            for phrase in map(strip_phrase, prompt):
                if parsed := parse_number(phrase):
                    stem, value = parsed
                    occurrences[stem].append((value, phrase))
        stems = {}
        for stem, pairs in sorted(occurrences.items()):
            values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
            if len(values.unique()) < MIN_NUMBERS:
                continue
            mean = values.mean().item()
            central = min(pairs, key=lambda pair: (abs(pair[0] - mean), pair[1]))[1]
            sd = values.std(correction=0).item()
            stems[stem] = {"mean": mean, "sd": sd, "phrase": central}
        return cls(stems)

    @classmethod
    def from_values(cls, stems: Mapping[str, dict[str, Any]]) -> Numbers:
        """Take stored `stems`; raise `UserError` for entries of other types."""
        for name, stem in stems.items():
            problem = misfit(stem, STEM_TYPES)
            if not problem and not stem["sd"] > 0:
                problem = f"sd is {stem['sd']}"
            if problem:
                raise UserError(f"numbers of {name!r}: {problem}")
        return cls(stems)

    def locate(self, phrase: str) -> tuple[str, float]:
        """Return the phrase whose embedding e is used for this one, and z."""
        parsed = parse_number(phrase)
        if parsed is None:
            return phrase, 0.0
        stem, value = parsed
        known = self.stems.get(self._wordings(stem))
        if known is None:
            return phrase, 0.0
        return known["phrase"], (value - known["mean"]) / known["sd"]


def parse_number(phrase: str) -> tuple[str, float] | None:
    """Return the phrase with `#` for its number, and the number; None unless it holds just one."""
    matches = list(NUMBER.finditer(phrase))
    if len(matches) != 1:
        return None
    start, end = matches[0].span()
    return f"{phrase[:start]}#{phrase[end:]}", float(matches[0].group())


class PhraseTable:
    """Embeddings and weights of phrases, each computed once.

    Args:
        width: Channels C of an embedding.
        embed: Embeds N distinct phrases, `(N, C)`.
        weigh: Weighs N phrases, given with their embeddings, `(N,)`.

    Attributes:
        embeddings: `(P, C)`, a row for each phrase looked up so far.
        weights: `(P,)`.
    """

    def __init__(
        self,
        width: int,
        embed: Callable[[Sequence[str]], Tensor],
        weigh: Callable[[Sequence[str], Tensor], Tensor],
    ) -> None:
        self._embed = embed
        self._weigh = weigh
        self._rows: dict[str, int] = {}
        self.embeddings = torch.zeros(0, width)
        self.weights = torch.zeros(0)

    def lookup(self, phrases: Sequence[str]) -> Tensor:
        """Return the row of each phrase, `(N,)`; new phrases get one."""
        new = [p for p in dict.fromkeys(phrases) if p not in self._rows]
        if new:
            embeddings = self._embed(new)
            weights = self._weigh(new, embeddings)
            self.embeddings = torch.cat([self.embeddings, embeddings])
            self.weights = torch.cat([self.weights, weights])
            for phrase in new:
                self._rows[phrase] = len(self._rows)
        return torch.tensor([self._rows[p] for p in phrases], dtype=torch.long)


class PhraseEncoder(TextEncoder):
    """Base of encoders that embed phrase by phrase; pooled is the sum of the tokens.

    Args:
        numbers: Whether sizes of numbers get channels of their own (doubles the width).

    Attributes:
        phrase_weights: Factor of the token of each training phrase; empty for 1.
        synonyms: The phrase that other words stand for, by their normalised form; `#` stands for a
            number (see `data.text.synonyms`).
        terms: Tokens that follow from several phrases, or from the size of a number.
    """

    terms: Sequence[Term]

    def __init__(self, numbers: bool) -> None:
        self.numbers = Numbers() if numbers else None
        self.synonyms: Mapping[str, str] = {}
        self._wordings = Wordings()
        self.set_phrase_weights({})

    @property
    def phrases(self) -> list[str]:
        """Distinct phrases of the training prompts; a wording with a number counts once."""
        return self._wordings.texts

    @property
    @abstractmethod
    def base(self) -> int:
        """Channels of a phrase's embedding e."""

    @abstractmethod
    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Return standardised embeddings `(N, base)` of distinct phrases."""

    @abstractmethod
    def learn(self, phrases: Sequence[str]) -> None:
        """Learn the standardisation from the distinct phrases of the training prompts."""

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return self.base if self.numbers is None else 2 * self.base

    def fit(self, prompts: Prompts) -> None:
        """Learn phrases, numbers and standardisation; reset phrase weights and terms."""
        if self.numbers is not None:
            self.numbers = Numbers.from_prompts(prompts)
        self._wordings = Wordings(
            self._locate_number(p)[0] for prompt in prompts for p in prompt if strip_phrase(p)
        )
        self.learn(self.phrases)
        self.set_phrase_weights({})

    def add_synonyms(self, synonyms: Mapping[str, str]) -> None:
        """Take further words for phrases, as `synonyms` holds them.

        Raises:
            UserError: Words are a training phrase of their own, or stand for another phrase.
        """
        for wording, phrase in synonyms.items():
            owner = self.synonyms.get(wording, self._wordings(wording))
            if owner != wording and normalise_phrase(owner) != normalise_phrase(phrase):
                raise UserError(
                    f"--paraphrases: {wording!r} stands for {owner!r} in this run, not for "
                    f"{phrase!r}. Leave it out of the file."
                )
        self.synonyms = {**self.synonyms, **synonyms}

    def set_phrase_weights(self, weights: Mapping[str, float], terms: Sequence[Term] = ()) -> None:
        """Set the factors of the training phrases' tokens, and terms (`models.text.relevance`)."""
        self.phrase_weights = weights
        self.terms = tuple(terms)
        self._table = PhraseTable(self.base, self.embed, self._weights_of)

    def state(self) -> tuple[dict[str, Tensor], Values]:
        """Return no tensors; phrases, numbers and phrase weights as values."""
        numbers = {} if self.numbers is None else self.numbers.stems
        shares = dict(self.phrase_weights)
        terms = [term.to_values() for term in self.terms]
        values = {"numbers": numbers, "phrases": self.phrases, "shares": shares, "terms": terms}
        return {}, {**values, "synonyms": dict(self.synonyms)}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore the result of `state`; raise `UserError` for values of other types."""
        if problem := misfit(values, VALUE_TYPES):
            raise UserError(f"encoder_values: {problem}")
        if self.numbers is not None:
            self.numbers = Numbers.from_values(values["numbers"])
        self._wordings = Wordings(values.get("phrases") or ())
        self.synonyms = values.get("synonyms") or {}
        terms = [Term.from_values(term) for term in values.get("terms") or ()]
        self.set_phrase_weights(values.get("shares") or {}, terms)

    def adopt(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Tensor | None:
        """Take over what an encoder learned in another run; own phrases and numbers are added."""
        numbers, phrases, synonyms = self.numbers, self.phrases, self.synonyms
        self.load_state(tensors, values)
        self.synonyms = {**self.synonyms, **synonyms}
        before, width = self.phrases, self.width
        if numbers is not None and self.numbers is not None:
            self.numbers = Numbers({**numbers.stems, **self.numbers.stems})
        self._wordings = Wordings([*before, *(self.locate(phrase)[0] for phrase in phrases)])
        self.set_phrase_weights(self.phrase_weights, self.terms)
        return self._map_embeddings(before, width)

    def _map_embeddings(self, before: Sequence[str], width: int) -> Tensor | None:
        """Return the map of `adopt`.

        Args:
            before: Phrases that the other encoder had.
        """
        return torch.eye(self.width)

    def encode(self, prompts: Prompts) -> TextEmbedding:
        """Embed a batch of prompts, one token per phrase, then one per term."""
        located = self._locate_all(prompts)
        embedded = self._encode_phrases(located)
        if not self.terms:
            return embedded
        extra = [self._encode_terms(prompt) for prompt in located]
        longest = max(len(tokens) for tokens in extra)
        added = torch.stack([F.pad(t, (0, 0, 0, longest - len(t))) for t in extra])
        counts = torch.tensor([len(tokens) for tokens in extra])
        valid = torch.cat([embedded.valid, torch.arange(longest) < counts[:, None]], 1)
        tokens = torch.cat([embedded.tokens, added], 1)
        return TextEmbedding(tokens, valid, tokens.sum(1))

    def number_phrases(self) -> set[str]:
        """Return the phrases whose embeddings stand for wordings with a number."""
        stems = {} if self.numbers is None else self.numbers.stems
        return {stem["phrase"] for stem in stems.values()}

    def _encode_terms(self, located: Sequence[tuple[str, float]]) -> Tensor:
        """Return the tokens `(n, C)` of the terms whose phrases a prompt holds."""
        numbers = self.number_phrases()
        sizes = {phrase: z if phrase in numbers else None for phrase, z in located}
        tokens = term_tokens(self.terms, sizes, self._embeddings_of)
        return stack_tokens(tokens, self.width)

    def _embeddings_of(self, phrases: Sequence[str]) -> Tensor:
        rows = self._table.lookup(phrases)  # first, because it may add rows
        return self._table.embeddings[rows]

    def _encode_phrases(self, located: Sequence[Sequence[tuple[str, float]]]) -> TextEmbedding:
        lengths = torch.tensor([len(prompt) for prompt in located], dtype=torch.long)
        longest = max([1, *map(len, located)])
        valid = torch.arange(longest) < lengths[:, None]  # (B, L)
        phrases = [phrase for prompt in located for phrase, _ in prompt]
        z = torch.tensor([z for prompt in located for _, z in prompt])
        rows = self._table.lookup(phrases)
        e = self._table.embeddings[rows]  # (V, base), for V valid tokens
        if self.numbers is not None:
            rms = e.square().mean(-1, keepdim=True).sqrt().clamp_min(MIN_RMS)
            e = torch.cat([e, z[:, None] * e / rms], -1)
        tokens = torch.zeros(*valid.shape, self.width)
        tokens[valid] = e * self._table.weights[rows][:, None]
        return TextEmbedding(tokens, valid, tokens.sum(1))

    def validate(self, prompts: Prompts) -> None:
        """Raise `UserError` for a phrase that is too long."""
        # The embeddings are needed later anyhow, and embedding raises the errors.
        located = self._locate_all(prompts)
        self._table.lookup([phrase for prompt in located for phrase, _ in prompt])

    def locate(self, phrase: str) -> tuple[str, float]:
        """Return the training phrase used for this one (itself if there is none), and z."""
        text, z = self._locate_number(phrase)
        return self._wordings(text), z

    def _locate_all(self, prompts: Prompts) -> list[list[tuple[str, float]]]:
        return [[self.locate(p) for p in prompt if strip_phrase(p)] for prompt in prompts]

    def _locate_number(self, phrase: str) -> tuple[str, float]:
        text = self._without_synonym(strip_phrase(phrase))
        return (text, 0.0) if self.numbers is None else self.numbers.locate(text)

    def _without_synonym(self, text: str) -> str:
        """Return the phrase that other words stand for, or the text itself."""
        if not self.synonyms:
            return text
        if (phrase := self.synonyms.get(normalise_phrase(text))) is not None:
            return phrase
        parsed = parse_number(text)
        phrase = self.synonyms.get(normalise_phrase(parsed[0])) if parsed else None
        if phrase is None:
            return text
        number = NUMBER.search(text)
        assert number is not None
        return phrase.replace("#", number.group())

    def _weights_of(self, phrases: Sequence[str], embeddings: Tensor) -> Tensor:
        """Return the weights `(N,)`; an unseen phrase has that of the nearest training phrase."""
        if not self.phrase_weights:
            return torch.ones(len(phrases))
        known = F.normalize(self.embed(list(self.phrase_weights)), dim=-1)
        nearest = (F.normalize(embeddings, dim=-1) @ known.T).argmax(1)
        weights = list(self.phrase_weights.values())
        return torch.tensor(
            [
                self.phrase_weights.get(phrase, weights[int(n)])
                for phrase, n in zip(phrases, nearest, strict=True)
            ]
        )
