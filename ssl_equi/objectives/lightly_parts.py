"""Heads and losses taken from lightly, behind one border.

lightly takes seconds to import, so it is imported when a part is made. Only parts that give N processes the gradients
of one process, and that don't wait for a GPU, are taken: its Barlow Twins loss normalises by each process's own
statistics, its memory bank is not saved with a checkpoint, and its NT-Xent selects by masks, so those are our own.
"""

from collections.abc import Sequence
from typing import Literal

from torch import nn

LastBatchNorm = Literal["none", "affine", "not_affine"]


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
        in_features: width of the input.
        widths: output width of each linear layer.
        last_batch_norm: whether a batch norm follows the last linear layer, and whether it has scale and shift.
        last_bias: False leaves out the bias of the last linear layer; before a batch norm it never has one.
        batch_norm: False leaves out the batch norms between the linear layers (the head of MoCo v2).
        hidden_bias: whether the linear layers before the last have a bias; None: those without a batch norm do.

    Raises:
        ValueError: no width, or a width below 1.
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


def negative_cosine_similarity() -> nn.Module:
    """-cos of two [B, E] batches, mean over the batch (SimSiam, Chen and He, CVPR 2021, equation 1)."""
    from lightly.loss import NegativeCosineSimilarity

    return NegativeCosineSimilarity()
