"""Measure whether drawn masks have the lung volume of their rows, and are anatomy and nobody's.

Phantoms get the total lung capacity that the equations of the European Community for Coal and
Steel give for their sex and height (Quanjer et al. 1993), with a spread between patients. The shape
model of scripts/expand.py learns from them, and masks are drawn for women and men of several
heights. Beside them stand the training masks that --retrieve finds by row, and by text with the
text encoder `table`. OUT/figures.json and OUT/table.md hold the figures.
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
    model = ShapeModel.from_masks(names, masks, rows, names, LABELS, template)
    cases = [Case(name, None, Path(name), row) for name, row in zip(names, rows, strict=True)]
    prompts = {case.id: template.phrases(case.row) for case in cases}
    texts = SourceTexts(cases, prompts, TextReader(template, {}))
    encoder = build_text_encoder(TextOptions(text_encoder="table"))
    encoder.fit([prompt.texts for prompt in prompts.values()])
    volume_of = {name: lung_ml(mask) for name, mask in zip(names, masks, strict=True)}
    figures = []
    for sex, heights in HEIGHTS.items():
        for height in heights:
            volumes, distances, planned, first_tries, problems = [], [], [], 0, 0
            for number in range(b.draws):
                row = draw_row(rng) | {"SEX": sex, "HEIGHT": str(height)}
                source = masks[int(rng.integers(b.cases))]
                prompt = template.phrases(row)
                planned.append(PlannedCase(str(number), cases[0], row, prompt, number))
                first_tries += not model.draw(row, source, [seed, height, number, 0]).problems
                drawn = model.draw_plausibly(row, source, [seed, height, number])
                problems += bool(drawn.problems)
                volumes.append(lung_ml(Volume(drawn.labels, source.affine)))
                distances.append(drawn.nearest.distance)
            retrieved = {}
            for by in RETRIEVALS:
                found = retrieve_sources(planned, texts, by, encoder)
                retrieved[by] = float(np.mean([volume_of[case.source.id] for case in found]))
            planted = capacity_ml({"SEX": sex, "HEIGHT": str(height)})
            planted *= float(np.exp(b.patient_sd**2 / 2))  # mean of a log-normal distribution
            figures.append(
                {
                    "seed": seed,
                    "sex": sex,
                    "height_cm": height,
                    "planted_ml": planted,
                    "drawn_ml": float(np.mean(volumes)),
                    "error": float(np.mean(volumes)) / planted - 1,
                    "error_without_row": float(np.mean(list(volume_of.values()))) / planted - 1,
                    "error_by_row": retrieved["row"] / planted - 1,
                    "error_by_text": retrieved["text"] / planted - 1,
                    "spread": float(np.std(np.log(volumes), ddof=1)),
                    "plausible_at_once": first_tries / b.draws,
                    "rejected": problems / b.draws,
                    "nearest_mask": float(np.min(distances)),
                    "copy_below": model.threshold,
                    "patients_apart": float(np.median(model.reference)),
                }
            )
    return figures


def figures_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as Markdown."""
    rows = [
        {
            "seed": f["seed"],
            "sex": f["sex"],
            "height, cm": f["height_cm"],
            "planted, ml": f"{f['planted_ml']:.0f}",
            "drawn, ml": f"{f['drawn_ml']:.0f}",
            "error": f"{f['error']:+.1%}",
            "error of any mask": f"{f['error_without_row']:+.1%}",
            "retrieved by row, by text": f"{f['error_by_row']:+.1%}, {f['error_by_text']:+.1%}",
            "spread between patients": f"{f['spread']:.3f}",
            "plausible at once": f"{f['plausible_at_once']:.0%}",
            "rejected": f"{f['rejected']:.0%}",
            "nearest training mask (copy below; between patients)": (
                f"{f['nearest_mask']:.3f} ({f['copy_below']:.3f}; {f['patients_apart']:.3f})"
            ),
        }
        for f in figures
    ]
    worst, by_row, by_text, without = (
        max(abs(f[name]) for f in figures)
        for name in ("error", "error_by_row", "error_by_text", "error_without_row")
    )
    return (
        f"{markdown_table(pd.DataFrame(rows))}\n\nLargest error of the mean lung volume: drawn "
        f"{worst:.1%} (asked: 10 %), retrieved by row {by_row:.1%}, by text {by_text:.1%}, any "
        f"mask {without:.1%}."
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
