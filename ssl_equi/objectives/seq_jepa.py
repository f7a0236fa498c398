"""seq-JEPA (Ghaemi et al., "seq-JEPA: Autoregressive Predictive Learning of Invariant-Equivariant World Models",
NeurIPS 2025, arXiv:2505.03176).

Some views of an object are observed one after another. A transformer gathers their features, and the actions between
them, in one aggregate; from the aggregate and the action that leads to the next view, a predictor answers the features
of that view. What the encoder must keep to be of use is what the actions change; what the aggregate must keep is what
all views share. No term of the loss asks for either.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.lightly_parts import projection_head
from ssl_equi.objectives.momentum import follow, target_of
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.predictors import ActionEmbedding
from ssl_equi.objectives.sequences import check_sequence, check_steps
from ssl_equi.objectives.two_views import feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
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
    """One call of the encoder a view instead of one call for all; see `two_views.on_both_views`."""


class Aggregator(nn.Module):
    """A learned token, followed by one token a view, through a transformer; the first output is the aggregate.

    Tokens carry no position: where a view stands in the sequence shows in its action only. Layers normalise after
    their residual sums, and once more at the end.

    Raises:
        ValueError: the width of a token is not divisible by the number of heads, or a size is below 1.
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
        first = self.token.to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.transformer(torch.cat([first, tokens], dim=1))[:, 0]


class SeqJEPA(nn.Module):
    """loss = 1 - mean cos(predictor(aggregate of views 1 to M, action M), target(view M + 1)).

    Token i is the features of view i beside the embedded action from view i to view i + 1. The last observed view's
    action is the predictor's: zeros stand in its place. The target is the encoder's features (there is no projector),
    without gradient.

    With a momentum target, its encoder starts as a copy and follows through `update_target`, to be called after every
    step of the optimizer. Parameters follow; buffers don't: in training mode the target's batch norms use the
    statistics of the target views and gather running ones of their own, as in the released code. The M observed views
    go through the encoder in one call, the target views through the momentum encoder in another. Without a momentum
    target all M + 1 views go through the encoder in one call, and no gradient flows back through the last one.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D; it becomes the online encoder.
        config: sizes and ablations.

    Raises:
        ValueError: if the encoder does not state its feature width, or a size is impossible.
    """

    def __init__(self, encoder: nn.Module, config: SeqJEPAConfig = SeqJEPAConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.target_encoder = target_of(encoder) if config.momentum_target else None
        if config.conditioning not in ("both", "aggregator", "predictor", "none"):
            raise ValueError(f"conditioning is {config.conditioning!r}: choose both, aggregator, predictor or none")
        self.action_embedding = None
        if config.conditioning != "none":
            self.action_embedding = ActionEmbedding(config.action_dim, config.action_width)
        self.aggregate_width = self.num_features + (config.action_width if self.aggregator_takes_actions else 0)
        self.aggregator = Aggregator(
            self.aggregate_width, config.layers, config.heads, config.feedforward_width, config.dropout
        )
        predictor_inputs = self.aggregate_width + (config.action_width if self.predictor_takes_actions else 0)
        self.predictor = projection_head(predictor_inputs, (config.predictor_hidden_width, self.num_features))

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: there is no split; the aggregate is a representation apart."""
        return {"all": slice(0, self.num_features)}

    @property
    def aggregator_takes_actions(self) -> bool:
        """True if `aggregate` needs actions."""
        return self.config.conditioning in ("both", "aggregator")

    @property
    def predictor_takes_actions(self) -> bool:
        """True if `predict` needs an action."""
        return self.config.conditioning in ("both", "predictor")

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """What M views share, for any M >= 1, also another than in training.

        Args:
            features: [B, M, D] of the encoder, in the order of observation.
            actions: [B, M - 1, A] between them; None (or ignored) if the aggregator takes no actions.

        Returns:
            [B, W] with W = `aggregate_width`, in float32 or better.

        Raises:
            ValueError: the actions do not fit the features.
        """
        embedded = None
        if self.aggregator_takes_actions:
            embedded = self._embed(check_steps(actions, len(features), features.shape[1] - 1, self.config.action_dim))
        return self._aggregate(features, embedded)

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """The expected target features [B, D] of the view that an action leads to.

        Args:
            aggregates: [B, W] of `aggregate`.
            actions: [B, A] from the last observed view to that one; None (or ignored) if the predictor takes none.

        Raises:
            ValueError: the actions do not fit the aggregates.
        """
        embedded = None
        if self.predictor_takes_actions:
            given = None if actions is None else actions.unsqueeze(1)
            embedded = self._embed(check_steps(given, len(aggregates), 1, self.config.action_dim))[:, 0]
        return self._predict(aggregates, embedded)

    def target_features(self, images: Tensor) -> Tensor:
        """What predictions are compared with: features [N, D] of the momentum encoder, or of the encoder."""
        return (self.encoder if self.target_encoder is None else self.target_encoder)(images)

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, for the encoder's parameters; nothing without target.

        Raises:
            ValueError: the momentum is outside [0, 1].
        """
        if self.target_encoder is not None:
            follow(self.target_encoder, self.encoder, momentum)

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, M + 1, 3, H, W], float, normalised: M observed views, then the one to predict.
            actions: [B, M, action_dim], from each view to the next; ignored with conditioning "none".

        Returns:
            terms `cosine` (loss = 1 - cosine) and the monitors `std_all` of the observed views' features and `std_agg`
            of the aggregates, see `monitors.normalised_std` (0 means collapse); features [B, M, D] of the observed
            views; aggregates [B, W].

        Raises:
            ValueError: if views or actions do not have the shapes and types above.
        """
        check_sequence(views)
        observed_actions = last_action = None
        if self.action_embedding is not None:
            actions = check_steps(actions, len(views), views.shape[1] - 1, self.config.action_dim)
            observed_actions, last_action = self._embed_steps(actions)
        features, target = self._encode(views)
        aggregates = self._aggregate(features, observed_actions)
        prediction = self._predict(aggregates, last_action)

        with torch.autocast(views.device.type, enabled=False):
            cosine = F.cosine_similarity(full_precision(prediction), full_precision(target), dim=1).mean()
            terms = {
                "cosine": cosine,
                "std_all": normalised_std(features.detach()),
                "std_agg": normalised_std(aggregates.detach().unsqueeze(1)),
            }
        return ObjectiveOutput(
            loss=1 - cosine,
            terms=detached(terms),
            features=full_precision(features.detach()),
            encoder_features=features,
            aggregates=aggregates.detach(),
        )

    def _encode(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, M, D] of the observed views with their graph, and target features [B, D] without one."""
        separate = self.config.separate_batch_norm
        if self.target_encoder is None:
            features = on_both_views(self.encoder, views, separate)
            return features[:, :-1], features[:, -1].detach()
        features = on_both_views(self.encoder, views[:, :-1], separate)
        with torch.no_grad():
            return features, self.target_encoder(views[:, -1])

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
