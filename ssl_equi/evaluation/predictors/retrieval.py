"""Retrieval by a predictor: does the embedding that it predicts for a view find that view among others?

Mean reciprocal rank and hit@k among the views of one object, and the prediction retrieval error among all views of a
set, as in SIE (Garrido et al., ICML 2023), each beside what chance reaches.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.results import ProbeRecord, records_of
from ssl_equi.evaluation.task import TaskResult

TASK = "retrieval"
PROTOCOL = "retrieval_v1"
HIT_RANKS = (1, 2, 5, 10)
Similarity = Literal["cosine", "euclidean"]
NUMBERS_AT_ONCE_CPU, NUMBERS_AT_ONCE_GPU = 2**19, 2**27  # of float64 embeddings: what stays in a cache; in memory
ROWS_AT_ONCE = 4096  # queries and entries of a whole set that are compared at once: their square is in memory
ROUNDING = 1e-12  # as a share of a query's largest similarity, in float64: equal columns of a product may differ by it


def ranks(
    predictions: Tensor,
    gallery: Tensor,
    true_index: Tensor,
    metric: Similarity = "cosine",
    excluded: Tensor | None = None,
) -> Tensor:
    """Rank of the true gallery entry by its similarity to each prediction, int64 `[..., Q]` from 1.

    ValueError for embeddings that are not finite.

    Args:
        predictions: `[..., Q, E]`; leading dimensions hold galleries of their own, such as one for each object.
        gallery: `[..., G, E]`.
        true_index: int64 `[..., Q]`, which entry each prediction means.
        metric: "cosine", or "euclidean" (the nearer the more similar). Computed in float64.
        excluded: int64 `[..., Q, K]`, entries that each query leaves out of its gallery.
    """
    for name, embeddings in (("predictions", predictions), ("gallery", gallery)):
        # The extremes are NaN or infinite if any number is; looking at every number takes ten times as long.
        if not bool(torch.stack(embeddings.aminmax()).isfinite().all()):
            raise ValueError(f"{name} are not finite: the run diverged, use an earlier checkpoint")
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
    # A tie counts as nearer: if all embeddings are the same, the true view has the last rank, not the first.
    as_near = similarities >= similarities.gather(-1, true_index.unsqueeze(-1)) - tolerance
    if excluded is not None:
        as_near.scatter_(-1, excluded, False)
    return as_near.sum(dim=-1)


def mean_reciprocal_rank(ranks_from_1: Tensor) -> float:
    """Mean of 1 / rank over all queries, in (0, 1]."""
    return float(ranks_from_1.double().reciprocal().mean())


def hit_at_k(ranks_from_1: Tensor, k: int) -> float:
    """Share of the queries whose true entry is among the k nearest."""
    return float((ranks_from_1 <= k).double().mean())


def chance_mean_reciprocal_rank(gallery_size: int) -> float:
    """Mean reciprocal rank if the order is random: the harmonic number H_G divided by G (0.0900 for 50 views)."""
    return math.fsum(1 / rank for rank in range(1, gallery_size + 1)) / gallery_size


def chance_hit_at_k(k: int, gallery_size: int) -> float:
    """Share of hits if the order is random: k / G, at most 1."""
    return min(k / gallery_size, 1.0)


def prediction_retrieval_error(
    predictions: Tensor,
    gallery: Tensor,
    true_quat_xyzw: Tensor,
    gallery_quat_xyzw: Tensor,
    metric: Similarity = "cosine",
    excluded: Tensor | None = None,
) -> Tensor:
    """1 - (q_true . q_nearest)^2 of the gallery entry nearest to each prediction, float64 `[Q]`: SIE's PRE, per query.

    0 is the true rotation, 1 a half turn away, whatever the quaternions' signs. Random views are at 0.627 on poses of
    the Euler box; see `chance_retrieval_error`.

    Args:
        predictions: `[Q, E]`.
        gallery: `[G, E]`, all embeddings of a set.
        true_quat_xyzw: `[Q, 4]`, unit quaternions of the poses that are asked for.
        gallery_quat_xyzw: `[G, 4]` of the gallery's views.
        excluded: int64 `[Q, K]`, such as each query's own source view; None to leave it in, as SIE does.
    """
    nearest = nearest_entries(predictions, gallery, metric, excluded)
    return 1 - (true_quat_xyzw.double() * gallery_quat_xyzw[nearest].double()).sum(dim=-1).square()


def chance_retrieval_error(quat_xyzw: Tensor) -> float:
    """Mean of 1 - (q1 . q2)^2 over all pairs of the unit quaternions `[..., 4]`: what random views reach."""
    quaternions = quat_xyzw.reshape(-1, 4).double()
    # The mean of (q1 . q2)^2 over all pairs is the squared Frobenius norm of the mean of q q^T.
    return float(1 - (quaternions.T @ quaternions / len(quaternions)).square().sum())


def nearest_entries(queries: Tensor, gallery: Tensor, metric: Similarity, excluded: Tensor | None = None) -> Tensor:
    """Index `[Q]` of the gallery entry `[G, E]` nearest to each query `[Q, E]`, in the queries' precision."""
    left, right, penalty = _prepare(queries, gallery, metric)
    found = [
        _nearest_of_chunks(left[rows], right, penalty, None if excluded is None else excluded[rows])
        for rows in torch.arange(len(queries), device=queries.device).split(ROWS_AT_ONCE)
    ]
    return torch.cat(found)


def _nearest_of_chunks(left: Tensor, right: Tensor, penalty: Tensor | None, excluded: Tensor | None) -> Tensor:
    """The best entry of each chunk of the gallery, and then the best of these; the earlier one of equals."""
    best_similarity = left.new_full((len(left),), -math.inf)
    best_index = torch.zeros(len(left), dtype=torch.int64, device=left.device)
    for start in range(0, len(right), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(right))
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
    # Around the gallery's own mean, so that a large common offset does not swamp the differences.
    centre = gallery.mean(dim=-2, keepdim=True)
    return predictions - centre, gallery - centre, (gallery - centre).square().sum(dim=-1) / 2


def _similarities(left: Tensor, right: Tensor, penalty: Tensor | None) -> Tensor:
    """`[..., Q, G]`: p . g, less |g|^2 / 2 for the Euclidean order (|p - g|^2 without what all entries share)."""
    products = left @ right.transpose(-1, -2)
    return products if penalty is None else products - penalty.unsqueeze(-2)


@dataclass(frozen=True)
class Ranking:
    """What was found of one kind of query.

    Attributes:
        ranks: of all queries, int64 `[n]` on the CPU, object by object.
        gallery_size: how many views of the object each of them was among.
        object_errors: each object's mean retrieval error over the whole set, float64 `[num_objects]`; None: not asked.
    """

    ranks: Tensor
    gallery_size: int
    object_errors: Tensor | None = None


@dataclass(frozen=True)
class Retrieval:
    """What a predictor retrieved from contexts of M views.

    Attributes:
        context_views: M.
        num_objects: objects whose views were asked for.
        with_source: among all views of the object.
        without_source: among the views that were not observed.
        chance_error: the retrieval error of random views of the set; None if it was not asked for.
    """

    context_views: int
    num_objects: int
    with_source: Ranking
    without_source: Ranking
    chance_error: float | None = None

    @property
    def without_identity(self) -> Ranking | None:
        """Ranks of `with_source` but for the view that was observed; None unless that is one view.

        That view itself, which the identity action leads to, stays in the gallery.
        """
        if self.context_views != 1:
            return None
        num_views = self.with_source.gallery_size
        by_source = self.with_source.ranks.view(self.num_objects, -1, num_views)  # context c is view c
        identity = torch.eye(by_source.shape[1], num_views, dtype=torch.bool)
        return Ranking(by_source[:, ~identity].flatten(), num_views)

    def measures(self) -> Iterator[tuple[str, TaskResult]]:
        """All numbers in the order of the table, each as a result of its own beside the gallery in words.

        A rank that no view can miss is left out.
        """
        all_rankings = {
            "": self.with_source, "_without_identity": self.without_identity, "_without_source": self.without_source,
        }  # fmt: skip
        rankings = {suffix: ranking for suffix, ranking in all_rankings.items() if ranking is not None}
        for suffix, ranking in rankings.items():
            by_object, size = ranking.ranks.view(self.num_objects, -1), ranking.gallery_size
            found = {"mrr": (by_object.double().reciprocal(), chance_mean_reciprocal_rank(size))}
            for k in HIT_RANKS:
                if k < size:
                    found[f"hit_at_{k}"] = ((by_object <= k).double(), chance_hit_at_k(k, size))
            for name, (scores, chance) in found.items():
                result = _beside_chance(f"{name}{suffix}", scores, chance, scores.numel())
                yield f"{size} views of the object", result
        for suffix, ranking in rankings.items():
            if ranking.object_errors is not None and self.chance_error is not None:
                errors, name = ranking.object_errors.unsqueeze(1), f"retrieval_error{suffix}"
                yield "all views of the split", _beside_chance(name, errors, self.chance_error, len(ranking.ranks))


def _beside_chance(name: str, scores: Tensor, chance: float, num_samples: int) -> TaskResult:
    """The mean of scores `[num_objects, n]`, with each object's own."""
    return TaskResult(
        {name: float(scores.mean())}, {name: Baseline(chance, "chance")}, num_samples,
        object_scores={name: scores.mean(dim=1).numpy()},
    )  # fmt: skip


def retrieval_records(retrieval: Retrieval, gallery_encoder: str, split_name: str) -> list[ProbeRecord]:
    """Records of one context length (part "pred@M") beside chance, with the gallery and, in words, what encoded it."""
    records: list[ProbeRecord] = []
    for gallery, result in retrieval.measures():
        # Nothing is drawn, so the seed is 0; standard errors over objects are those of the encoder's task `retrieval`.
        answers = {f"pred@{retrieval.context_views}": {TASK: replace(result, object_scores=None)}}
        records += records_of(
            answers, None, split=split_name, protocol=f"{PROTOCOL}, {gallery} by {gallery_encoder}", seed=0,
            num_objects=retrieval.num_objects,
        )  # fmt: skip
    return records


def retrieval_result(retrieval: Retrieval) -> TaskResult:
    """The same numbers as one task's result, with all queries counted."""
    metrics: dict[str, float] = {}
    baselines: dict[str, Baseline] = {}
    object_scores: dict[str, np.ndarray] = {}
    for _, result in retrieval.measures():
        metrics |= result.metrics
        baselines |= result.baselines
        object_scores |= result.object_scores or {}
    found = retrieval.with_source.ranks
    return TaskResult(metrics, baselines, len(found), object_scores=object_scores, retrieval_ranks=found.numpy())
