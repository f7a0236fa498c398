"""Momentum targets: a slowly following copy of a module, without gradients (MoCo, BYOL)."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def target_of(online: Module) -> Module:
    """A copy of `online` whose parameters take no gradient; move it with `follow`."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * online, for the parameters.

    Buffers stay: in training mode the target's batch norms gather running statistics of their own.

    Raises:
        ValueError: the momentum is outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"the momentum is {momentum}: give a number from 0 to 1, such as 0.99")
    mine: list[Tensor] = list(target.parameters())
    theirs: list[Tensor] = list(online.parameters())
    assert len(mine) == len(theirs)
    # One call for all of them: one by one, a GPU would wait for the launches of as many kernels.
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
