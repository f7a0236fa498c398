"""VICReg (Bardes, Ponce and LeCun, "VICReg", ICLR 2022, arXiv:2105.04906): the invariant baseline."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective, weighted_sum
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.checks import check_views
from ssl_equi.objectives.parts.heads import projector
from ssl_equi.objectives.parts.vicreg_terms import std_per_dim, vicreg_terms
from ssl_equi.options import NonNegative, Width


@dataclass(frozen=True)
class VICRegConfig:
    """VICReg as run on 3DIEBench by the released SIE code (facebookresearch/SIE, README)."""

    inv_weight: NonNegative = 10.0
    """Weight of the invariance term; 10 in the SIE code, 25 in the VICReg paper (ImageNet)."""
    variance_weight: NonNegative = 10.0
    """Weight of the variance term, the mean over the two views; 10 in the SIE code, 25 in the VICReg paper."""
    covariance_weight: NonNegative = 1.0
    """Weight of the covariance term, the sum over the two views; 1 in both."""
    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of the projector's linear layers; 2048-2048-2048 in the SIE code, 8192-8192-8192 in the VICReg paper."""
    separate_batch_norm: bool = False
    """One call per view, as in the released code, instead of one call for both; see `on_both_views`."""


class VICReg(ProjectedObjective):
    """loss = inv * MSE(Z, Z') + variance * [V(Z) + V(Z')] / 2 + covariance * [C(Z) + C(Z')].

    V and C are taken over the global batch.
    """

    embeds_both_views = True

    def __init__(self, encoder: nn.Module, config: VICRegConfig = VICRegConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        self.config = config
        self.projector = projector(self.num_features, config.projector)

    def loss_of(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the terms that `forward` returns, from this process's embeddings of pairs [B, 2, E]; call it
        with autocast off."""
        terms = vicreg_terms(embeddings)
        weights = {
            "invariance": self.config.inv_weight,
            "variance": self.config.variance_weight,
            "covariance": self.config.covariance_weight,
        }
        loss = weighted_sum(terms, weights)
        return loss, terms | self.monitors(lambda: {"std_all": std_per_dim(embeddings).mean()})

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Returns:
            terms `invariance`, `variance`, `covariance` and the monitor `std_all`, the mean standard deviation of
            the embedding dimensions (0 means collapse).
        """
        check_views(views)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            loss, terms = self.loss_of(embeddings)
        return self.output(loss, terms, features, embeddings=embeddings, encoder_features=features)
