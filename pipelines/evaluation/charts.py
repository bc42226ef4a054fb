"""Charts of an evaluation's page: histograms of the lungs, their detail, their power spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.volume_measurer import ComparisonGrid
from util.metrics.texture import SPECTRUM_BANDS
from util.modality import CT, Terms

HISTOGRAM = "histogram.svg"
TEXTURE = "texture.svg"
COLOURS = {"real": "#5c6878", "synthetic": "#2563a8"}
BIN_HU = 10  # width of the bins in the chart of the histograms
LUNG_HU = (-1050, -300)  # that it shows
SPREAD = (5.0, 95.0)  # percentiles over volumes of the bands around the curves
PERIODS_MM = (64, 32, 16, 8, 4, 2)  # ticks
JITTER = 0.12  # of the points of single volumes, as a share of the distance of two sets

Sets = Mapping[str, Sequence[VolumeMeasurements]]  # "real" and "synthetic"


def draw_histogram(path: Path, sets: Sets, grid: ComparisonGrid) -> None:
    """Draw the lungs' histograms, a mean over volumes, as SVG."""
    bins, terms = grid.bins, grid.terms
    figure = Figure(figsize=(7, 2.6))
    axes = figure.add_subplot()
    for name, volumes in sets.items():
        shares = np.mean([v.histogram / max(v.histogram.sum(), 1) for v in volumes], 0)
        end = len(shares) // BIN_HU * BIN_HU
        wide = shares[:end].reshape(-1, BIN_HU).sum(1)
        axes.plot(
            bins[:end:BIN_HU] + (BIN_HU - 1) / 2,
            100 * wide,
            label=f"{name} ({len(volumes)})",
            color=COLOURS[name],
        )
    axes.set(xlabel=terms.unit, ylabel=terms.text("% of lung per 10 HU"))
    axes.set_xlim(LUNG_HU if terms.is_ct else (bins[0], bins[-1]))
    _finish(figure, path)


def draw_texture(path: Path, sets: Sets, terms: Terms = CT) -> None:
    """Draw every volume's detail SD, and the radial power spectrum of the lungs, as SVG."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    detail, spectrum = figure.subplots(1, 2, width_ratios=(1, 1.6))
    _draw_detail(detail, sets, terms)
    _draw_spectrum(spectrum, sets, terms)
    _finish(figure, path)


def _draw_detail(axes: Axes, sets: Sets, terms: Terms) -> None:
    rng = np.random.default_rng(0)
    for place, (name, volumes) in enumerate(sets.items()):
        values = np.array([v.density.get("detail_sd_hu", np.nan) for v in volumes])
        x = place + rng.uniform(-JITTER, JITTER, len(values))
        axes.plot(x, values, "o", color=COLOURS[name], alpha=0.5, markersize=4)
        if np.isfinite(values).any():
            ends = (place - 2 * JITTER, place + 2 * JITTER)
            axes.hlines(float(np.nanmean(values)), *ends, color=COLOURS[name], linewidth=2)
    axes.set_xticks(range(len(sets)), [f"{name} ({len(v)})" for name, v in sets.items()])
    axes.set(xlim=(-0.5, len(sets) - 0.5), ylabel=terms.text("detail SD of the lungs (HU)"))
    axes.set_ylim(bottom=0)
    axes.set_title("Each point is a volume, each line a mean", fontsize=9)


def _draw_spectrum(axes: Axes, sets: Sets, terms: Terms) -> None:
    periods = np.array([1 / np.sqrt(low * high) for low, high in SPECTRUM_BANDS])
    for name, volumes in sets.items():
        power = np.stack([v.spectrum for v in volumes])
        shown = _resolved({name: volumes})
        low, high = _percentiles(power[:, shown])
        mean = 10 ** np.nanmean(power[:, shown], 0)
        axes.plot(periods[shown], mean, "o-", markersize=3, color=COLOURS[name], label=name)
        axes.fill_between(periods[shown], low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
    axes.set(xscale="log", yscale="log", ylabel=f"power ({terms.unit}² mm³)")
    axes.set_xlabel("mm per period: coarse on the left, fine on the right")
    finest = periods[_resolved(sets)].min(initial=periods[0])
    ticks = [tick for tick in PERIODS_MM if tick > 0.9 * finest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(72, 0.9 * finest)
    axes.set_title("Curve: mean; band: 5 to 95 % of the volumes", fontsize=9)


def _resolved(sets: Sets) -> NDArray[np.bool_]:
    """Return the bands whose power some volume has."""
    power = np.array([v.spectrum for volumes in sets.values() for v in volumes])
    return np.asarray(np.isfinite(power).any(0))


def _percentiles(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `SPREAD` over the volumes of the logarithm of the power, as power."""
    percentiles: NDArray[np.float64] = 10 ** np.nanpercentile(power, SPREAD, axis=0)
    return percentiles


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, format="svg", bbox_inches="tight")
