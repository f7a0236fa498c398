"""Learning-rate schedules as functions of the step."""

import math

import torch


def warmup_cosine(step: int, *, base: float, final: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `base` over `warmup_steps`, then half a cosine down to `final` at the last step."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every parameter group the learning rate, times the group's `rate_factor` where it has one.

    A group with `constant_rate` keeps that one (SimSiam's predictor).
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("constant_rate", learning_rate * group.get("rate_factor", 1.0))


def rising_momentum(step: int, *, base: float, total_steps: int) -> float:
    """Momentum of a target network, from `base` up to 1 at the last step (BYOL, Grill et al., NeurIPS 2020, 3.2)."""
    share = step / max(total_steps - 1, 1)
    return 1 - (1 - base) * (math.cos(math.pi * min(share, 1.0)) + 1) / 2
