"""Barlow Twins (Zbontar et al., "Self-Supervised Learning via Redundancy Reduction", ICML 2021, arXiv:2103.03230)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.distributed import gather_batch
from ssl_equi.objectives.lightly_parts import projection_head
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.two_views import check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
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
    """One call a view, as in the paper, instead of one call for both; see `two_views.on_both_views`."""


def standardise(embedding: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 for every dimension over the batch: [N, E] -> [N, E].

    The variance is the biased one (divided by N), as in a batch norm without scale and shift.
    """
    variance, mean = torch.var_mean(embedding, dim=0, correction=0)
    return (embedding - mean) * torch.rsqrt(variance + EPSILON)


def cross_correlation_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums over the cross-correlation matrix c of two views (equations 1 and 2).

    Args:
        first, second: the global batch's embeddings [N, E] of either view.

    Returns:
        sum over i of (1 - c_ii)^2 and sum over i != j of c_ij^2, with c = standardised first^T standardised second / N.
    """
    correlation = standardise(first).T @ standardise(second) / first.shape[0]
    diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag(diagonal)
    return (1 - diagonal).square().sum(), off_diagonal.square().sum()


class BarlowTwins(nn.Module):
    """loss = sum over i of (1 - c_ii)^2 + off_diagonal_weight * sum over i != j of c_ij^2.

    c is the correlation of the dimensions of view 1's embeddings with those of view 2's over the global batch, see
    `ssl_equi.objectives.distributed`. The sums grow with the embedding's width, which calls for a small learning rate
    or an optimizer that does not mind the scale (LARS in the paper).

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: weight and sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or the projector has no width or one below 1.
    """

    embeds_both_views = True  # its output has `embeddings`

    def __init__(self, encoder: nn.Module, config: BarlowTwinsConfig = BarlowTwinsConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(self.num_features, config.projector)

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: Barlow Twins has no split."""
        return {"all": slice(0, self.num_features)}

    def embed(self, images: Tensor) -> Tensor:
        """Encoder and projector, in float32 or better, not standardised: [N, 3, H, W] -> [N, E]."""
        return full_precision(self.projector(self.encoder(images)))

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: ignored; accepted so that all objectives are called alike.

        Returns:
            terms `on_diagonal` and `off_diagonal`, the two sums before the weight, and the monitor `std_all`, see
            `monitors.normalised_std` (0 means collapse); embeddings as `embed` gives them.

        Raises:
            ValueError: if the views do not have the shape or type above.
        """
        check_views(views)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        embeddings = on_both_views(self.projector, features, separate)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            on_diagonal, off_diagonal = cross_correlation_terms(*gather_batch(embeddings).unbind(dim=1))
            loss = on_diagonal + self.config.off_diagonal_weight * off_diagonal
            terms = {"on_diagonal": on_diagonal, "off_diagonal": off_diagonal, "std_all": normalised_std(embeddings)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            embeddings=embeddings,
            encoder_features=features,
        )
