"""Page of an evaluation: every metric beside its baseline, and pictures of the closest pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dominate import tags
from matplotlib.figure import Figure

from pipelines.evaluation.baselines import Metric
from pipelines.evaluation.counterfactual_page import add_counterfactuals
from pipelines.evaluation.counterfactuals import CounterfactualReport
from pipelines.evaluation.measurements import HU_BINS, VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck, CopyVerdict
from util.web import page_parts

SECTIONS: Mapping[str, tuple[str, str]] = {
    "realism": (
        "Realism",
        "Distances between the real and the synthetic set, in the features of a network. Smaller "
        "is better. No set can be expected below the baseline, the distance between two random "
        "halves of the real scans. Compare the column “at the baseline's size” with the baseline, "
        "because both are of equally many volumes and FID falls with their number. Only metrics "
        "of the same network, grid and number of volumes can be compared.",
    ),
    "hu": (
        "Density in HU",
        "Density of the lungs within the masks. A difference of 0 is right. A difference within "
        "the baseline is as large as chance makes it between two halves of the real scans.",
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
    "value": "value",
    "low": "95 % from",
    "high": "to",
    "matched": "at the baseline's size",
    "floor": "baseline",
    "floor_high": "baseline, 95 %",
    "ceiling": "real scans reach",
    "verdict": "reading",
    "note": "note",
}
BIN_HU = 10  # width of the bins in the picture of the histograms
WITHIN = "within the baseline"
BEYOND = "beyond the baseline"


@dataclass(frozen=True)
class CopyReport:
    """Results of the check for copies.

    Attributes:
        cases: The volumes.
        verdicts: The verdict on each.
        check: The check.
        pictures: Link and caption of each picture of a closest pair.
    """

    cases: Sequence[str]
    verdicts: Sequence[CopyVerdict]
    check: CopyCheck
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ReportContent:
    """Content of the page.

    Attributes:
        facts: The sets, grid and networks compared, by name.
        warnings: Warnings at the top of the page.
        metrics: All metrics, in the order of `SECTIONS` by their groups.
        copies: The check for copies, where there were training scans.
        left_out: Metrics that were not computed, and what they need.
        options: The command's options.
        conclusive: Whether there are enough scans to interpret the metrics.
        counterfactuals: The axioms of changed volumes; None where there are none.
    """

    facts: Mapping[str, str]
    warnings: Sequence[str]
    metrics: Sequence[Metric]
    copies: CopyReport | None
    left_out: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    conclusive: bool = True
    counterfactuals: CounterfactualReport | None = None


def interpret_metric(metric: Metric) -> str:
    """Return a metric's relation to its baseline in words; empty where it has none."""
    if not np.isfinite(metric.baseline):
        return ""
    if metric.better == "zero":
        return WITHIN if abs(metric.value) <= metric.baseline_high else BEYOND
    if metric.better == "near":
        more_alike = metric.low > metric.baseline_high
        return "more alike than real pairs" if more_alike else "as real pairs or less alike"
    if metric.group == "text":
        shows = metric.value < metric.baseline_high
        if metric.better == "high":
            shows = metric.value > metric.baseline_high
        return "text shows" if shows else "no more than chance"
    size = metric.matched if np.isfinite(metric.matched) else metric.value
    return WITHIN if size <= metric.baseline_high else BEYOND


def metric_frame(metrics: Sequence[Metric], conclusive: bool) -> pd.DataFrame:
    """Return metrics as a table, interpreted where there are enough scans.

    Columns without content are left out.
    """
    rows = []
    for metric in metrics:
        verdict = interpret_metric(metric) if conclusive else ""
        rows.append(metric.row() | {"verdict": verdict})
    frame = pd.DataFrame(rows)[list(COLUMNS)].rename(columns=COLUMNS)
    is_empty = frame.isna().all() | (frame.astype(str) == "").all()
    return frame.loc[:, ~is_empty]


def draw_histogram(
    path: Path, real: Sequence[VolumeMeasurements], synthetic: Sequence[VolumeMeasurements]
) -> None:
    """Draw the lungs' histograms, a mean over volumes, as SVG."""
    figure = Figure(figsize=(7, 2.6))
    axes = figure.add_subplot()
    for name, volumes, colour in (("real", real, "#5c6878"), ("synthetic", synthetic, "#2563a8")):
        shares = np.mean([v.histogram / max(v.histogram.sum(), 1) for v in volumes], 0)
        end = len(shares) // BIN_HU * BIN_HU
        wide = shares[:end].reshape(-1, BIN_HU).sum(1)
        axes.plot(
            HU_BINS[:end:BIN_HU] + 4.5,
            100 * wide,
            label=f"{name} ({len(volumes)})",
            color=colour,
        )
    axes.set(xlim=(-1050, -300), xlabel="HU", ylabel="% of lung per 10 HU")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, format="svg", bbox_inches="tight")


def write_report(folder: Path, title: str, content: ReportContent, histogram: str = "") -> Path:
    """Write report.html; return it.

    Args:
        folder: Folder of the page and of `page.css`.
        title: Heading.
        content: Content of the page.
        histogram: Link to the picture of the lungs' histograms.
    """
    page_parts.copy_assets(folder, "page.css")
    document = page_parts.new_document(title)
    with document.body:
        page_parts.page_header(title, cautions=(*page_parts.CAUTIONS, *content.warnings))
        with tags.main(), tags.div(cls="cards"):
            _add_facts(content.facts, content.left_out)
            if content.copies is not None:
                _add_copies(content.copies)
            for group, (heading, text) in SECTIONS.items():
                metrics = [m for m in content.metrics if m.group == group]
                if metrics:
                    frame = metric_frame(metrics, content.conclusive)
                    _add_section(heading, text, frame, histogram if group == "hu" else "")
            if content.counterfactuals is not None and content.counterfactuals.rows:
                add_counterfactuals(content.counterfactuals)
            page_parts.option_tables(content.options, "Options of this evaluation")
    return page_parts.write_document(document, folder / "report.html")


def _add_facts(facts: Mapping[str, str], left_out: Sequence[str]) -> None:
    with page_parts.card("What was compared", "wide"):
        page_parts.key_table(facts)
        if left_out:
            with page_parts.fold("Not measured, and what it needs"):
                page_parts.bullet_list(left_out)


def _add_section(heading: str, text: str, frame: pd.DataFrame, picture: str) -> None:
    with page_parts.card(heading, "wide evidence"):
        page_parts.note(text)
        page_parts.frame_table(frame)
        if picture:
            page_parts.chart(
                page_parts.link(picture), "Histograms of lung voxels, real and synthetic"
            )


def _add_copies(copies: CopyReport) -> None:
    copied = sum(verdict.copy for verdict in copies.verdicts)
    alarms = sum(verdict.alarm for verdict in copies.verdicts)
    with page_parts.card("Memorisation", "wide"):
        tags.p(
            f"{copied} of {len(copies.verdicts)} volumes are called copies of a training scan; "
            f"{alarms} are closer to one than any real scan is.",
            cls="cautions" if copied else "",
        )
        page_parts.note(COPIES_TEXT)
        if not copies.check.conclusive:
            page_parts.note(
                "Too few real scans to say what is too close: the threshold is only half of the "
                "smallest distance among them."
            )
        with tags.div(cls="charts"):
            for link, caption in copies.pictures:
                page_parts.chart(page_parts.link(link), caption, [caption], "small")
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
    rows = []
    for case, verdict in pairs:
        row: dict[str, Any] = {
            "case": case,
            "copy": "yes" if verdict.copy else "no",
            "closer than real": "yes" if verdict.alarm else "no",
        }
        for name, nearest in (("detail", verdict.image), ("features", verdict.feature)):
            if nearest is not None:
                row[f"nearest by {name}"] = nearest.case
                row[f"distance, {name}"] = nearest.distance
                row[f"threshold, {name}"] = nearest.threshold
                row[f"closest real, {name}"] = nearest.closest_real
        rows.append(row)
    return pd.DataFrame(rows)
