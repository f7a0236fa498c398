"""Whether a predictor moves embeddings as actions move views: nowhere by the identity, back by the inverse, and so on.

With z the embedding of a view, p(z, a) the one predicted after action a, views i, j, k of an object and a_ij the action
between two of them:

    identity_error     |p(z_i, a_ii) - z_i|                        over |z_j - z_i|
    inverse_error      |p(p(z_i, a_ij), a_ji) - z_i|               over |z_j - z_i|
    composition_error  |p(p(z_i, a_ij), a_jk) - p(z_i, a_ik)|      over |p(z_i, a_ij) - p(z_i, a_ik)|
    sign_flip_error    |p(z_i, q_ij) - p(z_i, -q_ij)|              over |p(z_i, a_ij) - p(z_i, a_ik)|

Each is a ratio of two means over all triples of views: 0 is exact, 1 as far off as another view of the object is. Two
predictions are compared on the scale of predictions, because a predictor that always answers the same would compose
without error. q and -q are one rotation but two inputs: a bias-free linear hypernetwork (SIE) answers the other with
exactly its negative. Where actions write rotations without a sign (`rotation_6d`), there is no such error.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache, frozen
from ssl_equi.evaluation.predictors.predictor_retrieval import ROWS_IN_A_CHUNK, OneObservedView, known_actions
from ssl_equi.evaluation.predictors.retrieval import Similarity
from ssl_equi.evaluation.records import ProbeRecord
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.export.predictor import LatentPredictor
from ssl_equi.latents.actions import LatentActions

TASK = "predictor_consistency"
PROTOCOL = "predictor_consistency_v1"
BASELINE_NAME = "another view"
VIEWS_IN_A_TRIPLE = 3
SCALES = {"identity": "embeddings", "inverse": "embeddings", "composition": "predictions", "sign_flip": "predictions"}
SMALLEST_SCALE = 1e-6  # mean distance of two views, as a share of the embeddings' mean length

Distances = dict[str, Tensor]  # by name, of each triple [n]


@dataclass(frozen=True)
class PredictorConsistency:
    """The errors, their baselines of 1, and each object's own; `notes` say why an error is missing."""

    result: TaskResult
    notes: tuple[str, ...]


def predictor_consistency(
    predictor: LatentPredictor,
    cache: FeatureCache,
    *,
    triples_per_object: int = 10,
    metric: Similarity = "cosine",
    device: torch.device | str = "cpu",
) -> PredictorConsistency:
    """Measures the errors of the module's table; nothing is drawn or trained.

    Args:
        predictor: if a module, it is moved to `device`, and in evaluation mode meanwhile.
        cache: every view of a split, with latents; the features that the predictor reads.
        triples_per_object: of consecutive views, from view 0 on (poses are drawn independently, so the order means
            nothing); as many as each object has views at most.
        metric: cosine: distances between embeddings scaled to length 1; euclidean: between embeddings as they are.

    Raises:
        TaskSkipped: the actions between the views are not known, an object has fewer than three views, or all views of
            an object have the same embedding.
        ValueError: the features have another width, an embedding is not finite, or no triples are asked for.
    """
    known = known_actions(predictor, cache)
    if triples_per_object < 1:
        raise ValueError(f"triples_per_object is {triples_per_object}: give 1 or more")
    fewest = cache.fewest_views
    if fewest < VIEWS_IN_A_TRIPLE:
        raise TaskSkipped(
            f"objects have {fewest} views: two actions in a row need {VIEWS_IN_A_TRIPLE}, so take a split with more"
        )
    first = torch.arange(min(triples_per_object, fewest)).unsqueeze(1)
    triples = (first + torch.arange(VIEWS_IN_A_TRIPLE)) % fewest  # the same views of every object
    model = OneObservedView(predictor).to(device)
    objects_in_a_chunk = max(1, ROWS_IN_A_CHUNK // len(triples))
    with frozen(model):
        chunks = [
            _distances(predictor, *_triples(cache, objects, triples, known, device), metric)
            for objects in torch.arange(cache.num_objects).split(objects_in_a_chunk)
        ]
    by_object = {
        name: torch.cat([chunk[name] for chunk in chunks]).view(cache.num_objects, -1).mean(dim=1).double().cpu()
        for name in chunks[0]
    }
    result, notes = _result(by_object, cache.num_objects * len(triples), predictor.name)
    if "inverse" not in by_object:
        notes += (
            f"inverse_error, composition_error: the predictor of {predictor.name} starts from features, not from what "
            "it predicted (it has no method advance)",
        )
    return PredictorConsistency(result, notes)


def consistency_records(consistency: PredictorConsistency, num_objects: int, split_name: str) -> list[ProbeRecord]:
    """Records (part "pred@1") beside the baseline of 1.

    Args:
        num_objects: of the evaluated split.
        split_name: evaluated split.
    """
    result = consistency.result
    return [
        ProbeRecord(
            task=TASK,
            part="pred@1",
            metric=metric,
            value=value,
            baseline=result.baselines[metric].value,
            baseline_name=result.baselines[metric].name,
            random_encoder=None,
            n=result.num_samples,
            num_objects=num_objects,
            split=split_name,
            protocol=PROTOCOL,
            seed=0,  # nothing is drawn
        )
        for metric, value in result.metrics.items()
    ]


def _triples(
    cache: FeatureCache, objects: Tensor, triples: Tensor, known: LatentActions, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features `[n, 3, D]` of the triples of views, and the actions `[n, 3, 3, A]` between them."""
    rows = objects.unsqueeze(1)
    features, latents, quats_xyzw = (
        None if values is None else values[rows.unsqueeze(2), triples].flatten(0, 1).to(device)
        for values in (cache.features, cache.latents, cache.quats_xyzw)
    )
    assert features is not None and latents is not None
    return features, known.between_all(latents, quats_xyzw)


def _distances(predictor: LatentPredictor, features: Tensor, actions: Tensor, metric: Similarity) -> Distances:
    """What the table divides, of each triple: `[n]` each."""
    advance = getattr(predictor, "advance", None)
    embedded = [predictor.embed(features[:, view]) for view in (0, 1)]
    staying, second, third = (predictor.predict(features[:, 0], actions[:, 0, view]) for view in range(3))
    pairs = {
        "identity": (staying, embedded[0]),
        "embeddings": (embedded[0], embedded[1]),
        "predictions": (second, third),
        "length": (embedded[0], torch.zeros_like(embedded[0])),
    }
    if predictor.actions.quaternion_columns:
        flipped_actions = actions[:, 0, 1].clone()
        flipped_actions[:, predictor.actions.quaternion_columns] *= -1
        pairs["sign_flip"] = (second, predictor.predict(features[:, 0], flipped_actions))
    if advance is not None:
        pairs["inverse"] = (advance(second, actions[:, 1, 0]), embedded[0])
        pairs["composition"] = (advance(second, actions[:, 1, 2]), third)
    for name, pair in pairs.items():
        if not all(bool(torch.isfinite(embeddings).all()) for embeddings in pair):
            raise ValueError(f"embeddings of '{name}' are not finite: the run diverged, use an earlier checkpoint")
    return {name: _distance(*pair, metric) for name, pair in pairs.items()}


def _distance(first: Tensor, second: Tensor, metric: Similarity) -> Tensor:
    if metric == "cosine":
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    return torch.linalg.vector_norm(first.double() - second.double(), dim=1)


def _result(by_object: Distances, num_triples: int, name: str) -> tuple[TaskResult, tuple[str, ...]]:
    """Ratios of mean distances, with each object's distance as a share of all objects' scale, and what has no scale."""
    smallest = SMALLEST_SCALE * float(by_object["length"].mean())
    if float(by_object["embeddings"].mean()) <= smallest:
        raise TaskSkipped(
            f"the embeddings of an object's views by the predictor of {name} do not differ, so errors have no scale: "
            "they collapsed, use another checkpoint"
        )
    scales = dict(SCALES)
    notes: tuple[str, ...] = ()
    if float(by_object["predictions"].mean()) <= smallest:
        scales = {error: scale for error, scale in SCALES.items() if scale != "predictions"}
        notes = (
            f"composition_error, sign_flip_error: the predictor of {name} answers the same whatever the action is, so "
            "these errors have no scale",
        )
    scores: dict[str, np.ndarray] = {
        f"{error}_error": (by_object[error] / by_object[scale].mean()).numpy()
        for error, scale in scales.items()
        if error in by_object
    }
    result = TaskResult(
        metrics={metric: float(values.mean()) for metric, values in scores.items()},
        baselines={metric: Baseline(1.0, BASELINE_NAME) for metric in scores},
        num_samples=num_triples,
        object_scores=scores,
    )
    return result, notes
