"""SEN: equivariance by contrast alone (Park et al., "Learning Symmetric Embeddings for Equivariant World Models", ICML
2022), in the form in which the papers on SIE and seq-JEPA compare it.

From the embedding of view 1 and the action, a predictor must find the embedding of view 2 among those of other objects.
Nothing asks for invariance.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_views
from ssl_equi.objectives.parts.contrastive import ContrastiveLoss
from ssl_equi.objectives.parts.heads import LastBatchNorm, projection_head
from ssl_equi.objectives.parts.predictors import ConditionedPredictor, ProjectedPredictor
from ssl_equi.options import Derived, Positive, Width


@dataclass(frozen=True)
class SENConfig:
    """SEN as the seq-JEPA paper runs it on 3DIEBench."""

    temperature: Positive = 0.5
    """Divides the cosines; 0.5 in seq-JEPA."""
    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of the projector's linear layers; 2048-2048-2048 in seq-JEPA."""
    last_batch_norm: LastBatchNorm = "not_affine"
    """Batch norm after the projector's last linear layer; not_affine in seq-JEPA's SimCLR."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    action_width: Width = 128
    """Width of the embedded action that the predictor reads beside the embedding; 128 in seq-JEPA."""
    separate_batch_norm: bool = False
    """One call per view instead of one call for both; see `on_both_views`."""


class SEN(ProjectedObjective):
    """loss = NT-Xent(P, Z'), where Z, Z' are the projected views and P = BatchNorm(Linear([Z; e(action)])), with e a
    learnt embedding and a batch norm without scale and shift.

    The candidates of a prediction are the other predictions and all Z' of the global batch, and the reverse; see
    `ContrastiveLoss`. There is no stop-gradient.
    """

    def __init__(self, encoder: nn.Module, config: SENConfig = SENConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        self.config = config
        self.action_dim = config.action_dim
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = ConditionedPredictor(width, config.action_dim, [width], config.action_width, "not_affine")
        self._contrastive_loss = ContrastiveLoss(config.temperature)

    def latent_predictor(self) -> ProjectedPredictor:
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projector, self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2.

        Returns:
            terms `equivariance` (the loss) and the monitor `std_all`, see `normalised_std` (0 means collapse).
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        prediction = self.predictor(embeddings[:, 0], actions)
        error = partial(self._contrastive_loss, full_precision(embeddings[:, 1]))
        gain = self.action_gain(partial(self.predictor, embeddings[:, 0]), error, actions, prediction, self.predictor)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            loss = self._contrastive_loss(full_precision(prediction), embeddings[:, 1])
            terms = {"equivariance": loss, **self.monitors(lambda: {"std_all": normalised_std(embeddings)})}
        return self.output(loss, terms, features, encoder_features=features, action_gain=gain)
