"""Heads, of lightly and on top of it, and momentum targets, which follow a module slowly.

This is the only file that imports lightly. That takes seconds, so it is imported when a part is made. Only parts that
give N processes the gradients of one process, and that don't wait for a GPU, are taken: its Barlow Twins loss
normalises by each process's own statistics, its memory bank is not saved with a checkpoint, and its NT-Xent selects by
masks, so those are our own.
"""

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.checks import check_number

LastBatchNorm = Literal["none", "affine", "not_affine"]
Module = TypeVar("Module", bound=nn.Module)


def projection_head(
    in_features: int,
    widths: Sequence[int],
    last_batch_norm: LastBatchNorm = "none",
    *,
    last_bias: bool = True,
    batch_norm: bool = True,
    hidden_bias: bool | None = None,
) -> nn.Module:
    """An MLP [N, in_features] -> [N, widths[-1]]: Linear-BatchNorm-ReLU for every width but the last, then a Linear.

    Args:
        last_batch_norm: whether a batch norm follows the last linear layer, and whether it has scale and shift.
        last_bias: False leaves out the bias of the last linear layer; before a batch norm it never has one.
        batch_norm: False leaves out the batch norms between the linear layers (the head of MoCo v2).
        hidden_bias: whether the linear layers before the last have a bias; None: those without a batch norm do.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"the head's widths are {tuple(widths)}: give at least one, all of them 1 or more")
    from lightly.models.modules.heads import ProjectionHead

    if hidden_bias is None:
        hidden_bias = not batch_norm
    blocks: list[tuple[int, int, nn.Module | None, nn.Module | None, bool]] = []
    for width in widths[:-1]:
        norm = nn.BatchNorm1d(width) if batch_norm else None
        blocks.append((in_features, width, norm, nn.ReLU(inplace=True), hidden_bias))
        in_features = width
    last_norm = None if last_batch_norm == "none" else nn.BatchNorm1d(widths[-1], affine=last_batch_norm == "affine")
    blocks.append((in_features, widths[-1], last_norm, None, last_bias and last_norm is None))
    return ProjectionHead(blocks)


def projector(in_features: int, widths: Sequence[int]) -> nn.Sequential:
    """The projector of VICReg and SIE: a `projection_head` whose last layer has no bias and whose others have one."""
    head = projection_head(in_features, widths, last_bias=False, hidden_bias=True)
    # The layers without the head around them, by whose names the weights of earlier runs are stored.
    layers: nn.Sequential = head.layers  # type: ignore[assignment]
    return layers


def split_widths(widths: Sequence[int], inv_dim: int, equi_dim: int) -> tuple[list[int], list[int]]:
    """Shares the projector widths between the invariant and the equivariant part in proportion to their columns."""
    equi_widths = [round(width * equi_dim / (inv_dim + equi_dim)) for width in widths]
    inv_widths = [width - equi_width for width, equi_width in zip(widths, equi_widths, strict=True)]
    return inv_widths, equi_widths


def negative_cosine_similarity() -> nn.Module:
    """-cos of two [B, E] batches, mean over the batch (SimSiam, Chen and He, CVPR 2021, equation 1)."""
    from lightly.loss import NegativeCosineSimilarity

    return NegativeCosineSimilarity()


class ActionHead(nn.Module):
    """Regresses the action [B, A] from the features of both views [B, 2, D], by an MLP on their concatenation."""

    def __init__(self, num_features: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        check_number("action_dim", action_dim, minimum=1)
        self.layers = projection_head(2 * num_features, (*hidden, action_dim), batch_norm=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.flatten(1))


def action_regression(prediction: Tensor, actions: Tensor) -> Tensor:
    """Mean squared error over the batch and the action's columns, in float32 or better; call it with autocast off."""
    prediction = full_precision(prediction)
    return F.mse_loss(prediction, actions.to(prediction.dtype))


def target_of(online: Module) -> Module:
    """A copy of `online` whose parameters take no gradient (MoCo, BYOL); move it with `follow`."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * online, for the parameters."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"the momentum is {momentum}: give a number from 0 to 1, such as 0.99")
    # Buffers stay: in training mode the target's batch norms gather running statistics of their own.
    mine: list[Tensor] = list(target.parameters())
    theirs: list[Tensor] = list(online.parameters())
    assert len(mine) == len(theirs)
    # One call for all of them: one by one, a GPU would wait for the launches of as many kernels.
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
