"""Losses of the methods on sequences of views: seq-JEPA, and Conv-JEPA and VICReg-Traj from its comparison."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tests.references.equivariant import conditioned
from tests.references.formulas import Reduction, cosine, reduced, spread_of_directions, unit, weighted
from tests.references.invariant import vicreg_terms
from tests.references.networks import Batch, Calls, Network, called

ActionCalls = Literal["all", "last apart", "last apart, zeros"]


def attention(network: Network, tokens: Tensor, heads: int) -> Tensor:
    """Self-attention of tokens [B, T, W]."""
    queries_keys_values = tokens @ network["in_proj_weight"].T + network["in_proj_bias"]
    queries, keys, values = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in queries_keys_values.chunk(3, dim=-1)
    )
    scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    return network.linear("out_proj", mixed, bias=True)


def transformer(network: Network, tokens: Tensor, layers: int, heads: int) -> Tensor:
    """Layers that normalise after their residual sums, ReLU in their MLPs, and one more norm at the end."""
    for number in range(layers):
        layer = network.part(f"layers.{number}")
        tokens = layer.layer_norm("norm1", tokens + attention(layer.part("self_attn"), tokens, heads))
        hidden = layer.linear("linear1", tokens, bias=True).clamp(min=0)
        tokens = layer.layer_norm("norm2", tokens + layer.linear("linear2", hidden, bias=True))
    return network.layer_norm("norm", tokens)


def embedded_steps(network: Network, actions: Tensor, action_calls: ActionCalls) -> tuple[Tensor, Tensor]:
    """[B, M, A] -> the embedded actions between observed views [B, M - 1, E], and the embedded last one [B, E].

    Args:
        action_calls: which actions the batch norm sees together. all: all of them. last apart: the last one by itself,
            and then all again, of which the last is not used; zeros: with zeros in the place of the last.
    """

    def embedded(some: Tensor) -> Tensor:
        return network.embedded_actions("action_embedding", some.flatten(0, 1)).unflatten(0, some.shape[:2])

    if action_calls == "all":
        together = embedded(actions)
        return together[:, :-1], together[:, -1]
    last = embedded(actions[:, -1:])[:, 0]
    if action_calls == "last apart, zeros":
        actions = torch.cat([actions[:, :-1], 0 * actions[:, -1:]], dim=1)
    return embedded(actions)[:, :-1], last


def seq_jepa(
    network: Network,
    batch: Batch,
    calls: Calls,
    action_calls: ActionCalls,
    layers: int,
    heads: int,
    predictor: str,
    told: Sequence[str] = ("aggregator", "predictor"),
    momentum_target: bool = True,
) -> dict[str, Tensor]:
    """Ghaemi et al., NeurIPS 2025: loss = 1 - cos(prediction, target), where the target is what the momentum encoder
    (or the encoder, in the same call) makes of the last view.

    The last observed view's token has zeros in the place of its action, which is the predictor's.

    Args:
        told: who is told the actions.
    """
    if momentum_target:
        features = called(network.encoder, batch.views[:, :-1], calls)
        target = network.encoder(batch.views[:, -1], "target_encoder").detach()
    else:
        features, target = called(network.encoder, batch.views, calls).split([batch.views.shape[1] - 1, 1], dim=1)
        target = target[:, 0].detach()
    tokens, last = features, features[:, 0, :0]
    if told:
        assert batch.actions is not None
        between, of_predictor = embedded_steps(network, batch.actions, action_calls)
        if "aggregator" in told:
            beside = torch.cat([between, torch.zeros_like(of_predictor).unsqueeze(1)], dim=1)
            tokens = torch.cat([features, beside], dim=2)
        if "predictor" in told:
            last = of_predictor
    first = network["aggregator.token"].expand(len(tokens), 1, -1)
    tokens = transformer(network.part("aggregator.transformer"), torch.cat([first, tokens], dim=1), layers, heads)
    aggregate = tokens[:, 0]
    prediction = network.head("predictor.layers", torch.cat([aggregate, last], dim=1), predictor)
    agreement = cosine(prediction, target)
    return {
        "loss": 1 - agreement,
        "cosine": agreement,
        "std_all": spread_of_directions(features),
        "std_agg": spread_of_directions(aggregate.unsqueeze(1)),
    }


def conv_jepa(
    network: Network, batch: Batch, calls: Calls, projector: str, predictor: str, reduction: Reduction
) -> dict[str, Tensor]:
    """From seq-JEPA's comparison: 1 - cos between the target of the last view and what each observed view predicts from
    its action to that one, view by view; their mean, or their sum."""
    assert batch.actions is not None
    features = called(network.encoder, batch.views[:, :-1], calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    target = network.encoder(batch.views[:, -1], "target_encoder")
    target = network.head("target_projector.layers", target, projector).detach()
    agreements = torch.stack(
        [
            cosine(conditioned(network, embedding, actions, predictor), target)
            for embedding, actions in zip(embeddings.unbind(1), batch.actions.unbind(1), strict=True)
        ]
    )
    return {
        "loss": reduced(1 - agreements, reduction),
        "cosine": agreements.mean(),
        "std_all": spread_of_directions(embeddings),
    }


def bend(points: Tensor) -> Tensor:
    """[B, 3, E] -> the mean of -cos between the way into the second point p and the way out of it, either way w less
    (w p) p, which is orthogonal to p if p has length 1."""
    middle = points[:, 1]
    ways = torch.stack([middle - points[:, 0], points[:, 2] - middle], dim=1)
    tangents = ways - torch.einsum("bwe,be->bw", ways, middle).unsqueeze(-1) * middle.unsqueeze(1)
    return -cosine(tangents[:, 0], tangents[:, 1])


def vicreg_traj(
    network: Network, batch: Batch, calls: Calls, projector: str, on_sphere: bool, weights: dict[str, float]
) -> dict[str, Tensor]:
    """Wang, Chen and Yu, ECCV 2024, as in seq-JEPA's comparison: VICReg of views 1 and 2, and the bend of views 1 to 3,
    of embeddings at length 1 (`on_sphere`) or as they are."""
    base = network.part("base")
    features = called(base.encoder, batch.views, calls)
    embeddings = called(lambda x: base.head("projector", x, projector), features, calls)
    points = unit(embeddings) if on_sphere else embeddings
    terms = {**vicreg_terms(embeddings[:, 0], embeddings[:, 1]), "trajectory": bend(points)}
    return {"loss": weighted(weights, terms), **terms}
