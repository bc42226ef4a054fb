"""The estimate of a training step on GPUs that are not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_estimate
from benchmarks.gpu_estimate import GPUS, Step, count_step, prepared_gb
from options.parser import parse
from options.train_options import TrainOptions

SMALL = "--ngf 4 --ndf 4 --n_blocks_global 1 --n_layers_D 2 --num_D 1 --patch_size 16,16,16"


@pytest.mark.parametrize("model", ["pix2pixhd", "diffusion"])
def test_operations_and_kept_bytes_grow_with_the_batch(model: str) -> None:
    one, two = (
        count_step(parse(TrainOptions, "", [*SMALL.split(), "--model", model, "--batch_size", n]))
        for n in ("1", "2")
    )
    assert one.parameters == two.parameters > 0
    assert two.operations == pytest.approx(2 * one.operations, rel=0.05)
    assert two.kept_bytes == pytest.approx(2 * one.kept_bytes, rel=0.15)


def test_recomputing_activations_keeps_less_and_computes_more() -> None:
    words = SMALL.split()
    plain = count_step(parse(TrainOptions, "", words))
    recomputed = count_step(parse(TrainOptions, "", [*words, "--checkpoint_activations"]))
    assert recomputed.kept_bytes < plain.kept_bytes
    assert recomputed.operations > plain.operations


def test_seconds_are_those_of_operations_and_of_memory() -> None:
    gpu = GPUS[0]
    computing = Step(operations=gpu.peak, kept_bytes=0, parameters=0)
    moving = Step(operations=0, kept_bytes=int(gpu.bandwidth), parameters=0)
    assert computing.seconds(gpu) == pytest.approx(1 / gpu_estimate.EFFICIENCY)
    assert moving.seconds(gpu) == pytest.approx(gpu_estimate.MOVES)


def test_disk_space_falls_with_the_cube_of_the_spacing() -> None:
    assert prepared_gb(200, 1.0) == pytest.approx(24, abs=1)
    assert prepared_gb(200, 2.0) == pytest.approx(prepared_gb(200, 1.0) / 8, rel=0.01)


def test_what_does_not_fit_a_gpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(GPUS[0], name="small", gib=1e-6)
    monkeypatch.setattr(gpu_estimate, "GPUS", (GPUS[0], small))
    out = tmp_path / "estimate.json"
    words = ["--presets", "cpu", "--scans", "10", "--out", str(out)]
    gpu_estimate.main([*words, "--train_flags", SMALL])
    rows = json.loads(out.read_text())["steps"]
    assert [row["model"] for row in rows[::2]] == ["pix2pixhd", "diffusion"]
    for row in rows:
        fits = row["GPU"] != "small"
        assert (row["s a step"] != "does not fit") == fits
        assert bool(row["hours, 10 scans"]) == fits
