"""Losses of the invariant methods and of the supervised ceiling, from their papers' equations."""

import torch
from torch import Tensor

from tests.references.formulas import (
    Candidates,
    Reduction,
    contrast,
    cosine,
    covariances,
    cross_entropy_of_labels,
    hinge,
    mean_squared_error,
    reduced,
    share_right,
    spread_of_directions,
    standard_deviations,
    unit,
    weighted,
)
from tests.references.networks import Batch, Calls, Network, called


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """The three terms of VICReg, and the mean standard deviation as a monitor."""
    return {
        "invariance": mean_squared_error(first, second),
        "variance": (hinge(first) + hinge(second)) / 2,
        "covariance": covariances(first) + covariances(second),
        "std_all": (standard_deviations(first).mean() + standard_deviations(second).mean()) / 2,
    }


def vicreg(
    network: Network, batch: Batch, calls: Calls, projector: str, weights: dict[str, float]
) -> dict[str, Tensor]:
    """Bardes, Ponce and LeCun, ICLR 2022."""
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector", x, projector), features, calls)
    terms = vicreg_terms(embeddings[:, 0], embeddings[:, 1])
    return {"loss": weighted(weights, terms), **terms}


def barlow_twins(
    network: Network, batch: Batch, calls: Calls, projector: str, weights: dict[str, float]
) -> dict[str, Tensor]:
    """Zbontar et al., ICML 2021. The embeddings are standardised by a batch norm without scale and shift."""
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    centred = embeddings - embeddings.mean(0)
    standardised = centred / torch.sqrt(centred.square().mean(0) + 1e-5)
    correlation = torch.einsum("ni,nj->ij", standardised[:, 0], standardised[:, 1]) / len(embeddings)
    same = torch.eye(len(correlation), dtype=torch.bool)
    terms = {
        "on_diagonal": (1 - correlation[same]).square().sum(),
        "off_diagonal": correlation[~same].square().sum(),
        "std_all": spread_of_directions(embeddings),
    }
    return {"loss": weighted(weights, terms), **terms}


def simclr(
    network: Network, batch: Batch, calls: Calls, projector: str, temperature: float, candidates: Candidates
) -> dict[str, Tensor]:
    """Chen et al., ICML 2020; with N candidates as in the released code of E-SSL."""
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    loss = contrast(embeddings[:, 0], embeddings[:, 1], temperature, candidates)
    return {
        "loss": loss,
        "contrastive": loss,
        "alignment": cosine(embeddings[:, 0], embeddings[:, 1]),
        "std_all": spread_of_directions(embeddings),
    }


def moco(
    network: Network,
    batch: Batch,
    projector: str,
    temperature: float,
    calls: Calls = "all views at once",
    symmetric: bool = False,
) -> dict[str, Tensor]:
    """He et al., CVPR 2020: queries are of view 1, keys of view 2, and the other candidates a queue of earlier keys;
    `symmetric`: both views are both.

    The keys of the step take the places of the oldest ones, which are in front at first.
    """
    of_queries, of_keys = (batch.views,) * 2 if symmetric else (batch.views[:, :1], batch.views[:, 1:])
    embeddings = called(network.encoder, of_queries, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), embeddings, calls)
    targets = called(lambda x: network.encoder(x, "target_encoder"), of_keys, calls)
    keys = unit(called(lambda x: network.head("target_projector.layers", x, projector), targets, calls)).detach()
    queue, queries = network["queue"], unit(embeddings)
    positive = (queries * keys.flip(1)).sum(-1)
    scores = torch.cat([positive.unsqueeze(-1), queries @ queue.T], dim=-1) / temperature
    loss = (torch.logsumexp(scores, dim=-1) - scores[..., 0]).mean()
    keys = keys.flatten(0, 1)
    network.leave("queue", torch.cat([keys, queue[len(keys) :]]))
    network.leave("queue_position", torch.tensor(len(keys)))
    return {
        "loss": loss,
        "contrastive": loss,
        "positive_similarity": positive.mean(),
        "std_all": spread_of_directions(embeddings),
    }


def simsiam(network: Network, batch: Batch, calls: Calls, projector: str, predictor: str) -> dict[str, Tensor]:
    """Chen and He, CVPR 2021: loss = -cos(p1, z2) / 2 - cos(p2, z1) / 2, without gradient in z."""
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    predictions = called(lambda x: network.head("predictor.layers", x, predictor), embeddings, calls)
    targets = embeddings.detach()
    mean = (cosine(predictions[:, 0], targets[:, 1]) + cosine(predictions[:, 1], targets[:, 0])) / 2
    return {"loss": -mean, "cosine": mean, "std_all": spread_of_directions(embeddings)}


def byol(
    network: Network, batch: Batch, calls: Calls, projector: str, predictor: str, reduction: Reduction
) -> dict[str, Tensor]:
    """Grill et al., NeurIPS 2020: 2 - 2 cos of prediction and target of the other view; mean of both directions, or
    their sum."""
    features = called(network.encoder, batch.views, calls)
    embeddings = called(lambda x: network.head("projector.layers", x, projector), features, calls)
    predictions = called(lambda x: network.head("predictor.layers", x, predictor), embeddings, calls)
    targets = called(lambda x: network.encoder(x, "target_encoder"), batch.views, calls)
    targets = called(lambda x: network.head("target_projector.layers", x, projector), targets, calls).detach()
    cosines = torch.stack([cosine(predictions[:, 0], targets[:, 1]), cosine(predictions[:, 1], targets[:, 0])])
    loss = reduced(2 - 2 * cosines, reduction)
    return {"loss": loss, "cosine": cosines.mean(), "std_all": spread_of_directions(embeddings)}


def supervised(
    network: Network, batch: Batch, calls: Calls, action_head: str, weights: dict[str, float]
) -> dict[str, Tensor]:
    """The class of each view, and the action from the features of both."""
    assert batch.labels is not None and batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    logits = network.linear("class_head", features.flatten(0, 1), bias=True)
    labels = torch.stack([batch.labels, batch.labels], dim=1).flatten()
    told = network.head("action_head.layers.layers", torch.cat([features[:, 0], features[:, 1]], dim=1), action_head)
    terms = {
        "classification": cross_entropy_of_labels(logits, labels),
        "action_regression": mean_squared_error(told, batch.actions),
        "top1": share_right(logits, labels),
        "std_all": spread_of_directions(features),
    }
    return {"loss": weighted(weights, terms), **terms}
