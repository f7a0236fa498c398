"""What is asked of an encoder together with the predictor that its run left, as tasks of the suite.

Nothing is drawn or trained, so each is asked once; and they need all features, which the predictor reads its own from.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache, frozen
from ssl_equi.evaluation.predictors.consistency import TASK as CONSISTENCY
from ssl_equi.evaluation.predictors.consistency import predictor_consistency
from ssl_equi.evaluation.predictors.predictor_retrieval import embed_views, known_actions, retrieve_with_predictor
from ssl_equi.evaluation.predictors.retrieval import ranks
from ssl_equi.evaluation.predictors.retrieval_results import TASK as RETRIEVAL
from ssl_equi.evaluation.predictors.retrieval_results import retrieval_result
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.report.pictures import retrieval_strip_arrays
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.evaluation.task_results import Task, TaskResult
from ssl_equi.export.predictor import TrainedPredictor

PREDICTOR_TASKS = (RETRIEVAL, CONSISTENCY)
PART = "all"
NUM_STRIPS, STRIP_LENGTH = 6, 6


def predictor_tasks(predictor: TrainedPredictor) -> dict[str, Task]:
    """Which view does the predictor mean (from view 0 of each evaluated object, as SIE asks), and is it consistent?"""

    def retrieval(
        train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
    ) -> TaskResult:
        check_width(predictor, test)
        return retrieval_result(retrieve_with_predictor(predictor, test, device=test.features.device))

    def consistency(
        train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
    ) -> TaskResult:
        check_width(predictor, test)
        found = predictor_consistency(predictor, test, device=test.features.device)
        return replace(found.result, notes=found.notes)

    return {RETRIEVAL: retrieval, CONSISTENCY: consistency}


def check_width(predictor: TrainedPredictor, cache: FeatureCache) -> None:
    """Raises TaskSkipped for features that the predictor doesn't read."""
    width = cache.features.shape[-1]
    if width != predictor.num_features:
        raise TaskSkipped(
            f"the predictor of {predictor.name} reads {predictor.num_features} features and the part has {width}: ask "
            "it of all features"
        )


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
