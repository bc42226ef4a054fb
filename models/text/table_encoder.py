"""`--text_encoder table`: the clinical table without language, a baseline for language models.

Each phrase of the training prompts has a channel of its own (one-hot). A wording with a number has
one channel for its presence and one for its standardised size. Missing values are zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from models.text.base_encoder import ENCODERS, TextEncoder
from models.text.phrase_encoder import PhraseEncoder
from options.base_options import TextOptions
from util.cli import UserError, format_list
from util.notices import notice

log = logging.getLogger(__name__)


class TableEncoder(PhraseEncoder):
    """One channel per phrase, with RMS 1 per phrase as in other encoders; unseen phrases are 0."""

    def __init__(self) -> None:
        super().__init__(numbers=True)
        self.identity = {"source": "table", "kind": "table"}

    @property
    def base(self) -> int:
        """Number of phrases, at least 1."""
        return max(1, len(self.phrases))

    def learn(self, phrases: Sequence[str]) -> None:
        """Learn nothing: the list of phrases is enough."""

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Return scaled one-hot vectors `(N, base)`; warn of unseen phrases."""
        channels = {phrase: i for i, phrase in enumerate(self.phrases)}
        if unseen := [phrase for phrase in phrases if phrase not in channels]:
            log.warning(
                "Phrases without effect, because the training prompts do not contain them "
                "(--text_encoder table): %s.",
                format_list(unseen),
                extra=notice("phrase not seen in training", phrases=unseen),
            )
        embeddings = torch.zeros(len(phrases), self.base)
        for i, phrase in enumerate(phrases):
            if phrase in channels:
                embeddings[i, channels[phrase]] = self.base**0.5
        return embeddings

    def _map_embeddings(self, before: Sequence[str], width: int) -> Tensor:
        """Return a map that knows a phrase by its words and scales channels as `embed` does."""
        base, old = self.base, width // 2
        places = {phrase: place for place, phrase in enumerate(self.phrases)}
        matrix = torch.zeros(width, 2 * base)
        for place, phrase in enumerate(before):
            for half in (0, 1):  # presence, and size of a number
                matrix[half * old + place, half * base + places[phrase]] = (old / base) ** 0.5
        return matrix


@ENCODERS.register("table")
def build_table_encoder(options: TextOptions) -> TextEncoder:
    """Build the encoder; raise `UserError` for sentences."""
    if options.text_mode != "phrases":
        raise UserError("--text_encoder table cannot read sentences; use --text_mode phrases.")
    return TableEncoder()
