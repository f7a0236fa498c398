"""What is asked of an encoder together with the predictor that its run left, as tasks of the suite.

Nothing is drawn or trained, so each is asked once; and they need all features, which the predictor reads its own from.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache, frozen
from ssl_equi.evaluation.predictors.predictor_retrieval import embed_views, known_actions
from ssl_equi.evaluation.predictors.retrieval import ranks
from ssl_equi.evaluation.predictors.retrieval_results import TASK as RETRIEVAL
from ssl_equi.evaluation.report.pictures import retrieval_strip_arrays
from ssl_equi.export.predictor import TrainedPredictor

PART = "all"
NUM_STRIPS, STRIP_LENGTH = 6, 6


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
    return retrieval_strip_arrays(RETRIEVAL, PART, test, source, asked_for, found, true_ranks)
