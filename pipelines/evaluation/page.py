"""Page of an evaluation: the verdict, pairs in the viewer, every metric beside its baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dominate import tags

from pipelines.evaluation.baselines import Metric
from pipelines.evaluation.charts import HISTOGRAM, TEXTURE
from pipelines.evaluation.counterfactuals.axiom_rows import CounterfactualReport
from pipelines.evaluation.counterfactuals.page import add_counterfactuals
from pipelines.evaluation.memorisation import CopyCheck, CopyVerdict
from pipelines.evaluation.pictures import PicturedPair
from pipelines.evaluation.verdict import interpret_metric
from util.cli import counted
from util.modality import CT, Terms
from util.web import page_links, page_parts, viewer_parts
from util.web.figures import Window

WEB = "web"  # folder of scripts and voxels
SECTIONS: Mapping[str, tuple[str, str]] = {
    "realism": (
        "Realism",
        "Distances between the real and the synthetic set, in the features of a network. Smaller "
        "is better. No set can be expected below the baseline, the distance between two random "
        "halves of the real scans, or parts as large as the synthetic set where that is smaller. "
        "Compare the column “at the baseline's size” with the baseline, because both are of "
        "equally many volumes and FID falls with their number. With fewer volumes than some "
        "hundreds, read KID or MMD: they do not depend on the number. Only metrics of the same "
        "network, grid and number of volumes can be compared.",
    ),
    "hu": (
        "Density in HU",
        "Density of the lungs within the masks. A difference of 0 is right. A difference within "
        "the baseline is as large as chance makes it between two random parts of the real scans.",
    ),
    "texture": (
        "Texture of the lungs",
        "Detail is what remains after a Gaussian mean of 3 mm is subtracted. The power spectrum "
        "says how strong structures of each size are. A generator that is too smooth has less "
        "detail and less power at fine periods. A difference of 0 is right, and one within the "
        "baseline is as large as chance makes it.",
    ),
    "mask": (
        "Faithful to the mask",
        "The lungs are segmented in the volume and compared with the mask it was made from. The "
        "ceiling is the overlap that a segmentation reaches on real scans.",
    ),
    "text": (
        "Text shows in the picture",
        "A predictor fitted to real scans reads the attribute from synthetic ones. An AUC of 0.5, "
        "a correlation of 0, or the baseline with shuffled rows means that the text does not "
        "show. More than real scans reach means an effect that is too clean. Controls from "
        "shuffled or empty prompts should be at the baseline; an effect left there comes from the "
        "mask.",
    ),
    "diversity": (
        "Diversity",
        "Similarity of volumes (1: equal). Synthetic pairs should be about as similar as real "
        "ones.",
    ),
    "pairs": (
        "Closeness to the case's own scan",
        "A volume from a case's mask and text need not be the scan, because noise and whatever is "
        "not in the table differ. These metrics only compare models.",
    ),
    "planes": ("Realism, plane by plane", "The three parts of the 2.5D FID."),
}
COPIES_TEXT = (
    "Compared are the details inside the lungs (1 − correlation: 0 is the same scan, about 1 "
    "another patient), and, for pairs that do not share a mask, features of the whole volume. A "
    "volume is called a copy where a real scan of a new patient would be as close with a chance "
    "below 1 in 10 000. “Closer than real” alone happens by chance where few real scans were "
    "compared."
)
COLUMNS = {
    "name": "metric",
    "verdict": "reading",
    "value": "value",
    "floor": "baseline",
    "floor_high": "baseline, 95 %",
    "matched": "at the baseline's size",
    "low": "95 % from",
    "high": "to",
    "ceiling": "real scans reach",
    "note": "note",
}
CHARTS = {
    "hu": (HISTOGRAM, "Histograms of lung voxels, real and synthetic"),
    "texture": (
        TEXTURE,
        "Detail SD of every volume, and the radial power spectrum of the lungs, real and synthetic",
    ),
}


@dataclass(frozen=True)
class CopyReport:
    """Results of the check for copies."""

    cases: Sequence[str]
    verdicts: Sequence[CopyVerdict]
    check: CopyCheck

    @property
    def by_case(self) -> dict[str, CopyVerdict]:
        """The verdict on each volume by its name."""
        return dict(zip(self.cases, self.verdicts, strict=True))


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Content of the page.

    Attributes:
        verdict: The outcome in a sentence.
        pictures: Pairs of a volume and a scan, the first of which comes first; at least one.
        window: Lowest and highest HU compared.
        links: Address of tables and other pages by their text.
        facts: The sets and the grid compared, by name.
        networks: The feature networks with the digests of their weights, by name.
        warnings: Warnings at the top of the page.
        metrics: All metrics, in the order of `SECTIONS` by their groups.
        copies: The check for copies, where there were training scans.
        left_out: Metrics that were not computed, and what they need.
        options: The command's options.
        conclusive: Whether there are enough scans to interpret the metrics.
        counterfactuals: The axioms of changed volumes; None where there are none.
        terms: Unit and words of the modality.
    """

    verdict: str
    pictures: Sequence[PicturedPair]
    window: Window
    links: Mapping[str, str]
    facts: Mapping[str, str]
    networks: Mapping[str, str]
    warnings: Sequence[str]
    metrics: Sequence[Metric]
    copies: CopyReport | None
    left_out: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    conclusive: bool = True
    counterfactuals: CounterfactualReport | None = None
    terms: Terms = CT


def metric_frame(metrics: Sequence[Metric], conclusive: bool) -> pd.DataFrame:
    """Return metrics as a table, interpreted where there are enough scans.

    Columns without content are left out, and the digests of networks, which stand at the end of
    the page.
    """
    rows = []
    for metric in metrics:
        verdict = interpret_metric(metric) if conclusive else ""
        note = "" if metric.group == "realism" else page_parts.typeset(metric.note)
        rows.append(metric.row() | {"verdict": verdict, "note": note})
    frame = pd.DataFrame(rows)[list(COLUMNS)].rename(columns=COLUMNS)
    is_empty = frame.isna().all() | (frame.astype(str) == "").all()
    return frame.loc[:, ~is_empty]


def write_report(folder: Path, title: str, content: ReportContent) -> Path:
    """Write report.html; return it.

    Args:
        folder: Folder of the page, of its pictures and charts.
        title: Heading.
        content: Content of the page.
    """
    scripts = (*viewer_parts.SCRIPTS, *page_links.SCRIPTS)
    page_parts.copy_assets(folder / WEB, "page.css", *viewer_parts.SCRIPTS)
    page_links.copy_link_assets(folder / WEB)
    document = page_parts.new_document(title, f"{WEB}/", scripts=scripts)
    labels = sorted({label for pair in content.pictures for label in pair.row.labels})
    terms = content.terms
    config = viewer_parts.viewer_config(content.window, 0.0, labels, voxels=f"{WEB}/", terms=terms)
    document.body["data-config"] = json.dumps(config)
    first, *others = content.pictures
    with document.body:
        page_parts.page_header(
            title,
            tags.p(page_parts.typeset(content.verdict), cls="headline"),
            cautions=(page_parts.RESEARCH_ONLY,),
            links=content.links,
        )
        with tags.main():
            tags.noscript(tags.p("The slices need JavaScript.", cls="note"))
            _add_toolbar(bool(labels), terms)
            _add_pair(first, "card clearest", terms)
            with page_parts.card("Read before judging", id="warnings"):
                page_parts.bullet_list(content.warnings, "cautions warnings")
                page_parts.bullet_list(page_parts.CAUTIONS[1:], "notes-plain")
            for pair in others:
                _add_pair(pair, "case card", terms)
            with tags.div(cls="cards"):
                _add_metrics(content)
                if content.counterfactuals is not None and content.counterfactuals.rows:
                    add_counterfactuals(content.counterfactuals)
                with page_parts.card("What was compared", "wide"):
                    page_parts.key_table(content.facts)
                    if content.left_out:
                        with page_parts.fold("Not measured, and what it needs"):
                            page_parts.bullet_list(content.left_out)
                page_parts.option_tables(content.options, "Options of this evaluation")
                with page_parts.card("Networks and their weights", "wide", id="hashes"):
                    page_parts.key_table(content.networks, "hash")
    return page_parts.write_document(document, folder / "report.html", terms)


def _add_toolbar(with_masks: bool, terms: Terms) -> None:
    with viewer_parts.toolbar("View of all pairs"):
        viewer_parts.plane_and_window("axial", terms)
        viewer_parts.limit_choice(by="pair")
        viewer_parts.overlay_choice()
        if with_masks:
            page_parts.check_box("lines", "Outlines")
        viewer_parts.size_choice()


def _add_pair(picture: PicturedPair, cls: str, terms: Terms) -> None:
    """Add a volume beside a scan; their pictures move together."""
    pair = picture.pair
    with tags.section(cls=cls, id=picture.row.key, **picture.row.attributes()):
        with tags.h2(f"{pair.heading} "):
            page_parts.badges(pair.badges)
            tags.span(pair.caption, cls="about-pair")
        picture.row.add(picture.limit, terms.label_names)
        viewer_parts.slice_slider(f"Slice of {pair.synthetic.case}")


def _add_metrics(content: ReportContent) -> None:
    if content.copies is not None:
        _add_copies(content.copies)
    for group, (heading, text) in SECTIONS.items():
        metrics = [m for m in content.metrics if m.group == group]
        if not metrics:
            continue
        with page_parts.card(heading, "wide evidence", id=group):
            page_parts.note(text)
            page_parts.frame_table(metric_frame(metrics, content.conclusive))
            if group in CHARTS:
                page_parts.chart(*CHARTS[group])


def _add_copies(copies: CopyReport) -> None:
    copied = sum(verdict.copy for verdict in copies.verdicts)
    edits = sum(bool(verdict.edit_of) for verdict in copies.verdicts)
    alarms = sum(verdict.alarm for verdict in copies.verdicts)
    with page_parts.card("Memorisation", "wide"):
        tags.p(
            f"Called copies of a training scan: {copied} of "
            f"{counted(len(copies.verdicts), 'volume')}; closer to one than any real scan is: "
            f"{alarms}.",
            cls="cautions" if copied else "",
        )
        if edits:
            page_parts.note(
                f"{counted(edits, 'volume is a declared edit', 'volumes are declared edits')} of a "
                "training scan. Each is close to its source by design and no leak of the "
                "generator; it is compared with the other scans."
            )
        page_parts.note(COPIES_TEXT)
        if not copies.check.conclusive:
            page_parts.note(
                "Too few real scans to say what is too close: the threshold is only half of the "
                "smallest distance among them."
            )
        with page_parts.fold("Every volume"):
            page_parts.frame_table(copy_frame(copies))


def copy_frame(copies: CopyReport) -> pd.DataFrame:
    """Return one row per volume, the closest first.

    A row holds the verdict, and by detail and by features the nearest training scan, its distance
    and the thresholds.
    """
    pairs = sorted(
        zip(copies.cases, copies.verdicts, strict=True), key=lambda pair: pair[1].image.distance
    )
    any_edit = any(verdict.edit_of for verdict in copies.verdicts)
    rows = []
    for case, verdict in pairs:
        row: dict[str, Any] = {
            "case": case,
            "copy": "yes" if verdict.copy else "no",
            "closer than real": "yes" if verdict.alarm else "no",
        }
        if any_edit:
            row["declared edit of"] = verdict.edit_of
        for name, nearest in (("detail", verdict.image), ("features", verdict.feature)):
            if nearest is not None:
                row[f"nearest by {name}"] = nearest.case
                row[f"distance, {name}"] = nearest.distance
                row[f"threshold, {name}"] = nearest.threshold
                row[f"closest real, {name}"] = nearest.closest_real
        rows.append(row)
    return pd.DataFrame(rows)
