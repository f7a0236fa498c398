"""Learning rates and target momenta as functions of the step."""

import math

import torch


def warmup_cosine(
    step: int, *, base: float, final: float, warmup_steps: int, total_steps: int, warmup_from: float | None = None
) -> float:
    """Linear warm-up to `base` over `warmup_steps`, then half a cosine down to `final` at the last step.

    The warm-up is at `warmup_from` in step 0 and at `base` in step `warmup_steps`; when None it would be at 0 one step
    before the first, and is at `base` in its last one.
    """
    if step < warmup_steps:
        if warmup_from is None:
            return base * (step + 1) / warmup_steps
        return warmup_from + (base - warmup_from) * step / warmup_steps
    share = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every parameter group the learning rate, times the group's `rate_factor` where it has one.

    A group with `constant_rate` keeps that one (SimSiam's predictor).
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("constant_rate", learning_rate * group.get("rate_factor", 1.0))


def rising_momentum(share: float, *, base: float) -> float:
    """Momentum of a target network after a share of the steps, from `base` to 1 (BYOL, Grill et al., 2020, 3.2)."""
    return 1 - (1 - base) * (math.cos(math.pi * min(share, 1.0)) + 1) / 2
