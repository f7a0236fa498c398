"""Action gain of trained predictors: how much larger their error is with the actions of other objects."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.bootstrap import PAIRED_RESAMPLES, RatioStatistic, bootstrap_interval
from ssl_equi.evaluation.features import FeatureCache, encode_split
from ssl_equi.evaluation.predictors.two_views import OneObservedView, embed_views, known_actions
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord, records_of
from ssl_equi.evaluation.samples import TaskSkipped, training_views
from ssl_equi.evaluation.sequences.heads import AggregatingModel
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.export.predictor import LatentPredictor
from ssl_equi.latents.actions import LatentActions, ToldActions, actions_as_told
from ssl_equi.objectives.base import SequenceObjective
from ssl_equi.runtime.frozen import frozen

TASK = METRIC = "action_gain"
BASELINE = Baseline(0.0, "actions unused")
CONTEXTS_PER_OBJECT, SEED = 10, 0
OBJECTS_IN_A_CHUNK = 256


def predictor_gain(predictor: LatentPredictor, cache: FeatureCache, device: torch.device | str = "cpu") -> TaskResult:
    """`action_gain` of a predictor from one view, towards its own embeddings of the other views.

    TaskSkipped where the actions between the views aren't known, or an object has one view.

    Args:
        predictor: if a module, it is moved to `device`, and in evaluation mode meanwhile.
        cache: every view of a split, with latents; the features that the predictor reads.
    """
    known = known_actions(predictor, cache)
    model = OneObservedView(predictor).to(device)
    with frozen(model):
        targets = embed_views(predictor, cache, device)
    return action_gain(model, cache, targets, known, device=device)


def sequence_gain(
    model: SequenceObjective,
    cache: FeatureCache,
    data: DataSource,
    told: ToldActions,
    context_views: int,
    device: torch.device | str = "cpu",
) -> TaskResult:
    """`action_gain` of a model of sequences after M observed views, towards the features that it learnt to predict.

    Args:
        model: on `device`.
        cache: every view of the evaluated split, encoded by the model's encoder.
        data: whose evaluated split is encoded once more where the targets are those of a momentum encoder.
    """
    targets = cache
    if model.target_encoder is not None:
        targets = encode_split(model.target_encoder, data.evaluation, data.mean_rgb, data.std_rgb, device)
    known = actions_as_told(cache.schema, told)
    return action_gain(model, cache, targets.features, known, context_views=context_views, device=device)


def action_gain(
    model: AggregatingModel,
    cache: FeatureCache,
    targets: Tensor,
    known: LatentActions,
    *,
    context_views: int = 1,
    device: torch.device | str = "cpu",
) -> TaskResult:
    """By which share the prediction error, 1 - cosine, grows if every object is given the actions of another one.

    One more view is predicted after each of ten contexts of M views of every object, drawn once for all models; the
    other object is the one before it. Each error is a mean over all objects, and the gain a ratio of both less 1.
    TaskSkipped if there are fewer than two objects, fewer than M + 1 views of one, or no two actions that differ.

    Args:
        model: a module on `device`; in evaluation mode meanwhile.
        cache: every view of a split, encoded by the model's encoder, with latents.
        targets: `[n_objects, n_views, E]`, what a prediction of each view is compared with.
        known: the actions between two views that the model is given.
        context_views: M.
    """
    num_objects, fewest = cache.num_objects, cache.fewest_views
    if fewest <= context_views or num_objects < 2:
        raise TaskSkipped(
            f"{num_objects} objects have {fewest} views: a view that follows {context_views} others is predicted with "
            "its own and with another object's actions, so take a split of 2 objects or more with more views"
        )
    # Not in stored order: in it, photographs from a turntable have the same actions for all objects.
    drawn = [
        training_views(num_objects, cache.views_of_each, context_views + 1, SEED, context)
        for context in range(CONTEXTS_PER_OBJECT)
    ]
    views = torch.from_numpy(np.stack(drawn, axis=1))
    rows = torch.arange(num_objects)[:, None, None], views
    latents, pairs = cache.latents.cpu()[rows], None
    if cache.quats_xyzw is not None:
        quats_xyzw = cache.quats_xyzw.cpu()[rows]
        pairs = quats_xyzw[:, :, :-1], quats_xyzw[:, :, 1:]
    actions = known(latents[:, :, :-1], latents[:, :, 1:], pairs)
    exchanged = actions.roll(1, dims=0)
    if torch.equal(actions, exchanged):
        raise TaskSkipped("all objects are seen after the same actions, so theirs can't be exchanged")
    assert isinstance(model, nn.Module)
    with frozen(model):
        own, others = (_errors(model, cache.features, targets, views, given, device) for given in (actions, exchanged))
    statistic = RatioStatistic(others.numpy(), own.numpy())
    interval = bootstrap_interval(statistic, PAIRED_RESAMPLES)
    used = interval is None or interval[0] > 0
    return TaskResult(
        metrics={METRIC: statistic.value()},
        baselines={METRIC: BASELINE},
        num_samples=views[..., 0].numel(),
        statistics={METRIC: statistic},
        notes=() if used else (gain_in_words(statistic.value(), interval),),
    )


def gain_records(result: TaskResult, context_views: int, num_objects: int, split_name: str) -> list[ProbeRecord]:
    """Records (part "pred@M") of the evaluated split; the draws don't depend on a seed, which is 0."""
    answers = {f"pred@{context_views}": {TASK: result}}
    return records_of(answers, None, split=split_name, protocol=ProbeProtocol(), seed=0, num_objects=num_objects)


def gain_in_words(gain: float, interval: tuple[float, float] | None = None) -> str:
    """Whether the actions are used, as a sentence; `interval` is that of 95 %."""
    low = gain if interval is None else interval[0]
    verdict = "the predictor uses its actions" if low > 0 else "the predictor does not use its actions"
    between = (
        "" if interval is None else " (95 % interval {:z.1f} to {:z.1f} %)".format(*(100 * end for end in interval))
    )
    change = f"{100 * abs(gain):.1f} % {'smaller' if gain < 0 else 'larger'}"
    return f"{verdict}: its error is {change}{between} with the actions of other objects than with its own"


def _errors(
    model: AggregatingModel,
    features: Tensor,
    targets: Tensor,
    views: Tensor,
    actions: Tensor,
    device: torch.device | str,
) -> Tensor:
    """Each object's mean error, float64 `[n]` on the CPU: of `views [n, C, M + 1]`, given `actions [n, C, M, A]`."""
    errors = []
    for objects in torch.arange(len(features)).split(OBJECTS_IN_A_CHUNK):
        of_each, seen = objects[:, None, None], views[objects]
        observed = features[of_each.to(features.device), seen[..., :-1].to(features.device)].to(device).flatten(0, 1)
        steps = actions[objects].to(device).flatten(0, 1)
        aggregates = model.aggregate(observed, steps[:, :-1] if model.aggregator_takes_actions else None)
        predictions = model.predict(aggregates, steps[:, -1] if model.predictor_takes_actions else None)
        truth = targets[of_each[..., 0].to(targets.device), seen[..., -1].to(targets.device)].to(device).flatten(0, 1)
        cosines = F.cosine_similarity(predictions.double(), truth.double(), dim=1)
        errors.append((1 - cosines).view(len(objects), -1).mean(dim=1).cpu())
    return torch.cat(errors)
