"""The page of a test run: a row a case with linked slices, and tables of effects, metrics and
options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags
from matplotlib.colors import to_hex

from util.cli import safe_name
from util.web import page_parts
from util.web.figures import (
    BACKGROUND,
    DIVERGING,
    LABEL_NAMES,
    LUNG,
    MEDIASTINUM,
    PLANES,
    Panel,
    Window,
    fullest_slices,
    label_colour,
    nice_limit,
)
from util.web.tables import effect_tables, metric_tables
from util.web.web_data import block, check_panels, shrink, write_case

LIMITS = (5, 10, 20, 50, 100, 200, 500, 1000)
SIZES = {"small": 170, "medium": 250, "large": 400}


@dataclass(frozen=True)
class _Row:
    """What the page itself holds of a case: everything but the voxels."""

    key: str
    case: str
    prompt: str
    notes: tuple[str, ...]
    panels: tuple[tuple[str, str, str | None, str], ...]  # title, kind, file, caption
    grid: Mapping[str, Any]


class ResultsPage:
    """Builds `folder`/index.html; a case's voxels go to `folder`/web at once, so that memory stays
    bounded.

    Args:
        folder: The results folder; links to volumes are relative to it.
        title: The page's title.
        window: Lowest and highest HU of the model's window.
        label_names: Names of mask labels; others are called "label 7".
        max_size: Volumes longer than this along an axis are averaged in blocks, for the page alone.
        score_limit: Scores are coloured from minus to plus this.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        window: Window,
        *,
        label_names: Mapping[int, str] = LABEL_NAMES,
        max_size: int = 192,
        score_limit: float = 10.0,
    ) -> None:
        self.folder, self.title, self.window = folder, title, window
        self.label_names, self.max_size, self.score_limit = label_names, max_size, score_limit
        self._rows: list[_Row] = []
        self._labels: set[int] = set()
        self._changes: list[float] = []
        page_parts.copy_assets(folder / "web", "page.css", "slices.js", "viewer.js")
        for old in (folder / "web").glob("case-*.js"):
            old.unlink()

    def add_case(
        self,
        case: str,
        prompt: str,
        notes: Sequence[str],
        panels: Sequence[Panel],
        at: Sequence[int] | None = None,
    ) -> None:
        """Adds a row; all panels share one grid. Raises `UserError` for other shapes and values
        that are not finite.

        The slices shown first are those through the voxel `at`, else those that hold most of the
        mask.
        """
        check_panels(case, panels)
        shape, spacing = panels[0].array.shape, panels[0].spacing
        factors = block(shape, self.max_size)
        shown = [shrink(p.array, factors, p.kind != "mask") for p in panels]
        stored = [
            p if p.outline is None else replace(p, outline=shrink(p.outline, factors, False))
            for p in panels
        ]
        key = f"case-{len(self._rows) + 1:04d}-{safe_name(case)[:80]}"
        write_case(self.folder / "web" / f"{key}.js", key, list(zip(stored, shown, strict=True)))
        start = fullest_slices(np.zeros(shown[0].shape))
        for panel, array in zip(panels, shown, strict=True):
            if panel.kind == "mask":
                start = fullest_slices(array)
                self._labels |= {int(v) for v in np.unique(array)}
            elif panel.kind == "difference":
                self._changes.append(float(np.quantile(np.abs(array), 0.995)))
        if at is not None:
            x, y, z = (int(v) // f for v, f in zip(at, factors, strict=True))
            start = (x, y, z)
        grid = {
            "shape": shown[0].shape,
            "spacing": [float(s) * f for s, f in zip(spacing, factors, strict=True)],
            "block": factors,
            "start": start,
        }
        entries = tuple((p.title, p.kind, p.file, p.caption) for p in panels)
        self._rows.append(_Row(key, case, prompt, tuple(notes), entries, grid))

    def save(
        self,
        options: Mapping[str, Mapping[str, Any]],
        effects: Sequence[Mapping[str, Any]] = (),
        metrics: Sequence[Mapping[str, Any]] = (),
        cautions: Sequence[str] = (),
    ) -> Path:
        """Writes the page and returns its path.

        Args:
            options: The run's options, by group.
            effects: Rows of effects.csv.
            metrics: Rows of metrics.csv.
            cautions: Sentences to add to the standing cautions.
        """
        document = page_parts.new_document(self.title, "web/")
        document.body["data-config"] = json.dumps(self._config())
        with document.head:
            tags.script(src="web/slices.js", defer=True)
            tags.script(src="web/viewer.js", defer=True)
        with document:
            with tags.header(cls="top"):
                tags.h1(self.title)
                page_parts.cautions(cautions)
            with tags.main():
                with tags.div(cls="cards"):
                    effect_tables(effects)
                    metric_tables(metrics)
                    page_parts.options_list(options)
                tags.noscript(tags.p("The slices need JavaScript.", cls="note"))
                self._toolbar()
                for row in self._rows:
                    self._case(row)
        return page_parts.write_document(document, self.folder / "index.html")

    def _limit(self) -> float:
        """The page's range of differences: the middle of the volumes' own 99.5th percentiles,
        rounded up.
        """
        seen = [c for c in self._changes if c > 0]
        wanted = nice_limit(float(np.median(seen))) if seen else 100.0
        return next((float(v) for v in LIMITS if v >= wanted), float(LIMITS[-1]))

    def _config(self) -> dict[str, Any]:
        return {
            "windows": {"lung": LUNG, "mediastinum": MEDIASTINUM, "model": self.window},
            "limit": self._limit(),
            "score_limit": self.score_limit,
            "planes": PLANES,
            "sizes": SIZES,
            "background": BACKGROUND,
            "labels": {
                k: [label_colour(k), self._label_name(k)] for k in sorted(self._labels) if k
            },
            "diverging": [to_hex(DIVERGING(i / 255)) for i in range(256)],
        }

    def _label_name(self, label: int) -> str:
        return self.label_names.get(label, f"label {label}")

    def _toolbar(self) -> None:
        with tags.div(cls="toolbar", role="toolbar", aria_label="View of all cases"):
            page_parts.choice("plane", "Plane", {p: p.capitalize() for p in PLANES}, "axial")
            page_parts.choice(
                "window",
                "Window",
                {"lung": "Lung", "mediastinum": "Mediastinum", "model": "Whole window"},
                "lung",
            )
            tags.output(id="window-range")
            if self._changes:
                with tags.label("Differences ±", cls="group"), tags.select(id="limit"):
                    for value in LIMITS:
                        chosen = {"selected": True} if value == self._limit() else {}
                        tags.option(f"{value} HU", value=value, **chosen)
            page_parts.choice("size", "Size", {"small": "S", "medium": "M", "large": "L"}, "medium")
            with tags.label(cls="group"):
                tags.input_(type="checkbox", id="smooth", checked=True)
                tags.span("Smooth")
            if len(self._rows) > 1:
                tags.input_(
                    type="search",
                    id="filter",
                    placeholder=f"Find in {len(self._rows)} cases",
                    aria_label="Show the cases whose name or prompt contains this",
                )

    def _legend(self) -> None:
        with tags.div(cls="legend"):
            for label in sorted(self._labels - {0}):
                tags.span(
                    tags.i(style=f"background:{label_colour(label)}"), self._label_name(label)
                )

    def _case(self, row: _Row) -> None:
        with tags.section(cls="case card", id=row.key, data_grid=json.dumps(row.grid)):
            with tags.div(cls="about"):
                tags.h2(tags.a(row.case, href=f"#{row.key}"))
                tags.p(
                    row.prompt or "Nothing is known of this patient: the prompt is empty.",
                    cls="prompt" if row.prompt else "prompt empty",
                )
                if row.notes:
                    tags.ul(*(tags.li(note) for note in row.notes), cls="notes")
            with tags.label(cls="slices"):
                tags.span("Slice", cls="name")
                tags.input_(
                    type="range", min=0, max=0, value=0, step=1, aria_label=f"Slice of {row.case}"
                )
                tags.output()
            with tags.div(cls="panels"):
                for title, kind, file, caption in row.panels:
                    with _panel(title, kind, file, caption, self.score_limit):
                        if kind == "mask":
                            self._legend()
            tags.p(_grid_note(row.grid), cls="note")


def _panel(
    title: str, kind: str, file: str | None, caption: str, score_limit: float
) -> tags.figure:
    figure = tags.figure(cls=f"panel {kind}")
    with figure:
        with tags.figcaption():
            tags.span(title, cls="title")
            if file is not None:
                tags.a("NIfTI", href=page_parts.link(file), cls="file", title=file)
            if caption:
                tags.span(caption, cls="caption")
        with tags.div(cls="stage"):
            tags.canvas(role="img", aria_label=title)
            for edge in ("left", "right", "up", "down"):
                tags.span(cls=f"edge {edge}")
            tags.i(cls="cross")
        if kind == "difference":
            with tags.div(cls="bar"):
                tags.span(cls="low")
                tags.i()
                tags.span(cls="high")
        elif kind == "score":
            with tags.div(cls="bar score"):
                tags.span(f"−{score_limit:g}")
                tags.i()
                tags.span(f"+{score_limit:g} spreads")
        tags.output(cls="value")
    return figure


def _grid_note(grid: Mapping[str, Any]) -> str:
    factors = grid["block"]
    if max(factors) == 1:
        return ""
    blocks = " × ".join(map(str, factors))
    return f"Shown smaller: a mean over {blocks} voxels (labels: the middle one); the files hold every voxel."
