"""The base class `Objective`, the `ObjectiveOutput` that all return, and `Extension`, which adds a term to another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_equi.objectives.parts.action_gain import action_gain
from ssl_equi.objectives.parts.batch import full_precision, on_both_views
from ssl_equi.objectives.parts.checks import feature_dim
from ssl_equi.objectives.parts.heads import follow
from ssl_equi.objectives.parts.predictors import EmbeddingPredictor
from ssl_equi.runtime.device_copies import constant

if TYPE_CHECKING:  # capsules import timm, which takes seconds
    from ssl_equi.encoders.capsules.network import CapsuleNetwork


@dataclass(frozen=True)
class ObjectiveOutput:
    """The result of one forward pass of an objective.

    Attributes:
        loss: scalar to call `backward()` on. Under distributed training each process holds its own share, such
            that the mean of the gradients over processes is the gradient of the global batch.
        terms: detached scalars of at least float32, the loss terms before their weights and the collapse monitors.
            `invariance` and `equivariance` are means over this process's batch; everything computed from
            batch statistics covers the global batch.
        features: detached encoder features [B, V, D] (B objects, V views), for probes that train online.
        embeddings: the projected views [B, V, E] with their graph, for a term that is added to this objective and
            reuses them; None where there are none to reuse.
        encoder_features: the encoder features of `features` with their graph, in the encoder's precision, for a term
            that trains the encoder without the projector; None where there are none to reuse.
        aggregates: detached [B, W], what each object's views share as one representation (seq-JEPA), for probes that
            train online; None where there is none.
        action_gain: [], see `Objective.action_gain`; None where it isn't measured.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    features: Tensor
    embeddings: Tensor | None = None
    encoder_features: Tensor | None = None
    aggregates: Tensor | None = None
    action_gain: Tensor | None = None

    def without_graph(self) -> "ObjectiveOutput":
        """What is left of it after the backward pass."""
        return replace(self, loss=self.loss.detach(), embeddings=None, encoder_features=None)


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The loss of named terms; a weight whose term is absent counts nothing."""
    present = [name for name in weights if name in terms]
    stacked = torch.stack([terms[name] for name in present])
    return (stacked * constant(tuple(weights[name] for name in present), stacked.device, stacked.dtype)).sum()


class Objective(nn.Module):
    """Views and actions in, loss and named terms out: `forward` takes views [B, V, 3, H, W], float and normalised, and
    actions, which objectives without actions ignore, so that all are called alike.

    Constructors and `forward` raise a ValueError for an impossible option, and for inputs of a wrong shape or type.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        separate_batch_norm: one call per view instead of one call for all; see `batch.on_both_views`.

    Attributes:
        parts: named column ranges of the encoder features; `all` only, where the objective has no split.
        action_dim: width of the actions; None if the objective takes none.
        aggregate_width: width of the output's `aggregates`; None if it has none.
        embeds_both_views: whether the output has `embeddings`.
        capsule_network: the capsule network around the encoder, which a run exports and evaluates, too.
        sequence_model: the objective itself, where it is one of sequences, which a run exports and evaluates, too.
        measures_action_gain: whether `forward` also returns the gain, which takes two more predictions; a run switches
            it on for the steps that it logs.
        measures_monitors: whether the terms hold monitors, too, which the loss has no part in; a run switches it off
            for the steps that it doesn't log.
    """

    encoder: nn.Module
    action_dim: int | None = None
    aggregate_width: int | None = None
    embeds_both_views: bool = False
    capsule_network: "CapsuleNetwork | None" = None
    sequence_model: "SequenceObjective | None" = None
    measures_action_gain: bool = False
    measures_monitors: bool = True

    def __init__(self, encoder: nn.Module, separate_batch_norm: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.parts = {"all": slice(0, self.num_features)}
        self.separate_batch_norm = separate_batch_norm

    def latent_predictor(self) -> EmbeddingPredictor | None:
        """The trained predictor by itself, with its projector, if there is one; the weights are shared."""
        return None

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online; to be called after every step of the optimizer.

        Every module `target_x` follows the module `x`; nothing happens where there is none.
        """
        for name, target in self.named_children():
            if name.startswith("target_"):
                follow(target, self.get_submodule(name.removeprefix("target_")), momentum)

    def on_views(self, module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """`module` on all views: [B, V, ...] -> [B, V, D]; see `batch.on_both_views`."""
        return on_both_views(module, inputs, self.separate_batch_norm)

    def action_gain(
        self,
        predict: Callable[[Tensor], Tensor],
        error: Callable[[Tensor], Tensor],
        actions: Tensor,
        prediction: Tensor,
        *modules: nn.Module,
    ) -> Tensor | None:
        """How much larger the prediction error is with the actions of other objects, see `parts.action_gain`; None
        unless it is to be measured."""
        return action_gain(predict, error, actions, prediction, *modules) if self.measures_action_gain else None

    def monitors(self, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms that nobody but the log reads, such as `std_all`, without a graph; none unless measured."""
        if not self.measures_monitors:
            return {}
        with torch.no_grad():
            return measure()

    def output(
        self, loss: Tensor, terms: dict[str, Tensor], features: Tensor, **kept: Tensor | None
    ) -> ObjectiveOutput:
        """An output whose terms and features have no graph, in float32 or better; what else is `kept` stays."""
        detached = {name: full_precision(term.detach()) for name, term in terms.items()}
        return ObjectiveOutput(loss, detached, full_precision(features.detach()), **kept)


class ProjectedObjective(Objective):
    """An objective with one projector behind the encoder."""

    projector: nn.Module

    def embed(self, images: Tensor) -> Tensor:
        """Encoder and projector, in float32 or better, not normalised: [N, 3, H, W] -> [N, E]."""
        return full_precision(self.projector(self.encoder(images)))


class SequenceObjective(Objective):
    """An objective that makes one vector of several views, an aggregate, and predicts the next view from it.

    Attributes:
        config: its options, a dataclass.
        aggregator_takes_actions, predictor_takes_actions: whether `aggregate` needs actions, and `predict` one.
        aggregate: from features [B, M, D] of any number M of views, and actions, to aggregates [B, W].
        predict: from aggregates [B, W] and the action that leads to the next view to its target features [B, D].
        target_encoder: what makes the features that predictions are compared with; None: the encoder itself.
        target_features: from images [N, 3, H, W] to what predictions are compared with, [N, D].
    """

    config: Any
    aggregate_width: int
    aggregator_takes_actions: bool
    predictor_takes_actions: bool
    target_encoder: nn.Module | None
    aggregate: Callable[[Tensor, Tensor | None], Tensor]
    predict: Callable[[Tensor, Tensor | None], Tensor]
    target_features: Callable[[Tensor], Tensor]

    @property
    def sequence_model(self) -> "SequenceObjective":  # type: ignore[override]
        return self


class CapsuleObjective(Objective):
    """An objective on a capsule network, whose backbone is the encoder: that is what the papers probe.

    `parts` are those of the backbone, which has no split; the capsules have parts of their own.
    """

    def __init__(self, network: "CapsuleNetwork", separate_batch_norm: bool) -> None:
        # Not Objective's: the encoder has one name in the state dict, that inside the network.
        nn.Module.__init__(self)
        self.network = network
        self.num_features = feature_dim(network.backbone)
        self.parts = {"all": slice(0, self.num_features)}
        self.separate_batch_norm = separate_batch_norm

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The backbone below the capsules."""
        return self.network.backbone

    @property
    def capsule_network(self) -> "CapsuleNetwork":  # type: ignore[override]
        return self.network


class Extension(Objective):
    """Adds a term to the objective `base`; encoder, parts and target are the base's."""

    base: Objective

    def __init__(self, base: Objective) -> None:
        # Not Objective's: the encoder has one name in the state dict, that inside the base.
        nn.Module.__init__(self)
        if not isinstance(base, Objective):
            raise ValueError(
                f"the base {type(base).__name__} is no objective: pass one of two views, such as SimCLR(encoder)"
            )
        self.base = base
        self.num_features, self.parts = base.num_features, base.parts
        self.separate_batch_norm = base.separate_batch_norm

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The base's encoder."""
        return self.base.encoder

    def update_target(self, momentum: float) -> None:
        self.base.update_target(momentum)
