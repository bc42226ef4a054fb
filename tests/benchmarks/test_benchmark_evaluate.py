"""The benchmark of the evaluation, on the smallest phantoms that have lungs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evaluate import DAMAGE, run_benchmark
from options.benchmarks.evaluation import EvaluateBenchmarkOptions


def test_the_metrics_hold_on_small_phantoms(tmp_path: Path) -> None:
    figures = run_benchmark(
        EvaluateBenchmarkOptions(OUT=str(tmp_path), cases=12, size=(24, 24, 16), copies=4, draws=10)
    )
    assert max(figures["agreement"]["relative"].values()) < 1e-3
    assert max(map(abs, figures["agreement"]["itself"].values())) < 1e-6
    assert set(figures["ranking"]) == set(DAMAGE) and figures["ranking"]["blur"]["right"]["FID"]
    assert abs(figures["hu_shift"]["Mean lung attenuation (HU), synthetic minus real"] - 30) < 0.5
    copies = figures["memorisation"]
    assert copies["planted"] == copies["right_scan"] == 4 and copies["called_copies"] == 0
