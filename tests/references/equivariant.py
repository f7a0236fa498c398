"""Losses of the methods that predict one view's embedding from another's and the action between them."""

import torch
from torch import Tensor

from tests.references.formulas import covariances, hinge, mean_squared_error, standard_deviations, weighted
from tests.references.networks import Batch, Calls, Network, called


def hypernetwork(matrices: Tensor, embedding: Tensor, actions: Tensor) -> Tensor:
    """W(action) embedding, where W is linear in the action: [A, D, D], [B, D], [B, A] -> [B, D]."""
    matrix_per_object = torch.einsum("ba,aij->bij", actions, matrices)
    return torch.einsum("bij,bj->bi", matrix_per_object, embedding)


def sie(network: Network, batch: Batch, calls: Calls, projectors: str, weights: dict[str, float]) -> dict[str, Tensor]:
    """Garrido et al., ICML 2023: the first half of the features is the invariant part, the last half the equivariant
    one; the predictor is a linear hypernetwork without biases."""
    assert batch.actions is not None
    features = called(network.encoder, batch.views, calls)
    half = features.shape[-1] // 2
    invariant = called(lambda x: network.head("projectors.inv", x, projectors), features[..., :half], calls)
    equivariant = called(lambda x: network.head("projectors.equi", x, projectors), features[..., half:], calls)
    prediction = hypernetwork(network["predictor.matrices"], equivariant[:, 0], batch.actions)
    first, second = torch.cat([invariant, equivariant], dim=-1).unbind(1)
    terms = {
        "invariance": mean_squared_error(invariant[:, 0], invariant[:, 1]),
        "equivariance": mean_squared_error(prediction, equivariant[:, 1]),
        "variance": (hinge(first) + hinge(second)) / 2,
        "variance_prediction": hinge(prediction),
        "covariance": covariances(first) + covariances(second),
        "std_inv": torch.stack([standard_deviations(view) for view in invariant.unbind(1)]).mean(),
        "std_equi": torch.stack([standard_deviations(view) for view in equivariant.unbind(1)]).mean(),
    }
    return {"loss": weighted(weights, terms), **terms}
