"""seq-JEPA (Ghaemi et al., "seq-JEPA: Autoregressive Predictive Learning of Invariant-Equivariant World Models",
NeurIPS 2025, arXiv:2505.03176).

Some views of an object are observed one after another. A transformer gathers their features, and the actions between
them, in one aggregate; from the aggregate and the action that leads to the next view, a predictor answers the features
of that view. What the encoder must keep to be of use is what the actions change; what the aggregate must keep is what
all views share. No term of the loss asks for either.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, SequenceObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_views
from ssl_equi.objectives.parts.heads import projection_head, target_of
from ssl_equi.objectives.parts.predictors import ActionEmbedding
from ssl_equi.options import ActsWhen, Derived, Range, Width

Conditioning = Literal["both", "aggregator", "predictor", "none"]
ActionStatistics = Literal["joint", "last_apart", "last_apart_zeros"]
_TOLD_ACTIONS = ActsWhen(lambda options: options.conditioning != "none", "choose a conditioning other than none")


@dataclass(frozen=True)
class SeqJEPAConfig:
    """Defaults are the paper's. The momentum is a matter of the training loop: there 0.996, by a cosine up to 1."""

    action_dim: Derived = 4
    """Width of an action: 4 for a relative rotation (quaternion xyzw), 6 with two hues, 2 for a glimpse's position."""
    action_width: Annotated[Width, _TOLD_ACTIONS] = 128
    """Width of an embedded action. Paper: 128; 16 is .01 of rotation R2 worse, 64 and 256 alike."""
    action_statistics: Annotated[ActionStatistics, _TOLD_ACTIONS] = "joint"
    """Which actions share the batch statistics of the action embedding. joint: all M of a batch. The released code
    embeds the last action by itself, and the others together with rows whose embedding it then discards: the last
    action again (last_apart; rendered views), or zeros (last_apart_zeros; augmentations and glimpses). Nothing differs
    for M = 1."""
    conditioning: Conditioning = "both"
    """Who is told the actions: the aggregator and the predictor (paper), one of them, or none (the ablations)."""
    layers: Width = 3
    """Layers of the transformer that aggregates the views."""
    heads: Width = 4
    """Attention heads of each layer."""
    feedforward_width: Width = 2560
    """Hidden width of each layer's MLP. Paper: 2560, four times the width of a token."""
    dropout: Annotated[float, Range(minimum=0, below=1)] = 0.1
    """Dropout in the transformer. Released code: PyTorch's default, 0.1."""
    predictor_hidden_width: Width = 1024
    """Hidden width of the predictor."""
    momentum_target: bool = True
    """Targets come from a slowly following copy of the encoder; off: from the encoder itself, without gradient."""
    separate_batch_norm: bool = False
    """One call of the encoder per view instead of one call for all; see `on_both_views`."""


class Aggregator(nn.Module):
    """A learned token, followed by one token per view, through a transformer; the first output is the aggregate.

    Layers normalise after their residual sums, and once more at the end.
    """

    def __init__(self, width: int, layers: int, heads: int, feedforward_width: int, dropout: float) -> None:
        super().__init__()
        if min(layers, heads, feedforward_width) < 1:
            raise ValueError(
                f"the aggregator has {layers} layers, {heads} heads and a hidden width of {feedforward_width}: give at "
                "least 1 of each"
            )
        if width % heads:
            raise ValueError(
                f"a token has {width} numbers (features and embedded action), which {heads} heads can't share: choose "
                "an action_width or a number of heads that divides"
            )
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward_width, dropout, batch_first=True)
        # Nested tensors serve masks, of which there are none, and give other roundings in eval mode.
        self.transformer = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, M, W] of M views -> their aggregate [B, W]."""
        # Tokens carry no position: where a view stands in the sequence shows in its action only.
        first = self.token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.transformer(torch.cat([first, tokens], dim=1))[:, 0]


class SeqJEPA(SequenceObjective):
    """loss = 1 - mean cos(predictor(aggregate of views 1 to M, action M), target(view M + 1)).

    Token i is the features of view i beside the embedded action from view i to view i + 1. The last observed view's
    action is the predictor's: zeros stand in its place. The target is the encoder's features (there is no projector),
    without gradient.

    With a momentum target, its encoder starts as a copy and follows through `update_target`. Parameters follow; buffers
    don't: in training mode the target's batch norms use the statistics of the target views and gather running ones of
    their own, as in the released code. The M observed views go through the encoder in one call, the target views
    through the momentum encoder in another. Without a momentum target all M + 1 views go through the encoder in one
    call, and no gradient flows back through the last one.
    """

    def __init__(self, encoder: nn.Module, config: SeqJEPAConfig = SeqJEPAConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_choice("conditioning", config.conditioning, Conditioning)
        check_choice("action_statistics", config.action_statistics, ActionStatistics)
        self.config = config
        self.action_dim = config.action_dim
        self.aggregator_takes_actions = config.conditioning in ("both", "aggregator")
        self.predictor_takes_actions = config.conditioning in ("both", "predictor")
        self.target_encoder = target_of(encoder) if config.momentum_target else None
        self.action_embedding = None
        if config.conditioning != "none":
            self.action_embedding = ActionEmbedding(config.action_dim, config.action_width)
        width = self.num_features + (config.action_width if self.aggregator_takes_actions else 0)
        self.aggregate_width = width
        self.aggregator = Aggregator(width, config.layers, config.heads, config.feedforward_width, config.dropout)
        predictor_inputs = width + (config.action_width if self.predictor_takes_actions else 0)
        self.predictor = projection_head(predictor_inputs, (config.predictor_hidden_width, self.num_features))

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """What M views share, for any M >= 1, also another than in training.

        Args:
            features: [B, M, D] of the encoder, in the order of observation.
            actions: [B, M - 1, A] between them; None (or ignored) if the aggregator takes no actions.

        Returns:
            [B, W] with W = `aggregate_width`, in float32 or better.
        """
        embedded = None
        if self.aggregator_takes_actions:
            embedded = self._embed(check_actions(actions, len(features), features.shape[1] - 1, self.config.action_dim))
        return self._aggregate(features, embedded)

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """The expected target features [B, D] of the view that an action leads to.

        Args:
            aggregates: [B, W] of `aggregate`.
            actions: [B, A] from the last observed view to that one; None (or ignored) if the predictor takes none.
        """
        embedded = None
        if self.predictor_takes_actions:
            actions = check_actions(actions, len(aggregates), self.config.action_dim)
            embedded = self._embed(actions.unsqueeze(1))[:, 0]
        return self._predict(aggregates, embedded)

    def target_features(self, images: Tensor) -> Tensor:
        """What predictions are compared with: features [N, D] of the momentum encoder, or of the encoder."""
        return (self.encoder if self.target_encoder is None else self.target_encoder)(images)

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            views: [B, M + 1, 3, H, W]: M observed views, then the one to predict.
            actions: [B, M, action_dim], from each view to the next; ignored with conditioning "none".

        Returns:
            terms `cosine` (loss = 1 - cosine) and the monitors `std_all` of the observed views' features and `std_agg`
            of the aggregates, see `normalised_std` (0 means collapse); features [B, M, D] of the observed views;
            aggregates [B, W].
        """
        check_views(views, num_views=None)
        observed_actions = last_action = None
        if self.action_embedding is not None:
            actions = check_actions(actions, len(views), views.shape[1] - 1, self.config.action_dim)
            observed_actions, last_action = self._embed_steps(actions)
        features, target = self._encode(views)
        aggregates = self._aggregate(features, observed_actions)
        prediction = self._predict(aggregates, last_action)
        target, gain = full_precision(target), None
        if self.action_embedding is not None and actions is not None:
            gain = self.action_gain(
                partial(self._predict_along, features),
                lambda predicted: 1 - F.cosine_similarity(predicted, target, dim=1).mean(),
                actions,
                prediction,
                *(self.action_embedding, self.aggregator, self.predictor),
            )

        with torch.autocast(views.device.type, enabled=False):
            cosine = F.cosine_similarity(full_precision(prediction), target, dim=1).mean()
            monitors = self.monitors(
                lambda: {"std_all": normalised_std(features), "std_agg": normalised_std(aggregates.unsqueeze(1))}
            )
            terms = {"cosine": cosine, **monitors}
        kept = {"encoder_features": features, "aggregates": aggregates.detach(), "action_gain": gain}
        return self.output(1 - cosine, terms, features, **kept)

    def _encode(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, M, D] of the observed views with their graph, and target features [B, D] without one."""
        if self.target_encoder is None:
            features = self.on_views(self.encoder, views)
            return features[:, :-1], features[:, -1].detach()
        features = self.on_views(self.encoder, views[:, :-1])
        with torch.no_grad():
            return features, self.target_encoder(views[:, -1])

    def _predict_along(self, features: Tensor, actions: Tensor) -> Tensor:
        """Predictions [B, D] from the features [B, M, D] of the observed views and the actions [B, M, A]."""
        observed_actions, last_action = self._embed_steps(actions)
        return self._predict(self._aggregate(features, observed_actions), last_action)

    def _embed_steps(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, A] -> the embedded actions between the observed views [B, M - 1, E], and the last one [B, E]."""
        if self.config.action_statistics == "joint":
            embedded = self._embed(actions)
            return embedded[:, :-1], embedded[:, -1]
        last_action = self._embed(actions[:, -1:])[:, 0]
        if self.config.action_statistics == "last_apart_zeros":
            actions = torch.cat([actions[:, :-1], torch.zeros_like(actions[:, -1:])], dim=1)
        return self._embed(actions)[:, :-1], last_action

    def _embed(self, actions: Tensor) -> Tensor:
        """[B, S, A] -> [B, S, E]; the batch norm sees all B * S actions as one batch."""
        assert self.action_embedding is not None
        if actions.shape[1] == 0:
            return actions.new_zeros(len(actions), 0, self.config.action_width)
        return self.action_embedding(actions.flatten(0, 1)).unflatten(0, actions.shape[:2])

    def _aggregate(self, features: Tensor, embedded: Tensor | None) -> Tensor:
        """The aggregate of features [B, M, D], beside embedded actions [B, M - 1, E] if the aggregator takes them."""
        if self.aggregator_takes_actions and embedded is not None:
            last = embedded.new_zeros(len(features), 1, self.config.action_width)
            beside = torch.cat([embedded, last], dim=1).to(features.dtype)
            features = torch.cat([features, beside], dim=2)
        return full_precision(self.aggregator(features))

    def _predict(self, aggregates: Tensor, embedded: Tensor | None) -> Tensor:
        """The prediction from aggregates [B, W], beside an embedded action [B, E] if the predictor takes it."""
        if self.predictor_takes_actions and embedded is not None:
            aggregates = torch.cat([aggregates, embedded.to(aggregates.dtype)], dim=1)
        return self.predictor(aggregates)
