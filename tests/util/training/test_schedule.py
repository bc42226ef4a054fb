"""The schedule of short trainings works for any number of steps."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from util.training.schedule import one_cycle


def rates(schedule: OneCycleLR, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(float(schedule.get_last_lr()[0]))
        schedule.optimizer.step()
        if len(values) < steps:
            schedule.step()
    return values


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)])


@pytest.mark.parametrize("steps", [*range(1, 31), 100, 5000])
def test_any_number_of_steps(steps: int) -> None:
    values = rates(one_cycle(optimizer(), 1e-3, steps), steps)
    assert len(values) == steps and all(0 <= value <= 1.01e-3 for value in values)
    if steps != 10:
        expected = OneCycleLR(optimizer(), 1e-3, total_steps=steps, pct_start=0.1)
        assert values == rates(expected, steps)
