"""How far the training scans determine what each column of the table does, before a network is trained.

From few patients a network learns effects of every column of their table, also of those without any, and pays for it with
the effects that are there. A regression with automatic relevance determination (MacKay 1992, Neural Computation 4:415;
Tipping 2001, JMLR 1:211) of the scans' regional lung densities tells which columns carry something: each has a prior
variance of its own, chosen such that the scans become most probable. What is kept of it is one figure a column, without
sign, size or place: how far the scans determine the best determined of its parameters. So loud its phrases enter the
network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.text_base import TextEncoder
from models.text_phrases import PhraseEncoder
from util.wording import SILENT, bare

log = logging.getLogger(__name__)

FEWEST, MOST = 20, 400  # scans: fewer tell nothing apart, and of more a network finds every column's effect by itself
ITERATIONS = 200
SMALLEST = 1e-9  # of a prior variance, over that of the residuals

Array = NDArray[np.float64]
Feature = tuple[str, bool]  # a phrase, and whether it is there (False) or the size of its number (True)
Told = Sequence[tuple[str, str]]  # the phrases of a prompt, each with its column ("": free text)


def weigh(encoder: PhraseEncoder, told: Sequence[Told], means: Sequence[Mapping[str, float]]) -> None:
    """Makes the encoder's phrases as loud as the scans determine what their columns do.

    Nothing is done below `FEWEST` scans.

    Args:
        encoder: Fitted to the training prompts.
        told: Of each training scan its prompt.
        means: Of each its mean HU by region; scans that lack a region, such as a lung's third, are left out.
    """
    regions = sorted({region for of_scan in means for region in of_scan})
    kept = [i for i, of_scan in enumerate(means) if len(of_scan) == len(regions)]
    if len(kept) < FEWEST or not regions:
        return
    rows, columns = features(encoder, [told[i] for i in kept])
    shares = determined_shares(rows, columns, np.array([[means[i][region] for region in regions] for i in kept]))
    encoder.weigh({phrase: shares[column] for (phrase, _), column in columns.items()})
    ranked = sorted(shares.items(), key=lambda share: -share[1])
    log.info("How far the training scans determine what a column does to the lungs (0: not at all, 1: wholly), and how loud "
             "its phrases are for it: %s.", ", ".join(f"{column or 'free text'} {share:.2f}" for column, share in ranked))


def loudness(encoder: PhraseEncoder, told: Sequence[Told]) -> dict[str, float]:
    """How loud each column's phrases are in a trained encoder; empty where all are alike."""
    columns = features(encoder, told)[1]
    return {column: encoder.shares[phrase] for (phrase, _), column in columns.items() if phrase in encoder.shares}


def warn_of_silent(encoder: TextEncoder, told: Sequence[Told], columns: Iterable[str]) -> None:
    """Warns of columns that a trained run hardly listens to."""
    heard = loudness(encoder, told) if isinstance(encoder, PhraseEncoder) else {}
    for column in columns:
        if heard.get(column, 1.0) < SILENT:
            log.warning("The training scans hardly told what %s does to the lungs, so the run hardly listens to it (%.2f of "
                        "1; --text_relevance): that its values look alike is no evidence of no effect.",
                        column, heard[column])


def features(encoder: PhraseEncoder, told: Sequence[Told]) -> tuple[list[dict[Feature, float]], dict[Feature, str]]:
    """Prompts as the encoder takes them, by feature, and the column of every feature."""
    columns: dict[Feature, str] = {}
    rows = []
    for prompt in told:
        row: dict[Feature, float] = {}
        for text, column in prompt:
            if bare(text):
                phrase, size = encoder.locate(text)
                row[phrase, False] = 1.0
                if size:
                    row[phrase, True] = size
                columns |= {(phrase, sized): columns.get((phrase, False), column) for sized in (False, True)}
        rows.append(row)
    return rows, {feature: column for feature, column in columns.items() if any(feature in row for row in rows)}


def determined_shares(
    rows: Sequence[Mapping[Feature, float]], groups: Mapping[Feature, str], responses: Array, iterations: int = ITERATIONS
) -> dict[str, float]:
    """How far the responses determine each group's best determined parameter, 0 to 1 (of MacKay's gamma its part).

    Args:
        rows: Features of N patients; one that a row lacks is 0.
        groups: The group of each feature; a group shares one prior variance, over all responses.
        responses: `(N, R)`, such as mean HU by region.
        iterations: Of expectation and maximisation.
    """
    names = sorted(groups)
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    x, y = x - x.mean(0), responses - responses.mean(0)
    of = [groups[name] for name in names]
    places = {group: [i for i, one in enumerate(of) if one == group] for group in sorted(set(of))}
    prior = {group: 1.0 / len(places) for group in places}  # variance of parameters over that of residuals
    noise = np.maximum(y.var(0) / 2, SMALLEST)
    shares = dict.fromkeys(places, 1.0)
    for _ in range(iterations):
        variance = np.array([prior[group] for group in of])
        inner = np.linalg.inv(np.eye(len(x)) + (x * variance) @ x.T)  # N x N, for there may be more phrases than scans
        mean = variance[:, None] * (x.T @ (inner @ y))
        determined = variance * (x * (inner @ x)).sum(0)  # 1 - posterior over prior variance, of each parameter
        noise = np.maximum((((y - x @ mean) ** 2).sum(0) + noise * (len(x) - np.trace(inner))) / len(x), SMALLEST)
        for group, at in places.items():
            shares[group] = float(np.clip(determined[at].max(), 0, 1))
            uncertain = prior[group] * (1 - determined[at]).mean()
            prior[group] = max(float((mean[at] ** 2 / noise).mean() + uncertain), SMALLEST)
    return shares
