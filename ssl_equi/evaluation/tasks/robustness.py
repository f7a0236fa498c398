"""How much of what heads read from the train split's features is left on views unlike those: rotated, or corrupted.

Heads for the class (that of `classification`) and for the relative rotation of two views are trained on the train
split's clean features. They are judged on the data set's poses outside of the trained ones, and on corrupted views.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ViewSubset, spread_views
from ssl_equi.data.sources import OOD_ROTATION, open_ood_rotation
from ssl_equi.errors import DataError
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache, cache_of
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import POSE, Ask, TaskResult, task
from ssl_equi.evaluation.tasks.classification import CLASS, judge_class
from ssl_equi.evaluation.tasks.corruptions import CORRUPTIONS, Corruption
from ssl_equi.evaluation.tasks.pose import RELATIVE_ROTATION, judge_relative_rotation
from ssl_equi.latents.actions import warning_of_signs

Judge = Callable[[Ask, FeatureCache], TaskResult]  # a head of the train split's features, on those of other views

ANGLES = "angle_deg"  # begins the names of metrics that grow where others drop
CLASSES_COMPARED, ROTATIONS_COMPARED = ("top1", "balanced_top1"), ("r2_uniform", "angle_deg_median")


@task("ood_classification", probes=[CLASS], group="robustness")
def ood_classification(ask: Ask) -> TaskResult:
    """Class from a single view whose pose lies outside of the trained ones, beside the judged split and the drop."""
    return _out_of_distribution(ask, judge_class, CLASSES_COMPARED)


@task("ood_relative_rotation", needs=POSE, probes=[RELATIVE_ROTATION], group="robustness")
def ood_relative_rotation(ask: Ask) -> TaskResult:
    """Relative rotation of two views whose poses lie outside of the trained ones, beside the judged split."""
    return _out_of_distribution(ask, judge_relative_rotation, ROTATIONS_COMPARED)


@task("corruption", probes=[CLASS], group="robustness")
def corruption(ask: Ask) -> TaskResult:
    """Class from a single corrupted view: `top1_KIND` of each kind, their mean, and `top1_clean` of the same views."""
    return _corrupted(ask, judge_class, ("top1",))


@task("corruption_relative_rotation", needs=POSE, probes=[RELATIVE_ROTATION], group="robustness")
def corruption_relative_rotation(ask: Ask) -> TaskResult:
    """Relative rotation of two corrupted views: metrics of each kind, their mean, and of the same views as they are."""
    return _corrupted(ask, judge_relative_rotation, ROTATIONS_COMPARED)


def _out_of_distribution(ask: Ask, judge: Judge, compared: Sequence[str]) -> TaskResult:
    """A head on the poses that it was never trained on, with the same on the judged split."""
    unseen_views = ask.made.once(OOD_ROTATION, lambda: _ood_views(ask))
    seen, unseen = judge(ask, ask.test), judge(ask, ask.part_of(ask.encode(unseen_views)))
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


def _ood_views(ask: Ask) -> ViewCollection:
    """Raises TaskSkipped if the data have no such split, or it shows other objects than the judged one."""
    try:
        return open_ood_rotation(ask.encoding.data)
    except DataError as error:
        raise TaskSkipped(str(error)) from error


def _corrupted(ask: Ask, judge: Judge, compared: Sequence[str]) -> TaskResult:
    """A head on views under every corruption, and on the same views as they are."""
    views = ask.made.once("corrupted views", lambda: _corrupted_views(ask))
    objects, of_object = torch.from_numpy(views.object_indices)[:, None], torch.from_numpy(views.view_indices)
    clean = judge(ask, ask.part_of(cache_of(ask.whole.test.features[objects, of_object], views)))
    severity, seed = ask.protocol.corruption.severity, ask.protocol.corruption.seed
    found = {name: judge(ask, ask.part_of(ask.encode(views, Corruption(name, severity, seed)))) for name in CORRUPTIONS}
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


def _corrupted_views(ask: Ask) -> ViewSubset:
    """The judged views that stand for all: see `ssl_equi.data.derived.spread_views`."""
    evaluation, chosen = ask.encoding.data.evaluation, ask.protocol.corruption
    return ViewSubset(
        evaluation, *spread_views(evaluation.num_objects, evaluation.views_of_each, chosen.max_images, chosen.seed)
    )
