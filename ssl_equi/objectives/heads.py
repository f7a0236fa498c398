"""Projector MLPs."""

from collections.abc import Sequence

from torch import nn


def projector(in_features: int, widths: Sequence[int]) -> nn.Sequential:
    """The projector of VICReg and SIE: Linear-BatchNorm-ReLU for every width but the last, then a bias-free Linear.

    Args:
        in_features: width of the input [N, in_features].
        widths: output width of each linear layer, e.g. (2048, 2048, 2048).
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_features = width
    layers.append(nn.Linear(in_features, widths[-1], bias=False))
    return nn.Sequential(*layers)


def split_widths(widths: Sequence[int], inv_dim: int, equi_dim: int) -> tuple[list[int], list[int]]:
    """Shares the projector widths between the two parts in proportion to their feature columns.

    Returns:
        Widths of the invariant and of the equivariant projector; they add up to `widths`.
    """
    equi_widths = [round(width * equi_dim / (inv_dim + equi_dim)) for width in widths]
    inv_widths = [width - equi_width for width, equi_width in zip(widths, equi_widths, strict=True)]
    return inv_widths, equi_widths
