"""What the training scans can tell of each column of the table, and each scan of the columns,
before a network is trained.

From few patients a network learns effects of every column of their table, also of those without
any, and pays for it with the effects that are there. A regression with automatic relevance
determination (MacKay 1992, Neural Computation 4:415; Tipping 2001, JMLR 1:211) of the scans'
regional lung densities tells which columns carry something: each has a prior variance of its own,
chosen such that the scans become most probable. What is kept of it is one figure a column, without
sign, size or place: how far the scans determine the best determined contrast of its values. So loud
its phrases enter the network.

Where a cell is empty, what it hides is still in the scan. Left alone, it is laid to what the row
does tell. In a regression such a row counts by the inverse of its variance, what the empty cell
hides with it (generalised least squares); so much the text's unit learns from its scan. The rest of
the network learns from all scans alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.text.base_encoder import TextEncoder
from models.text.phrase_encoder import PhraseEncoder
from util.phrasing import LOW_RELEVANCE, strip_phrase

log = logging.getLogger(__name__)

FEWEST, MOST = (
    20,
    400,
)  # scans: fewer tell nothing apart, and of more a network finds every column's effect by itself
ITERATIONS, ROUNDS = 200, 4
# of the rows; in a column that fewer fill, an empty cell is the rule (type of CTD) and no gap
MOSTLY = 0.6
NEARLY = 0.9  # of 1; a row that counts less lacks something that matters
LEAST_NOISE = 1e-3  # of the variance between scans
SMALLEST = 1e-9  # of a prior variance, over that of the residuals

Array = NDArray[np.float64]
Feature = tuple[
    str, bool
]  # a phrase, and whether it is there (False) or the size of its number (True)
AnnotatedPrompt = Sequence[
    tuple[str, str]
]  # the phrases of a prompt, each with its column ("": free text)


def apply_relevance(
    encoder: PhraseEncoder, told: Sequence[AnnotatedPrompt], means: Sequence[Mapping[str, float]]
) -> list[float]:
    """Makes the encoder's phrases as loud as the scans determine what their columns do.

    Nothing is done below `FEWEST` scans.

    Args:
        encoder: Fitted to the training prompts.
        told: Of each training scan its prompt.
        means: Of each its mean HU by region; scans that lack a region, such as a lung's third, are
            left out.

    Returns:
        How much text may learn from each scan, at most 1.
    """
    regions = sorted({region for of_scan in means for region in of_scan})
    kept = [i for i, of_scan in enumerate(means) if len(of_scan) == len(regions)]
    if len(kept) < FEWEST or not regions:
        return [1.0] * len(told)
    rows, columns = features(encoder, [told[i] for i in kept])
    found = regress(
        rows, columns, np.array([[means[i][region] for region in regions] for i in kept])
    )
    encoder.set_phrase_weights(
        {phrase: found.shares[column] for (phrase, _), column in columns.items()}
    )
    ranked = sorted(found.shares.items(), key=lambda share: -share[1])
    log.info(
        "How far the training scans determine what a column does to the lungs (0: not at all, 1: "
        "wholly), and how loud its phrases are for it: %s.",
        ", ".join(f"{column or 'free text'} {share:.2f}" for column, share in ranked),
    )
    log.info(
        "Empty cells hide what matters in %d of %d rows; text learns from a scan by %.2f on "
        "average (1: wholly).",
        int((found.weights < NEARLY).sum()),
        len(kept),
        float(found.weights.mean()),
    )
    weights = dict(zip(kept, found.weights.tolist(), strict=True))
    return [weights.get(i, 1.0) for i in range(len(told))]


def column_relevance(encoder: TextEncoder, told: Sequence[AnnotatedPrompt]) -> dict[str, float]:
    """How loud each column's phrases are in a trained encoder; empty where all are alike."""
    if not isinstance(encoder, PhraseEncoder):
        return {}
    columns = features(encoder, told)[1]
    return {
        column: encoder.phrase_weights[phrase]
        for (phrase, _), column in columns.items()
        if phrase in encoder.phrase_weights
    }


def warn_low_relevance(
    encoder: TextEncoder, told: Sequence[AnnotatedPrompt], columns: Iterable[str]
) -> None:
    """Warns of columns that a trained run hardly listens to."""
    heard = column_relevance(encoder, told)
    for column in columns:
        if heard.get(column, 1.0) < LOW_RELEVANCE:
            log.warning(
                "The training scans hardly told what %s does to the lungs, so the run hardly "
                "listens to it (%.2f of 1; --text_relevance): that its values look alike is no "
                "evidence of no effect.",
                column,
                heard[column],
            )


def features(
    encoder: PhraseEncoder, told: Sequence[AnnotatedPrompt]
) -> tuple[list[dict[Feature, float]], dict[Feature, str]]:
    """Prompts as the encoder takes them, by feature, and the column of every feature."""
    columns: dict[Feature, str] = {}
    rows = []
    for prompt in told:
        row: dict[Feature, float] = {}
        for text, column in prompt:
            if strip_phrase(text):
                phrase, size = encoder.locate(text)
                row[phrase, False] = 1.0
                if size:
                    row[phrase, True] = size
                columns |= {
                    (phrase, sized): columns.get((phrase, False), column) for sized in (False, True)
                }
        rows.append(row)
    return rows, {
        feature: column
        for feature, column in columns.items()
        if any(feature in row for row in rows)
    }


@dataclass(frozen=True)
class Relevance:
    """What a regression found.

    Attributes:
        shares: How far the responses determine the best determined contrast of each group's
            parameters, 0 to 1.
        weights: `(N,)` how much each row counts, 1 where nothing that matters is empty.
    """

    shares: dict[str, float]
    weights: Array


def regress(
    rows: Sequence[Mapping[Feature, float]], groups: Mapping[Feature, str], responses: Array
) -> Relevance:
    """Responses on features, with a prior variance for each group, and rows counted by what their
    empty cells hide.

    Args:
        rows: Features of N patients; one that a row lacks is 0.
        groups: The group of each feature; a group shares one prior variance, over all responses.
        responses: `(N, R)`, such as mean HU by region.
    """
    names = sorted(groups)
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    of = [groups[name] for name in names]
    places = {group: [i for i, one in enumerate(of) if one == group] for group in sorted(set(of))}
    weights = np.ones(len(x))
    for _ in range(ROUNDS):
        shares, parameters, noise = relevance_regression(x, responses, places, weights)
        hidden = np.zeros(len(x))
        for at in places.values():
            known = x[:, at].any(1)
            if MOSTLY <= known.mean() < 1:
                hidden[~known] += ((x[known][:, at] @ parameters[at]).var(0) / noise).mean()
        weights = 1 / (1 + hidden)
    return Relevance(shares, weights)


def relevance_regression(
    x: Array,
    responses: Array,
    places: Mapping[str, Sequence[int]],
    weights: Array,
) -> tuple[dict[str, float], Array, Array]:
    """Automatic relevance determination by expectation and maximisation, in N by N matrices, for
    features may be many.

    Args:
        x: `(N, P)` features.
        responses: `(N, R)`.
        places: The columns of `x` that share a prior variance.
        weights: `(N,)` inverse variances of rows, relative to one another.

    Returns:
        How far the best determined contrast of each group's parameters is determined (1 - posterior
        over prior variance, of MacKay's gamma the largest part), the parameters `(P, R)`, and the
        variance of a response that they leave `(R,)`, of a row of weight 1.
    """
    x, y = (np.sqrt(weights)[:, None] * (v - np.average(v, 0, weights)) for v in (x, responses))
    prior = {
        group: 1.0 / len(places) for group in places
    }  # variance of parameters over that of residuals
    least = np.maximum(
        LEAST_NOISE * y.var(0), SMALLEST
    )  # else few scans with many phrases are explained without rest
    noise = np.maximum(y.var(0) / 2, least)
    variance = np.zeros(x.shape[1])
    for _ in range(ITERATIONS):
        for group, at in places.items():
            variance[at] = prior[group]
        inner = np.linalg.inv(np.eye(len(x)) + (x * variance) @ x.T)
        parameters = variance[:, None] * (x.T @ (inner @ y))
        determined = variance * (x * (inner @ x)).sum(
            0
        )  # 1 - posterior over prior variance, of each parameter
        rest = ((y - x @ parameters) ** 2).sum(0)
        noise = np.maximum((rest + noise * (len(x) - np.trace(inner))) / len(x), least)
        for group, at in places.items():
            uncertain = prior[group] * (1 - determined[at]).mean()
            prior[group] = max(float((parameters[at] ** 2 / noise).mean() + uncertain), SMALLEST)
    sizes, directions = np.linalg.eigh((inner + inner.T) / 2)
    root = np.sqrt(np.clip(sizes, 0, None))[:, None] * directions.T
    shares = {
        group: float(min(1.0, np.linalg.norm(root @ (x[:, at] * np.sqrt(variance[at])), 2) ** 2))
        for group, at in places.items()
    }
    return shares, parameters, noise
