"""Compare volumes that are generated at once with the same volumes from tiles of half the size.

Reports for each case the mean absolute difference in the lungs and the largest one anywhere (HU),
for every --vary the difference of the mean effect in the lungs (HU), and processor time: of tiles
over that of the whole volume, and of all prompts of a case as one batch over that of one; also as
JSON with --json.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import TilesBenchmarkCommand
from options.parser import answer_early, parse

answer_early(__name__, TilesBenchmarkCommand, __doc__ or "")  # the imports below are slow


import numpy as np
from numpy.typing import NDArray

from data.text.counterfactuals import Variant, variant_pairs
from data.volume_dataset import VolumeDataset, VolumeSample
from models.inference import VolumeGenerator
from models.sliding_window import SlidingWindow, round_up
from options.test_options import TestOptions
from pipelines.generation.plan import GenerationPlan, open_plan, open_run
from util.cli import run_command
from util.files import write_json

log = logging.getLogger(__name__)


def half_size(shape: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Return half of a volume's size, rounded up to twice the stride.

    Tiles that overlap by half then start on multiples of the stride.
    """
    return tuple(round_up(-(-n // 2), 2 * multiple) for n in shape)


def compare_tiles(plan: GenerationPlan, sample: VolumeSample) -> dict[str, Any]:
    """Return the differences of one case in HU, in the lungs."""
    generator = plan.run.generator
    multiple = generator.model.size_multiple
    size = half_size(sample.channels.shape, multiple)
    at_once = replace(generator, window=SlidingWindow((), multiple))
    tiled = replace(generator, window=SlidingWindow(size, multiple))
    lungs = np.isin(sample.labels, plan.data.lung_labels)

    seconds: dict[str, float] = {}

    def generate(
        name: str, variants: Sequence[Variant], way: VolumeGenerator
    ) -> list[NDArray[np.floating]]:
        start = time.process_time()
        volumes = way.variants(sample, [variant.prompt.texts for variant in variants])
        seconds[name] = time.process_time() - start
        return [sample.to_hu(volume) for volume in volumes]

    variants = plan.variants(sample.case)
    generate("first", [variants.factual], at_once)  # kernels are chosen in the first pass
    whole = generate("whole", [variants.factual], at_once)[0]
    tiles = generate("tiles", [variants.factual], tiled)[0]
    together = variants.all()
    generate("together", together, at_once)
    effects = {}
    for group in variants.counterfactual:
        by_way = [generate("group", group, way) for way in (at_once, tiled)]
        means = {
            variant.value: [float(volumes[number][lungs].mean()) for volumes in by_way]
            for number, variant in enumerate(group)
        }
        for first, second in variant_pairs(group):
            before, after = means[first.value], means[second.value]
            at_once_hu, tiled_hu = (b - a for a, b in zip(before, after, strict=True))
            name = f"{first.column}: {first.value} to {second.value}"
            effects[name] = {
                "whole_hu": at_once_hu,
                "tiles_hu": tiled_hu,
                "difference_hu": tiled_hu - at_once_hu,
            }
    return {
        "tile": list(size),
        "mean_abs_hu": float(np.abs(whole - tiles)[lungs].mean()),
        "largest_hu": float(np.abs(whole - tiles).max()),
        "tiles_over_whole_s": seconds["tiles"] / seconds["whole"],
        "prompts": len({tuple(variant.prompt.texts) for variant in together}),
        "prompts_over_one_s": seconds["together"] / seconds["whole"],
        "effects": effects,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare every case, and write the figures."""
    o = parse(TilesBenchmarkCommand, __doc__ or "", argv)
    options = TestOptions(source=o.source, model=o.model, arms=o.arms)
    plan = open_plan(options, open_run(options))
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
            "%s, tiles of %s: %.4f HU in the lungs, at most %.4f anywhere, %.2f times the time of "
            "the whole; %d prompts %.2f times that of one; effects differ by (HU): %s",
            sample.case.id,
            "x".join(map(str, case["tile"])),
            case["mean_abs_hu"],
            case["largest_hu"],
            case["tiles_over_whole_s"],
            case["prompts"],
            case["prompts_over_one_s"],
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
