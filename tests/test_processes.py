"""Two processes give what one gives."""

from __future__ import annotations

import logging

import pytest
import torch

from scripts import check_processes


def test_two_gloo_processes_equal_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_processes.main(["--steps", "2", "--size", "16,16,16", "--train_flags=--ngf 4 --ndf 4 --n_blocks_global 1"])
    assert "G: gradient" in caplog.text and "D: weights after 2" in caplog.text


def test_distance_sees_a_difference() -> None:
    one, two = {"a.exp_avg": torch.ones(4), "b": torch.zeros(2)}, {"a.exp_avg": torch.full((4,), 1.1), "b": torch.ones(2)}
    assert check_processes.distance(one, two, ".exp_avg") == pytest.approx(0.1, rel=1e-5)
