"""The three terms of VICReg (Bardes et al. 2022, section 4.1), in float32 whatever the training precision.

Variance and covariance are those of the global batch, see `ssl_equi.objectives.distributed`: each process passes its
own share of the embeddings.

In half precision the squares under the variance and the covariance overflow or vanish. Therefore the terms run with
autocast off on embeddings of at least float32 (`full_precision`); float64 stays float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.distributed import (
    batch_mean,
    batch_var_mean,
    gather_batch,
    sum_over_processes,
    world_size,
)

EPSILON = 1e-4  # under the square root of the standard deviation, in the paper and in the released SIE code
DIMENSIONS_PER_SAMPLE = 2  # from which on a matrix with a row per sample takes at most half of the work


def full_precision(embedding: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))


def std_per_dim(embedding: Tensor) -> Tensor:
    """Standard deviation of each dimension over the batch, sqrt(unbiased variance + 1e-4): [N, ...] -> [...]."""
    return torch.sqrt(batch_var_mean(embedding)[0] + EPSILON)


def variance_term(embedding: Tensor) -> Tensor:
    """Hinge that keeps every dimension's standard deviation above 1, mean over dimensions: [N, D] -> [].

    Of several views [N, V, D] it is the mean over the views. Equals 1 - sqrt(1e-4) = 0.99 for collapsed (constant)
    embeddings.
    """
    return F.relu(1 - std_per_dim(embedding)).mean()


def covariance_term(embedding: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances divided by the number of dimensions: [N, D] -> [].

    Of several views [N, V, D] it is the sum over the views.
    """
    deviations = embedding - batch_mean(embedding)
    samples, dim = world_size() * embedding.shape[0], embedding.shape[-1]
    if embedding.device.type == "cpu" and DIMENSIONS_PER_SAMPLE * samples <= dim:
        squares = _squared_products_of_columns(deviations) / (samples - 1) ** 2
    else:
        rows = deviations.movedim(0, -2)
        covariance = sum_over_processes(rows.mT @ rows) / (samples - 1)
        squares = (covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))).square().sum()
    return squares / dim


def _squared_products_of_columns(deviations: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of X^T X, from the smaller X X^T, whose squares have the same sum.

    Where one dimension outweighs the others, taking the diagonal from that sum requires double precision.
    """
    dtype, deviations = deviations.dtype, deviations.double()
    products = deviations.movedim(0, -2) @ gather_batch(deviations).movedim(0, -2).mT
    diagonal = sum_over_processes(deviations.square().sum(dim=0))
    return (sum_over_processes(products.square().sum()) - diagonal.square().sum()).to(dtype)


def invariance_term(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference over the batch and the dimensions: [N, D], [N, D] -> []."""
    return F.mse_loss(first, second)


def spread_terms(pairs: Tensor, std_targets: Tensor | None = None) -> dict[str, Tensor]:
    """The two terms that keep embeddings apart, before their weights: `variance`, the mean over both views, and
    `covariance`, their sum.

    Args:
        pairs: embeddings of two views, [B, 2, D].
        std_targets: [D], the standard deviation up to which each column is pushed; 1, as in VICReg, if None. The hinge
            is then of a column's share of it.
    """
    scaled = pairs if std_targets is None else pairs / std_targets
    return {"variance": variance_term(scaled), "covariance": covariance_term(pairs)}


def vicreg_terms(pairs: Tensor) -> dict[str, Tensor]:
    """VICReg's three terms of the embeddings of two views [B, 2, D], before their weights.

    Returns:
        `invariance`, over this process's share, and `spread_terms`, over the global batch.
    """
    return {"invariance": invariance_term(pairs[:, 0], pairs[:, 1]), **spread_terms(pairs)}
