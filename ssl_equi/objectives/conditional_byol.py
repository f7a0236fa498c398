"""Conditional BYOL: BYOL whose predictor is told the action, as the seq-JEPA paper compares it (Ghaemi et al., NeurIPS
2025, appendix A.3).

Plain BYOL (Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020) asks every view for the same projection. With the
action, the predictor can move from one view's projection to the other's, so the projection may keep what changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.latent_predictor import ProjectedPredictor
from ssl_equi.objectives.lightly_parts import LastBatchNorm, negative_cosine_similarity, projection_head
from ssl_equi.objectives.momentum import follow, target_of
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.predictors import ConditionedPredictor
from ssl_equi.objectives.two_views import check_actions, check_views, feature_dim
from ssl_equi.objectives.vicreg_terms import full_precision
from ssl_equi.options import Derived, Width


@dataclass(frozen=True)
class ConditionalBYOLConfig:
    """Defaults are seq-JEPA's for 3DIEBench. The momentum is a matter of the training loop: there 0.996, by a cosine up
    to 1."""

    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of the projector's linear layers; 2048-2048-2048 in seq-JEPA's paper, 2048-128 in its code."""
    predictor_hidden_width: Width = 512
    """Hidden width of the predictor, whose output is as wide as the projector's; 512 in seq-JEPA's paper."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    action_width: Width = 128
    """Width of the embedded action that the predictor reads beside the embedding; 128 in seq-JEPA."""
    last_batch_norm: LastBatchNorm = "none"
    """Batch norm after the projector's last linear layer; not_affine in seq-JEPA's released code."""


class ConditionalBYOL(nn.Module):
    """loss = 2 - 2 cos(p, t), mean over the batch, from view 1 to view 2.

    p = predictor(projector(encoder(view 1)), action), and t is the target's projection of view 2, without gradient. The
    other direction is not predicted, because an action need not come with its inverse.

    The target encoder and projector start as copies of the online ones and follow them through `update_target`,
    to be called after every step of the optimizer. They run in the mode of the objective: while training, their batch
    norms use the statistics of the batch. The online network sees view 1 only, the target view 2 only.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D; it becomes the online encoder.
        config: sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or a width is impossible.
    """

    def __init__(self, encoder: nn.Module, config: ConditionalBYOLConfig = ConditionalBYOLConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = ConditionedPredictor(
            width, config.action_dim, [config.predictor_hidden_width, width], config.action_width
        )
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)
        self.negative_cosine = negative_cosine_similarity()

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: Conditional BYOL has no split."""
        return {"all": slice(0, self.num_features)}

    def latent_predictor(self) -> ProjectedPredictor:
        """The trained predictor by itself, with the online projector; the weights are shared.

        The predictor was trained towards the target's projections. The target follows the online network and ends close
        to it, and the features of one encoder are embedded: those of the online one.
        """
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projector, self.predictor)

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, for the encoder and the projector.

        Raises:
            ValueError: the momentum is outside [0, 1].
        """
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: [B, action_dim], the transformation from view 1 to view 2.

        Returns:
            terms `equivariance` (the loss) and the monitor `std_all` of the online projections of view 1, see
            `monitors.normalised_std` (0 means collapse); features [B, 1, D] of view 1.

        Raises:
            ValueError: if views or actions do not have the shapes and types above.
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        features = self.encoder(views[:, 0])
        embedding = self.projector(features)
        prediction = self.predictor(embedding, actions)
        with torch.no_grad():
            target = self.target_projector(self.target_encoder(views[:, 1]))
        with torch.autocast(views.device.type, enabled=False):
            loss = 2 + 2 * self.negative_cosine(full_precision(prediction), full_precision(target))
            terms = {"equivariance": loss, "std_all": normalised_std(embedding.unsqueeze(1))}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()).unsqueeze(1),
        )
