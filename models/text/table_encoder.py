"""`--text_encoder table`: the clinical table without language, the yardstick for every language
model.

Each phrase of the training prompts has a channel of its own (one-hot), each wording with a number
one channel that tells that it is there and one for its standardised size; what is missing is zero.
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

log = logging.getLogger(__name__)


class TableEncoder(PhraseEncoder):
    """One channel a phrase, scaled so that a phrase has RMS 1 as in the other encoders; unknown
    phrases are zero.
    """

    def __init__(self) -> None:
        super().__init__(numbers=True)
        self.identity = {"source": "table", "kind": "table"}

    @property
    def base(self) -> int:
        return max(1, len(self.phrases))

    def learn(self, phrases: Sequence[str]) -> None:
        """Nothing: to know the phrases is all."""

    def embed(self, phrases: Sequence[str]) -> Tensor:
        place = {p: i for i, p in enumerate(self.phrases)}
        if unknown := [p for p in phrases if p not in place]:
            log.warning(
                "Without effect, for training has not seen them (--text_encoder table): %s.",
                format_list(unknown),
            )
        rows = torch.zeros(len(phrases), self.base)
        for i, phrase in enumerate(phrases):
            if phrase in place:
                rows[i, place[phrase]] = self.base**0.5
        return rows


@ENCODERS.register("table")
def make(options: TextOptions) -> TextEncoder:
    if options.text_mode != "phrases":
        raise UserError("--text_encoder table knows no sentences; use --text_mode phrases.")
    return TableEncoder()
