"""What a predictor retrieved, as numbers beside chance: records for the table, and a result with each object's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.predictors.retrieval import (
    chance_hit_at_k,
    chance_mean_reciprocal_rank,
    hit_at_k,
    mean_reciprocal_rank,
)
from ssl_equi.evaluation.records import ProbeRecord
from ssl_equi.evaluation.task import TaskResult

TASK = "retrieval"
PROTOCOL = "retrieval_v1"
HIT_RANKS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """Ranks of all queries, int64 `[n]` on the CPU, object by object, and how many views each of them was among."""

    ranks: Tensor
    gallery_size: int


@dataclass(frozen=True)
class Retrieval:
    """What a predictor retrieved from contexts of M views.

    Attributes:
        context_views: M.
        num_objects: objects whose views were asked for.
        with_source: ranks among all views of the object.
        without_source: ranks among the views that were not observed.
        object_errors_with_source, object_errors_without_source: each object's mean prediction retrieval error over the
            whole set, float64 `[num_objects]`; None if it was not asked for.
        chance_error: of random views of the set; None like the errors.
    """

    context_views: int
    num_objects: int
    with_source: Ranking
    without_source: Ranking
    object_errors_with_source: Tensor | None = None
    object_errors_without_source: Tensor | None = None
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

    @property
    def error_with_source(self) -> float | None:
        """Mean prediction retrieval error over all queries."""
        errors = self.object_errors_with_source
        return None if errors is None else float(errors.mean())

    @property
    def error_without_source(self) -> float | None:
        """The same if the observed views are neither asked for nor in the gallery."""
        errors = self.object_errors_without_source
        return None if errors is None else float(errors.mean())


def retrieval_records(retrieval: Retrieval, gallery_encoder: str, split_name: str) -> list[ProbeRecord]:
    """Records of one context length (part "pred@M") beside chance; a rank that no view can miss is left out.

    Args:
        gallery_encoder: what encoded the gallery, in words.
        split_name: evaluated split.
    """
    return [
        ProbeRecord(
            task=TASK,
            part=f"pred@{retrieval.context_views}",
            metric=measure.metric,
            value=measure.value,
            baseline=measure.chance,
            baseline_name="chance",
            random_encoder=None,
            n=measure.num_queries,
            num_objects=retrieval.num_objects,
            split=split_name,
            protocol=f"{PROTOCOL}, {measure.gallery} by {gallery_encoder}",
            seed=0,  # nothing is drawn
        )
        for measure in _measures(retrieval)
    ]


def retrieval_result(retrieval: Retrieval) -> TaskResult:
    """The same numbers as a task's result: with each object's own value, and all queries counted."""
    measures = list(_measures(retrieval))
    return TaskResult(
        metrics={measure.metric: measure.value for measure in measures},
        baselines={measure.metric: Baseline(measure.chance, "chance") for measure in measures},
        num_samples=len(retrieval.with_source.ranks),
        object_scores={measure.metric: measure.of_objects.numpy() for measure in measures},
        retrieval_ranks=retrieval.with_source.ranks.numpy(),
    )


@dataclass(frozen=True)
class _Measure:
    metric: str
    value: float
    chance: float
    num_queries: int
    gallery: str
    of_objects: Tensor  # float64 [num_objects]


def _measures(retrieval: Retrieval) -> Iterator[_Measure]:
    """All numbers of a retrieval, in the order of the table."""
    rankings = {"": retrieval.with_source, "_without_identity": retrieval.without_identity}
    rankings["_without_source"] = retrieval.without_source
    for suffix, ranking in rankings.items():
        if ranking is not None:
            yield from _measures_of_ranking(ranking, suffix, retrieval.num_objects)
    whole = {
        "": (retrieval.with_source, retrieval.object_errors_with_source),
        "_without_source": (retrieval.without_source, retrieval.object_errors_without_source),
    }
    for suffix, (ranking, errors) in whole.items():
        if errors is not None and retrieval.chance_error is not None:
            value, count = float(errors.mean()), len(ranking.ranks)
            gallery = "all views of the split"
            yield _Measure(f"retrieval_error{suffix}", value, retrieval.chance_error, count, gallery, errors)


def _measures_of_ranking(ranking: Ranking, suffix: str, num_objects: int) -> Iterator[_Measure]:
    found, size = ranking.ranks, ranking.gallery_size
    by_object = found.view(num_objects, -1).double()
    gallery = f"{size} views of the object"
    reciprocal = by_object.reciprocal().mean(dim=1)
    chance = chance_mean_reciprocal_rank(size)
    yield _Measure(f"mrr{suffix}", mean_reciprocal_rank(found), chance, len(found), gallery, reciprocal)
    for k in HIT_RANKS:
        if k < size:
            hits = (by_object <= k).double().mean(dim=1)
            value, chance = hit_at_k(found, k), chance_hit_at_k(k, size)
            yield _Measure(f"hit_at_{k}{suffix}", value, chance, len(found), gallery, hits)
