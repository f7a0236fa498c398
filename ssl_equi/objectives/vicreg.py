"""VICReg (Bardes, Ponce and LeCun, "VICReg", ICLR 2022, arXiv:2105.04906): the invariant baseline."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.distributed import gather_batch
from ssl_equi.objectives.heads import projector
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.two_views import check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision, std_per_dim, vicreg_terms
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
    """One call a view, as in the released code, instead of one call for both; see `two_views.on_both_views`."""


class VICReg(nn.Module):
    """loss = inv * MSE(Z, Z') + variance * [V(Z) + V(Z')] / 2 + covariance * [C(Z) + C(Z')].

    V and C are taken over the global batch, see `ssl_equi.objectives.distributed`.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: weights and sizes.

    Raises:
        ValueError: if the encoder does not state its feature width.
    """

    embeds_both_views = True  # its output has `embeddings`

    def __init__(self, encoder: nn.Module, config: VICRegConfig = VICRegConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projector(self.num_features, config.projector)

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: VICReg has no split."""
        return {"all": slice(0, self.num_features)}

    def embed(self, images: Tensor) -> Tensor:
        """Encoder and projector, in float32 or better: [N, 3, H, W] -> [N, E]."""
        return full_precision(self.projector(self.encoder(images)))

    def loss_of(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the terms that `forward` returns, from this process's embeddings of pairs [B, 2, E]; call it
        with autocast off."""
        gathered = gather_batch(embeddings)
        terms = vicreg_terms(embeddings, gathered)
        loss = (
            self.config.inv_weight * terms["invariance"]
            + self.config.variance_weight * terms["variance"]
            + self.config.covariance_weight * terms["covariance"]
        )
        return loss, terms | {"std_all": std_per_dim(gathered.detach()).mean()}

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: ignored; accepted so that all objectives are called alike.

        Returns:
            terms `invariance`, `variance`, `covariance` and the monitor `std_all`, the mean standard deviation of
            the embedding dimensions (0 means collapse).

        Raises:
            ValueError: if the views do not have the shape or type above.
        """
        check_views(views)
        features = on_both_views(self.encoder, views, self.config.separate_batch_norm)
        embeddings = on_both_views(self.projector, features, self.config.separate_batch_norm)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            loss, terms = self.loss_of(embeddings)
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            embeddings=embeddings,
            encoder_features=features,
        )
