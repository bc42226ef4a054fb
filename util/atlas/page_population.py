"""The population page of an atlas: what holds over all patients, beside the real scans, with controls and cautions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from util import html
from util.atlas import page_parts as parts
from util.atlas.charts import contrasts_shown
from util.atlas.page_case import case_file
from util.atlas.page_maps import map_choices, maps_section
from util.atlas.sentences import hu, interval, region_name
from util.figures import Window

RULES = (
    "A finding is larger than every permuted refit, has the sign of the adjusted difference in the real scans, and that "
    "one's interval excludes 0 with the false-discovery rate controlled. Nothing else on this page is called one.",
    "All pictures come from one trained network. The range over patients is no uncertainty; intervals come from refits.",
    "Differences are associations in these data, not what would happen to a patient.",
)
NULLS = {"other noise": "The own row, generated with other noise", "re-ordered": "The own row, its phrases in another order",
         "re-worded": "The own row in other words"}


@dataclass(frozen=True)
class Population:
    """What the page is made of.

    Attributes:
        record: atlas.json.
        limit: Range of differences, HU.
        volumes: Kind and step of each map written for the page.
        grid: Of the maps.
        figures: Stems of the figures in `figures/`.
        cases: Cases with a page, with their prompts.
        files: Tables to link to.
    """

    record: Mapping[str, Any]
    limit: float
    volumes: Mapping[str, Any]
    grid: Mapping[str, Any]
    figures: Sequence[str]
    cases: Mapping[str, str]
    files: Sequence[str]

    def frame(self, name: str) -> pd.DataFrame:
        """A table of atlas.json."""
        return pd.DataFrame(self.record[name])

    @property
    def labels(self) -> dict[str, str]:
        """Contrasts for people."""
        return {c["contrast"]: c["label"] for c in self.record["contrasts"]}


def write_population_page(folder: Path, p: Population, window: Window) -> Path:
    """Writes `folder`/index.html and returns it."""
    title = f"Counterfactual atlas of {p.record['run']}"
    document = html.new_document(title, "web/")
    config = parts.viewer_config(p.grid, "web/maps/", p.volumes, p.limit, window)
    document.body["data-config"] = json.dumps(config | {"mask": "", "zones": [], "choices": map_choices(p.record)})
    with document.head:
        parts.head("web/", "slices.js", "atlas.js", "atlas_maps.js")
    with document:
        with tags.header(cls="top"):
            tags.h1(title)
            tags.p(p.record["summary"], cls="summary" if p.record["conclusive"] else "summary inconclusive")
            html.cautions(RULES)
        with tags.main():
            with tags.div(cls="cards"):
                _found(p)
                _cautions(p)
            _forest(p)
            _heat_map(p)
            maps_section(p.record, p.limit, p.figures)
            _agreement(p)
            with tags.div(cls="cards"):
                _controls(p)
                _doses(p)
                _spike(p)
            _patients(p)
            _cohort(p)
            _methods(p)
            html.options_list(p.record["settings"], "Settings of this atlas")
    return html.write_document(document, folder / "index.html")


def _figure(stem: str, text: str, figures: Sequence[str]) -> None:
    """A chart with links to its files."""
    if stem not in figures:
        return
    with tags.figure(cls="chart"):
        tags.img(src=f"figures/{html.link(stem)}.svg", alt=text)
        with tags.figcaption():
            tags.span(text)
            parts.figure_links(stem)


def _found(p: Population) -> None:
    for name, title, none in (
            ("findings", "Findings", "None: nothing meets the rules above."),
            ("not_found", "Looked for: not found, or not judged", "Nothing else was looked at.")):
        with tags.section(cls="card" if p.record["findings"] else "card wide"):
            tags.h2(title)
            rows = p.record[name]
            with tags.ol(cls="sentences"):
                for row in rows:
                    tags.li(parts.typeset(row["sentence"]))
            if not rows:
                tags.p(none, cls="note")


def _cautions(p: Population) -> None:
    rows = p.frame("cautions")
    with tags.section(cls="card wide"):
        tags.h2("Cautions")
        if not len(rows):
            tags.p("None beyond those above.", cls="note")
            return
        for forbids, title in (("yes", "These forbid a claim"), ("no", "Keep in mind")):
            texts = rows.loc[rows["forbids"] == forbids, "text"].tolist()
            if texts:
                tags.h3(title)
                tags.ul(*(tags.li(text) for text in texts), cls=f"caution-list {'forbid' if forbids == 'yes' else ''}")


def _forest(p: Population) -> None:
    with tags.section(cls="card"):
        tags.h2("How much: generated beside real, both lungs")
        refitted = p.frame("tests")["refit_low_hu"].notna().any() if p.record["tests"] else False
        lead = "" if refitted else "There are no intervals of the generated differences, for there are too few refits. "
        _figure("forest", lead + "Every row is one change of one attribute. Blue: what the network generates, mean over "
                "patients. Orange: the real scans, adjusted for the other columns and for lung volume.", p.figures)
        slopes = p.frame("effects")
        slopes = slopes[(slopes["kind"] == "slope") & (slopes["region"] == "lungs")] if len(slopes) else slopes
        for row in slopes.to_dict("records"):
            tags.p(parts.typeset(f"{p.labels[row['contrast']]}: {row['generated_hu']:+.2f} HU in both lungs (generated)."),
                   cls="note")


def _heat_map(p: Population) -> None:
    with tags.section(cls="card"):
        tags.h2("Where: attributes by region")
        _figure("heat_map", "Generated difference in HU, mean over patients and over the region without vessels. "
                + ("Framed: findings. " if p.record["findings"] else "No cell is a finding. ")
                + "The regions right of the line are controls, in which little should change.", p.figures)


def _agreement(p: Population) -> None:
    with tags.section(cls="card"):
        tags.h2("Do the real scans agree?")
        tags.p("A point on the dashed line: the network changes both lungs as much as the real groups differ after "
               "adjustment. Where the model was trained on those scans, agreement shows that it learnt them, not more.",
               cls="note")
        _figure("agreement", "Generated against real difference of both lungs, with the 95 % interval of the real one.",
                p.figures)
        tests = contrasts_shown(p.frame("tests")) if p.record["tests"] else pd.DataFrame()
        if len(tests):
            html.frame_table(pd.DataFrame({
                "change": tests["contrast"].map(p.labels), "generated HU": tests["generated_hu"].map(_hu),
                "real HU [95 % interval]": [_real(r) for r in tests.to_dict("records")], "real scans": tests["real_cases"],
                "agreement": tests["agreement"], "verdict": tests["verdict"], "why": tests["why"].fillna("")}))
        real = p.frame("real")
        if len(real):
            with tags.details():
                tags.summary("Other adjustments of the real scans, both lungs")
                shown = real[real["region"] == "lungs"]
                html.frame_table(pd.DataFrame({
                    "change": shown["contrast"].map(p.labels), "adjustment": shown["adjustment"],
                    "adjusted for": shown["adjusted_for"].fillna(""), "scans": shown["cases"],
                    "real HU [95 % interval]": [_real({**r, "real_low_hu": r["low_hu"], "real_high_hu": r["high_hu"]})
                                                for r in shown.to_dict("records")],
                    "why none": shown["reason"].fillna("")}))


def _real(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["real_hu"]):
        return "no estimate"
    return parts.typeset(f"{hu(row['real_hu'])} {interval(row['real_low_hu'], row['real_high_hu'])}")


def _hu(value: float) -> str:
    return parts.typeset(hu(value))


def _controls(p: Population) -> None:
    controls = p.frame("controls")
    with tags.section(cls="card"):
        tags.h2("Controls: what changes where nothing should")
        if len(controls):
            shown = controls[controls["region"].isin(["lungs", "outside"])]
            html.frame_table(pd.DataFrame({
                "changed": shown["control"].map(NULLS), "region": shown["region"].map(region_name),
                "mean size (HU)": shown["mean_abs_hu"].map("{:.2f}".format),
                "largest patient (HU)": shown["max_abs_hu"].map("{:.2f}".format),
                "a voxel (HU)": shown["voxel_abs_hu"].map("{:.1f}".format)}))
        null = p.record["null_column"]
        tests = contrasts_shown(p.frame("tests")) if p.record["tests"] else pd.DataFrame()
        for row in tests[tests["column"] == null].to_dict("records") if null and len(tests) else []:
            tags.p(f"{null} is known to have no effect. {p.labels[row['contrast']]}: {_hu(row['generated_hu'])} HU "
                   "in both lungs.")
        kinds = [r["kind"] for r in p.record["refits"]]
        tags.p(f"Refits on resampled patients: {kinds.count('resampled')}. Permuted refits: {kinds.count('permuted')}.",
               cls="note")


def _doses(p: Population) -> None:
    if "doses" in p.figures:
        with tags.section(cls="card"):
            tags.h2("Along the values of a number")
            _figure("doses", "Mean change of both lungs against the lowest value; the band is one standard deviation over "
                    "patients, not an uncertainty.", p.figures)


def _spike(p: Population) -> None:
    if p.record.get("spike"):
        with tags.section(cls="card"):
            tags.h2("What came back of the planted effect")
            frame = p.frame("spike")
            html.frame_table(pd.DataFrame({
                "region": frame["region"].map(region_name), "planted HU": frame["planted_hu"].map(_hu),
                "generated HU": frame["generated_hu"].map(_hu),
                "share that came back": [f"{v:.0%}" if pd.notna(v) else "" for v in frame["recovered"]],
                "elsewhere or missing HU": frame["leaked_hu"].map(_hu)}))


def _patients(p: Population) -> None:
    with tags.section(cls="card", id="patients"):
        tags.h2("Patients, one by one")
        if not p.cases:
            tags.p("No volumes were kept (--volumes of scripts/discover.py), so there is no page of a patient.", cls="note")
        with tags.ul(cls="patients"):
            for case, prompt in p.cases.items():
                with tags.li():
                    tags.a(case, href=f"cases/{html.link(case_file(case))}.html")
                    tags.span(prompt or "nothing known", cls="prompt")


def _cohort(p: Population) -> None:
    with tags.details(cls="card"):
        tags.summary("Columns of the table, and which of them go together")
        frame = p.frame("attributes")
        html.frame_table(frame.fillna("").drop(columns=["missing_share"], errors="ignore"))
        ties = p.frame("ties")
        if len(ties):
            html.frame_table(ties, "{:.2f}".format)


def _methods(p: Population) -> None:
    with tags.section(cls="card"):
        tags.h2("Methods, ready to adapt")
        tags.p(p.record["methods"], cls="methods", id="methods")
    with tags.section(cls="card"):
        tags.h2("Files")
        tags.p("Everything on these pages as numbers; docs/atlas.md explains every column.", cls="note")
        with tags.ul(cls="files"):
            for name in p.files:
                tags.li(tags.a(name, href=html.link(name)))
