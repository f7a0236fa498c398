"""Retrieval of views by a predictor that observes a sequence of them (seq-JEPA, Ghaemi et al., NeurIPS 2025).

Within an object, the gallery is all views of that object, so that knowing the object is of no help: the predictor has
to know the pose that the action leads to. Every number is given twice, because the published protocol (that of SIE,
Garrido et al., ICML 2023) asks for a view that the predictor was shown:

- with the source: the views that the prediction was made from are in the gallery. From one view, every view is asked
  for, itself by the identity action included (SIE's protocol); from several, the views that were not observed.
- without the source: the observed views are neither asked for nor in the gallery.

Over a whole split, the gallery is all views of all objects, and it is measured how far the rotation of the nearest one
is from the true one; translations are not looked at. How contexts and galleries were formed for the published numbers
of seq-JEPA is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
from ssl_equi.evaluation.sequences.heads import AggregatingModel
from ssl_equi.latents.actions import LatentActions, actions_of
from ssl_equi.runtime.frozen import frozen

PREDICTIONS_IN_A_CHUNK = 16384


class PredictingModel(AggregatingModel, Protocol):
    """A module that also predicts a view's embedding, with None instead of actions unless `predictor_takes_actions`."""

    @property
    def predictor_takes_actions(self) -> bool: ...

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """Target features `[B, E]` of the views that actions `[B, A]` lead to from the last observed one."""


def retrieve_with_sequences(
    model: PredictingModel,
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

    Each context is M views in stored order (poses are drawn independently, so the order means nothing), and each view
    is the last of exactly one context. The predictor is asked for the views that the actions from the context's last
    view lead to; the gallery is the target features of the object's views.

    Args:
        model: a module on `device`; it is in evaluation mode meanwhile.
        cache: every view of a split, encoded by the model's encoder, with latents.
        target_features: `[n_objects, n_views, E]` of the same views by what the predictor was trained towards.
        told: names of the actions that the model is told between views; UserError if the views have no such latents.
        context_views: M, less than the views of an object.
        contexts_per_object: so many of the contexts of each object; all (one for each view) when None.
        whole_set: measure the prediction retrieval error, too, where poses are known; it compares every query with
            every view of the set.

    Raises:
        ValueError: objects have different numbers of views, or the numbers of views or the target features do not fit
            the cache.
    """
    actions = actions_of(cache.schema, told)
    if cache.view_counts is not None:
        raise ValueError(f"{different_galleries(cache)}: take a split of objects with equally many views")
    if target_features.shape[:-1] != cache.features.shape[:-1]:
        raise ValueError(
            f"target_features {tuple(target_features.shape)} do not fit features {tuple(cache.features.shape)}: encode "
            "the same views by both encoders"
        )
    assert isinstance(model, nn.Module)
    num_objects, num_views = cache.num_objects, cache.num_views
    contexts = _contexts(num_views, context_views, contexts_per_object).to(device)
    unseen = _unseen(contexts, num_views)
    every_view = torch.arange(num_views, device=device).expand(len(contexts), -1)
    # After one view all are asked for, as in SIE; after several, those that are not among them.
    with_source = _Questions(every_view if context_views == 1 else unseen, None)
    without_source = _Questions(unseen, contexts.unsqueeze(1).expand(-1, unseen.shape[1], -1))

    gallery, quats_xyzw = target_features.to(device), None
    if whole_set and cache.quats_xyzw is not None:
        quats_xyzw = cache.quats_xyzw.to(device)
    found_ranks: tuple[list[Tensor], list[Tensor]] = ([], [])
    found_errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    objects_in_a_chunk = max(1, PREDICTIONS_IN_A_CHUNK // (len(contexts) * num_views))
    with frozen(model):
        for start in range(0, num_objects, objects_in_a_chunk):
            objects = slice(start, min(start + objects_in_a_chunk, num_objects))
            predictions = _predict_all_views(model, cache.objects(objects).to(device), actions, contexts)
            for asked, found, errors in zip((with_source, without_source), found_ranks, found_errors, strict=True):
                found.append(asked.ranks(predictions, gallery[objects], metric).cpu())
                if quats_xyzw is not None:
                    of_queries = asked.errors(predictions, gallery, quats_xyzw, objects, metric)
                    errors.append(of_queries.view(len(predictions), -1).mean(dim=1).cpu())
    with_errors, without_errors = [torch.cat(errors) if errors else None for errors in found_errors]
    return Retrieval(
        context_views=context_views,
        num_objects=num_objects,
        with_source=Ranking(torch.cat(found_ranks[0]), num_views),
        without_source=Ranking(torch.cat(found_ranks[1]), num_views - context_views),
        object_errors_with_source=with_errors,
        object_errors_without_source=without_errors,
        chance_error=None if quats_xyzw is None else chance_retrieval_error(quats_xyzw),
    )


def different_galleries(views: FeatureCache | ViewCollection) -> str:
    """Why views can't be retrieved where objects have different numbers of them."""
    return (
        f"objects have {views.fewest_views} to {views.num_views} views, and ranks among so many can't be averaged or "
        "compared with one chance"
    )


@dataclass(frozen=True)
class _Questions:
    """Which views are asked for after each context: `views [C, N]`, and `excluded [C, N, K]` from their gallery."""

    views: Tensor
    excluded: Tensor | None

    def ranks(self, predictions: Tensor, gallery: Tensor, metric: Similarity) -> Tensor:
        """`[o * C * N]`, given predictions of all views `[o, C, V, E]` and the objects' gallery `[o, V, E]`."""
        num_objects = len(gallery)
        true_index = self.views.flatten().expand(num_objects, -1)
        excluded = None if self.excluded is None else self.excluded.flatten(0, 1).expand(num_objects, -1, -1)
        return ranks(self._asked(predictions), gallery, true_index, metric, excluded).flatten()

    def errors(
        self, predictions: Tensor, gallery: Tensor, quats_xyzw: Tensor, objects: slice, metric: Similarity
    ) -> Tensor:
        """`[o * C * N]`, given predictions as above and all views: `gallery [n, V, E]` and `quats_xyzw [n, V, 4]`."""
        first_row = torch.arange(objects.start, objects.stop, device=gallery.device).view(-1, 1, 1) * gallery.shape[1]
        excluded = None if self.excluded is None else (first_row + self.excluded.flatten(0, 1)).flatten(0, 1)
        asked, true_quats_xyzw = self._asked(predictions).flatten(0, 1), quats_xyzw[objects][:, self.views]
        return prediction_retrieval_error(
            asked, gallery.flatten(0, 1), true_quats_xyzw.reshape(-1, 4), quats_xyzw.flatten(0, 1), metric, excluded
        )

    def _asked(self, predictions: Tensor) -> Tensor:
        contexts = torch.arange(len(self.views), device=self.views.device).unsqueeze(1)
        return predictions[:, contexts, self.views].flatten(1, 2)


def _contexts(num_views: int, context_views: int, count: int | None) -> Tensor:
    """int64 `[C, M]`: M consecutive views (after the last follows the first), of which the last is view 0, 1, 2, ..."""
    if not 1 <= context_views < num_views:
        raise ValueError(
            f"a context has {context_views} views and objects have {num_views}: observe at least 1 and leave at least "
            "1 to ask for"
        )
    if count is not None and not 1 <= count <= num_views:
        raise ValueError(f"{count} contexts of each object were asked for: ask for 1 to {num_views}, one for each view")
    last = torch.arange(num_views if count is None else count).unsqueeze(1)
    return (last + torch.arange(1 - context_views, 1)) % num_views


def _unseen(contexts: Tensor, num_views: int) -> Tensor:
    """`[C, V - M]`, in order: the views that are not in each context `[C, M]`."""
    unseen = torch.ones(len(contexts), num_views, dtype=torch.bool, device=contexts.device)
    unseen.scatter_(1, contexts, False)
    return unseen.nonzero()[:, 1].view(len(contexts), -1)


def _predict_all_views(
    model: PredictingModel, cache: FeatureCache, of_views: LatentActions, contexts: Tensor
) -> Tensor:
    """Embeddings `[o, C, V, E]` that are predicted for all views of the cache's objects after each context `[C, M]`."""
    num_objects, num_views = cache.features.shape[:2]
    actions = of_views.between_all(cache.latents, cache.quats_xyzw)
    steps = actions[:, contexts[:, :-1], contexts[:, 1:]].flatten(0, 1)
    aggregates = model.aggregate(
        cache.features[:, contexts].flatten(0, 1), steps if model.aggregator_takes_actions else None
    )
    to_views = actions[:, contexts[:, -1]].flatten(0, 2)
    predictions = model.predict(
        aggregates.repeat_interleave(num_views, dim=0), to_views if model.predictor_takes_actions else None
    )
    return predictions.view(num_objects, len(contexts), num_views, -1)
