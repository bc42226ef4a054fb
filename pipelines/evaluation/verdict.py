"""The outcome of an evaluation: a reading of each metric, and the verdict in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.baselines import Metric
from pipelines.evaluation.memorisation import CopyVerdict
from util.cli import counted, format_list

WITHIN = "within the baseline"
BEYOND = "beyond the baseline"
TEXT_SHOWS = "text shows"
NO_TEXT = "no more than chance"
MORE_ALIKE = "more alike than real pairs"
NOT_MORE_ALIKE = "in the range of real pairs, or less alike"
# Metrics whose figures the verdict names, by the beginning of their name.
NAMED_DIFFERENCES = {"Mean lung attenuation": "mean lung attenuation", "Detail SD": "detail SD"}
CONTROL = " read from volumes of "  # in the name of a metric of controls


def interpret_metric(metric: Metric) -> str:
    """Return a metric's relation to its baseline in words; empty where it has none."""
    if not np.isfinite(metric.baseline):
        return ""
    if metric.better == "zero":
        return WITHIN if abs(metric.value) <= metric.baseline_high else BEYOND
    if metric.better == "near":
        more_alike = metric.low > metric.baseline_high
        return MORE_ALIKE if more_alike else NOT_MORE_ALIKE
    if metric.group == "text":
        shows = metric.value < metric.baseline_high
        if metric.better == "high":
            shows = metric.value > metric.baseline_high
        return TEXT_SHOWS if shows else NO_TEXT
    size = metric.matched if np.isfinite(metric.matched) else metric.value
    return WITHIN if size <= metric.baseline_high else BEYOND


def verdict_sentence(
    metrics: Sequence[Metric], copies: Sequence[CopyVerdict] | None, shortage: str = ""
) -> str:
    """Return the outcome in words, made from the figures.

    Args:
        metrics: All metrics but those of copies.
        copies: The verdict on each volume; None where copies were not searched for.
        shortage: Why no metric is interpreted; "" where they are.
    """
    sentences = [_copies_sentence(copies), f"No verdict: {shortage}." if shortage else ""]
    if not shortage:
        sentences += [_separation_sentence(metrics), _text_sentence(metrics)]
    figures = [text for text in (_realism_figure(metrics), *_difference_figures(metrics)) if text]
    if figures:
        sentences.append(f"{_capitalise('; '.join(figures))}.")
    return " ".join(text for text in sentences if text)


def _copies_sentence(copies: Sequence[CopyVerdict] | None) -> str:
    if copies is None:
        return ""
    copied = sum(verdict.copy for verdict in copies)
    edits = sum(bool(verdict.edit_of) for verdict in copies)
    volumes = counted(len(copies), "volume")
    declared = f" Declared edits of training scans: {edits}." if edits else ""
    if copied:
        return f"Called copies of training scans: {copied} of {volumes}.{declared}"
    other = "undeclared copy" if edits else "copy"
    return f"No {other} of a training scan among {volumes}.{declared}"


def _separation_sentence(metrics: Sequence[Metric]) -> str:
    """Return how many metrics tell the synthetic set from a part of the real scans."""
    readings = [interpret_metric(metric) for metric in metrics]
    beyond = readings.count(BEYOND)
    judged = beyond + readings.count(WITHIN)
    if not judged:
        return ""
    if not beyond:
        return f"Not told apart from real scans: all {judged} measures lie within the baseline."
    return f"Told apart from real scans: {beyond} of {judged} measures lie beyond the baseline."


def _text_sentence(metrics: Sequence[Metric]) -> str:
    """Return the attributes whose text shows in the volumes, and the others."""
    shown: dict[str, bool] = {}
    for metric in metrics:
        if metric.group == "text" and CONTROL not in metric.name:
            column = metric.name.partition(" read from ")[0]
            shows = interpret_metric(metric) == TEXT_SHOWS
            shown[column] = shown.get(column, False) or shows
    showing = [column for column, shows in shown.items() if shows]
    silent = [column for column, shows in shown.items() if not shows]
    sentences = []
    if showing:
        sentences.append(f"The text of {format_list(showing)} shows in the volumes.")
    if silent:
        sentences.append(f"The text of {format_list(silent)} shows no more than chance.")
    return " ".join(sentences)


def _realism_figure(metrics: Sequence[Metric]) -> str:
    """Return the first distance between the sets, beside its baseline."""
    for metric in metrics:
        if metric.group == "realism" and np.isfinite(metric.baseline):
            size = metric.matched if np.isfinite(metric.matched) else metric.value
            return (
                f"{metric.name}: {size:.3g}, between parts of the real scans {metric.baseline:.3g}"
            )
    return ""


def _difference_figures(metrics: Sequence[Metric]) -> list[str]:
    """Return the differences of density and texture with their intervals."""
    figures = []
    for beginning, name in NAMED_DIFFERENCES.items():
        for metric in metrics:
            if metric.name.startswith(beginning) and metric.better == "zero":
                interval = f"[{metric.low:.1f}, {metric.high:.1f}]"
                figures.append(f"{name} {metric.value:+.1f} HU {interval}")
    return figures


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
