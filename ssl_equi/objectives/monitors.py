"""Monitors that tell a collapse: logged beside the loss terms, never part of the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.distributed import batch_std
from ssl_equi.objectives.vicreg_terms import full_precision


@torch.no_grad()
def normalised_std(embeddings: Tensor) -> Tensor:
    """How far embeddings of length 1 spread over the global batch (Chen and He, SimSiam, CVPR 2021, figure 2).

    The standard deviation (biased) of each dimension of each view after normalising to length 1, mean over dimensions
    and views, times sqrt(E): 0 when all embeddings of a view point the same way, at most 1, near 1 when they
    are spread evenly over the sphere. For losses that see directions only, where the plain standard deviation says
    nothing.

    Args:
        embeddings: [B, V, E], this process's share.

    Returns:
        scalar, the same on every process.
    """
    directions = F.normalize(full_precision(embeddings), dim=-1)
    return batch_std(directions, correction=0).mean() * embeddings.shape[-1] ** 0.5
