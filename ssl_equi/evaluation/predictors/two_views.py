"""Retrieval by predictors of two-view methods: which view an action leads to from one view, as in SIE.

From the features of one view of an object and the action that leads to another view, the predictor answers with an
embedding, which is looked for among the embeddings of the object's views and among those of all views of a split. SIE
(Garrido et al., ICML 2023) asks from view 0 of each object for all of its views, view 0 itself included (2 % of the
queries if there are 50 views). This is `ssl_equi.evaluation.sequences.retrieval` with contexts of one view.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.retrieval import TASK, Retrieval, Similarity, ranks
from ssl_equi.evaluation.report.pictures import retrieval_strip_arrays
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.sequences.retrieval import require_equal_galleries, retrieve_with_sequences
from ssl_equi.export.predictor import LatentPredictor, TrainedPredictor
from ssl_equi.latents.actions import AUGMENTATION, LatentActions, actions_as_told
from ssl_equi.runtime.frozen import frozen

PART = "all"  # predictors pick the columns that they read out of all features
ROWS_IN_A_CHUNK = 16384
NUM_STRIPS, STRIP_LENGTH = 6, 6


class OneObservedView(nn.Module):
    """A predictor as `ssl_equi.evaluation.sequences.heads.AggregatingModel`, for contexts of one view."""

    aggregator_takes_actions = predictor_takes_actions = True

    def __init__(self, predictor: LatentPredictor) -> None:
        super().__init__()
        self.predictor = predictor  # a submodule if it is a module
        self.advance = getattr(predictor, "advance", None)

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """Of features `[B, 1, D]`; there are no actions between one view."""
        observed = features[:, 0]
        # Embedded once for all queries of a context; what can't start from an embedding does it again for each.
        return observed if self.advance is None else self.predictor.embed(observed)

    def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
        """Embeddings `[B, E]` of the views that actions `[B, A]` lead to."""
        assert actions is not None
        prediction: Tensor = (self.advance or self.predictor.predict)(aggregates, actions)
        return prediction


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
        ValueError: the features have another width, or an embedding is not finite.
    """
    told = known_actions(predictor, cache).told.names
    require_equal_galleries(cache)
    if cache.num_views < 2:
        raise TaskSkipped(
            f"objects have {cache.num_views} view: a view can be retrieved among 2 or more, so take a split with more"
        )
    model = OneObservedView(predictor).to(device)
    with frozen(model):
        gallery = embed_views(predictor, cache, device)
    return retrieve_with_sequences(
        model, cache, gallery, told, context_views=1, contexts_per_object=source_views, metric=metric,
        whole_set=whole_set, device=device,
    )  # fmt: skip


def known_actions(predictor: LatentPredictor, cache: FeatureCache) -> LatentActions:
    """The predictor's actions between the views of the cache; TaskSkipped if the views don't have these latents."""
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
    """Embeddings `[n_objects, n_views, E]` of all views by a frozen predictor on `device`."""
    chunks = cache.features.flatten(0, 1).split(ROWS_IN_A_CHUNK)
    embeddings = torch.cat([predictor.embed(chunk.to(device)) for chunk in chunks])
    return embeddings.unflatten(0, (cache.num_objects, cache.num_views))


def strips_of_predictions(
    predictor: TrainedPredictor, cache: FeatureCache, test: ViewCollection
) -> dict[str, np.ndarray]:
    """Pictures of a few retrievals, from view 0 of objects spread over the split to another view each.

    Args:
        cache: all features of every view of `test`.

    Returns:
        As `ssl_equi.evaluation.report.pictures.retrieval_strip_arrays`.

    Raises:
        TaskSkipped: the actions between the views are not known.
    """
    known = known_actions(predictor, cache)
    objects = torch.linspace(0, cache.num_objects - 1, min(NUM_STRIPS, cache.num_objects)).round().long().unique()
    chosen = cache.objects(objects)
    targets = 1 + torch.arange(len(objects)) % (cache.num_views - 1)
    actions = known.between_all(chosen.latents, chosen.quats_xyzw)
    with frozen(predictor):
        embeddings = embed_views(predictor, chosen)
        predictions = predictor.predict(chosen.features[:, 0], actions[torch.arange(len(objects)), 0, targets])
    similarities = F.normalize(embeddings, dim=-1) @ F.normalize(predictions, dim=-1).unsqueeze(-1)
    nearest = similarities.squeeze(-1).topk(min(STRIP_LENGTH, cache.num_views), dim=1).indices
    source = torch.stack([objects, torch.zeros_like(objects)], dim=1)
    asked_for = torch.stack([objects, targets], dim=1)
    found = torch.stack([objects.unsqueeze(1).expand_as(nearest), nearest], dim=-1)
    true_ranks = ranks(predictions.unsqueeze(1), embeddings, targets.unsqueeze(1)).squeeze(1)
    return retrieval_strip_arrays(TASK, PART, test, source, asked_for, found, true_ranks)
