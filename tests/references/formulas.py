"""Formulas that several references share, written from the papers."""

from typing import Literal

import torch
from torch import Tensor

Candidates = Literal["2N - 1", "N"]
Reduction = Literal["mean", "sum"]


def mean_squared_error(first: Tensor, second: Tensor) -> Tensor:
    """Over the batch and the columns."""
    return (first - second).square().mean()


def standard_deviations(embedding: Tensor) -> Tensor:
    """[N, D] -> [D]: sqrt(unbiased variance + 1e-4), as VICReg has it."""
    centred = embedding - embedding.mean(0)
    return torch.sqrt(centred.square().sum(0) / (len(embedding) - 1) + 1e-4)


def hinge(embedding: Tensor) -> Tensor:
    """VICReg's V: how much the standard deviations lack to 1, mean over the columns."""
    return (1 - standard_deviations(embedding)).clamp(min=0).mean()


def covariances(embedding: Tensor) -> Tensor:
    """VICReg's C: the squared covariances of different columns, summed and divided by the number of columns."""
    centred = embedding - embedding.mean(0)
    matrix = torch.einsum("ni,nj->ij", centred, centred) / (len(embedding) - 1)
    different = ~torch.eye(len(matrix), dtype=torch.bool)
    return matrix[different].square().sum() / len(matrix)


def unit(vectors: Tensor) -> Tensor:
    """[..., D] at length 1."""
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """[..., D], [..., D] -> the mean cosine."""
    return (unit(first) * unit(second)).sum(-1).mean()


def contrast(first: Tensor, second: Tensor, temperature: float, candidates: Candidates) -> Tensor:
    """Cross-entropy of finding an embedding's other view by the cosines over a temperature, mean over all 2N.

    Args:
        first, second: [N, E], two views, or a prediction and what it is of.
        candidates: 2N - 1 for all others (NT-Xent; Chen et al., ICML 2020), N for the other view's alone.
    """
    count = len(first)
    embeddings = unit(torch.cat([first, second]))
    scores = embeddings @ embeddings.T / temperature  # [2N, 2N]
    rows = torch.arange(2 * count)
    of_other_view = (rows < count).unsqueeze(1) != (rows < count)
    admitted = of_other_view if candidates == "N" else rows.unsqueeze(1) != rows
    found = scores[rows, (rows + count) % (2 * count)]
    return (torch.logsumexp(scores.masked_fill(~admitted, float("-inf")), dim=1) - found).mean()


def spread_of_directions(embeddings: Tensor) -> Tensor:
    """A monitor. [B, V, E]: standard deviation (biased) over the batch of embeddings at length 1, mean over views and
    columns, times sqrt(E)."""
    directions = unit(embeddings)
    deviations = (directions - directions.mean(0)).square().mean(0).sqrt()
    return deviations.mean() * embeddings.shape[-1] ** 0.5


def entropy(probabilities: Tensor) -> Tensor:
    """[..., K] -> [...]."""
    return -(probabilities * probabilities.log()).sum(-1)


def cross_entropy_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """[N, K] and int64 [N] -> mean of -log of the label's probability."""
    chosen = logits[torch.arange(len(labels)), labels]
    return (torch.logsumexp(logits, dim=1) - chosen).mean()


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """A monitor: how often the largest logit is the label's."""
    return (logits.argmax(1) == labels).to(logits.dtype).mean()


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """One number of several."""
    return losses.mean() if reduction == "mean" else losses.sum()


def weighted(weights: dict[str, float], terms: dict[str, Tensor]) -> Tensor:
    """The sum of terms times weights."""
    return sum((weight * terms[name] for name, weight in weights.items()), torch.zeros((), dtype=torch.float64))
