"""The page of generated volumes: the clearest case in one row, then cases, tables and options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from util.cli import safe_name
from util.metrics.contrast_summary import (
    ContrastSummary,
    clearest_contrast,
    is_avoided,
    summarise_contrasts,
)
from util.modality import CT, Terms
from util.notices import Notice
from util.web import page_links, page_parts, viewer_parts
from util.web.attribute_list import AttributeFacts, attribute_list
from util.web.figures import Panel, Role, Window
from util.web.picture_row import PictureRow, write_panels
from util.web.tables import effect_tables, metric_sentence, metric_tables
from util.web.viewer_parts import SlicePanel, difference_limit, largest_change

MEANINGLESS = ("value not seen in training", "low relevance")  # badges


@dataclass(frozen=True)
class ResultsReport:
    """What a page says beside its volumes.

    Attributes:
        effects: Rows of effects.csv.
        metrics: Rows of metrics.csv.
        patients: Patient of each case.
        facts: What decides whether an attribute shows, by attribute.
        notices: Warnings of the command.
        cautions: Sentences to add to the standing cautions.
        links: Address of other pages and of tables by their text.
        headline: The sentence at the top; by default that of the clearest contrast, or of the
            metrics.
        tables: Further tables by their heading.
        first_case: Case that comes first; "" for the order in which they were added.
        editing: How real scans were edited; "" for generated volumes.
        other_text: Whether edited scans have another text than their own.
    """

    effects: Sequence[Mapping[str, Any]] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, AttributeFacts] = field(default_factory=dict)
    notices: Sequence[Notice] = ()
    cautions: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    headline: str = ""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    first_case: str = ""
    editing: str = ""
    other_text: bool = False


@dataclass(frozen=True)
class _Picture:
    """A volume as the page shows it, and what it is: all of a `Panel` but the voxels."""

    slice: SlicePanel
    role: Role
    attribute: str
    values: tuple[str, ...]
    phrases: tuple[str, ...]

    def badges(self, case: str, notices: Sequence[Notice]) -> list[str]:
        """Return the badges of this picture alone."""
        return [
            notice.badge
            for notice in notices
            if notice.badge
            and notice.concerns_picture(case, self.attribute, self.values, self.phrases)
        ]


@dataclass(frozen=True)
class _CaseSection:
    """A case as the page shows it: everything but the voxels."""

    case: str
    prompt: str
    notes: Sequence[str]
    pictures: Sequence[_Picture]
    row: PictureRow


class ResultsPage:
    """Builder of `folder`/index.html.

    A case's voxels go to `folder`/web at once, so that memory stays bounded.

    Args:
        folder: The results folder; links to volumes are relative to it.
        title: The page's title.
        window: Lowest and highest HU of the model's window.
        score_limit: Scores are coloured from minus to plus this.
        terms: Unit, words and names of labels of the modality.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        window: Window,
        *,
        score_limit: float = 10.0,
        terms: Terms = CT,
    ) -> None:
        self.folder = folder
        self.title = title
        self.window = window
        self.score_limit = score_limit
        self.terms = terms
        self._cases: list[_CaseSection] = []
        self._labels: set[int] = set()
        self._changes: dict[str, float] = {}  # largest change by attribute, HU
        page_parts.copy_assets(folder / "web", "page.css", *viewer_parts.SCRIPTS, "cases.js")
        page_links.copy_link_assets(folder / "web")
        for old in (folder / "web").glob("case-*"):
            if old.is_dir():
                shutil.rmtree(old)
            else:  # of version 0.1
                old.unlink()

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
        key = f"case-{len(self._cases) + 1:04d}-{safe_name(case)[:80]}"
        row = write_panels(self.folder / "web", key, case, panels, at)
        self._labels.update(row.labels)
        shown: list[_Picture] = []
        for picture, panel in zip(row.pictures, panels, strict=True):
            shown.append(
                _Picture(picture, panel.role, panel.attribute, panel.values, panel.phrases)
            )
            if panel.kind == "difference":
                change = largest_change(panel.array)
                largest = self._changes.get(panel.attribute, 0.0)
                self._changes[panel.attribute] = max(largest, change)
        self._cases.append(_CaseSection(case, prompt, tuple(notes), shown, row))

    def save(
        self, options: Mapping[str, Mapping[str, Any]], report: ResultsReport | None = None
    ) -> Path:
        """Write the page and return its path.

        Args:
            options: The run's options, by group.
            report: What the page says beside the volumes.
        """
        report = report or ResultsReport()
        scripts = (*viewer_parts.SCRIPTS, "cases.js", *page_links.SCRIPTS)
        document = page_parts.new_document(self.title, "web/", scripts=scripts)
        config = viewer_parts.viewer_config(
            self.window,
            0.0,
            sorted(self._labels),
            score_limit=self.score_limit,
            terms=self.terms,
        )
        document.body["data-config"] = json.dumps(config)
        contrasts = summarise_contrasts(report.effects, report.patients)
        meaningless = meaningless_attributes(report.notices)
        clearest = clearest_contrast(contrasts, meaningless)
        with document:
            page_parts.page_header(
                self.title,
                tags.p(self._headline(clearest, meaningless, report), cls="headline"),
                cautions=(page_parts.RESEARCH_ONLY,),
                links=report.links,
            )
            with tags.main():
                tags.noscript(tags.p("The slices need JavaScript.", cls="note"))
                self._toolbar()
                cases = sorted(self._cases, key=lambda s: s.case != report.first_case)
                if clearest is not None:
                    self._clearest_case(clearest, report.notices)
                elif cases:
                    self._case(cases.pop(0), report.notices, pictures_first=True)
                self._before_judging(report, clearest is not None or bool(report.headline))
                attribute_list(contrasts, report.notices, report.facts)
                for section in cases:
                    self._case(section, report.notices)
                with tags.div(cls="cards"):
                    effect_tables(report.effects, contrasts, self.terms)
                    metric_tables([m for m in report.metrics if self.terms.has(str(m["metric"]))])
                    for heading, table in report.tables.items():
                        with page_parts.card(heading):
                            page_parts.frame_table(table)
                    page_parts.option_tables(options)
        return page_parts.write_document(document, self.folder / "index.html", self.terms)

    def _headline(
        self, clearest: ContrastSummary | None, meaningless: Sequence[str], report: ResultsReport
    ) -> str:
        """Return the sentence at the top, from the figures of the page."""
        if report.headline:
            return page_parts.typeset(report.headline)
        if clearest is None:
            return page_parts.typeset(self._metric_sentence(report))
        text = clearest.sentence()
        if is_avoided(clearest, meaningless):
            text = f"Means nothing (see below): {text}"
        return page_parts.typeset(text)

    def _metric_sentence(self, report: ResultsReport) -> str:
        edited = bool(report.editing)
        return metric_sentence(report.metrics, len(self._cases), edited, report.other_text)

    def _limit(self, attribute: str) -> float:
        """Return the range of an attribute's differences, for all cases and values."""
        return difference_limit(self._changes.get(attribute, 0.0))

    def _before_judging(self, report: ResultsReport, add_fidelity: bool) -> None:
        """Add the cautions, how near the volumes are to the scans, and the command's warnings.

        Args:
            report: What the page says beside the volumes.
            add_fidelity: Whether the sentence of the metrics is not the headline already.
        """
        texts = [notice.text for notice in report.notices if not notice.column]
        plain = [*page_parts.CAUTIONS[1:], *report.cautions]
        if report.editing:
            plain = [report.editing, page_parts.ASSOCIATION, *report.cautions]
        if add_fidelity and report.metrics:
            plain.insert(0, page_parts.typeset(self._metric_sentence(report)))
        with page_parts.card("Read before judging", id="warnings"):
            page_parts.bullet_list(texts, "cautions warnings")
            page_parts.bullet_list(plain, "notes-plain")

    def _toolbar(self) -> None:
        with viewer_parts.toolbar("View of all cases"):
            viewer_parts.plane_and_window("axial", self.terms)
            if self._changes:
                viewer_parts.limit_choice()
                viewer_parts.overlay_choice()
            if self._labels:
                page_parts.check_box("lines", "Outlines")
            viewer_parts.size_choice()
            if len(self._cases) > 1:
                page_parts.search_field(
                    f"Find in {len(self._cases)} cases",
                    "Show the cases whose name or prompt contains this",
                )

    def _clearest_case(self, contrast: ContrastSummary, notices: Sequence[Notice]) -> None:
        """Add one large row of the case with the largest effect."""
        section = next(s for s in self._cases if s.case == contrast.clearest)
        values = (contrast.start, contrast.end)
        chosen = [p for p in section.pictures if p.role in ("real", "generated")]
        chosen.sort(key=lambda p: p.role != "real")
        for value in values:
            chosen += _pictures_of(section, contrast.column, (value,))
        chosen += _pictures_of(section, contrast.column, values)
        with self._viewer(section, "card clearest", "clearest"):
            with tags.h2(f"{section.case}: the largest change of {contrast.column} "):
                page_parts.badges(_case_badges(section.case, notices))
            self._row(section, chosen, notices)
            viewer_parts.slice_slider("Slice of the clearest case")

    def _viewer(self, section: _CaseSection, cls: str, name: str) -> tags.section:
        """Add a section whose pictures move together, to be filled in a `with` block."""
        return tags.section(cls=cls, id=name, **section.row.attributes())

    def _case(
        self, section: _CaseSection, notices: Sequence[Notice], pictures_first: bool = False
    ) -> None:
        """Add a case: its heading, text and pictures, or the pictures before the text."""
        badges = _case_badges(section.case, notices)
        cls = "case card pictures-first" if pictures_first else "case card"
        with self._viewer(section, cls, section.row.key) as viewer:
            if badges:
                viewer["data-warned"] = ""
            with tags.h2(tags.a(section.case, href=f"#{section.row.key}"), " "):
                page_parts.badges(badges)
            if pictures_first:
                self._rows(section, notices)
            with tags.div(cls="about"):
                page_parts.prompt_line(section.prompt)
                page_parts.bullet_list(section.notes, "notes")
            viewer_parts.slice_slider(f"Slice of {section.case}")
            if not pictures_first:
                self._rows(section, notices)

    def _rows(self, section: _CaseSection, notices: Sequence[Notice]) -> None:
        """Add a row for each attribute, beside the case's own volumes."""
        own = [p for p in section.pictures if not p.attribute]
        attributes = list(dict.fromkeys(p.attribute for p in section.pictures if p.attribute))
        if not attributes:
            self._row(section, own, notices)
            return
        beside = [p for p in own if p.role]
        beside.sort(key=lambda p: p.role != "real")
        rest = [p for p in own if not p.role]
        for number, attribute in enumerate(attributes):
            tags.h3(attribute)
            varied = [p for p in section.pictures if p.attribute == attribute]
            last = rest if number == len(attributes) - 1 else []
            self._row(section, [*beside, *varied, *last], notices)

    def _row(
        self, section: _CaseSection, pictures: Sequence[_Picture], notices: Sequence[Notice]
    ) -> None:
        with tags.div(cls="panels together", style=f"--columns:{len(pictures)}"):
            for picture in pictures:
                shown = replace(
                    picture.slice,
                    title=_short_title(picture),
                    limit=self._limit(picture.attribute),
                    badges=picture.badges(section.case, notices),
                )
                with shown.add():
                    if shown.kind == "mask":
                        viewer_parts.label_legend(sorted(self._labels), self.terms.label_names)


def _short_title(picture: _Picture) -> str:
    """Return a title for a row whose heading names the attribute."""
    if not picture.attribute:
        return picture.slice.title
    if picture.role == "control":
        return "control: other noise"
    return " minus ".join(reversed(picture.values))


def _pictures_of(section: _CaseSection, attribute: str, values: tuple[str, ...]) -> list[_Picture]:
    return [p for p in section.pictures if p.attribute == attribute and p.values == values]


def _case_badges(case: str, notices: Sequence[Notice]) -> list[str]:
    return [n.badge for n in notices if n.badge and n.concerns_case(case)]


def meaningless_attributes(notices: Sequence[Notice]) -> list[str]:
    """Return the attributes, and "ATTRIBUTE=VALUE", whose effects mean nothing."""
    return [
        f"{notice.column}={notice.value}" if notice.value else notice.column
        for notice in notices
        if notice.badge in MEANINGLESS
    ]
