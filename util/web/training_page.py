"""The page of a training run: progress, newest pictures, the followed effects, and curves.

TensorBoard draws the same numbers and pictures; this page can be opened from disk, and renews
itself while the run trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from matplotlib.figure import Figure

from util.files import atomic_path
from util.metrics.fidelity import texture_notes
from util.modality import CT, Terms
from util.web import page_links, page_parts

MAX_POINTS = 400  # more points than this along a curve are averaged in bins
CURVE_INCHES = (3.3, 2.0)
EFFECT_INCHES = (5.0, 2.6)  # letters stay readable where a telephone shows it at 330 pixels
COLOURS = {"Losses": "#2563a8", "Validation": "#b4552d", "Other": "#5c6878"}


@dataclass(frozen=True)
class TrainingImage:
    """A picture made in training (see `util.web.figures.save_slices_png`).

    Attributes:
        step: The step after which it was made.
        case: The case shown.
        prompt: The text it was generated from.
        file: Name of the PNG file, relative to the page's folder.
    """

    step: int
    case: str
    prompt: str
    file: str


@dataclass(frozen=True)
class TrackedEffect:
    """An attribute whose effect is followed in validation.

    Attributes:
        metric: Its name in the log.
        title: What is compared, such as "SMOKING: Current minus Never".
        real: The same difference between the training scans by regression, HU; NaN where too few
            have one of the values.
        low: Lower end of its 95 % interval.
        high: Its upper end.
    """

    metric: str
    title: str
    real: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands.

    Attributes:
        step: Steps taken.
        steps: Steps in all.
        seconds_left: Estimated time to the end; None where it is not known.
        state: "running", "finished" or "stopped".
        page: Number of the page that is written, so that browsers renew an older one.
        warnings: Warnings of the command.
        tracked: The effects that are followed.
        validation: A sentence on the time that validation takes.
    """

    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    state: str = "finished"
    page: int = 0
    warnings: Sequence[str] = ()
    tracked: Sequence[TrackedEffect] = ()
    validation: str = ""


Curves = dict[str, tuple[list[float], list[float]]]


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Curves]:
    """Return the log's numbers as (steps, values) by name, for each chart of `COLOURS`."""
    charts: dict[str, Curves] = {name: {} for name in COLOURS}
    for record in log:
        for name, value in record.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            steps, values = charts[_chart_of(name)].setdefault(name, ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return {name: chart for name, chart in charts.items() if chart}


def _chart_of(name: str) -> str:
    if name.startswith("val"):
        return "Validation"
    return "Losses" if name.startswith("loss") else "Other"


def binned(values: Sequence[float], points: int = MAX_POINTS) -> list[float]:
    """Return at most `points` values: the means of bins of one size (the last may be smaller)."""
    size = math.ceil(len(values) / points)
    return [float(np.mean(values[i : i + size])) for i in range(0, len(values), size)]


def draw_curve(steps: Sequence[float], values: Sequence[float], colour: str, path: Path) -> None:
    """Draw a curve as a small SVG file, as wide as a telephone."""
    figure = Figure(figsize=CURVE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    x = binned(steps)
    marker = "o" if len(x) < 25 else ""
    axes.plot(x, binned(values), color=colour, linewidth=1.2, marker=marker, markersize=3)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5, integer=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg")


def write_training_page(
    folder: Path,
    name: str,
    log: Sequence[Mapping[str, Any]],
    images: Sequence[TrainingImage],
    options: Mapping[str, Mapping[str, Any]],
    state: TrainingState | None = None,
    terms: Terms = CT,
) -> Path:
    """Write `folder`/index.html with its curves and return its path; a later call replaces it.

    Args:
        folder: The page's folder; the pictures lie in it.
        name: The run's name.
        log: Records of log.jsonl: a `step` and numbers, not the same ones in every record.
        images: Pictures in any order; the newest step comes first.
        options: The run's options, by group.
        state: Where the training stands; by default after the log's last step.
        terms: Unit and words of the modality.
    """
    page_parts.copy_assets(folder, "page.css", "training.js")
    page_links.copy_link_assets(folder)
    last = max((int(record["step"]) for record in log), default=0)
    state = state or TrainingState(last, last)
    title = f"Training of {name}"
    document = page_parts.new_document(title, scripts=("training.js", *page_links.SCRIPTS))
    document.body["data-page"] = str(state.page)
    newest = max((image.step for image in images), default=0)
    with document:
        page_parts.page_header(
            title,
            tags.p(effect_sentence(log, state, terms), cls="headline"),
            cautions=(page_parts.RESEARCH_ONLY,),
        )
        with tags.main():
            _progress(state)
            _pictures([image for image in images if image.step == newest])
            _before_judging([*state.warnings, *validation_notes(log, terms)])
            with tags.div(cls="cards"):
                _tracked(folder, log, state, last, terms)
                for kind, chart in curves(log).items():
                    with page_parts.card(kind, "wide"):
                        _curves(folder, kind, chart, last)
            _pictures([image for image in images if image.step != newest])
            page_parts.option_tables(options)
    write_progress(folder, state)
    return page_parts.write_document(document, folder / "index.html", terms)


def write_progress(folder: Path, state: TrainingState) -> None:
    """Write progress.js, which the page reads again and again."""
    values = {
        "step": state.step,
        "steps": state.steps,
        "seconds_left": None if state.seconds_left is None else round(state.seconds_left),
        "page": state.page,
        "state": state.state,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "progress.js") as temporary:
        temporary.write_text(f"Mask2CT.progress({json.dumps(values)});\n", encoding="ascii")


def effect_sentence(
    log: Sequence[Mapping[str, Any]], state: TrainingState, terms: Terms = CT
) -> str:
    """Return where the run stands in a sentence with figures: the followed effects, or the error.

    Args:
        log: Records of log.jsonl.
        state: The state of the run, with the effects that are followed.
        terms: Unit and words of the modality, whose names the log has.
    """
    newest: dict[str, float] = {}
    for record in log:
        newest.update({k: v for k, v in record.items() if isinstance(v, int | float)})
    texts = []
    for effect in state.tracked:
        metric = terms.name(effect.metric)
        if metric in newest:
            text = f"{effect.title}: {newest[metric]:+.1f} HU in the generated lungs"
            if not math.isnan(effect.real):
                text += f", {effect.real:+.1f} [{effect.low:.1f}, {effect.high:.1f}] in real scans"
            texts.append(f"{text}.")
    error = newest.get(terms.name("val_lung_mae_hu"))
    if error is not None:
        texts.append(f"Mean absolute error in the lungs {error:.0f} HU.")
    if not texts:
        if state.state == "running":
            return "No validation yet."
        return "This run was not validated (--val_freq, --val_cases), so that it has no pictures."
    return page_parts.typeset(" ".join(texts))


def _progress(state: TrainingState) -> None:
    with tags.div(cls="progress"):
        tags.progress(id="steps", max=max(1, state.steps), value=state.step)
        tags.span(f"Step {state.step} of {state.steps}: {state.state}.", id="state")
    page_parts.note(state.validation)


def _before_judging(warnings: Sequence[str]) -> None:
    if warnings:
        with page_parts.card("Read before judging", id="warnings"):
            page_parts.bullet_list(warnings, "cautions warnings")


def _curves(folder: Path, kind: str, chart: Curves, last: int) -> None:
    """Add a small chart per curve; as many stand in a row as the page is wide."""
    with tags.div(cls="curves"):
        for number, (name, (steps, values)) in enumerate(chart.items()):
            file = f"{kind.lower()}_{number}.svg"
            draw_curve(steps, values, COLOURS[kind], folder / file)
            with tags.figure():
                tags.figcaption(tags.b(name), page_parts.typeset(f" {values[-1]:.4g}"))
                tags.img(src=f"{file}?step={last}", alt=f"{name} over steps")


def _tracked(
    folder: Path, log: Sequence[Mapping[str, Any]], state: TrainingState, last: int, terms: Terms
) -> None:
    """Add a card with the curve of each effect that is followed, and the real scans' as a line."""
    validation = curves(log).get("Validation", {})
    for number, effect in enumerate(state.tracked):
        metric = terms.name(effect.metric)
        if metric not in validation:
            continue
        file = f"effect_{number}.svg"
        draw_effect(effect, *validation[metric], folder / file, terms)
        with page_parts.card(effect.title, "wide"):
            text = f"Mean effect on the lungs over steps, HU: {effect.title}."
            if math.isnan(effect.real):
                text += " Too few training scans have both values for a regression."
            else:
                text += (
                    " Line and band: the difference between the training scans by regression on "
                    "this attribute alone, with its 95 % interval. It is not adjusted for other "
                    "columns."
                )
            page_parts.chart(f"{file}?step={last}", text, [text], "small")


def draw_effect(
    effect: TrackedEffect,
    steps: Sequence[float],
    values: Sequence[float],
    path: Path,
    terms: Terms = CT,
) -> None:
    """Draw the curve of an effect and the regression of the real scans, as SVG."""
    figure = Figure(figsize=EFFECT_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        steps, values, color=COLOURS["Validation"], marker="o", markersize=3, label="generated"
    )
    if not math.isnan(effect.real):
        axes.axhspan(effect.low, effect.high, color="#5c6878", alpha=0.18, linewidth=0)
        axes.axhline(effect.real, color="#5c6878", linestyle="--", label="real scans, regression")
    axes.axhline(0, color="#aab2bd", linewidth=0.8)
    axes.set(xlabel="step", ylabel=terms.text("HU in the lungs"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg")


def validation_notes(log: Sequence[Mapping[str, Any]], terms: Terms = CT) -> list[str]:
    """Return sentences on the texture of the newest validation."""
    names = [terms.name("val_lung_detail_ratio"), terms.name("val_lung_noise_correlation")]
    newest: dict[str, float] = {}
    for record in log:
        for name in names:
            if isinstance(record.get(name), int | float):
                newest[name] = record[name]
    return texture_notes(*map(newest.get, names))


def _pictures(images: Sequence[TrainingImage]) -> None:
    newest = sorted(images, key=lambda image: -image.step)
    for step, group in groupby(newest, key=lambda image: image.step):
        with page_parts.card(f"Step {step}", "step"):
            for image in group:
                tags.p(tags.b(image.case), f" {image.prompt}", cls="prompt")
                with tags.a(href=page_parts.link(image.file), title="Open the picture"):
                    tags.img(
                        src=page_parts.link(image.file),
                        alt=f"{image.case}, step {step}: real, generated, effect",
                        loading="lazy",
                    )
