"""SEN: equivariance by contrast alone (Park et al., "Learning Symmetric Embeddings for Equivariant World Models", ICML
2022), in the form in which the papers on SIE and seq-JEPA compare it.

From the embedding of view 1 and the action, a predictor must find the embedding of view 2 among those of other objects.
Nothing asks for invariance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.contrastive import ContrastiveLoss
from ssl_equi.objectives.latent_predictor import ProjectedPredictor
from ssl_equi.objectives.lightly_parts import LastBatchNorm, projection_head
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.predictors import ConditionedPredictor
from ssl_equi.objectives.two_views import check_actions, check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
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
    """One call a view instead of one call for both; see `two_views.on_both_views`."""


class SEN(nn.Module):
    """loss = NT-Xent(P, Z'), where Z, Z' are the projected views and P = BatchNorm(Linear([Z; e(action)])), with e a
    learnt embedding and a batch norm without scale and shift.

    The candidates of a prediction are the other predictions and all Z' of the global batch, and the reverse; see
    `ssl_equi.objectives.contrastive`. There is no stop-gradient.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: temperature and sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or a size or the temperature is impossible.
    """

    def __init__(self, encoder: nn.Module, config: SENConfig = SENConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = ConditionedPredictor(width, config.action_dim, [width], config.action_width, "not_affine")
        self._contrastive_loss = ContrastiveLoss(config.temperature)

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: SEN has no split."""
        return {"all": slice(0, self.num_features)}

    def latent_predictor(self) -> ProjectedPredictor:
        """The trained predictor by itself, with its projector; the weights are shared."""
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projector, self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: [B, action_dim], the transformation from view 1 to view 2.

        Returns:
            terms `equivariance` (the loss) and the monitor `std_all`, see `monitors.normalised_std` (0 means
            collapse).

        Raises:
            ValueError: if views or actions do not have the shapes and types above.
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        embeddings = on_both_views(self.projector, features, separate)
        prediction = self.predictor(embeddings[:, 0], actions)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            loss = self._contrastive_loss(full_precision(prediction), embeddings[:, 1])
            terms = {"equivariance": loss, "std_all": normalised_std(embeddings)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            encoder_features=features,
        )
