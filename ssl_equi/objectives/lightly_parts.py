"""Heads and losses taken from lightly, behind one border.

lightly takes seconds to import, so it is imported when a part is made. Only parts that give N processes the gradients
of one process are taken: its Barlow Twins loss normalises by each process's own statistics, and its memory bank is
not saved with a checkpoint, so those two are our own.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from ssl_equi.objectives.two_views import check_temperature

LastBatchNorm = Literal["none", "affine", "not_affine"]


def projection_head(
    in_features: int, widths: Sequence[int], last_batch_norm: LastBatchNorm = "none", batch_norm: bool = True
) -> nn.Module:
    """An MLP [N, in_features] -> [N, widths[-1]]: Linear-BatchNorm-ReLU for every width but the last, then a Linear.

    Args:
        in_features: width of the input.
        widths: output width of each linear layer.
        last_batch_norm: whether a batch norm follows the last linear layer, and whether it has scale and shift. Linear
            layers before a batch norm have no bias.
        batch_norm: False leaves out the batch norms between the linear layers (the head of MoCo v2).

    Raises:
        ValueError: no width, or a width below 1.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"the head's widths are {tuple(widths)}: give at least one, all of them 1 or more")
    from lightly.models.modules.heads import ProjectionHead

    blocks: list[tuple[int, int, nn.Module | None, nn.Module | None]] = []
    for width in widths[:-1]:
        norm = nn.BatchNorm1d(width) if batch_norm else None
        blocks.append((in_features, width, norm, nn.ReLU(inplace=True)))
        in_features = width
    last_norm = None if last_batch_norm == "none" else nn.BatchNorm1d(widths[-1], affine=last_batch_norm == "affine")
    blocks.append((in_features, widths[-1], last_norm, None))
    return ProjectionHead(blocks)


def nt_xent(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """NT-Xent (Chen et al., SimCLR, ICML 2020, equation 1) of two [B, E] batches, mean over both directions.

    Each embedding's candidates are the 2N - 1 others of the global batch. The embeddings are normalised to length 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    check_temperature(temperature)
    from lightly.loss import NTXentLoss

    # The function instead of the module: the module's unused memory bank would join the objective's buffers.
    return NTXentLoss(temperature=temperature, gather_distributed=True).forward


def negative_cosine_similarity() -> nn.Module:
    """-cos of two [B, E] batches, mean over the batch (SimSiam, Chen and He, CVPR 2021, equation 1)."""
    from lightly.loss import NegativeCosineSimilarity

    return NegativeCosineSimilarity()
