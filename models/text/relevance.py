"""Relevance of each column of the table: how far the training scans determine its effect.

With few patients, a network learns effects of every column of their table, including those without
an effect. This costs accuracy for the real effects. A regression with automatic relevance
determination (ARD; MacKay 1992, Neural Computation 4:415; Tipping 2001, JMLR 1:211), before any
network is trained, tells these columns apart. Its responses are density and texture in parts of the
lungs and in what else the text may change, because disease can change detail or percentiles while
the mean stays. Each column has a
prior variance, chosen by the evidence of the scans. One number per column is kept, without sign,
size or region: how far the scans determine the best determined contrast of its values. The tokens
of the column's phrases are multiplied by it.

A scan still shows the effect of a value that is missing in its row. The network would attribute
that effect to the other values of the row. In the regression, such a row is weighted by the inverse
of its variance, which includes the variance of the missing values (generalised least squares). The
gradient that the text unit receives from the scan has the same weight. The rest of the network
learns equally from all scans.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from models.text.base_encoder import TextEncoder
from models.text.phrase_encoder import PhraseEncoder
from models.text.terms import Term, fit_curve
from util.cli import counted
from util.notices import notice
from util.phrasing import LOW_RELEVANCE, strip_phrase

log = logging.getLogger(__name__)

EARNED = 0.8  # relevance from which a curve or a product becomes a token
PARENT = 0.5  # relevance of a column whose products are offered
MIN_SCANS = 20  # fewer cannot tell columns apart
MAX_SCANS = 400  # with more, a network finds the columns with an effect by itself
EM_ITERATIONS = 200
WEIGHT_ITERATIONS = 4  # of the weights of rows and the regression in turn
# Filled share of a column from which an empty cell is a missing value; in columns below, such as
# the type of CTD, empty cells are the rule.
MIN_FILLED = 0.6
COMPLETE_WEIGHT = 0.9  # a row with a smaller weight lacks a value that matters
MIN_NOISE = 1e-3  # of the variance between scans
MIN_VARIATION = 1e-6  # SD of a response over its largest size; below, it is constant
MIN_PRIOR = 1e-9  # of a prior variance, relative to that of the residuals

Array = NDArray[np.float64]
# A phrase, and the kind of feature: its presence (False) or the size of its number (True).
Feature = tuple[str, bool]
# The phrases of a prompt, each with its column ("": free text).
AnnotatedPrompt = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class RelevanceWeights:
    """Weights of phrases and cases in training.

    Attributes:
        case_weights: Factor of the text unit's gradient for each case, 0 to 1.
        phrase_weights: Factor of the token of each training phrase, 0 to 1; empty for 1.
        terms: Curves and products that the scans determine.
    """

    case_weights: list[float]
    phrase_weights: dict[str, float] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)


def estimate_relevance(
    encoder: PhraseEncoder,
    prompts: Sequence[AnnotatedPrompt],
    statistics: Sequence[Mapping[str, float]],
) -> RelevanceWeights:
    """Estimate weights from the training scans; all are 1 with fewer than `MIN_SCANS` scans.

    Args:
        encoder: Fitted to the training prompts.
        prompts: The prompt of each training scan.
        statistics: Statistics of each scan by name, in any unit, such as
            `data.lung_density.text_statistics`. Scans that lack one, because a part of the lungs is
            empty, are left out.
    """
    names = sorted({name for values in statistics for name in values})
    complete = [i for i, values in enumerate(statistics) if len(values) == len(names)]
    case_weights = [1.0] * len(prompts)
    if len(complete) < MIN_SCANS or not names:
        return RelevanceWeights(case_weights)
    rows, columns = prompt_features(encoder, [prompts[i] for i in complete])
    responses = standardise(np.array([[statistics[i][name] for name in names] for i in complete]))
    if not responses.size or not columns:
        return RelevanceWeights(case_weights)
    relevance = regress(rows, columns, responses)
    offered = candidate_terms(encoder, rows, columns, relevance.by_group)
    if offered:
        found = regress(*add_terms(rows, columns, offered), responses).by_group
        earned = {name: terms for name, terms in offered.items() if found[name] > EARNED}
        _log_terms({name: found[name] for name in offered})
        if earned:  # those that are not would take a share of the effects
            relevance = regress(*add_terms(rows, columns, earned), responses)
        offered = earned
    terms = [
        replace(term, weight=relevance.by_group[name])
        for name, earned_terms in offered.items()
        for term in earned_terms
    ]
    for i, weight in zip(complete, relevance.row_weights.tolist(), strict=True):
        case_weights[i] = weight
    by_column = {column: relevance.by_group[column] for column in columns.values()}
    _log_relevance(replace(relevance, by_group=by_column))
    phrase_weights = {phrase: by_column[column] for (phrase, _), column in columns.items()}
    return RelevanceWeights(case_weights, phrase_weights, terms)


def candidate_terms(
    encoder: PhraseEncoder,
    rows: Sequence[Mapping[Feature, float]],
    columns: Mapping[Feature, str],
    relevance: Mapping[str, float],
) -> dict[str, list[Term]]:
    """Return the curves and products that are offered to the regression, by name.

    Curves are of columns with numbers. Products are of two columns, of which one at least has an
    effect by itself (weak heredity; Chipman 1996): among all pairs of a wide table some would seem
    relevant by chance.
    """
    numbers = encoder.number_phrases()
    phrases: dict[str, list[str]] = {}
    for phrase, is_size in columns:
        if not is_size:
            phrases.setdefault(columns[phrase, False], []).append(phrase)
    terms: dict[str, list[Term]] = {}
    for column, own in phrases.items():
        for phrase in sorted(numbers.intersection(own)):
            z = np.array([row.get((phrase, True), 0.0) for row in rows if (phrase, False) in row])
            terms.setdefault(f"{column} (curve)", []).extend(fit_curve(phrase, z))
    for first, second in combinations(sorted(column for column in phrases if column), 2):
        if max(relevance[first], relevance[second]) > PARENT:
            pairs = product(sorted(phrases[first]), sorted(phrases[second]))
            terms[f"{first} x {second}"] = [Term(pair, 1.0) for pair in pairs]
    return {name: offered for name, offered in terms.items() if offered}


def add_terms(
    rows: Sequence[Mapping[Feature, float]],
    columns: Mapping[Feature, str],
    candidates: Mapping[str, Sequence[Term]],
) -> tuple[list[dict[Feature, float]], dict[Feature, str]]:
    """Return rows and groups of features with those of the candidates.

    A product is that of centred features. It then holds nothing of the effects of its columns.
    """
    added: list[dict[Feature, float]] = [dict(row) for row in rows]
    groups = dict(columns)
    by_column: dict[str, set[str]] = {}
    for (phrase, is_size), column in columns.items():
        if not is_size:
            by_column.setdefault(column, set()).add(phrase)

    def centred(phrase: str) -> Array:
        """Return the phrase's feature over all rows, 0 where its column is empty."""
        own = by_column[columns[phrase, False]]
        filled = np.array([any((p, False) in row for p in own) for row in rows])
        is_number = (phrase, True) in columns
        values = np.array([row.get((phrase, is_number), 0.0) for row in rows])
        return np.where(filled, values - values[filled].mean(), 0.0)

    for name, terms in candidates.items():
        for k, term in enumerate(terms):
            feature = (f"{name} {k}", False)
            groups[feature] = name
            if term.knots:
                phrase = term.phrases[0]
                values = np.array(
                    [
                        term.value([row.get((phrase, True), 0.0)])
                        if (phrase, False) in row
                        else 0.0
                        for row in rows
                    ]
                )
            else:
                values = centred(term.phrases[0]) * centred(term.phrases[1])
            for row, value in zip(added, values.tolist(), strict=True):
                if value:
                    row[feature] = value
    return added, groups


def _log_terms(relevance: Mapping[str, float]) -> None:
    earned = [f"{name} {value:.2f}" for name, value in relevance.items() if value > EARNED]
    log.info(
        "Of curves of numbers and products of columns (%d), the training scans determine %d: %s.",
        len(relevance),
        len(earned),
        ", ".join(earned) or "none",
    )


def standardise(responses: Array) -> Array:
    """Divide responses `(N, R)` by their SD, without those that are constant."""
    sd = responses.std(0)
    varied = sd > MIN_VARIATION * np.abs(responses).max(0)
    return responses[:, varied] / sd[varied]


def _log_relevance(relevance: Relevance) -> None:
    ranked = sorted(relevance.by_group.items(), key=lambda item: -item[1])
    log.info(
        "Relevance of columns (how far the training scans determine their effects; 0: not "
        "at all, 1: completely), the factor of their phrases: %s.",
        ", ".join(f"{column or 'free text'} {value:.2f}" for column, value in ranked),
    )
    log.info(
        "Values that matter are missing in %d of %s; the mean weight of a scan for the text "
        "unit is %.2f (of 1).",
        int((relevance.row_weights < COMPLETE_WEIGHT).sum()),
        counted(len(relevance.row_weights), "row"),
        float(relevance.row_weights.mean()),
    )


def column_relevance(encoder: TextEncoder, prompts: Sequence[AnnotatedPrompt]) -> dict[str, float]:
    """Return the relevance of each column in a trained encoder; empty if it was not estimated.

    It is the largest of the column's own and of the terms that it is part of.
    """
    if not isinstance(encoder, PhraseEncoder):
        return {}
    weights = dict(encoder.phrase_weights)
    for term in encoder.terms:
        for phrase in term.phrases:
            weights[phrase] = max(term.weight, weights.get(phrase, 0.0))
    relevance: dict[str, float] = {}
    for (phrase, _), column in prompt_features(encoder, prompts)[1].items():
        if phrase in weights:
            relevance[column] = max(weights[phrase], relevance.get(column, 0.0))
    return relevance


def warn_low_relevance(
    encoder: TextEncoder, prompts: Sequence[AnnotatedPrompt], columns: Iterable[str]
) -> None:
    """Warn of columns whose phrases have nearly no effect in a trained run."""
    relevance = column_relevance(encoder, prompts)
    for column in columns:
        if relevance.get(column, 1.0) < LOW_RELEVANCE:
            log.warning(
                "The training scans hardly determine the effect of %s, so its phrases have little "
                "weight in the run (%.2f of 1; --text_relevance). Equal volumes for its values are "
                "not evidence that it has no effect.",
                column,
                relevance[column],
                extra=notice("low relevance", column),
            )


def prompt_features(
    encoder: PhraseEncoder, prompts: Sequence[AnnotatedPrompt]
) -> tuple[list[dict[Feature, float]], dict[Feature, str]]:
    """Return each prompt's features as the encoder sees them, and the column of every feature."""
    rows: list[dict[Feature, float]] = []
    columns: dict[Feature, str] = {}
    for prompt in prompts:
        row: dict[Feature, float] = {}
        for text, column in prompt:
            if not strip_phrase(text):
                continue
            phrase, z = encoder.locate(text)
            row[phrase, False] = 1.0
            if z:
                row[phrase, True] = z
            first = columns.get((phrase, False), column)
            columns[phrase, False] = first
            columns[phrase, True] = first
        rows.append(row)
    present = {feature for row in rows for feature in row}
    return rows, {feature: c for feature, c in columns.items() if feature in present}


@dataclass(frozen=True)
class Relevance:
    """Result of `regress`.

    Attributes:
        by_group: How far the responses determine the best determined contrast of each group's
            parameters, 0 to 1.
        row_weights: `(N,)`, 1 for rows without missing values that matter.
    """

    by_group: dict[str, float]
    row_weights: Array


@dataclass(frozen=True)
class ArdFit:
    """Result of `ard_regression`.

    Attributes:
        relevance: Of each group, see `Relevance.by_group`.
        parameters: `(P, R)`.
        noise: `(R,)` variance of each response's residuals, for a row of weight 1.
    """

    relevance: dict[str, float]
    parameters: Array
    noise: Array


def regress(
    rows: Sequence[Mapping[Feature, float]], groups: Mapping[Feature, str], responses: Array
) -> Relevance:
    """Regress responses on features by ARD, with rows weighted by what their missing values hide.

    Args:
        rows: Features of N patients; absent features are 0.
        groups: The group of each feature; a group shares one prior variance, over all responses.
        responses: `(N, R)`, such as mean HU by region; their units do not matter.
    """
    features = sorted(groups)
    x = np.array([[row.get(feature, 0.0) for feature in features] for row in rows])
    members: dict[str, list[int]] = {group: [] for group in sorted(set(groups.values()))}
    for i, feature in enumerate(features):
        members[groups[feature]].append(i)
    weights = np.ones(len(x))
    for _ in range(WEIGHT_ITERATIONS):
        fit = ard_regression(x, responses, members, weights)
        hidden = np.zeros(len(x))  # variance that missing values add, relative to the noise
        for at in members.values():
            filled = x[:, at].any(1)
            if MIN_FILLED <= filled.mean() < 1:
                effects = x[filled][:, at] @ fit.parameters[at]
                hidden[~filled] += (effects.var(0) / fit.noise).mean()
        weights = 1 / (1 + hidden)
    return Relevance(fit.relevance, weights)


def ard_regression(
    x: Array, responses: Array, members: Mapping[str, Sequence[int]], weights: Array
) -> ArdFit:
    """Automatic relevance determination by expectation maximisation.

    Matrices are N by N where P is larger than N, else P by P.

    Notation:
        `x`, `y` -> Phi, t (Tipping 2001), rows scaled by the square root of their weights
        `prior` -> 1 / (alpha sigma^2), the prior variance of a group's parameters
        `parameters` -> mu, the posterior mean
        `noise` -> sigma^2
        `determined` -> gamma = 1 - alpha Sigma_ii, how far a parameter is determined (MacKay 1992)
        `inverse` -> (I + Phi A^-1 Phi^T)^-1, with A^-1 = diag(`variance`)

    Args:
        x: `(N, P)` features.
        responses: `(N, R)`.
        members: Columns of `x` in each group, which share a prior variance; each is in one.
        weights: `(N,)` inverse variances of rows, up to a common factor.
    """
    root_weights = np.sqrt(weights)[:, None]
    x = root_weights * (x - np.average(x, 0, weights))
    y = root_weights * (responses - np.average(responses, 0, weights))
    # Without a minimum, few scans with many phrases are explained without residuals.
    min_noise = np.maximum(MIN_NOISE * y.var(0), MIN_PRIOR)
    noise = np.maximum(y.var(0) / 2, min_noise)
    count, unexplained = len(x), np.zeros(y.shape[1])
    if x.shape[1] < count:  # rotated, so that the rows beyond P are of no feature
        q, r = np.linalg.qr(x)
        rotated = q.T @ y
        unexplained = (y**2).sum(0) - (rotated**2).sum(0)
        x, y = r, rotated
    group = np.empty(x.shape[1], np.intp)
    for k, at in enumerate(members.values()):
        group[at] = k
    sizes = np.bincount(group)
    prior = np.full(len(members), 1.0 / len(members))
    identity = np.eye(len(x))
    for _ in range(EM_ITERATIONS):
        variance = prior[group]
        inverse = np.linalg.inv(identity + (x * variance) @ x.T)
        parameters = variance[:, None] * (x.T @ (inverse @ y))
        determined = variance * np.einsum("np,np->p", x, inverse @ x)
        residual = ((y - x @ parameters) ** 2).sum(0) + unexplained
        noise = (residual + noise * (len(x) - np.trace(inverse))) / count
        noise = np.maximum(noise, min_noise)
        square = parameters**2 @ (1 / noise) / len(noise) + variance * (1 - determined)
        prior = np.maximum(np.bincount(group, square) / sizes, MIN_PRIOR)
    # The best determined contrast of a group is the largest eigenvalue of the matrix whose diagonal
    # is gamma: the squared norm of inverse^(1/2) Phi A^(-1/2).
    eigenvalues, eigenvectors = np.linalg.eigh((inverse + inverse.T) / 2)
    root = np.sqrt(np.clip(eigenvalues, 0, None))[:, None] * eigenvectors.T
    relevance = {}
    for name, at in members.items():
        norm = np.linalg.norm(root @ (x[:, at] * np.sqrt(variance[at])), 2)
        relevance[name] = float(min(1.0, norm**2))
    return ArdFit(relevance, parameters, noise)
