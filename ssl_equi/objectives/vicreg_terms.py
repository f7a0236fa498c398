"""The three terms of VICReg (Bardes et al. 2022, section 4.1), in float32 whatever the training precision.

Variance and covariance are those of the global batch, see `ssl_equi.objectives.distributed`: each process passes its
own share of the embeddings.

In half precision the squares under the variance and the covariance overflow or vanish. Therefore the terms run with
autocast off on embeddings of at least float32 (`full_precision`); float64 stays float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.distributed import batch_mean, batch_var_mean, sum_over_processes, world_size

EPSILON = 1e-4  # under the square root of the standard deviation, in the paper and in the released SIE code


def full_precision(embedding: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))


def std_per_dim(embedding: Tensor) -> Tensor:
    """Standard deviation of each dimension over the batch, sqrt(unbiased variance + 1e-4): [N, D] -> [D]."""
    return torch.sqrt(batch_var_mean(embedding)[0] + EPSILON)


def variance_term(embedding: Tensor) -> Tensor:
    """Hinge that keeps every dimension's standard deviation above 1, mean over dimensions: [N, D] -> [].

    Equals 1 - sqrt(1e-4) = 0.99 for collapsed (constant) embeddings.
    """
    return F.relu(1 - std_per_dim(embedding)).mean()


def covariance_term(embedding: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances divided by the number of dimensions: [N, D] -> []."""
    centred = embedding - batch_mean(embedding)
    covariance = sum_over_processes(centred.T @ centred) / (world_size() * embedding.shape[0] - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return off_diagonal.square().sum() / embedding.shape[1]


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
    first, second = pairs.unbind(dim=1)
    covariance = covariance_term(first) + covariance_term(second)
    if std_targets is not None:
        first, second = first / std_targets, second / std_targets
    return {"variance": (variance_term(first) + variance_term(second)) / 2, "covariance": covariance}


def vicreg_terms(pairs: Tensor) -> dict[str, Tensor]:
    """VICReg's three terms of the embeddings of two views [B, 2, D], before their weights.

    Returns:
        `invariance`, over this process's share, and `spread_terms`, over the global batch.
    """
    return {"invariance": invariance_term(pairs[:, 0], pairs[:, 1]), **spread_terms(pairs)}
