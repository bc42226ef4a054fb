"""The population page of an atlas: results over all patients, beside the real scans.

Controls and cautions stand on the page, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from pipelines.atlas.pages.adjustment_graph import LEGEND, adjustment_graph
from pipelines.atlas.pages.page_case import FIRST_PLANE
from pipelines.atlas.pages.page_maps import figure_links, map_choices, maps_section
from pipelines.atlas.pages.population import Population
from pipelines.atlas.pages.population_tables import (
    additivity_table,
    adjustment_table,
    agreement_table,
    bound_texts,
    change_text,
    control_table,
    curve_table,
    missing_table,
    negative_control_table,
    outcome_table,
    shape_table,
)
from pipelines.atlas.statistics.negative_controls import KIND
from pipelines.atlas.statistics.outcomes import MEAN, OUTCOMES
from pipelines.atlas.statistics.planted import planted_sentence
from pipelines.atlas.statistics.sentences import split_reason
from pipelines.atlas.statistics.shape import shape_sentences
from util.cli import counted
from util.metrics.regions import region_name
from util.modality import CT, Terms
from util.web import page_links, page_parts, viewer_parts
from util.web.figures import Window
from util.web.page_parts import typeset

TABLES = ("findings.csv", "tests.csv", "effects_by_case.csv", "methods.txt")  # linked at the top
RULES = (
    "A finding is larger than permuted refits reach in any region of the lungs (p at most 0.05), "
    "and has the sign of the adjusted difference in real scans that no network was trained on, "
    "whose interval excludes 0 with the false-discovery rate controlled. Nothing else on this page "
    "is called a finding.",
    "All pictures come from one trained network. The range over patients is not an uncertainty; "
    "intervals come from refits.",
    "Differences are associations in these data, not what would happen to a patient.",
)
EFFECTS = (
    "The first figure is of the generated volumes. Behind it stands the difference of the real "
    "scans with its 95 % interval: as total effect, adjusted for what comes before the attribute, "
    "and as direct effect, adjusted for other exposures, mediators and lung volume, too."
)


def write_population_page(folder: Path, p: Population, window: Window, terms: Terms = CT) -> Path:
    """Write `folder`/index.html and return its path."""
    title = f"Counterfactual atlas of {p.record['run']}"
    scripts = [*viewer_parts.SCRIPTS, "atlas_maps.js", *page_links.SCRIPTS]
    document = page_parts.new_document(title, "web/", ["atlas.css"], scripts)
    choices = map_choices(p.record)
    config = viewer_parts.viewer_config(
        window, p.limit, voxels="web/maps/", plane=FIRST_PLANE, terms=terms
    )
    document.body["data-config"] = json.dumps(config | {"choices": choices})
    cls = "summary" if p.record["conclusive"] else "summary inconclusive"
    with document:
        page_parts.page_header(
            title,
            tags.p(p.record["summary"], cls=cls),
            cautions=(page_parts.RESEARCH_ONLY,),
            links={name: name for name in TABLES if name in p.files},
        )
        with tags.main():
            maps_section(choices, p.grid, p.volumes, p.limit, p.figures)
            with page_parts.card("Read before judging", id="warnings"):
                page_parts.bullet_list((*page_parts.CAUTIONS[1:], *RULES), "cautions")
                page_parts.bullet_list(p.record.get("warnings", []), "cautions warnings")
            _negative_controls(p, terms)
            with tags.div(cls="cards"):
                _findings(p)
                _cautions(p)
            _forest(p)
            _heat_map(p)
            _outcomes(p)
            _shape(p)
            _agreement(p)
            _graphs(p)
            with tags.div(cls="cards"):
                _controls(p)
                _doses(p)
                _planted_effect(p)
            _patients(p)
            _cohort(p)
            _methods(p)
            page_parts.option_tables(p.record["settings"], "Settings of this atlas")
    return page_parts.write_document(document, folder / "index.html", terms)


def _figure(stem: str, text: str, figures: Sequence[str]) -> None:
    """Add a chart with links to its files, where it was drawn."""
    if stem in figures:
        address = f"figures/{page_parts.link(stem)}.svg"
        page_parts.chart(address, text, [tags.span(text), *figure_links(stem)])


def _negative_controls(p: Population, terms: Terms) -> None:
    """Add what changes though no disease can change it; it stands before any finding."""
    table = p.frame("negative_controls")
    warned = p.frame("cautions")
    texts = warned.loc[warned["kind"] == KIND, "text"].tolist() if len(warned) else []
    with page_parts.card("Negative controls: what no disease can change"):
        if texts:
            page_parts.bullet_list([typeset(text) for text in texts], "caution-list forbid")
        if not terms.is_ct:
            page_parts.note(
                "None are known for this modality. Whether groups were scanned differently is not "
                "known."
            )
            return
        if not len(table) or table["real"].isna().all():
            page_parts.note(
                "None could be measured: the scans hold too little air outside the body, the masks "
                "no wide airway, and no --control_labels were given. Whether groups were scanned "
                "differently is not known."
            )
            return
        regions = " and ".join(region_name(region) for region in table["region"].unique())
        tested = counted(table["p"].notna().sum(), "test")
        lead = "" if texts else "No attribute changes them. "
        if not texts and (table["moved"] == "yes").any():  # what acquisition does is no warning
            lead = "Only columns of acquisition change them, as expected. "
        page_parts.note(
            f"{lead}Mean and noise of {regions} were compared like the lungs ({tested}, "
            "false-discovery rate 5 %). An attribute that changes them is confounded by how scans "
            "were acquired, or by body size."
        )
        with page_parts.fold("All negative controls as a table"):
            page_parts.frame_table(negative_control_table(p, table))


def _findings(p: Population) -> None:
    """Add the findings, the mean of each contrast first, and what is not one."""
    width = "" if p.record["findings"] else "wide"
    with page_parts.card("Findings", width):
        by_contrast: dict[str, list[Mapping[str, Any]]] = {}
        for row in p.record["findings"]:
            by_contrast.setdefault(row["contrast"], []).append(row)
        with tags.ol(cls="sentences"):
            for rows in by_contrast.values():
                first, *further = sorted(rows, key=lambda row: row["outcome"] != MEAN)
                with tags.li(typeset(first["sentence"])):
                    _further_outcomes(further)
        if not by_contrast:
            page_parts.note("None: nothing meets the rules above.")
    with page_parts.card("Looked for: not found, or not judged", width):
        rows = p.record["not_found"]
        _by_reason([row for row in rows if row["outcome"] == MEAN])
        others = [row for row in rows if row["outcome"] != MEAN]
        if others:
            with page_parts.fold(f"The same of outcomes other than the mean ({len(others)})"):
                _by_reason(others)
        page_parts.note(EFFECTS if rows else "Nothing else was looked at.")


def _further_outcomes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Fold further outcomes in which a contrast is a finding."""
    if rows:
        names = ", ".join(OUTCOMES[row["outcome"]].label for row in rows)
        with page_parts.fold(f"Also in: {names}"):
            _sentence_list(rows)


def _by_reason(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add what is not a finding, each reason once, above the contrasts that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        text, reason = split_reason(row["sentence"])
        by_reason.setdefault(reason, []).append(text)
    for reason, texts in by_reason.items():
        if reason:
            tags.p(typeset(reason))
        tags.ol(*(tags.li(typeset(text)) for text in texts), cls="sentences")


def _sentence_list(rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        tags.ol(*(tags.li(typeset(row["sentence"])) for row in rows), cls="sentences")


def _cautions(p: Population) -> None:
    rows = p.frame("cautions")
    rows = rows[rows["kind"] != KIND] if len(rows) else rows
    with page_parts.card("Cautions", "wide"):
        if not len(rows):
            page_parts.note("None beyond those above.")
            return
        for forbids, title, cls in (
            ("yes", "These forbid a claim", "caution-list forbid"),
            ("no", "Keep in mind", "caution-list"),
        ):
            texts = rows.loc[rows["forbids"] == forbids, "text"].tolist()
            if texts:
                tags.h3(title)
                page_parts.bullet_list(texts, cls)


def _forest(p: Population) -> None:
    tests = p.frame("tests")
    text = (
        "Every row is one change of one attribute. Blue: generated, mean over patients. Orange: "
        "the real scans, adjusted as the table of agreement says."
    )
    if not len(tests) or not tests["refit_low"].notna().any():
        text = (
            "There are no intervals of the generated differences, because there are too few "
            f"refits. {text}"
        )
    with page_parts.card("How much: generated beside real, both lungs"):
        _figure("forest", text, p.figures)
        for row in p.record["effects"]:
            is_mean = row["outcome"] == MEAN and row["region"] == "lungs"
            if row["kind"] == "slope" and is_mean:
                label = p.labels[row["contrast"]]
                change = f"{row['generated']:+.2f} HU in both lungs (generated)."
                page_parts.note(typeset(f"{label}: {change}"))


def _heat_map(p: Population) -> None:
    framed = "Framed: findings." if p.record["findings"] else "No cell is a finding."
    with page_parts.card("Where: attributes by region"):
        _figure(
            "heat_map",
            "Generated difference in HU, mean over patients and over the region. "
            f"{framed} The regions right of the line are controls, in which little should change.",
            p.figures,
        )


def _outcomes(p: Population) -> None:
    with page_parts.card("What: attributes by outcome, both lungs"):
        _figure(
            "outcomes",
            "Generated difference in each outcome, measured in every volume before volumes are "
            "compared. HU, or percentage points of the lung's voxels. Colours are multiples of "
            "what is negligible in each outcome. Framed: findings.",
            p.figures,
        )
        tests = p.frame("tests")
        if len(tests):
            shown = tests[(tests["region"] == "lungs") & (tests["kind"] != "slope")]
            with page_parts.fold("All outcomes as a table; every region is in tests.csv"):
                page_parts.frame_table(outcome_table(p, shown))


def _shape(p: Population) -> None:
    """Add what the masks show, which generated volumes cannot."""
    shape = p.frame("shape")
    with page_parts.card("Shape: lungs and airways in the masks"):
        page_parts.note(
            "The mask is held fixed, so that generated volumes cannot show a change of size. These "
            "are differences between the masks themselves: volume by side, height, and volume of "
            "the airways, total effects with 95 % intervals."
        )
        if not len(shape):
            page_parts.note("No masks were compared.")
            return
        sentences = shape_sentences(shape, p.labels)
        if sentences:
            page_parts.bullet_list([typeset(text) for text in sentences], "sentences")
        else:
            page_parts.note("No contrast differs (false-discovery rate 5 %).")
        with page_parts.fold("All measurements of the masks as a table"):
            page_parts.frame_table(shape_table(p, shape))


def _agreement(p: Population) -> None:
    with page_parts.card("Do the real scans agree?"):
        page_parts.note(
            "Total effect: all that an attribute does to the lungs, adjusted for what comes before "
            "it. Direct effect: what is left with the other columns and the lung volume held "
            "fixed, as the generator holds them; it is compared with the generated difference."
        )
        page_parts.note(
            "A point on the dashed line: the network changes both lungs as much as the real groups "
            "differ after adjustment. Where the model was trained on those scans, agreement only "
            "shows that it learnt them."
        )
        _figure(
            "agreement",
            "Generated against real difference of both lungs; 95 % intervals, of the real one "
            "across, over refits (where there are any) upwards.",
            p.figures,
        )
        tests = p.lung_tests()
        if len(tests):
            page_parts.frame_table(agreement_table(p, tests))
        real = p.frame("real")
        if len(real):
            with page_parts.fold("Other adjustments of the real scans, both lungs"):
                is_shown = (real["region"] == "lungs") & (real["outcome"] == MEAN)
                page_parts.frame_table(adjustment_table(p, real[is_shown]))
        additivity = p.frame("additivity")
        if len(additivity):
            with page_parts.fold("Does the effect differ by sex or age? Is it a straight line?"):
                page_parts.note(
                    "Tests of what an additive model of the real scans leaves out, mean of both "
                    "lungs; q is the false-discovery rate over these tests. Beside them stands "
                    "the effect that was generated for patients with either value (of a number: a "
                    "line through all patients); intervals of their difference come from refits."
                )
                page_parts.frame_table(additivity_table(additivity))
                curves = p.frame("curves")
                if len(curves):
                    page_parts.note("Splines of numbers, against their lowest value:")
                    page_parts.frame_table(curve_table(curves))
        missing = p.frame("missing")
        if len(missing):
            with page_parts.fold("What if unknown cells are not missing at random?"):
                page_parts.note(
                    "Unknown covariates are imputed (multiple imputation by chained equations), "
                    "assuming that cells are missing at random. Below, imputed values of one "
                    "column at a time are moved, and the estimates are repeated, both lungs."
                )
                page_parts.frame_table(missing_table(p, missing))


def _graphs(p: Population) -> None:
    rows = p.record["adjustment"]
    roles = {row["column"]: row["role"] for row in p.record["attributes"]}
    with page_parts.card("What the real scans are adjusted for", id="adjustment"):
        page_parts.note(
            "Arrows lead from causes to effects, as the roles of the columns say. What comes after "
            "(outcomes, columns that depend on others) is never adjusted for: adjusting for a "
            "common effect makes associations (a collider). To move a column, change its role in "
            "the template, and build the atlas again with --roles TEMPLATE.yaml (see "
            "docs/reference/templates.md). The run need not be trained again."
        )
        with tags.ul(cls="graph-key"):
            for cls, text in LEGEND:
                tags.li(tags.i(cls=cls), text)
        for number, column in enumerate(dict.fromkeys(row["column"] for row in rows)):
            with page_parts.fold(column, open=number == 0):
                of_column = [row for row in rows if row["column"] == column]
                is_outcome = roles.get(column) == "outcome"
                adjustment_graph(column, of_column, number, is_outcome=is_outcome)


def _controls(p: Population) -> None:
    controls = p.frame("controls")
    with page_parts.card("Controls: what changes where nothing should"):
        if len(controls):
            page_parts.frame_table(control_table(controls))
        null = p.record["null_column"]
        tests = p.lung_tests()
        if null and len(tests):
            for row in tests[tests["column"] == null].to_dict("records"):
                tags.p(
                    f"{null} is known to have no effect. {p.labels[row['contrast']]}: "
                    f"{change_text(row['generated'])} HU in both lungs."
                )
        kinds = [refit["kind"] for refit in p.record["refits"]]
        page_parts.note(
            f"Refits on resampled patients: {kinds.count('resampled')}. Permuted refits: "
            f"{kinds.count('permuted')}."
        )


def _doses(p: Population) -> None:
    if "doses" in p.figures:
        with page_parts.card("Along the values of a number"):
            _figure(
                "doses",
                "Mean change of both lungs against the lowest value; the band is one standard "
                "deviation over patients, not an uncertainty.",
                p.figures,
            )
            if "doses_outcomes" in p.figures:
                with page_parts.fold("The same of outcomes other than the mean"):
                    _figure(
                        "doses_outcomes",
                        "Change of each outcome of both lungs against the lowest value, measured "
                        "in every volume before volumes are compared.",
                        p.figures,
                    )


def _planted_effect(p: Population) -> None:
    if not p.record.get("spike"):
        return
    frame = p.frame("spike")
    recovered = ["" if pd.isna(share) else f"{share:.0%}" for share in frame["recovered"]]
    with page_parts.card("How much of the planted effect was recovered"):
        page_parts.note(planted_sentence(frame))
        page_parts.frame_table(
            pd.DataFrame(
                {
                    "region": frame["region"].map(region_name),
                    "planted HU": frame["planted_hu"].map(change_text),
                    "generated HU": frame["generated_hu"].map(change_text),
                    "bias HU": frame["leaked_hu"].map(change_text),
                    "share recovered": recovered,
                    "generated, 95 % interval": bound_texts(frame, "generated"),
                    "holds the truth": frame["generated_holds"].fillna(""),
                    "real scans, 95 % interval": bound_texts(frame, "real"),
                    "real: holds the truth": frame["real_holds"].fillna(""),
                }
            )
        )


def _patients(p: Population) -> None:
    with page_parts.card("Patients, one by one", id="patients"):
        if not p.cases:
            page_parts.note(
                "No volumes were kept (--volumes of scripts/build_atlas.py), so there is no page "
                "of a patient."
            )
        with tags.ul(cls="patients"):
            for case, prompt in p.cases.items():
                with tags.li():
                    tags.a(case, href=f"cases/{page_parts.link(p.pages[case])}.html")
                    tags.span(prompt or "nothing known", cls="prompt")


def _cohort(p: Population) -> None:
    with page_parts.fold("Columns of the table, and their associations", "card"):
        columns = p.frame("attributes").fillna("")
        page_parts.frame_table(columns.drop(columns=["missing_share"], errors="ignore"))
        associations = p.frame("ties")
        if len(associations):
            page_parts.frame_table(associations, "{:.2f}".format)


def _methods(p: Population) -> None:
    with page_parts.card("Methods, ready to adapt"):
        tags.p(p.record["methods"], cls="methods", id="methods")
    with page_parts.card("Files"):
        page_parts.note(
            "Everything on these pages as numbers; docs/reference/atlas_tables.md explains every "
            "column."
        )
        with tags.ul(cls="files"):
            for name in p.files:
                tags.li(tags.a(name, href=page_parts.link(name)))
