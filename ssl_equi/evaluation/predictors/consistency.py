"""Consistency of predictors: no move by the identity action, back by the inverse, the same by a composition.

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

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.retrieval import Similarity
from ssl_equi.evaluation.predictors.two_views import OneObservedView, known_actions
from ssl_equi.evaluation.results import ProbeRecord, records_of
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.export.predictor import LatentPredictor, TrainedPredictor
from ssl_equi.latents.actions import LatentActions
from ssl_equi.runtime.frozen import frozen

TASK = "predictor_consistency"
PROTOCOL = "predictor_consistency_v1"
BASELINE_NAME = "another view"
VIEWS_IN_A_TRIPLE, TRIPLES_PER_OBJECT = 3, 10
FROM, TO = (0, 0, 0, 1, 1), (0, 1, 2, 0, 2)  # places in a triple: a_ii, a_ij, a_ik, a_ji, a_jk
SCALES = {"identity": "embeddings", "inverse": "embeddings", "composition": "predictions", "sign_flip": "predictions"}
COMPARED = {  # by which two embeddings, of views or of predictions
    "identity": ("staying", "here"),
    "embeddings": ("there", "here"),
    "predictions": ("second", "third"),
    "sign_flip": ("flipped", "second"),
    "inverse": ("back", "here"),
    "composition": ("on", "third"),
}
SMALLEST_SCALE = 1e-6  # mean distance of two views, as a share of the embeddings' mean length
ROWS_IN_A_CHUNK = 512  # triples whose predictions are in memory; more of them leave a CPU's cache and take longer

Distances = dict[str, Tensor]  # by name, of each triple [n]


def predictor_consistency(
    predictor: LatentPredictor,
    cache: FeatureCache,
    *,
    metric: Similarity = "cosine",
    device: torch.device | str = "cpu",
) -> TaskResult:
    """The errors of the module's table beside 1, with each object's own; nothing is drawn or trained.

    Args:
        predictor: if a module, it is moved to `device`, and in evaluation mode meanwhile.
        cache: every view of a split, with latents; the features that the predictor reads.
        metric: cosine: distances between embeddings scaled to length 1; euclidean: between embeddings as they are.

    Raises:
        TaskSkipped: the actions between the views are not known, an object has fewer than three views, or all views of
            an object have the same embedding.
        ValueError: the features have another width, or an embedding is not finite.
    """
    known = known_actions(predictor, cache)
    fewest = cache.fewest_views
    if fewest < VIEWS_IN_A_TRIPLE:
        raise TaskSkipped(
            f"objects have {fewest} views: two actions in a row need {VIEWS_IN_A_TRIPLE}, so take a split with more"
        )
    # Poses are drawn independently, so views in their stored order are as good as any.
    first = torch.arange(min(TRIPLES_PER_OBJECT, fewest)).unsqueeze(1)
    triples = (first + torch.arange(VIEWS_IN_A_TRIPLE)) % fewest  # the same views of every object
    model = OneObservedView(predictor).to(device)
    with frozen(model):
        chunks = [
            _distances(predictor, cache.objects(objects).to(device), triples, known, metric)
            for objects in torch.arange(cache.num_objects).split(max(1, ROWS_IN_A_CHUNK // len(triples)))
        ]
    by_object = {
        name: torch.cat([chunk[name] for chunk in chunks]).view(cache.num_objects, -1).mean(dim=1).double().cpu()
        for name in chunks[0]
    }
    return _result(by_object, cache.num_objects * len(triples), predictor.name)


def consistency_records(result: TaskResult, num_objects: int, split_name: str) -> list[ProbeRecord]:
    """Records (part "pred@1") of the evaluated split of `num_objects`; nothing is drawn, so the seed is 0."""
    # Beside those of retrieval, which have no standard errors either.
    answers = {"pred@1": {TASK: replace(result, object_scores=None)}}
    return records_of(answers, None, split=split_name, protocol=PROTOCOL, seed=0, num_objects=num_objects)


def _distances(
    predictor: LatentPredictor, cache: FeatureCache, triples: Tensor, known: LatentActions, metric: Similarity
) -> Distances:
    """What the table divides, of each triple of each object: `[n]` each."""
    # A view is in several triples and is embedded once; nobody asks for the embedding of a triple's third view.
    features = cache.features[:, : int(triples[:, :2].max()) + 1]
    embeddings = predictor.embed(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    here, there = (embeddings[:, triples[:, place]].flatten(0, 1) for place in (0, 1))
    starts, ends = triples[:, FROM], triples[:, TO]
    quats = None if cache.quats_xyzw is None else (cache.quats_xyzw[:, starts], cache.quats_xyzw[:, ends])
    between = known(cache.latents[:, starts], cache.latents[:, ends], quats)
    *from_here, back, on = between.flatten(0, 1).unbind(1)
    if predictor.actions.quaternion_columns:
        flipped = from_here[1].clone()
        flipped[:, predictor.actions.quaternion_columns] *= -1
        from_here.append(flipped)
    if getattr(predictor, "advance", None) is None:
        observed = features[:, triples[:, 0]].flatten(0, 1)
        moved, moved_twice = [predictor.predict(observed, actions) for actions in from_here], []
    else:
        moved = _advance(predictor, here, from_here)
        moved_twice = _advance(predictor, moved[1], [back, on])
    found = {"here": here, "there": there}
    found |= dict(zip(("staying", "second", "third", "flipped"), moved)) | dict(zip(("back", "on"), moved_twice))
    points = {name: (F.normalize(at, dim=1) if metric == "cosine" else at).double() for name, at in found.items()}
    distances = {
        name: torch.linalg.vector_norm(points[one] - points[other], dim=1)
        for name, (one, other) in COMPARED.items()
        if one in points
    }
    distances["length"] = torch.linalg.vector_norm(points["here"], dim=1)
    # A distance is finite if and only if both ends are, and there are a thousand times fewer numbers to look at.
    for name, finite in zip(distances, torch.stack(list(distances.values())).isfinite().all(dim=1).tolist()):
        if not finite:
            raise ValueError(f"embeddings of '{name}' are not finite: the run diverged, use an earlier checkpoint")
    return distances


def _advance(predictor: LatentPredictor, embeddings: Tensor, along: list[Tensor]) -> list[Tensor]:
    """Where each of several actions leads from the same embeddings; what they share is computed once if it can be."""
    if isinstance(predictor, TrainedPredictor):
        return predictor.advance_each(embeddings, along)
    return [predictor.advance(embeddings, actions) for actions in along]  # type: ignore[attr-defined]


def _result(by_object: Distances, num_triples: int, name: str) -> TaskResult:
    """Ratios of mean distances, with each object's distance as a share of all objects' scale, and what has no scale."""
    smallest = SMALLEST_SCALE * float(by_object["length"].mean())
    if float(by_object["embeddings"].mean()) <= smallest:
        raise TaskSkipped(
            f"the embeddings of an object's views by the predictor of {name} do not differ, so errors have no scale: "
            "they collapsed, use another checkpoint"
        )
    scales, notes = dict(SCALES), []
    if float(by_object["predictions"].mean()) <= smallest:
        scales = {error: scale for error, scale in SCALES.items() if scale != "predictions"}
        notes.append(
            f"composition_error, sign_flip_error: the predictor of {name} answers the same whatever the action is, so "
            "these errors have no scale"
        )
    if "inverse" not in by_object:
        notes.append(
            f"inverse_error, composition_error: the predictor of {name} starts from features, not from what it "
            "predicted (it has no method advance)"
        )
    scores = {
        f"{error}_error": (by_object[error] / by_object[scale].mean()).numpy()
        for error, scale in scales.items()
        if error in by_object
    }
    return TaskResult(
        metrics={metric: float(values.mean()) for metric, values in scores.items()},
        baselines={metric: Baseline(1.0, BASELINE_NAME) for metric in scores},
        num_samples=num_triples,
        object_scores=scores,
        notes=tuple(notes),
    )
