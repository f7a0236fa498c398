"""Losses of the methods that predict one view's embedding from another's and the action between them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.references.formulas import (
    contrast,
    cosine,
    covariances,
    hinge,
    mean_squared_error,
    spread_of_directions,
    standard_deviations,
    weighted,
)
from tests.references.invariant import vicreg_terms
from tests.references.networks import Batch, Calls, Network, called


def hypernetwork(matrices: Tensor, embedding: Tensor, actions: Tensor) -> Tensor:
    """W(action) embedding, where W is linear in the action: [A, D, D], [B, D], [B, A] -> [B, D]."""
    matrix_per_object = torch.einsum("ba,aij->bij", actions, matrices)
    return torch.einsum("bij,bj->bi", matrix_per_object, embedding)


def sie(
    network: Network,
    batch: Batch,
    calls: Calls,
    projectors: str,
    weights: dict[str, float],
    parts: Sequence[str] = ("inv", "equi"),
    predicted: bool = True,
) -> dict[str, Tensor]:
    """Garrido et al., ICML 2023: the first half of the features is the invariant part, the last half the equivariant
    one; the predictor is a linear hypernetwork without biases.

    Args:
        parts: of the features; one alone has all of them.
        predicted: whether there is a predictor.
    """
    assert batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    embeddings = {
        part: called(lambda x, part=part: network.head(f"projectors.{part}", x, projectors), columns, calls)
        for part, columns in zip(parts, features.chunk(len(parts), dim=-1), strict=True)
    }
    first, second = torch.cat(list(embeddings.values()), dim=-1).unbind(1)
    terms = {
        "variance": (hinge(first) + hinge(second)) / 2,
        "covariance": covariances(first) + covariances(second),
    }
    for part, embedding in embeddings.items():
        terms[f"std_{part}"] = torch.stack([standard_deviations(view) for view in embedding.unbind(1)]).mean()
    if "inv" in parts:
        terms["invariance"] = mean_squared_error(embeddings["inv"][:, 0], embeddings["inv"][:, 1])
    if predicted:
        prediction = hypernetwork(network["predictor.matrices"], embeddings["equi"][:, 0], batch.actions)
        terms["equivariance"] = mean_squared_error(prediction, embeddings["equi"][:, 1])
        terms["variance_prediction"] = hinge(prediction)
    return {"loss": weighted({name: weights[name] for name in weights if name in terms}, terms), **terms}


def conditioned(network: Network, embedding: Tensor, actions: Tensor, layers: str) -> Tensor:
    """A head on the embedding beside the embedded action, or a linear "hypernetwork" without biases."""
    if layers == "hypernetwork":
        return hypernetwork(network["predictor.matrices"], embedding, actions)
    beside = network.embedded_actions("predictor.action_embedding", actions)
    return network.head("predictor.head.layers", torch.cat([embedding, beside], dim=1), layers)


def equimod(
    network: Network,
    batch: Batch,
    calls: Calls,
    projectors: str,
    predictor: str,
    temperature: float,
    equivariant_weight: float,
) -> dict[str, Tensor]:
    """Devillers and Lefort, ICLR 2023, on SimCLR, one way: NT-Xent of the invariant projections, and a weight times
    that of the prediction and the equivariant projection of view 2."""
    assert batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    invariant = called(lambda x: network.head("projectors.inv.layers", x, projectors), features, calls)
    equivariant = called(lambda x: network.head("projectors.equi.layers", x, projectors), features, calls)
    prediction = conditioned(network, equivariant[:, 0], batch.actions, predictor)
    terms = {
        "contrastive": contrast(invariant[:, 0], invariant[:, 1], temperature, "2N - 1"),
        "equivariance": contrast(prediction, equivariant[:, 1], temperature, "2N - 1"),
    }
    monitors = {"std_inv": spread_of_directions(invariant), "std_equi": spread_of_directions(equivariant)}
    return {"loss": terms["contrastive"] + equivariant_weight * terms["equivariance"], **terms, **monitors}


def equimod_vicreg(
    network: Network,
    batch: Batch,
    calls: Calls,
    projectors: str,
    predictor: str,
    weights: dict[str, float],
    equivariant_weight: float,
) -> dict[str, Tensor]:
    """The same on VICReg, as in the released code of SIE: VICReg of the invariant projections, and a weight times that
    of the equivariant ones, where the prediction is compared in the place of view 1."""
    assert batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    invariant = called(lambda x: network.head("projectors.inv.layers", x, projectors), features, calls)
    equivariant = called(lambda x: network.head("projectors.equi.layers", x, projectors), features, calls)
    prediction = conditioned(network, equivariant[:, 0], batch.actions, predictor)
    terms = vicreg_terms(invariant[:, 0], invariant[:, 1])
    del terms["std_all"]
    of_equivariant = vicreg_terms(equivariant[:, 0], equivariant[:, 1])
    of_equivariant["invariance"] = mean_squared_error(prediction, equivariant[:, 1])
    return {
        "loss": weighted(weights, terms) + equivariant_weight * weighted(weights, of_equivariant),
        **terms,
        "equivariance": of_equivariant["invariance"],
        "variance_equi": of_equivariant["variance"],
        "covariance_equi": of_equivariant["covariance"],
        "std_inv": spread_of_directions(invariant),
        "std_equi": spread_of_directions(equivariant),
    }


def sen(
    network: Network, batch: Batch, calls: Calls, projector: str, predictor: str, temperature: float
) -> dict[str, Tensor]:
    """Park et al., ICML 2022, as in seq-JEPA's comparison: NT-Xent of the prediction and view 2."""
    assert batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    prediction = conditioned(network, embeddings[:, 0], batch.actions, predictor)
    loss = contrast(prediction, embeddings[:, 1], temperature, "2N - 1")
    return {"loss": loss, "equivariance": loss, "std_all": spread_of_directions(embeddings)}


def conditional_byol(network: Network, batch: Batch, projector: str, predictor: str) -> dict[str, Tensor]:
    """BYOL from view 1 and the action to the target of view 2, one way, from seq-JEPA's comparison: 2 - 2 cos."""
    assert batch.actions is not None
    embedding = network.head("projector.layers", network.encoder(batch.views[:, 0]), projector)
    prediction = conditioned(network, embedding, batch.actions, predictor)
    target = network.encoder(batch.views[:, 1], "target_encoder")
    target = network.head("target_projector.layers", target, projector).detach()
    loss = 2 - 2 * cosine(prediction, target)
    return {"loss": loss, "equivariance": loss, "std_all": spread_of_directions(embedding.unsqueeze(1))}
