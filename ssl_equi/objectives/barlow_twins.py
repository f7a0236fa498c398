"""Barlow Twins (Zbontar et al., "Self-Supervised Learning via Redundancy Reduction", ICML 2021, arXiv:2103.03230)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import (
    batch_var_mean,
    full_precision,
    normalised_std,
    sum_over_processes,
    world_size,
)
from ssl_equi.objectives.parts.checks import check_views
from ssl_equi.objectives.parts.heads import projection_head
from ssl_equi.options import NonNegative, Width

EPSILON = 1e-5  # added to the variance, as batch norm does: a constant dimension becomes 0 instead of NaN


@dataclass(frozen=True)
class BarlowTwinsConfig:
    """Defaults are the paper's and its released code's."""

    off_diagonal_weight: NonNegative = 0.0051
    """Weight of the redundancy reduction, lambda. Paper: 0.005; 0.0051 in the released code."""
    projector: tuple[Width, ...] = (8192, 8192, 8192)
    """Widths of the projector's linear layers. Paper: 8192-8192-8192."""
    separate_batch_norm: bool = False
    """One call per view, as in the paper, instead of one call for both; see `on_both_views`."""


def standardise(embedding: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 for every dimension over the global batch, of this process's share [B, E].

    The variance is the biased one (divided by N), as in a batch norm without scale and shift.
    """
    variance, mean = batch_var_mean(embedding, correction=0)
    return (embedding - mean) * torch.rsqrt(variance + EPSILON)


def cross_correlation_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums over the cross-correlation matrix c of two views (equations 1 and 2).

    Args:
        first, second: this process's share of the embeddings [B, E] of either view.

    Returns:
        sum over i of (1 - c_ii)^2 and sum over i != j of c_ij^2, with c = standardised first^T standardised second / N
        over the global batch of N.
    """
    products = sum_over_processes(standardise(first).T @ standardise(second))
    correlation = products / (world_size() * len(first))
    diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag(diagonal)
    return (1 - diagonal).square().sum(), off_diagonal.square().sum()


class BarlowTwins(ProjectedObjective):
    """loss = sum over i of (1 - c_ii)^2 + off_diagonal_weight * sum over i != j of c_ij^2.

    c is the correlation of the dimensions of view 1's embeddings with those of view 2's over the global batch. The sums
    grow with the embedding's width, which calls for a small learning rate or an optimizer that does not mind the scale
    (LARS in the paper).
    """

    embeds_both_views = True

    def __init__(self, encoder: nn.Module, config: BarlowTwinsConfig = BarlowTwinsConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        self.config = config
        self.projector = projection_head(self.num_features, config.projector)

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Returns:
            terms `on_diagonal` and `off_diagonal`, the two sums before the weight, and the monitor `std_all`, see
            `normalised_std` (0 means collapse); the output's embeddings are not standardised.
        """
        check_views(views)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            on_diagonal, off_diagonal = cross_correlation_terms(*embeddings.unbind(dim=1))
            loss = on_diagonal + self.config.off_diagonal_weight * off_diagonal
            terms = {"on_diagonal": on_diagonal, "off_diagonal": off_diagonal}
            terms |= self.monitors(lambda: {"std_all": normalised_std(embeddings)})
        return self.output(loss, terms, features, embeddings=embeddings, encoder_features=features)
