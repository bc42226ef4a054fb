"""Measure whether drawn masks have the lung volume of their rows, and are anatomy and nobody's.

Phantoms get the total lung capacity that the equations of the European Community for Coal and
Steel give for their sex and height (Quanjer et al. 1993), with a spread between patients. The shape
model of scripts/expand.py learns from them, and masks are drawn for women and men of several
heights. Beside them stand the training masks that --retrieve of scripts/expand.py finds by row, and
by text with the text encoder `table`. OUT/figures.json and OUT/table.md hold the figures.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.synthesis import MaskShapesOptions
from options.parser import answer_early, parse

answer_early(__name__, MaskShapesOptions, __doc__ or "")  # the imports below are slow

import pandas as pd

from data.cohort import Case
from data.geometry import Volume
from data.phantom.anatomy import AIRWAY, FIELD_MM, LEFT, RIGHT, PhantomPatient, build_anatomy
from data.text.free_text import TextReader
from data.text.prompts import Row, load_template
from models.text.encoders import build_text_encoder
from options.base_options import TextOptions
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.retrieval import retrieve_sources
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.shape_model import MaskLabels, ShapeModel
from util.cli import run_command
from util.files import write_json
from util.markdown import markdown_table

log = logging.getLogger(__name__)

LABELS = MaskLabels((LEFT, RIGHT, AIRWAY), (LEFT, RIGHT), AIRWAY)
FIELD_SCALE = 1.25  # of the usual field of view, which tall men would leave
HEIGHTS = {"Female": (155, 165, 175), "Male": (165, 175, 185)}  # cm, whose masks are drawn
# Litres per metre, and litres: total lung capacity by sex.
CAPACITY = {"Female": (6.60, -5.79), "Male": (7.99, -7.08)}
HEIGHT_SPREAD = {"Female": (165.0, 7.0), "Male": (177.0, 7.0)}  # mean and SD of the patients, cm
AGES = (40, 85)
RETRIEVALS: tuple[Literal["row", "text"], ...] = ("row", "text")


def capacity_ml(row: Row) -> float:
    """Return the total lung capacity that equations of sex and height give."""
    slope, intercept = CAPACITY[row["SEX"]]
    return 1000 * (slope * float(row["HEIGHT"]) / 100 + intercept)


def draw_row(rng: np.random.Generator) -> dict[str, str]:
    """Return a random patient; age and smoking change no mask."""
    sex = str(rng.choice(list(CAPACITY)))
    height = rng.normal(*HEIGHT_SPREAD[sex])
    return {
        "SEX": sex,
        "HEIGHT": f"{height:.0f}",
        "AGE": str(rng.integers(*AGES)),
        "SMOKER": str(rng.choice(["Yes", "No"])),
    }


def lung_ml(mask: Volume) -> float:
    """Return the volume of both lungs."""
    voxel = float(np.abs(np.linalg.det(mask.affine[:3, :3])))
    return float(np.isin(mask.array, LABELS.lungs).sum()) * voxel / 1000


def draw_mask(size: tuple[int, int, int], volume_ml: float, rng: np.random.Generator) -> Volume:
    """Return the mask of a random phantom whose lungs have a volume."""
    x, y, z = (FIELD_SCALE * mm / n for mm, n in zip(FIELD_MM, size, strict=True))
    affine = np.diag([x, y, z, 1.0])
    patient = PhantomPatient.random(rng)
    drawn = Volume(build_anatomy(patient, size, (x, y, z)).labels, affine)
    factor = (volume_ml / lung_ml(drawn)) ** (1 / 3)
    scaled = replace(patient, scale=patient.scale * factor)
    return Volume(build_anatomy(scaled, size, (x, y, z)).labels, affine)


def run_seed(b: MaskShapesOptions, seed: int) -> list[dict[str, Any]]:
    """Return a row of figures for each sex and height."""
    rng = np.random.default_rng([seed, 1])
    rows = [draw_row(rng) for _ in range(b.cases)]
    spread = np.exp(rng.normal(0, b.patient_sd, b.cases))
    masks = [
        draw_mask(b.size, capacity_ml(row) * s, rng) for row, s in zip(rows, spread, strict=True)
    ]
    names = [f"case_{number:03d}" for number in range(b.cases)]
    template = load_template("auto", list(rows[0]))
    cases = [Case(name, None, Path(name), row) for name, row in zip(names, rows, strict=True)]
    prompts = {case.id: template.phrases(case.row) for case in cases}
    texts = SourceTexts(cases, prompts, TextReader(template, {}))
    volumes = {name: lung_ml(mask) for name, mask in zip(names, masks, strict=True)}
    model = None
    if b.draws:
        model = ShapeModel.from_masks(names, masks, rows, names, LABELS, template)
    figures = []
    for sex, heights in HEIGHTS.items():
        for height in heights:
            fixed = {"SEX": sex, "HEIGHT": str(height)}
            planted = capacity_ml(fixed)
            planted *= float(np.exp(b.patient_sd**2 / 2))  # mean of a log-normal distribution
            figure = {"seed": seed, "sex": sex, "height_cm": height, "planted_ml": planted}
            figure["error_without_row"] = float(np.mean(list(volumes.values()))) / planted - 1
            if model is not None:
                wanted = [
                    (draw_row(rng) | fixed, masks[int(rng.integers(b.cases))])
                    for _ in range(b.draws)
                ]
                figure |= drawn_figures(model, wanted, planted, [seed, height])
            others = np.random.default_rng([seed, height, 2])
            new_rows = [draw_row(others) | fixed for _ in range(b.retrieved)]
            for by, found in retrieved_ml(texts, new_rows, volumes).items():
                figure[f"error_by_{by}"] = found / planted - 1
            figures.append(figure)
    return figures


def drawn_figures(
    model: ShapeModel, wanted: Sequence[tuple[Row, Volume]], planted: float, seed: Sequence[int]
) -> dict[str, Any]:
    """Return the figures of masks drawn for rows, on the grids of masks."""
    volumes, distances, first_tries, problems = [], [], 0, 0
    for number, (row, source) in enumerate(wanted):
        first_tries += not model.draw(row, source, [*seed, number, 0]).problems
        drawn = model.draw_plausibly(row, source, [*seed, number])
        problems += bool(drawn.problems)
        volumes.append(lung_ml(Volume(drawn.labels, source.affine)))
        distances.append(drawn.nearest.distance)
    return {
        "drawn_ml": float(np.mean(volumes)),
        "error": float(np.mean(volumes)) / planted - 1,
        "spread": float(np.std(np.log(volumes), ddof=1)),
        "plausible_at_once": first_tries / len(wanted),
        "rejected": problems / len(wanted),
        "nearest_mask": float(np.min(distances)),
        "copy_below": model.threshold,
        "patients_apart": float(np.median(model.reference)),
    }


def retrieved_ml(
    texts: SourceTexts, rows: Sequence[Row], volumes: Mapping[str, float]
) -> dict[str, float]:
    """Return the mean lung volume of the masks found for rows, by row and by text."""
    encoder = build_text_encoder(TextOptions(text_encoder="table"))
    encoder.fit([prompt.texts for prompt in texts.prompts.values()])
    template = texts.reader.template
    planned = [
        PlannedCase(str(number), texts.cases[0], dict(row), template.phrases(row), number)
        for number, row in enumerate(rows)
    ]
    means: dict[str, float] = {}
    for by in RETRIEVALS:
        found = retrieve_sources(planned, texts, by, encoder)
        means[by] = float(np.mean([volumes[case.source.id] for case in found]))
    return means


def figures_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as Markdown; without those of drawn masks where none was drawn."""
    rows = []
    for f in figures:
        row = {
            "seed": f["seed"],
            "sex": f["sex"],
            "height, cm": f["height_cm"],
            "planted, ml": f"{f['planted_ml']:.0f}",
        }
        if "drawn_ml" in f:
            row |= {
                "drawn, ml": f"{f['drawn_ml']:.0f}",
                "error": f"{f['error']:+.1%}",
                "spread between patients": f"{f['spread']:.3f}",
                "plausible at once": f"{f['plausible_at_once']:.0%}",
                "rejected": f"{f['rejected']:.0%}",
                "nearest training mask (copy below; between patients)": (
                    f"{f['nearest_mask']:.3f} ({f['copy_below']:.3f}; {f['patients_apart']:.3f})"
                ),
            }
        row |= {
            "error, retrieved by row": f"{f['error_by_row']:+.1%}",
            "error, retrieved by text": f"{f['error_by_text']:+.1%}",
            "error of any mask": f"{f['error_without_row']:+.1%}",
        }
        rows.append(row)
    worst = {
        title: max(abs(f[name]) for f in figures)
        for title, name in (
            ("drawn", "error"),
            ("retrieved by row", "error_by_row"),
            ("retrieved by text", "error_by_text"),
            ("any mask", "error_without_row"),
        )
        if name in figures[0]
    }
    named = ", ".join(f"{title} {value:.1%}" for title, value in worst.items())
    return (
        f"{markdown_table(pd.DataFrame(rows))}\n\nLargest error of the mean lung volume (asked of "
        f"drawn masks: 10 %): {named}."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cohorts and write figures and table."""
    b = parse(MaskShapesOptions, __doc__ or "", argv)
    out = Path(b.OUT)
    out.mkdir(parents=True, exist_ok=True)
    figures = [figure for seed in b.seeds for figure in run_seed(b, seed)]
    text = figures_table(figures)
    write_json(out / "figures.json", figures)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    run_command(main)
