"""Projector MLPs, and the head that regresses actions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.lightly_parts import projection_head
from ssl_equi.objectives.two_views import check_action_dim
from ssl_equi.objectives.vicreg_terms import full_precision


def projector(in_features: int, widths: Sequence[int]) -> nn.Sequential:
    """The projector of VICReg and SIE: Linear-BatchNorm-ReLU for every width but the last, then a bias-free Linear.

    Args:
        in_features: width of the input [N, in_features].
        widths: output width of each linear layer, e.g. (2048, 2048, 2048).
    """
    head = projection_head(in_features, widths, last_bias=False, hidden_bias=True)
    # The layers without the head around them, by whose names the weights of earlier runs are stored.
    layers: nn.Sequential = head.layers  # type: ignore[assignment]
    return layers


def split_widths(widths: Sequence[int], inv_dim: int, equi_dim: int) -> tuple[list[int], list[int]]:
    """Shares the projector widths between the two parts in proportion to their feature columns.

    Returns:
        Widths of the invariant and of the equivariant projector; they add up to `widths`.
    """
    equi_widths = [round(width * equi_dim / (inv_dim + equi_dim)) for width in widths]
    inv_widths = [width - equi_width for width, equi_width in zip(widths, equi_widths, strict=True)]
    return inv_widths, equi_widths


class ActionHead(nn.Module):
    """Regresses the action from the features of both views: an MLP on their concatenation, ReLU between its layers.

    Args:
        num_features: width D of the features of one view.
        action_dim: action width A.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: a width is below 1.
    """

    def __init__(self, num_features: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        check_action_dim(action_dim)
        self.layers = projection_head(2 * num_features, (*hidden, action_dim), batch_norm=False)

    def forward(self, features: Tensor) -> Tensor:
        """Predicted actions [B, A] from the features of both views [B, 2, D]."""
        return self.layers(features.flatten(1))


def action_regression(prediction: Tensor, actions: Tensor) -> Tensor:
    """Mean squared error over the batch and the action's columns, in float32 or better; call it with autocast off."""
    prediction = full_precision(prediction)
    return F.mse_loss(prediction, actions.to(prediction.dtype))
