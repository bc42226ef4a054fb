"""Whole against tiles: how far a volume made at once differs from the same volume made in tiles of
half its size.

Prints, a case: the mean absolute difference in the lungs (HU) of the own-row volume, and for every
--vary how far the mean effect in the lungs (HU) differs; the same as JSON with --json.
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
    """Half of a volume's size, rounded up so that tiles overlapping by half start on multiples of
    the stride.
    """
    return tuple(round_up(-(-n // 2), 2 * multiple) for n in shape)


def lung_volume(
    sampler: VolumeGenerator, whole: VolumeSample, arm: Variant, window: tuple[float, float]
) -> NDArray[np.floating]:
    made = sampler(whole, arm.prompt.texts)
    return whole.to_hu(made)


def compare_tiles(opened: generation.GenerationPlan, whole: VolumeSample) -> dict[str, Any]:
    """The figures of one case; HU in the lungs."""
    sampler, window = opened.run.generator, opened.data.hu_window
    size = half_size(whole.mask.shape[1:], sampler.model.size_multiple)
    ways = [
        replace(sampler, window=SlidingWindow(tile, sampler.model.size_multiple))
        for tile in ((), size)
    ]
    lungs = np.isin(whole.labels, opened.data.lung_labels)
    variants = opened.variants(whole.case)
    own, varied = variants.factual, variants.counterfactual
    at_once, tiled = (lung_volume(way, whole, own, window) for way in ways)
    found: dict[str, Any] = {
        "tile": list(size),
        "mean_abs_hu": float(np.abs(at_once - tiled)[lungs].mean()),
        "effects": {},
    }
    for arms in varied:
        made = {
            arm.value: [lung_volume(way, whole, arm, window)[lungs].mean() for way in ways]
            for arm in arms
        }
        for first, second in variant_pairs(arms):
            one, two = (
                float(b - a) for a, b in zip(made[first.value], made[second.value], strict=True)
            )
            name = f"{first.column}: {first.value} to {second.value}"
            found["effects"][name] = {"whole_hu": one, "tiles_hu": two, "difference_hu": two - one}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(TilesBenchmarkCommand, __doc__ or "", argv)
    options = TestOptions(source=o.source, model=o.model, arms=o.arms)
    opened = generation.open_plan(options, generation.open_run(options))
    multiple = opened.run.generator.model.size_multiple
    wholes = VolumeDataset(
        opened.cases, opened.run.labels, opened.data, (2 * multiple,) * 3, (multiple,) * 3
    )
    found = {}
    for whole in wholes:
        found[whole.case.id] = one = compare_tiles(opened, whole)
        effects = ", ".join(f"{k} {v['difference_hu']:+.2f}" for k, v in one["effects"].items())
        log.info(
            "%s, tiles of %s: %.2f HU in the lungs; effects differ by (HU): %s",
            whole.case.id,
            "x".join(map(str, one["tile"])),
            one["mean_abs_hu"],
            effects or "none asked for",
        )
    worst = max(
        (abs(v["difference_hu"]) for one in found.values() for v in one["effects"].values()),
        default=0.0,
    )
    mean = float(np.mean([one["mean_abs_hu"] for one in found.values()]))
    log.info(
        "Mean over %d cases %.2f HU; largest difference of an effect %.2f HU.",
        len(found),
        mean,
        worst,
    )
    if o.tiles.json:
        write_json(
            Path(o.tiles.json), {"cases": found, "mean_abs_hu": mean, "worst_effect_hu": worst}
        )


if __name__ == "__main__":
    run_command(main)
