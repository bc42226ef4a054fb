"""The page of generated volumes: linked slices of each case, and tables of effects and metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dominate import tags

from util.cli import safe_name
from util.web import page_parts, viewer_parts
from util.web.figures import LABEL_NAMES, Panel, Window, nice_limit
from util.web.tables import effect_tables, metric_tables
from util.web.viewer_parts import SlicePanel, fitting_limit
from util.web.web_data import PageGrid, VolumeEntry, check_panels, write_volume


@dataclass(frozen=True)
class _CaseSection:
    """A case as the page shows it: everything but the voxels."""

    key: str
    case: str
    prompt: str
    notes: Sequence[str]
    panels: Sequence[SlicePanel]
    volumes: Mapping[str, VolumeEntry]
    grid: PageGrid
    mask: str


class ResultsPage:
    """Builder of `folder`/index.html.

    A case's voxels go to `folder`/web at once, so that memory stays bounded.

    Args:
        folder: The results folder; links to volumes are relative to it.
        title: The page's title.
        window: Lowest and highest HU of the model's window.
        label_names: Names of mask labels; others are called "label 7".
        score_limit: Scores are coloured from minus to plus this.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        window: Window,
        *,
        label_names: Mapping[int, str] = LABEL_NAMES,
        score_limit: float = 10.0,
    ) -> None:
        self.folder = folder
        self.title = title
        self.window = window
        self.label_names = label_names
        self.score_limit = score_limit
        self._cases: list[_CaseSection] = []
        self._labels: set[int] = set()
        self._changes: list[float] = []
        page_parts.copy_assets(folder / "web", "page.css", *viewer_parts.SCRIPTS, "cases.js")
        for old in (folder / "web").glob("case-*"):
            shutil.rmtree(old)

    def add_case(
        self,
        case: str,
        prompt: str,
        notes: Sequence[str],
        panels: Sequence[Panel],
        at: Sequence[int] | None = None,
    ) -> None:
        """Add a case.

        Args:
            case: Its name.
            prompt: The text it was generated from.
            notes: Sentences below the text.
            panels: Its volumes, on one grid.
            at: The slices shown first go through this voxel; by default they hold most of the mask.

        Raises:
            UserError: The volumes do not share a grid, or hold values that cannot be shown.
        """
        check_panels(case, panels)
        web = self.folder / "web"
        key = f"case-{len(self._cases) + 1:04d}-{safe_name(case)[:80]}"
        content = np.zeros(panels[0].array.shape, bool)
        shown: list[SlicePanel] = []
        mask = ""
        volumes: dict[str, VolumeEntry] = {}
        names = {id(panel): f"{key}/{number}" for number, panel in enumerate(panels)}
        for panel in panels:
            array = panel.array
            name = names[id(panel)]
            under = names.get(id(panel.before), "")
            volumes[name] = write_volume(web, name, array, panel.kind)
            outline = ""
            if panel.outline is not None:
                outline = f"{name}-outline"
                volumes[outline] = write_volume(web, outline, panel.outline, "mask")
            shown.append(
                SlicePanel(
                    panel.title,
                    [name],
                    panel.kind,
                    panel.caption,
                    panel.file,
                    outline=outline,
                    under=under,
                )
            )
            if panel.kind == "mask":
                content = array
                mask = name
                self._labels.update(int(v) for v in np.unique(array) if v)
            elif panel.kind == "difference":
                self._changes.append(float(np.quantile(np.abs(array), 0.995)))
        grid = PageGrid.around(content, panels[0].spacing, at)
        self._cases.append(
            _CaseSection(key, case, prompt, tuple(notes), shown, volumes, grid, mask)
        )

    def save(
        self,
        options: Mapping[str, Mapping[str, Any]],
        effects: Sequence[Mapping[str, Any]] = (),
        metrics: Sequence[Mapping[str, Any]] = (),
        cautions: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> Path:
        """Write the page and return its path.

        Args:
            options: The run's options, by group.
            effects: Rows of effects.csv.
            metrics: Rows of metrics.csv.
            cautions: Sentences to add to the standing cautions.
            warnings: Warnings of this command, which may decide what its results mean.
        """
        scripts = (*viewer_parts.SCRIPTS, "cases.js")
        document = page_parts.new_document(self.title, "web/", scripts=scripts)
        config = viewer_parts.viewer_config(
            self.window,
            self._limit(),
            sorted(self._labels),
            score_limit=self.score_limit,
            label_names=self.label_names,
        )
        document.body["data-config"] = json.dumps(config)
        with document:
            page_parts.page_header(self.title, cautions=(*page_parts.CAUTIONS, *cautions))
            with tags.main():
                if warnings:
                    with page_parts.card("Read before judging", id="warnings"):
                        page_parts.bullet_list(warnings, "cautions")
                with tags.div(cls="cards"):
                    effect_tables(effects)
                    metric_tables(metrics)
                    page_parts.option_tables(options)
                tags.noscript(tags.p("The slices need JavaScript.", cls="note"))
                self._toolbar()
                for section in self._cases:
                    self._case(section)
        return page_parts.write_document(document, self.folder / "index.html")

    def _limit(self) -> float:
        """Return the page's range of differences.

        It is the median of the volumes' own 99.5th percentiles, rounded up.
        """
        changes = [change for change in self._changes if change > 0]
        return fitting_limit(nice_limit(float(np.median(changes))) if changes else 100.0)

    def _toolbar(self) -> None:
        with viewer_parts.toolbar("View of all cases"):
            viewer_parts.plane_and_window("axial")
            if self._changes:
                viewer_parts.limit_choice(self._limit())
                viewer_parts.overlay_choice()
            if self._labels:
                page_parts.check_box("lines", "Outlines")
            viewer_parts.size_choice()
            if len(self._cases) > 1:
                page_parts.search_field(
                    f"Find in {len(self._cases)} cases",
                    "Show the cases whose name or prompt contains this",
                )

    def _case(self, section: _CaseSection) -> None:
        attributes = viewer_parts.viewer_attributes(
            section.grid, section.volumes, mask=section.mask
        )
        with tags.section(cls="case card", id=section.key, **attributes):
            with tags.div(cls="about"):
                tags.h2(tags.a(section.case, href=f"#{section.key}"))
                page_parts.prompt_line(section.prompt)
                page_parts.bullet_list(section.notes, "notes")
            viewer_parts.slice_slider(f"Slice of {section.case}")
            with tags.div(cls="panels"):
                for panel in section.panels:
                    with panel.add():
                        if panel.kind == "mask":
                            viewer_parts.label_legend(sorted(self._labels), self.label_names)
