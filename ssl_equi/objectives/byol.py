"""BYOL (Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733) and Conditional BYOL."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_views
from ssl_equi.objectives.parts.heads import LastBatchNorm, negative_cosine_similarity, projection_head, target_of
from ssl_equi.objectives.parts.predictors import ConditionedPredictor, ProjectedPredictor
from ssl_equi.options import Derived, Width

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class BYOLConfig:
    """Defaults are the paper's. The momentum is a matter of the training loop: paper 0.996, by a cosine up to 1."""

    projector: tuple[Width, ...] = (4096, 256)
    """Widths of the projector's linear layers. Paper: 4096-256; 2048-2048-2048 in seq-JEPA on 3DIEBench."""
    predictor_hidden_width: Width = 4096
    """Hidden width of the predictor, whose output is as wide as the projector's. Paper: 4096; 512 in seq-JEPA."""
    separate_batch_norm: bool = False
    """One call per view, as in the paper, instead of one call for both; see `on_both_views`."""
    last_batch_norm: LastBatchNorm = "none"
    """Batch norm after the projector's last linear layer. Paper: none; not_affine in seq-JEPA's released code."""
    reduction: Reduction = "mean"
    """How the losses of both directions become one. Paper: sum."""


class BYOL(ProjectedObjective):
    """The online branch predicts the target branch's projection of the other view.

    With p = predictor(projector(encoder(x))) and t the target's projection of the other view, without gradient:
    loss = 2 - 2 cos(p, t), mean over the batch, and mean or sum over both directions (equation 2 and its
    symmetrisation).

    The target encoder and projector start as copies of the online ones and follow them through `update_target`. As in
    the paper they run in the mode of the objective: while training, their batch norms use the statistics of the batch.
    """

    def __init__(self, encoder: nn.Module, config: BYOLConfig = BYOLConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_choice("reduction", config.reduction, Reduction)
        self.config = config
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = projection_head(width, (config.predictor_hidden_width, width))
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)
        self.negative_cosine = negative_cosine_similarity()

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Returns:
            terms `cosine`, the mean cosine of prediction and target, and the monitor `std_all` of the online
            projections, see `normalised_std` (0 means collapse); features of the online encoder.
        """
        check_views(views)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        predictions = self.on_views(self.predictor, embeddings)
        with torch.no_grad():
            targets = self.on_views(self.target_projector, self.on_views(self.target_encoder, views))

        with torch.autocast(views.device.type, enabled=False):
            # Prediction 1 is compared with target 2, and the reverse.
            of_other_view = full_precision(targets).flip(dims=(1,))
            cosine = -self.negative_cosine(full_precision(predictions).flatten(0, 1), of_other_view.flatten(0, 1))
            loss = 2 - 2 * cosine if self.config.reduction == "mean" else 4 - 4 * cosine
            terms = {"cosine": cosine, **self.monitors(lambda: {"std_all": normalised_std(embeddings)})}
        return self.output(loss, terms, features, encoder_features=features)


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


class ConditionalBYOL(ProjectedObjective):
    """BYOL whose predictor is told the action, as the seq-JEPA paper compares it (Ghaemi et al., NeurIPS 2025, A.3).

    loss = 2 - 2 cos(p, t), mean over the batch, from view 1 to view 2, with p = predictor(projector(encoder(view 1)),
    action) and t the target's projection of view 2, without gradient. BYOL asks every view for the same projection;
    with the action, the predictor can move from one view's projection to the other's, so the projection may keep what
    changes. The other direction is not predicted, because an action need not come with its inverse.

    The target is BYOL's. The online network sees view 1 only, the target view 2 only.
    """

    def __init__(self, encoder: nn.Module, config: ConditionalBYOLConfig = ConditionalBYOLConfig()) -> None:
        super().__init__(encoder)
        self.config = config
        self.action_dim = config.action_dim
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = ConditionedPredictor(
            width, config.action_dim, [config.predictor_hidden_width, width], config.action_width
        )
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)
        self.negative_cosine = negative_cosine_similarity()

    def latent_predictor(self) -> ProjectedPredictor:
        """See `Objective`. The predictor was trained towards the target's projections, but embeds with the online
        projector, to whose encoder the exported features belong; the target ends close to it."""
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projector, self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2.

        Returns:
            terms `equivariance` (the loss) and the monitor `std_all` of the online projections of view 1, see
            `normalised_std` (0 means collapse); features [B, 1, D] of view 1.
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        features = self.encoder(views[:, 0])
        embedding = self.projector(features)
        prediction = self.predictor(embedding, actions)
        with torch.no_grad():
            target = full_precision(self.target_projector(self.target_encoder(views[:, 1])))
        predict, error = partial(self.predictor, embedding), partial(self._error, target)
        gain = self.action_gain(predict, error, actions, prediction, self.predictor)
        with torch.autocast(views.device.type, enabled=False):
            loss = self._error(target, full_precision(prediction))
            monitors = self.monitors(lambda: {"std_all": normalised_std(embedding.unsqueeze(1))})
            terms = {"equivariance": loss, **monitors}
        return self.output(loss, terms, features.unsqueeze(1), action_gain=gain)

    def _error(self, target: Tensor, prediction: Tensor) -> Tensor:
        return 2 + 2 * self.negative_cosine(prediction, target)
