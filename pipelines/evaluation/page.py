"""The page of an evaluation: every figure beside its floor, what it means, and pictures of the
closest pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dominate import tags
from matplotlib.figure import Figure as Plot

from pipelines.evaluation.baselines import Metric
from pipelines.evaluation.measurements import HU_BINS, VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck, CopyVerdict
from util.web import page_parts

MIN_CONCLUSIVE = 20  # scans on either side below which no conclusion is offered
SECTIONS: Mapping[str, tuple[str, str]] = {
    "realism": (
        "Realism",
        "Distances between the real and the synthetic set, in what a network sees of them. Smaller "
        "is better, and no set can be expected below the floor: the distance between two random "
        "halves of the real scans. Set the column “at the floor's size” beside the floor, for both "
        "are of equally many volumes; FID falls with their number. Only figures of the same "
        "network, grid and number of volumes can be compared.",
    ),
    "hu": (
        "Density in HU",
        "What the lungs' HU say, within the masks. A difference of 0 is right; one within the "
        "floor is what chance gives between two halves of the real scans.",
    ),
    "mask": (
        "Faithful to the mask",
        "The lungs are found again in the volume and compared with the mask it was made from. What "
        "a segmentation reaches on real scans is the ceiling.",
    ),
    "text": (
        "Text shows in the picture",
        "A predictor that learned on real scans reads the attribute from synthetic ones. An AUC of "
        "0.5, a correlation of 0, or the floor with shuffled rows means that the text does not "
        "show; more than real scans reach means an effect drawn too cleanly. Controls from "
        "shuffled or empty prompts should be at the floor; what they keep comes from the mask.",
    ),
    "diversity": (
        "Diversity",
        "How much volumes are alike (1: equal). Synthetic pairs should be about as alike as real "
        "ones.",
    ),
    "pairs": (
        "Closeness to the case's own scan",
        "A volume from a case's mask and text need not be the scan: noise and what the table does "
        "not tell differ. These figures compare models, no more.",
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
    "name": "figure",
    "value": "value",
    "low": "95 % from",
    "high": "to",
    "matched": "at the floor's size",
    "floor": "floor",
    "floor_high": "floor, 95 %",
    "ceiling": "real scans reach",
    "verdict": "reading",
    "note": "note",
}


@dataclass(frozen=True)
class CopyReport:
    """What the check for copies found: verdicts by volume, and pictures of the closest pairs
    (links) with their captions.
    """

    cases: Sequence[str]
    verdicts: Sequence[CopyVerdict]
    check: CopyCheck
    pictures: Sequence[tuple[str, str]]


def interpret_metric(figure: Metric) -> str:
    """A figure against its floor in words; empty where there is none."""
    if not np.isfinite(figure.floor):
        return ""
    if figure.better == "zero":
        return "within the floor" if abs(figure.value) <= figure.baseline_high else "beyond the floor"
    if figure.better == "near":
        return (
            "more alike than real pairs"
            if figure.low > figure.baseline_high
            else "as real pairs or less alike"
        )
    if figure.group == "text":
        better = (
            figure.value > figure.baseline_high
            if figure.better == "high"
            else figure.value < figure.baseline_high
        )
        return "text shows" if better else "no more than chance"
    size = figure.matched if np.isfinite(figure.matched) else figure.value
    return "within the floor" if size <= figure.baseline_high else "beyond the floor"


def metric_frame(figures: Sequence[Metric], conclusive: bool) -> pd.DataFrame:
    """The figures as a table, with their readings where there are enough scans; columns that hold
    nothing are left out.
    """
    rows = [f.row() | {"verdict": interpret_metric(f) if conclusive else ""} for f in figures]
    frame = pd.DataFrame(rows)[list(COLUMNS)].rename(columns=COLUMNS)
    empty = [
        c for c in frame.columns if frame[c].isna().all() or (frame[c].astype(str) == "").all()
    ]
    return frame.drop(columns=empty)


def draw_histogram(
    path: Path, real: Sequence[VolumeMeasurements], synthetic: Sequence[VolumeMeasurements]
) -> None:
    """The lungs' histograms, a mean over volumes, as SVG."""
    plot = Plot(figsize=(7, 2.6))
    axes = plot.add_subplot()
    for name, group, colour in (("real", real, "#5c6878"), ("synthetic", synthetic, "#2563a8")):
        shares = np.mean([v.histogram / max(v.histogram.sum(), 1) for v in group], 0)
        wide = shares[: len(shares) // 10 * 10].reshape(-1, 10).sum(1)  # 10 HU a bin, for the eye
        axes.plot(
            HU_BINS[: len(wide) * 10 : 10] + 4.5,
            100 * wide,
            label=f"{name} ({len(group)})",
            color=colour,
        )
    axes.set(xlim=(-1050, -300), xlabel="HU", ylabel="% of lung per 10 HU")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    plot.savefig(path, format="svg", bbox_inches="tight")


def write_report(
    folder: Path,
    title: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    figures: Sequence[Metric],
    copies: CopyReport | None,
    left_out: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    histogram: str = "",
    conclusive: bool = True,
) -> Path:
    """Writes report.html; returns it.

    Args:
        folder: Where it lies, with `page.css`.
        title: Its heading.
        facts: What was compared and how, for the first table.
        warnings: What a reader must know before any figure.
        figures: All figures, in the order of `SECTIONS` by their groups.
        copies: The check for copies, where there were training scans.
        left_out: What was not measured, and what it needs.
        options: The command's options.
        histogram: Link to the picture of the lungs' histograms.
        conclusive: Whether there are scans enough to put figures into words.
    """
    page_parts.copy_assets(folder, "page.css")
    document = page_parts.new_document(title, "")
    with document.body:
        with tags.header(cls="top"):
            tags.h1(title)
            page_parts.cautions(warnings)
        with tags.main(), tags.div(cls="cards"):
            _facts(facts, left_out)
            if copies is not None:
                _copies(copies)
            for group, (heading, text) in SECTIONS.items():
                chosen = [f for f in figures if f.group == group]
                if chosen:
                    _section(
                        heading,
                        text,
                        metric_frame(chosen, conclusive),
                        histogram if group == "hu" else "",
                    )
            page_parts.options_list(options, "Options of this evaluation")
    return page_parts.write_document(document, folder / "report.html")


def _facts(facts: Mapping[str, str], left_out: Sequence[str]) -> None:
    with tags.section(cls="card wide"):
        tags.h2("What was compared")
        with tags.table(), tags.tbody():
            for name, value in facts.items():
                tags.tr(tags.th(name, scope="row"), tags.td(value))
        if left_out:
            with tags.details():
                tags.summary("Not measured, and what it needs")
                tags.ul(*(tags.li(text) for text in left_out))


def _section(heading: str, text: str, frame: pd.DataFrame, picture: str) -> None:
    with tags.section(cls="card wide evidence"):
        tags.h2(heading)
        tags.p(text, cls="note")
        page_parts.frame_table(frame)
        if picture:
            tags.img(
                src=page_parts.link(picture),
                alt="Histograms of lung voxels, real and synthetic",
                style="max-width:100%;background:#fff;border-radius:5px;margin-top:.7rem",
            )


def _copies(copies: CopyReport) -> None:
    called, alarms = (sum(getattr(v, k) for v in copies.verdicts) for k in ("copy", "alarm"))
    with tags.section(cls="card wide"):
        tags.h2("Memorisation")
        tags.p(
            f"{called} of {len(copies.verdicts)} volumes are called copies of a training scan; "
            f"{alarms} are closer to one than any real scan is.",
            cls="cautions" if called else "",
            style="padding-left:1rem" if called else "",
        )
        tags.p(COPIES_TEXT, cls="note")
        if not copies.check.conclusive:
            tags.p(
                "Too few real scans to say what is too close: the threshold is only half of the "
                "smallest distance among them.",
                cls="note",
            )
        with tags.div(style="display:flex;flex-wrap:wrap;gap:1rem"):
            for link, caption in copies.pictures:
                with tags.figure(style="margin:0;max-width:600px"):
                    tags.img(src=page_parts.link(link), alt=caption, style="max-width:100%")
                    tags.figcaption(caption, cls="note")
        with tags.details():
            tags.summary("Every volume")
            page_parts.frame_table(copy_frame(copies))


def copy_frame(copies: CopyReport) -> pd.DataFrame:
    """A row a volume, the closest first: nearest training scan by detail and by features,
    thresholds, verdict.
    """
    rows = []
    for case, v in sorted(
        zip(copies.cases, copies.verdicts, strict=True), key=lambda pair: pair[1].image.distance
    ):
        said = {
            name: "yes" if true else "no"
            for name, true in (("copy", v.copy), ("closer than real", v.alarm))
        }
        row: dict[str, Any] = {"case": case, **said}
        for name, near in (("detail", v.image), ("features", v.feature)):
            if near is not None:
                row |= {
                    f"nearest by {name}": near.case,
                    f"distance, {name}": near.distance,
                    f"threshold, {name}": near.threshold,
                    f"closest real, {name}": near.closest_real,
                }
        rows.append(row)
    return pd.DataFrame(rows)
