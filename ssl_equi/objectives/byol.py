"""BYOL (Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_equi.objectives.lightly_parts import LastBatchNorm, negative_cosine_similarity, projection_head
from ssl_equi.objectives.momentum import follow, target_of
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.two_views import check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
from ssl_equi.options import Width


@dataclass(frozen=True)
class BYOLConfig:
    """Defaults are the paper's. The momentum is a matter of the training loop: paper 0.996, by a cosine up to 1."""

    projector: tuple[Width, ...] = (4096, 256)
    """Widths of the projector's linear layers. Paper: 4096-256; 2048-2048-2048 in seq-JEPA on 3DIEBench."""
    predictor_hidden_width: Width = 4096
    """Hidden width of the predictor, whose output is as wide as the projector's. Paper: 4096; 512 in seq-JEPA."""
    separate_batch_norm: bool = False
    """One call a view, as in the paper, instead of one call for both; see `two_views.on_both_views`."""
    last_batch_norm: LastBatchNorm = "none"
    """Batch norm after the projector's last linear layer. Paper: none; not_affine in seq-JEPA's released code."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the losses of both directions become one. Paper: sum."""


class BYOL(nn.Module):
    """The online branch predicts the target branch's projection of the other view.

    With p = predictor(projector(encoder(x))) and t the target's projection of the other view, without gradient:
    loss = 2 - 2 cos(p, t), mean over the batch, and mean or sum over both directions (equation 2 and its
    symmetrisation).

    The target encoder and projector start as copies of the online ones and follow them through `update_target`,
    to be called after every step of the optimizer. As in the paper they run in the mode of the objective: while
    training, their batch norms use the statistics of the batch.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D; it becomes the online encoder.
        config: sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or a head has no width or one below 1.
    """

    def __init__(self, encoder: nn.Module, config: BYOLConfig = BYOLConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        embedding_width = config.projector[-1]
        self.predictor = projection_head(embedding_width, (config.predictor_hidden_width, embedding_width))
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)
        self.negative_cosine = negative_cosine_similarity()

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: BYOL has no split."""
        return {"all": slice(0, self.num_features)}

    def embed(self, images: Tensor) -> Tensor:
        """Online encoder and projector, in float32 or better, not normalised: [N, 3, H, W] -> [N, E]."""
        return full_precision(self.projector(self.encoder(images)))

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, for the encoder and the projector.

        Raises:
            ValueError: the momentum is outside [0, 1].
        """
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: ignored; accepted so that all objectives are called alike.

        Returns:
            terms `cosine`, the mean cosine of prediction and target, and the monitor `std_all` of
            the online projections, see `monitors.normalised_std` (0 means collapse); features of the online encoder.

        Raises:
            ValueError: if the views do not have the shape or type above.
        """
        check_views(views)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        embeddings = on_both_views(self.projector, features, separate)
        predictions = on_both_views(self.predictor, embeddings, separate)
        with torch.no_grad():
            target_features = on_both_views(self.target_encoder, views, separate)
            targets = on_both_views(self.target_projector, target_features, separate)

        with torch.autocast(views.device.type, enabled=False):
            of_other_view = full_precision(targets).flip(dims=(1,))
            cosine = -self.negative_cosine(full_precision(predictions).flatten(0, 1), of_other_view.flatten(0, 1))
            loss = 2 - 2 * cosine if self.config.reduction == "mean" else 4 - 4 * cosine
            terms = {"cosine": cosine, "std_all": normalised_std(embeddings)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            encoder_features=features,
        )
