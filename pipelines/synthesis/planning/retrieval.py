"""Retrieval of the training case whose mask a new case gets, by its row or by its text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from data.text.prompts import Prompt
from models.text.base_encoder import TextEncoder
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.random_streams import RETRIEVAL_STREAM
from pipelines.synthesis.row_features import RowFeatures
from util.cli import UserError, counted

log = logging.getLogger(__name__)

TOLERANCE = 1e-6  # of distances that count as equal


def retrieve_sources(
    planned: Sequence[PlannedCase],
    texts: SourceTexts,
    by: Literal["row", "text"],
    encoder: TextEncoder,
    named: Collection[str] = (),
) -> list[PlannedCase]:
    """Return new cases whose sources are the real cases that are most similar to them.

    Rows are compared by their standardised columns (see `RowFeatures`), texts by the cosine of
    their embeddings. A random one of equally similar cases is taken.

    Args:
        planned: The new cases.
        texts: The real cases.
        by: What is compared.
        encoder: The run's text encoder.
        named: Names of new cases whose source stays.

    Raises:
        UserError: Nothing tells the rows, or the texts, of real cases apart.
    """
    cases = texts.cases
    if by == "row":
        template = texts.reader.template
        rows = [template.consistent(case.row).row for case in cases]
        features = RowFeatures.from_rows(rows, template)
        known, wanted = features.encode(rows), features.encode([case.row for case in planned])
    else:
        known = _embeddings([texts.prompts[case.id] for case in cases], encoder)
        wanted = _embeddings([case.prompt for case in planned], encoder)
    if not (known.size and np.ptp(known, axis=0).any()):
        raise UserError(
            f"--retrieve {by}: the {by}s of all {counted(len(cases), 'case')} are alike, or their "
            "values too rare to be compared. Leave --retrieve out."
        )
    found = []
    for case, distances in zip(planned, cdist(wanted, known), strict=True):
        if case.id not in named:
            nearest = np.flatnonzero(distances <= distances.min() + TOLERANCE)
            rng = np.random.default_rng([case.seed, RETRIEVAL_STREAM])
            case = replace(case, source=cases[int(rng.choice(nearest))])
        found.append(case)
    sources = len({case.source.id for case in found})
    log.info("Masks by similar %s: those of %s.", by, counted(sources, "case"))
    return found


def _embeddings(prompts: Sequence[Prompt], encoder: TextEncoder) -> NDArray[np.float64]:
    """Return `(N, C)` embeddings of length 1, or 0 for an empty text."""
    pooled = torch.cat([encoder.encode([prompt.texts]).pooled for prompt in prompts])
    return np.asarray(F.normalize(pooled, dim=1), np.float64)
