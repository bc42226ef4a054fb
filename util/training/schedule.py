"""Learning rates over the steps of a short training."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import OneCycleLR

WARM_UP = 0.1  # share of the steps in which the rate rises


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> OneCycleLR:
    """Return a schedule that rises to `lr` and falls again, for any number of steps.

    With a warm-up of exactly one step, torch would divide by zero; it then takes two.
    """
    share = WARM_UP
    if share * steps == 1:
        share = 2 / steps
    return OneCycleLR(optimizer, lr, total_steps=steps, pct_start=share)
