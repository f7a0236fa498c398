"""The three terms of VICReg (Bardes et al. 2022, section 4.1).

Variance and covariance are those of the global batch: each process passes its own share of the embeddings. In half
precision the squares under both overflow or vanish, so call the terms with autocast off on embeddings of at least
float32 (`batch.full_precision`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.parts.batch import batch_mean, batch_var_mean, gather_batch, sum_over_processes, world_size

EPSILON = 1e-4  # under the square root of the standard deviation, in the paper and in the released SIE code
DIMENSIONS_PER_SAMPLE = 2  # from which on a matrix with a row per sample takes at most half of the work


def std_per_dim(embedding: Tensor) -> Tensor:
    """Standard deviation of each dimension over the batch, sqrt(unbiased variance + 1e-4): [N, ...] -> [...]."""
    return torch.sqrt(batch_var_mean(embedding)[0] + EPSILON)


def variance_term(embedding: Tensor) -> Tensor:
    """Hinge that keeps every dimension's standard deviation above 1, mean over dimensions: [N, D] -> [].

    Of several views [N, V, D] it is the mean over the views. It is 1 - sqrt(1e-4) = 0.99 for constant embeddings.
    """
    return F.relu(1 - std_per_dim(embedding)).mean()


def covariance_term(embedding: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances divided by the number of dimensions: [N, D] -> [].

    Of several views [N, V, D] it is the sum over the views.
    """
    deviations = embedding - batch_mean(embedding)
    samples, dim = world_size() * embedding.shape[0], embedding.shape[-1]
    if embedding.device.type == "cpu" and DIMENSIONS_PER_SAMPLE * samples <= dim:
        # The smaller X X^T has squares of the same sum as X^T X. Where one dimension outweighs the others, taking the
        # diagonal from that sum requires double precision.
        wide = deviations.double()
        products = wide.movedim(0, -2) @ gather_batch(wide).movedim(0, -2).mT
        diagonal = sum_over_processes(wide.square().sum(dim=0))
        squares = (sum_over_processes(products.square().sum()) - diagonal.square().sum()).to(embedding.dtype)
        return squares / (samples - 1) ** 2 / dim
    rows = deviations.movedim(0, -2)
    covariance = sum_over_processes(rows.mT @ rows) / (samples - 1)
    return (covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))).square().sum() / dim


def invariance_term(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference over the batch and the dimensions: [N, D], [N, D] -> []."""
    return F.mse_loss(first, second)


def spread_terms(pairs: Tensor, std_targets: Tensor | None = None) -> dict[str, Tensor]:
    """The terms that keep embeddings [B, 2, D] apart, before their weights: `variance`, the mean over both views, and
    `covariance`, their sum.

    Args:
        std_targets: [D], the standard deviation up to which each column is pushed; 1, as in VICReg, if None. The hinge
            is then of a column's share of it.
    """
    if pairs.device.type != "cpu":
        return _spread_terms_at_once(pairs, std_targets)
    scaled = pairs if std_targets is None else pairs / std_targets
    return {"variance": variance_term(scaled), "covariance": covariance_term(pairs)}


def _spread_terms_at_once(pairs: Tensor, std_targets: Tensor | None) -> dict[str, Tensor]:
    """The same from one matrix of covariances, which has the variances on its diagonal: half of the launches."""
    rows = (pairs - batch_mean(pairs)).movedim(0, -2)
    covariance = sum_over_processes(rows.mT @ rows) / (world_size() * len(pairs) - 1)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    # Its own diagonal differs by 0 and takes no gradient.
    squares = F.mse_loss(covariance, torch.diag_embed(variances.detach()), reduction="sum")
    if std_targets is not None:
        variances = variances / std_targets.square()
    variance = F.relu(1 - torch.sqrt(variances + EPSILON)).mean()
    return {"variance": variance, "covariance": squares / pairs.shape[-1]}


def vicreg_terms(pairs: Tensor) -> dict[str, Tensor]:
    """VICReg's three terms of the embeddings of two views [B, 2, D], before their weights: `invariance`, over this
    process's share, and `spread_terms`, over the global batch."""
    return {"invariance": invariance_term(pairs[:, 0], pairs[:, 1]), **spread_terms(pairs)}
