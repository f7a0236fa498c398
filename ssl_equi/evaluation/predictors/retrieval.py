"""Retrieval by a predictor: does the embedding that it predicts for a view find that view among others?

Mean reciprocal rank and hit@k among the views of one object, and the prediction retrieval error among all views of a
set, as in SIE (Garrido et al., ICML 2023), each beside what chance reaches.

A view that is as near as the true one counts as nearer: if all embeddings are the same, the true view has the last
rank, not the first.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["cosine", "euclidean"]
NUMBERS_AT_ONCE_CPU, NUMBERS_AT_ONCE_GPU = 2**19, 2**27  # of float64 embeddings: what stays in a cache; in memory
ROUNDING = 1e-12  # as a share of a query's largest similarity, in float64: equal columns of a product may differ by it


def ranks(
    predictions: Tensor,
    gallery: Tensor,
    true_index: Tensor,
    metric: Similarity = "cosine",
    excluded: Tensor | None = None,
) -> Tensor:
    """Rank of the true gallery entry by its similarity to each prediction, from 1; ties count against it.

    Args:
        predictions: `[..., Q, E]`; leading dimensions hold galleries of their own, such as one for each object.
        gallery: `[..., G, E]`.
        true_index: int64 `[..., Q]`, which entry each prediction means.
        metric: "cosine", or "euclidean" (the nearer the more similar). Computed in float64.
        excluded: int64 `[..., Q, K]`, entries that each query leaves out of its gallery.

    Returns:
        int64 `[..., Q]` between 1 and G (less what is excluded).

    Raises:
        ValueError: the shapes do not belong together, an index is not of the gallery, the true entry is excluded, or
            an embedding is not finite.
    """
    _check_embeddings(predictions, gallery)
    _check_indices(true_index, predictions.shape[:-1], gallery.shape[-2], "true_index")
    if excluded is not None:
        _check_indices(excluded, (*predictions.shape[:-1], excluded.shape[-1]), gallery.shape[-2], "excluded")
        if bool((excluded == true_index.unsqueeze(-1)).any()):
            raise ValueError("a query excludes the entry that it asks for: leave that query out")
    queries, entries, width = predictions.shape[-2], gallery.shape[-2], gallery.shape[-1]
    numbers_at_once = NUMBERS_AT_ONCE_CPU if gallery.device.type == "cpu" else NUMBERS_AT_ONCE_GPU
    galleries_at_once = max(1, numbers_at_once // ((queries + entries) * width))
    inputs = [predictions.reshape(-1, queries, width), gallery.reshape(-1, entries, width)]
    inputs.append(true_index.reshape(-1, queries))
    if excluded is not None:
        inputs.append(excluded.reshape(-1, queries, excluded.shape[-1]))
    chunks = zip(*(values.split(galleries_at_once) for values in inputs), strict=True)
    return torch.cat([_ranks_of_chunk(metric, *chunk) for chunk in chunks]).view(true_index.shape)


def _ranks_of_chunk(
    metric: Similarity, predictions: Tensor, gallery: Tensor, true_index: Tensor, excluded: Tensor | None = None
) -> Tensor:
    similarities = _similarities(*_prepare(predictions.double(), gallery.double(), metric))
    tolerance = ROUNDING * similarities.abs().amax(dim=-1, keepdim=True)
    as_near = similarities >= similarities.gather(-1, true_index.unsqueeze(-1)) - tolerance
    if excluded is not None:
        as_near.scatter_(-1, excluded, False)
    return as_near.sum(dim=-1)


def mean_reciprocal_rank(ranks_from_1: Tensor) -> float:
    """Mean of 1 / rank over all queries, in (0, 1]."""
    _check_ranks(ranks_from_1)
    return float(ranks_from_1.double().reciprocal().mean())


def hit_at_k(ranks_from_1: Tensor, k: int) -> float:
    """Share of the queries whose true entry is among the k nearest."""
    _check_ranks(ranks_from_1)
    return float((ranks_from_1 <= k).double().mean())


def chance_mean_reciprocal_rank(gallery_size: int) -> float:
    """Mean reciprocal rank if the order is random: the harmonic number H_G divided by G (0.0900 for 50 views)."""
    _check_gallery_size(gallery_size)
    return math.fsum(1 / rank for rank in range(1, gallery_size + 1)) / gallery_size


def chance_hit_at_k(k: int, gallery_size: int) -> float:
    """Share of hits if the order is random: k / G, at most 1."""
    _check_gallery_size(gallery_size)
    return min(k / gallery_size, 1.0)


def prediction_retrieval_error(
    predictions: Tensor,
    gallery: Tensor,
    true_quat_xyzw: Tensor,
    gallery_quat_xyzw: Tensor,
    metric: Similarity = "cosine",
    excluded: Tensor | None = None,
    chunk_size: int = 4096,
) -> Tensor:
    """1 - (q_true . q_nearest)^2 of the gallery entry that is nearest to each prediction (SIE's PRE, before its mean).

    Neither factor's sign matters; 0 is the true rotation, 1 a half turn away. Random views are at 0.627 on poses of
    the Euler box; see `chance_retrieval_error`.

    Args:
        predictions: `[Q, E]`.
        gallery: `[G, E]`, all embeddings of a set.
        true_quat_xyzw: `[Q, 4]`, unit quaternions of the poses that are asked for.
        gallery_quat_xyzw: `[G, 4]` of the gallery's views.
        excluded: int64 `[Q, K]`, such as each query's own source view; None to leave it in, as SIE does.
        chunk_size: queries and gallery entries that are compared at once: `chunk_size`^2 numbers are in memory.

    Returns:
        float64 `[Q]`.

    Raises:
        ValueError: the shapes do not belong together, or an embedding is not finite.
    """
    nearest = nearest_entries(predictions, gallery, metric, excluded, chunk_size)
    if true_quat_xyzw.shape != (len(predictions), 4) or gallery_quat_xyzw.shape != (len(gallery), 4):
        raise ValueError(
            f"quaternions {tuple(true_quat_xyzw.shape)} and {tuple(gallery_quat_xyzw.shape)} do not fit "
            f"{len(predictions)} predictions and a gallery of {len(gallery)}: give [Q, 4] and [G, 4]"
        )
    return 1 - (true_quat_xyzw.double() * gallery_quat_xyzw[nearest].double()).sum(dim=-1).square()


def chance_retrieval_error(quat_xyzw: Tensor) -> float:
    """Mean of 1 - (q1 . q2)^2 over all pairs of the unit quaternions `[..., 4]`: what random views reach.

    The mean of (q1 . q2)^2 is the squared Frobenius norm of the mean of q q^T.
    """
    quaternions = quat_xyzw.reshape(-1, 4).double()
    return float(1 - (quaternions.T @ quaternions / len(quaternions)).square().sum())


def nearest_entries(
    queries: Tensor, gallery: Tensor, metric: Similarity, excluded: Tensor | None = None, chunk_size: int = 4096
) -> Tensor:
    """Index `[Q]` of the gallery entry `[G, E]` nearest to each query `[Q, E]`, in the queries' precision.

    Arguments and errors as in `prediction_retrieval_error`.
    """
    if queries.ndim != 2 or gallery.ndim != 2:
        raise ValueError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} are not matrices: give [Q, E] and "
            "[G, E]"
        )
    _check_embeddings(queries, gallery)
    if excluded is not None:
        _check_indices(excluded, (len(queries), excluded.shape[-1]), len(gallery), "excluded")
    left, right, penalty = _prepare(queries, gallery, metric)
    found = [
        _nearest_of_chunks(left[rows], right, penalty, None if excluded is None else excluded[rows], chunk_size)
        for rows in torch.arange(len(queries), device=queries.device).split(chunk_size)
    ]
    return torch.cat(found)


def _nearest_of_chunks(
    left: Tensor, right: Tensor, penalty: Tensor | None, excluded: Tensor | None, chunk_size: int
) -> Tensor:
    """The best entry of each chunk of the gallery, and then the best of these; the earlier one of equals."""
    best_similarity = left.new_full((len(left),), -math.inf)
    best_index = torch.zeros(len(left), dtype=torch.int64, device=left.device)
    for start in range(0, len(right), chunk_size):
        stop = min(start + chunk_size, len(right))
        similarities = _similarities(left, right[start:stop], None if penalty is None else penalty[start:stop])
        if excluded is not None:
            query, column = ((excluded >= start) & (excluded < stop)).nonzero(as_tuple=True)
            similarities[query, excluded[query, column] - start] = -math.inf
        similarity, index = similarities.max(dim=1)
        better = similarity > best_similarity
        best_similarity = torch.where(better, similarity, best_similarity)
        best_index = torch.where(better, index + start, best_index)
    return best_index


def _prepare(predictions: Tensor, gallery: Tensor, metric: Similarity) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `_similarities` takes for a metric."""
    if metric == "cosine":
        return F.normalize(predictions, dim=-1), F.normalize(gallery, dim=-1), None
    if metric == "euclidean":
        # Around the gallery's own mean, so that a large common offset does not swamp the differences.
        centre = gallery.mean(dim=-2, keepdim=True)
        return predictions - centre, gallery - centre, (gallery - centre).square().sum(dim=-1) / 2
    raise ValueError(f"metric is {metric!r}: choose cosine or euclidean")


def _similarities(left: Tensor, right: Tensor, penalty: Tensor | None) -> Tensor:
    """`[..., Q, G]`: p . g, less |g|^2 / 2 for the Euclidean order (|p - g|^2 without what all entries share)."""
    products = left @ right.transpose(-1, -2)
    return products if penalty is None else products - penalty.unsqueeze(-2)


def _check_embeddings(predictions: Tensor, gallery: Tensor) -> None:
    leading, width = predictions.shape[:-2], predictions.shape[-1:]
    if (
        predictions.ndim < 2
        or gallery.ndim != predictions.ndim
        or gallery.shape[:-2] != leading
        or (gallery.shape[-1:] != width)
    ):
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and gallery {tuple(gallery.shape)} do not belong together: give "
            "[..., Q, E] and [..., G, E]"
        )
    if gallery.shape[-2] == 0 or predictions.shape[-2] == 0:
        raise ValueError(f"there are {predictions.shape[-2]} predictions and {gallery.shape[-2]} views: give 1 or more")
    for name, embeddings in (("predictions", predictions), ("gallery", gallery)):
        if not bool(torch.isfinite(embeddings).all()):
            raise ValueError(f"{name} are not finite: the run diverged, use an earlier checkpoint")


def _check_indices(indices: Tensor, shape: tuple[int, ...], gallery_size: int, name: str) -> None:
    if tuple(indices.shape) != tuple(shape) or indices.dtype != torch.int64:
        raise ValueError(f"{name} is {indices.dtype} {tuple(indices.shape)}: give int64 {tuple(shape)}")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < gallery_size):
        raise ValueError(f"{name} has an index outside 0..{gallery_size - 1}: give indices into the gallery")


def _check_ranks(ranks_from_1: Tensor) -> None:
    if ranks_from_1.numel() == 0 or int(ranks_from_1.min()) < 1:
        raise ValueError(f"ranks {tuple(ranks_from_1.shape)} are empty or below 1: give what `ranks` returned")


def _check_gallery_size(gallery_size: int) -> None:
    if gallery_size < 1:
        raise ValueError(f"gallery_size is {gallery_size}: a gallery holds 1 view or more")
