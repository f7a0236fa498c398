"""Conv-JEPA: from each single view and an action to another view's embedding; what seq-JEPA is compared with on
glimpses (Ghaemi et al., NeurIPS 2025, appendix A.3).

It sees the same views as seq-JEPA, but never two together: nothing gathers them, so what the views of an object share
has to be in the embedding of each.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_views
from ssl_equi.objectives.parts.heads import LastBatchNorm, projection_head, target_of
from ssl_equi.objectives.parts.predictors import ConditionedPredictor
from ssl_equi.options import Derived, Width

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class ConvJEPAConfig:
    """Defaults are those of seq-JEPA's released code; its paper gives no sizes. The momentum is a matter of the
    training loop: there 0.996, by a cosine up to 1."""

    projector: tuple[Width, ...] = (2048, 128)
    """Widths of the projector's linear layers. Released code: 2048-128."""
    last_batch_norm: LastBatchNorm = "not_affine"
    """Batch norm after the projector's last linear layer. Released code: not_affine."""
    predictor_hidden_width: Width = 1024
    """Hidden width of the predictor, whose output is as wide as the projector's. Released code: 1024."""
    action_dim: Derived = 2
    """Width of an action: 2 for the way from one glimpse to another, 4 for a relative rotation (quaternion xyzw)."""
    action_width: Width = 128
    """Width of the embedded action that the predictor reads beside the embedding; 128 in seq-JEPA."""
    reduction: Reduction = "mean"
    """How the losses of the observed views become one. Released code: mean; paper: sum, which is M times as large."""
    separate_batch_norm: bool = False
    """One call of encoder and projector an observed view instead of one call for all, as in the released code; see
    `on_both_views`. The predictor has one call a view either way, as there."""


class ConvJEPA(ProjectedObjective):
    """loss = mean (or sum) over the observed views i = 1 to M of 1 - cos(p_i, t), mean over the batch.

    p_i = predictor(projector(encoder(view i)), action from view i to view M + 1), and t is the target's projection of
    view M + 1, without gradient. 1 - cos is half of BYOL's 2 - 2 cos, and has the size of seq-JEPA's loss.

    The target encoder and projector start as copies of the online ones and follow them through `update_target`. They
    run in the mode of the objective: while training, their batch norms use the statistics of the target views and
    gather running ones of their own. The M observed views go through the encoder and the projector in one call each;
    the online encoder never sees the target views.
    """

    def __init__(self, encoder: nn.Module, config: ConvJEPAConfig = ConvJEPAConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_choice("reduction", config.reduction, Reduction)
        self.config = config
        self.action_dim = config.action_dim
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = ConditionedPredictor(
            width, config.action_dim, [config.predictor_hidden_width, width], config.action_width
        )
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            views: [B, M + 1, 3, H, W]: M >= 1 observed views, then the one to predict.
            actions: [B, M, action_dim], from each observed view to the last view.

        Returns:
            terms `cosine` (mean over the observed views) and the monitor `std_all` of the observed views' online
            projections, see `normalised_std` (0 means collapse); features [B, M, D] of the observed views.
        """
        check_views(views, num_views=None)
        observed = views[:, :-1]
        actions = check_actions(actions, *observed.shape[:2], self.config.action_dim)
        features = self.on_views(self.encoder, observed)
        embeddings = self.on_views(self.projector, features)
        predictions = self._predict(embeddings, actions)
        with torch.no_grad():
            targets = full_precision(self.target_projector(self.target_encoder(views[:, -1]))).unsqueeze(1)
        gain = self.action_gain(
            partial(self._predict, embeddings),
            lambda predicted: 1 - F.cosine_similarity(predicted, targets, dim=-1).mean(),
            actions,
            predictions,
            self.predictor,
        )

        with torch.autocast(views.device.type, enabled=False):
            cosine_by_view = F.cosine_similarity(full_precision(predictions), targets, dim=-1).mean(dim=0)
            losses = 1 - cosine_by_view
            loss = losses.mean() if self.config.reduction == "mean" else losses.sum()
            monitors = self.monitors(lambda: {"std_all": normalised_std(embeddings)})
            terms = {"cosine": cosine_by_view.mean(), **monitors}
        return self.output(loss, terms, features, encoder_features=features, action_gain=gain)

    def _predict(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """[B, M, E] of the embeddings [B, M, E] and actions [B, M, A] of the observed views."""
        # One call per view, so that batch norms see the predictions and actions of each by themselves.
        pairs = zip(embeddings.unbind(dim=1), actions.unbind(dim=1), strict=True)
        return torch.stack([self.predictor(embedding, action) for embedding, action in pairs], dim=1)
