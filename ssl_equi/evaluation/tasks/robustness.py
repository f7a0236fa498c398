"""How much of what heads read from the train split's features is left on views unlike those: rotated, or corrupted.

Heads for the class (that of `classification`) and for the relative rotation of two views are trained on the train
split's clean features. They are judged on the data set's poses outside of the trained ones, and on corrupted views.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ViewSubset, spread_views
from ssl_equi.data.sources import OOD_ROTATION, open_ood_rotation
from ssl_equi.errors import DataError
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache, cache_of
from ssl_equi.evaluation.image_context import ImageContext
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.evaluation.task_needs import POSE
from ssl_equi.evaluation.task_results import TaskResult
from ssl_equi.evaluation.task_samples import require_varied, require_views
from ssl_equi.evaluation.tasks.classification import class_head, judge_class_head, require_classes
from ssl_equi.evaluation.tasks.corruptions import CORRUPTIONS, Corruption
from ssl_equi.evaluation.tasks.pose import judge_relative_rotation, relative_rotation_head
from ssl_equi.latents.actions import warning_of_signs

Judge = Callable[[FeatureCache], TaskResult]

ANGLES = "angle_deg"  # begins the names of metrics that grow where others drop


def ood_classification(context: ImageContext, part: str, seed: int) -> TaskResult:
    """Class from a single view whose pose lies outside of the trained ones, beside the judged split and the drop."""
    return _out_of_distribution(context, part, _class_judge(context, part, seed), ("top1", "balanced_top1"))


def ood_relative_rotation(context: ImageContext, part: str, seed: int) -> TaskResult:
    """Relative rotation of two views whose poses lie outside of the trained ones, beside the judged split."""
    return _out_of_distribution(context, part, _rotation_judge(context, part, seed), ("r2_uniform", "angle_deg_median"))


def corruption(context: ImageContext, part: str, seed: int) -> TaskResult:
    """Class from a single corrupted view: `top1_KIND` of each kind, their mean, and `top1_clean` of the same views."""
    return _corrupted(context, part, _class_judge(context, part, seed), ("top1",))


def corruption_relative_rotation(context: ImageContext, part: str, seed: int) -> TaskResult:
    """Relative rotation of two corrupted views: metrics of each kind, their mean, and of the same views as they are."""
    return _corrupted(context, part, _rotation_judge(context, part, seed), ("r2_uniform", "angle_deg_median"))


def _class_judge(context: ImageContext, part: str, seed: int) -> Judge:
    """Judges the part's head of classes, which is trained once for all questions of this seed."""
    train, test = context.part(context.train, part), context.part(context.test, part)
    require_classes(train, test)
    head: nn.Module = context.once(
        ("class head", part, seed), lambda: class_head(train, context.num_classes, context.protocol, seed)
    )
    return lambda cache: judge_class_head(train, cache, head, context.protocol)


def _rotation_judge(context: ImageContext, part: str, seed: int) -> Judge:
    """Judges the part's head of relative rotations, which is trained once for all questions of this seed."""
    train, test = context.part(context.train, part), context.part(context.test, part)
    POSE.require(train, test)
    require_views(train, test)
    require_varied(train, test)
    head: nn.Module = context.once(
        ("rotation head", part, seed), lambda: relative_rotation_head(train, context.protocol, seed)
    )
    return lambda cache: judge_relative_rotation(cache, head, context.protocol)


def _out_of_distribution(context: ImageContext, part: str, judge: Judge, compared: Sequence[str]) -> TaskResult:
    """A head on the poses that it was never trained on, with the same on the judged split."""
    unseen_views = context.once(OOD_ROTATION, lambda: _ood_views(context))
    unseen = judge(context.part(context.encode(unseen_views), part))
    seen = judge(context.part(context.test, part))
    metrics, baselines = dict(unseen.metrics), dict(unseen.baselines)
    for metric in (metric for metric in compared if metric in unseen.metrics and metric in seen.metrics):
        at_hand, apart = seen.baselines[metric], unseen.baselines[metric]
        metrics[f"{metric}_in_distribution"], baselines[f"{metric}_in_distribution"] = seen.metrics[metric], at_hand
        if not metric.startswith(ANGLES):
            metrics[f"drop_of_{metric}"] = seen.metrics[metric] - unseen.metrics[metric]
            baselines[f"drop_of_{metric}"] = Baseline(at_hand.value - apart.value, at_hand.name)
    note = warning_of_signs(unseen_views.split, unseen_views.schema, unseen_views.latents)
    return replace(
        unseen, metrics=metrics, baselines=baselines, split=unseen_views.split, num_objects=unseen_views.num_objects,
        notes=tuple(dict.fromkeys((*unseen.notes, *seen.notes, *([] if note is None else [note])))),
    )  # fmt: skip


def _ood_views(context: ImageContext) -> ViewCollection:
    """Raises TaskSkipped if the data have no such split, or it shows other objects than the judged one."""
    try:
        return open_ood_rotation(context.data)
    except DataError as error:
        raise TaskSkipped(str(error)) from error


def _corrupted(context: ImageContext, part: str, judge: Judge, compared: Sequence[str]) -> TaskResult:
    """A head on views under every corruption, and on the same views as they are."""
    views = context.once("corrupted views", lambda: _corrupted_views(context))
    objects, of_object = torch.from_numpy(views.object_indices)[:, None], torch.from_numpy(views.view_indices)
    clean = judge(context.part(cache_of(context.test.features[objects, of_object], views), part))
    severity, seed = context.protocol.corruption.severity, context.protocol.corruption.seed
    found = {
        name: judge(context.part(context.encode(views, Corruption(name, severity, seed)), part)) for name in CORRUPTIONS
    }
    metrics: dict[str, float] = {}
    baselines: dict[str, Baseline] = {}
    object_scores: dict[str, np.ndarray] = {}
    for metric in (metric for metric in compared if metric in clean.metrics):
        results = {"clean": clean} | found
        metrics |= {f"{metric}_{name}": result.metrics[metric] for name, result in results.items()}
        metrics[f"{metric}_mean_corruption"] = float(np.mean([each.metrics[metric] for each in found.values()]))
        # Corruptions change no answer, so the best answer without an image is the same.
        names = (*results, "mean_corruption")
        baselines |= {f"{metric}_{name}": clean.baselines[metric] for name in names}
        scores = {name: (result.object_scores or {}).get(metric) for name, result in results.items()}
        known = {name: each for name, each in scores.items() if each is not None}
        if known:
            known["mean_corruption"] = np.mean([known[name] for name in found], axis=0)
            object_scores |= {f"{metric}_{name}": each for name, each in known.items()}
    return TaskResult(
        metrics, baselines, clean.num_samples, object_scores=object_scores or None, num_objects=views.num_objects,
        details={"severity": severity}, notes=clean.notes,
    )  # fmt: skip


def _corrupted_views(context: ImageContext) -> ViewSubset:
    """The judged views that stand for all: see `ssl_equi.data.derived.spread_views`."""
    evaluation, chosen = context.data.evaluation, context.protocol.corruption
    return ViewSubset(
        evaluation, *spread_views(evaluation.num_objects, evaluation.views_of_each, chosen.max_images, chosen.seed)
    )
