"""Compare volumes that are generated at once with the same volumes from tiles of half the size.

Reports for each case the mean absolute difference in the lungs (HU), and for every --vary the
difference of the mean effect in the lungs (HU); also as JSON with --json.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import numpy as np
from numpy.typing import NDArray

from data.text.counterfactuals import Variant, variant_pairs
from data.volume_dataset import VolumeDataset, VolumeSample
from models.inference import VolumeGenerator
from models.sliding_window import SlidingWindow, round_up
from options.benchmark_options import TilesBenchmarkCommand
from options.parser import parse
from options.test_options import TestOptions
from pipelines import generation
from util.cli import run_command
from util.files import write_json

log = logging.getLogger(__name__)


def half_size(shape: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return half of a volume's size, rounded up to twice the stride.

    Tiles that overlap by half then start on multiples of the stride.
    """
    return tuple(round_up(-(-n // 2), 2 * multiple) for n in shape)


def compare_tiles(plan: generation.GenerationPlan, sample: VolumeSample) -> dict[str, Any]:
    """Return the differences of one case in HU, in the lungs."""
    generator = plan.run.generator
    multiple = generator.model.size_multiple
    size = half_size(sample.mask.shape[1:], multiple)
    at_once = replace(generator, window=SlidingWindow((), multiple))
    tiled = replace(generator, window=SlidingWindow(size, multiple))
    lungs = np.isin(sample.labels, plan.data.lung_labels)

    def lung_hu(variant: Variant, way: VolumeGenerator) -> NDArray[np.floating]:
        return sample.to_hu(way(sample, variant.prompt.texts))[lungs]

    variants = plan.variants(sample.case)
    factual = [lung_hu(variants.factual, way) for way in (at_once, tiled)]
    effects = {}
    for group in variants.counterfactual:
        means = {}
        for variant in group:
            means[variant.value] = [lung_hu(variant, way).mean() for way in (at_once, tiled)]
        for first, second in variant_pairs(group):
            before, after = means[first.value], means[second.value]
            whole, tiles = (float(b - a) for a, b in zip(before, after, strict=True))
            name = f"{first.column}: {first.value} to {second.value}"
            effects[name] = {
                "whole_hu": whole,
                "tiles_hu": tiles,
                "difference_hu": tiles - whole,
            }
    return {
        "tile": list(size),
        "mean_abs_hu": float(np.abs(factual[0] - factual[1]).mean()),
        "effects": effects,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare every case, and write the figures."""
    o = parse(TilesBenchmarkCommand, __doc__ or "", argv)
    options = TestOptions(source=o.source, model=o.model, arms=o.arms)
    plan = generation.open_plan(options, generation.open_run(options))
    multiple = plan.run.generator.model.size_multiple
    samples = VolumeDataset(
        plan.cases, plan.run.labels, plan.data, (2 * multiple,) * 3, (multiple,) * 3
    )
    figures = {}
    worst = 0.0
    for sample in samples:
        case = compare_tiles(plan, sample)
        figures[sample.case.id] = case
        differences = {name: v["difference_hu"] for name, v in case["effects"].items()}
        worst = max([worst, *(abs(d) for d in differences.values())])
        log.info(
            "%s, tiles of %s: %.2f HU in the lungs; effects differ by (HU): %s",
            sample.case.id,
            "x".join(map(str, case["tile"])),
            case["mean_abs_hu"],
            ", ".join(f"{name} {d:+.2f}" for name, d in differences.items()) or "none varied",
        )
    mean = float(np.mean([case["mean_abs_hu"] for case in figures.values()]))
    message = "Mean over %d cases %.2f HU; largest difference of an effect %.2f HU."
    log.info(message, len(figures), mean, worst)
    if o.tiles.json:
        summary = {"cases": figures, "mean_abs_hu": mean, "worst_effect_hu": worst}
        write_json(Path(o.tiles.json), summary)


if __name__ == "__main__":
    run_command(main)
