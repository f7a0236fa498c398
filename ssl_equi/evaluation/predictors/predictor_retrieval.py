"""Retrieval of views by the predictor of a two-view method, as in SIE (Garrido et al., ICML 2023).

From the features of one view of an object and the action that leads to another view, the predictor answers with an
embedding, which is looked for among the embeddings of the object's views and among those of all views of a split. SIE
asks from view 0 of each object for all of its views, view 0 itself included (2 % of the queries if there are 50 views).

A two-view method observes one view, so this is `ssl_equi.evaluation.sequences.retrieval` with contexts of one view.
"""

import torch
from torch import Tensor, nn

from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache, frozen
from ssl_equi.evaluation.predictors.retrieval import Similarity
from ssl_equi.evaluation.predictors.retrieval_results import Retrieval
from ssl_equi.evaluation.sequences.retrieval import different_galleries, retrieve_with_sequences
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.export.predictor import LatentPredictor
from ssl_equi.latents.actions import AUGMENTATION, LatentActions, actions_as_told

ROWS_IN_A_CHUNK = 16384


def retrieve_with_predictor(
    predictor: LatentPredictor,
    cache: FeatureCache,
    *,
    source_views: int | None = 1,
    metric: Similarity = "cosine",
    whole_set: bool = True,
    device: torch.device | str = "cpu",
) -> Retrieval:
    """From one view of an object and an action, find the view of the object that the action leads to.

    Args:
        predictor: if a module, it is moved to `device`, and in evaluation mode meanwhile.
        cache: every view of a split, with latents; the features that the predictor reads.
        source_views: views of each object that queries start from, the first ones; 1 in SIE; all when None.
        metric: what near means; cosine in SIE.
        whole_set: measure the prediction retrieval error, too; it compares every query with every view of the set.

    Raises:
        TaskSkipped: the actions between the views are not known, objects have one view, or different numbers of views.
        ValueError: the features have another width, there are fewer views than `source_views`, or an embedding is not
            finite.
    """
    told = known_actions(predictor, cache).told.names
    if cache.view_counts is not None:
        raise TaskSkipped(f"{different_galleries(cache)}: take a split of objects with equally many views")
    if cache.num_views < 2:
        raise TaskSkipped(
            f"objects have {cache.num_views} view: a view can be retrieved among 2 or more, so take a split with more"
        )
    model = OneObservedView(predictor).to(device)
    return retrieve_with_sequences(
        model,
        cache,
        embed_views(predictor, cache, device),
        told,
        context_views=1,
        contexts_per_object=source_views,
        metric=metric,
        whole_set=whole_set,
        device=device,
    )


def known_actions(predictor: LatentPredictor, cache: FeatureCache) -> LatentActions:
    """What the predictor is told between the views of the cache.

    Raises:
        TaskSkipped: it is told of augmentations, or the views don't have the latents that it is told of.
    """
    if AUGMENTATION in predictor.actions.names:
        raise TaskSkipped(
            f"the predictor of {predictor.name} is told actions '{AUGMENTATION}': between stored views only those of "
            "their latents are known, so take a predictor trained on rendered views"
        )
    try:
        return actions_as_told(cache.schema, predictor.actions)
    except UserError as error:
        raise TaskSkipped(f"{predictor.name}: {error}") from error


def embed_views(predictor: LatentPredictor, cache: FeatureCache, device: torch.device | str = "cpu") -> Tensor:
    """Embeddings `[n_objects, n_views, E]` of all views, on `device`.

    Raises:
        ValueError: the features have another width than the predictor reads.
    """
    model = OneObservedView(predictor).to(device)
    with frozen(model):
        chunks = cache.features.flatten(0, 1).split(ROWS_IN_A_CHUNK)
        embeddings = torch.cat([predictor.embed(chunk.to(device)) for chunk in chunks])
    return embeddings.unflatten(0, (cache.num_objects, cache.num_views))


class OneObservedView(nn.Module):
    """A predictor as `sequence_retrieval.PredictingModel`, for contexts of one view.

    What is kept of the context is its embedding, so that it is embedded once for all its queries, or its features if
    the predictor can't start from an embedding.
    """

    aggregator_takes_actions = predictor_takes_actions = True

    def __init__(self, predictor: LatentPredictor) -> None:
        super().__init__()
        self.predictor = predictor  # a submodule if it is a module
        self.advance = getattr(predictor, "advance", None)

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """Of features `[B, 1, D]`; there are no actions between one view."""
        observed = features[:, 0]
        return observed if self.advance is None else self.predictor.embed(observed)

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """Embeddings `[B, E]` of the views that actions `[B, A]` lead to."""
        assert actions is not None
        if self.advance is None:
            return self.predictor.predict(aggregates, actions)
        prediction: Tensor = self.advance(aggregates, actions)
        return prediction
