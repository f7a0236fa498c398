"""Retrieval of views by a predictor that observes a sequence of them (seq-JEPA, Ghaemi et al., NeurIPS 2025).

Within an object, the gallery is all views of that object, so that knowing the object is of no help: the predictor has
to know the pose that the action leads to. The published protocol (that of SIE, Garrido et al., ICML 2023) asks for a
view that the predictor was shown, so every number is given twice:

- with the source: the views that the prediction was made from are in the gallery. From one view, every view is asked
  for, itself by the identity action included (SIE's protocol); from several, the views that were not observed.
- without the source: the observed views are neither asked for nor in the gallery.

Over a whole split, the gallery is all views of all objects, and it is measured how far the rotation of the nearest one
is from the true one. How contexts and galleries were formed for the published numbers of seq-JEPA is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.retrieval import (
    Ranking,
    Retrieval,
    Similarity,
    chance_retrieval_error,
    prediction_retrieval_error,
    ranks,
)
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.sequences.heads import AggregatingModel
from ssl_equi.latents.actions import LatentActions, actions_of
from ssl_equi.runtime.frozen import frozen

PREDICTIONS_IN_A_CHUNK = 16384


def retrieve_with_sequences(
    model: AggregatingModel,
    cache: FeatureCache,
    target_features: Tensor,
    told: Sequence[str],
    *,
    context_views: int,
    contexts_per_object: int | None = None,
    metric: Similarity = "cosine",
    whole_set: bool = True,
    device: torch.device | str = "cpu",
) -> Retrieval:
    """From M observed views of an object and an action, find the view of the object that the action leads to.

    The gallery is the target features of the object's views. TaskSkipped if objects have different numbers of views.

    Args:
        model: a module on `device`; it is in evaluation mode meanwhile.
        cache: every view of a split, encoded by the model's encoder, with latents.
        target_features: `[n_objects, n_views, E]` of the same views by what the predictor was trained towards.
        told: names of the actions that the model is told between views; UserError if the views have no such latents.
        context_views: M, less than the views of an object.
        contexts_per_object: so many of the contexts of each object, the first ones; all (one for each view) when None.
        whole_set: measure the prediction retrieval error, too, where poses are known; it compares every query with
            every view of the set.
    """
    actions = actions_of(cache.schema, told)
    require_equal_galleries(cache)
    assert isinstance(model, nn.Module)
    num_objects, num_views = cache.num_objects, cache.num_views
    # A context is M views in stored order (after the last follows the first), and each view is the last of one context:
    # poses are drawn independently, so the order means nothing.
    last_views = torch.arange(contexts_per_object or num_views, device=device).unsqueeze(1)
    contexts = (last_views + torch.arange(1 - context_views, 1, device=device)) % num_views
    unseen = torch.ones(len(contexts), num_views, dtype=torch.bool, device=device).scatter(1, contexts, False)
    # After one view all are asked for, as in SIE; after several, those that are not among them.
    with_source = _Queries.of(torch.ones_like(unseen) if context_views == 1 else unseen, None)
    without_source = _Queries.of(unseen, contexts)

    gallery = target_features.to(device)
    quats_xyzw = cache.quats_xyzw.to(device) if whole_set and cache.quats_xyzw is not None else None
    found: dict[_Queries, list[tuple[Tensor, Tensor | None]]] = {with_source: [], without_source: []}
    objects_in_a_chunk = max(1, PREDICTIONS_IN_A_CHUNK // (len(contexts) * num_views))
    with frozen(model):
        for objects in torch.arange(num_objects).split(objects_in_a_chunk):
            predictions = _predict_all_views(model, cache.objects(objects).to(device), actions, contexts)
            for queries, of_chunks in found.items():
                of_chunks.append(queries.found(predictions, gallery, quats_xyzw, objects.to(device), metric))

    def ranking(queries: _Queries, gallery_size: int) -> Ranking:
        of_chunks, errors = zip(*found[queries], strict=True)
        return Ranking(torch.cat(of_chunks), gallery_size, None if quats_xyzw is None else torch.cat(errors))

    return Retrieval(
        context_views, num_objects, ranking(with_source, num_views), ranking(without_source, num_views - context_views),
        None if quats_xyzw is None else chance_retrieval_error(quats_xyzw),
    )  # fmt: skip


def require_equal_galleries(views: FeatureCache | ViewCollection) -> None:
    """Raises TaskSkipped where objects have different numbers of views."""
    if views.view_counts is not None:
        raise TaskSkipped(
            f"objects have {views.fewest_views} to {views.num_views} views, and ranks among so many can't be averaged "
            "or compared with one chance: take a split of objects with equally many views"
        )


@dataclass(frozen=True, eq=False)
class _Queries:
    """What each object is asked: after which contexts, for which views `[Q]`; `excluded [Q, M]` from their gallery."""

    contexts: Tensor
    views: Tensor
    excluded: Tensor | None

    @classmethod
    def of(cls, asked: Tensor, excluded: Tensor | None) -> "_Queries":
        """The views that are `asked [C, V]` after each context, without those that are `excluded [C, M]` after it."""
        contexts, views = asked.nonzero(as_tuple=True)
        return cls(contexts, views, None if excluded is None else excluded[contexts])

    def found(
        self, predictions: Tensor, gallery: Tensor, quats_xyzw: Tensor | None, objects: Tensor, metric: Similarity
    ) -> tuple[Tensor, Tensor | None]:
        """Ranks `[o * Q]` and each object's retrieval error `[o]`, on the CPU.

        Args:
            predictions: of all views of the `objects [o]`, `[o, C, V, E]`.
            gallery: of all objects, `[n, V, E]`.
            quats_xyzw: `[n, V, 4]`; None if there are no errors.
        """
        asked, num_views = predictions[:, self.contexts, self.views], gallery.shape[1]
        views = self.views.expand(len(objects), -1)
        excluded = None if self.excluded is None else self.excluded.expand(len(objects), -1, -1)
        found_ranks = ranks(asked, gallery[objects], views, metric, excluded).flatten().cpu()
        if quats_xyzw is None:
            return found_ranks, None
        if excluded is not None:  # rows of the whole set from here on
            excluded = (objects[:, None, None] * num_views + excluded).flatten(0, 1)
        errors = prediction_retrieval_error(
            asked.flatten(0, 1), gallery.flatten(0, 1), quats_xyzw[objects][:, self.views].flatten(0, 1),
            quats_xyzw.flatten(0, 1), metric, excluded,
        )  # fmt: skip
        return found_ranks, errors.view(len(objects), -1).mean(dim=1).cpu()


def _predict_all_views(model: AggregatingModel, cache: FeatureCache, known: LatentActions, contexts: Tensor) -> Tensor:
    """Embeddings `[o, C, V, E]` that are predicted for all views of the cache's objects after each context `[C, M]`."""
    num_objects, num_views = cache.features.shape[:2]
    actions = known.between_all(cache.latents, cache.quats_xyzw)
    steps = actions[:, contexts[:, :-1], contexts[:, 1:]].flatten(0, 1)
    aggregates = model.aggregate(
        cache.features[:, contexts].flatten(0, 1), steps if model.aggregator_takes_actions else None
    )
    to_views = actions[:, contexts[:, -1]].flatten(0, 2)
    predictions = model.predict(
        aggregates.repeat_interleave(num_views, dim=0), to_views if model.predictor_takes_actions else None
    )
    return predictions.view(num_objects, len(contexts), num_views, -1)
