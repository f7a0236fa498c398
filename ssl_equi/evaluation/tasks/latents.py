"""Tasks of any latent by its kind: `absolute_NAME`, the value in one view, and `relative_NAME`, its change between two.

A head is trained on what the kind encodes of a value, or on its action between two values; the metric is the kind's,
beside `r2_uniform` of the targets. A change is judged by where it leads: the first view's true value, moved by the
predicted action, against the second's. Categories have no changes, since their actions are pairs of values: they are
asked for in single views alone, by cross-entropy.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline, constant_baselines
from ssl_equi.evaluation.bootstrap import ObjectStatistic, mean_statistic, median_statistic, r2_uniform_statistic
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, Samples
from ssl_equi.evaluation.metrics import ANGLE, name_of_class_metric, r2_notes, r2_uniform, varying_components
from ssl_equi.evaluation.samples import (
    TaskSkipped,
    evaluated_pair_rows,
    evaluated_view_rows,
    require_views,
    rows_of_classes,
    sample_objects,
)
from ssl_equi.evaluation.task import Ask, Probe, Task, TaskResult, object_means
from ssl_equi.latents.kind import LatentKind
from ssl_equi.latents.schema import Latent

RELATIVE, ABSOLUTE = "relative_", "absolute_"  # begin the names of tasks


def tasks_of_latent(latent: Latent) -> dict[str, Task]:
    """The tasks of a latent by name."""
    tasks = [] if latent.kind.targets_are_classes else [_relative_task(latent)]
    return {task.name: task for task in (*tasks, _absolute_task(latent))}


def _absolute_task(latent: Latent) -> Task:
    """The value of a latent in a single view: MLP on its features, the protocol's head of absolute rotations."""
    kind = latent.kind

    def targets_of(cache: FeatureCache, rows: Tensor) -> Tensor:
        return kind.encode(_values(latent, cache)[rows[:, 0]])

    def plan(ask: Ask) -> HeadPlan:
        protocol = ask.protocol
        return HeadPlan(
            protocol.absolute_rotation_hidden, protocol.absolute_rotation_epochs,
            protocol.absolute_rotation_views_per_object,
            classes=kind.sizes.targets if kind.targets_are_classes else None, scaled=not kind.targets_are_classes,
        )  # fmt: skip

    def require(ask: Ask) -> None:
        judged = evaluated_view_rows(ask.test, ask.protocol)
        if not _vary(kind, targets_of(ask.test, judged)):
            raise TaskSkipped(
                f"latent {latent.name!r} is the same in all {len(judged)} evaluated views: use data in which it varies"
            )

    probe = Probe("views", targets_of, plan, require)

    def answer(ask: Ask) -> TaskResult:
        predictions, samples = ask.probe(probe)
        values = _values(latent, ask.test)[samples.rows[:, 0]]
        return _result(kind, ask.test, samples, predictions, kind.decode, values)

    return Task(f"{ABSOLUTE}{latent.name}", answer, probes=(probe,), group="latents")


def _relative_task(latent: Latent) -> Task:
    """The change of a latent between two views: MLP on both features, the protocol's head of relative rotations."""
    kind = latent.kind

    def targets_of(cache: FeatureCache, rows: Tensor) -> Tensor:
        return kind.relative(*_values(latent, cache)[rows].unbind(dim=1))

    def plan(ask: Ask) -> HeadPlan:
        protocol = ask.protocol
        return HeadPlan(
            protocol.rotation_hidden, protocol.rotation_epochs, protocol.rotation_pairs_per_object, scaled=True
        )

    def require(ask: Ask) -> None:
        require_views(ask.train, ask.test)
        judged = evaluated_pair_rows(ask.test, ask.protocol)
        if not _vary(kind, targets_of(ask.test, judged)):
            raise TaskSkipped(
                f"latent {latent.name!r} changes alike in all {len(judged)} evaluated pairs of views, if at all: use "
                "data in which it changes between views"
            )

    probe = Probe("pairs", targets_of, plan, require)

    def answer(ask: Ask) -> TaskResult:
        predictions, samples = ask.probe(probe)
        first, second = _values(latent, ask.test)[samples.rows].unbind(dim=1)
        start = kind.encode(first)
        return _result(
            kind, ask.test, samples, predictions, lambda actions: kind.decode(kind.compose(start, actions)), second
        )

    return Task(f"{RELATIVE}{latent.name}", answer, probes=(probe,), group="latents")


def _values(latent: Latent, cache: FeatureCache) -> Tensor:
    """Of all views, in the order of the features' rows."""
    return cache.rows(cache.latents[..., latent.columns])


def _vary(kind: LatentKind, targets: Tensor) -> bool:
    return len(targets.unique()) > 1 if kind.targets_are_classes else bool(varying_components(targets).any())


def _result(
    kind: LatentKind,
    test: FeatureCache,
    samples: Samples,
    predictions: Tensor,
    decode: Callable[[Tensor], Tensor],
    values: Tensor,
) -> TaskResult:
    """A head's predictions [n, K], and the best constant one, against the true values [n, C].

    Args:
        decode: the values [n, C] that predictions stand for.
    """
    constant = kind.constant_prediction(samples.targets).to(predictions.dtype)
    answers, constants = (decode(found).cpu() for found in (predictions, constant.expand(len(samples), -1)))
    values, objects = values.cpu(), sample_objects(test, samples.rows).cpu()
    groups = {kind.metric: np.arange(len(samples))} | {
        name_of_class_metric(kind.metric, name): rows for name, rows in rows_of_classes(test, objects).items()
    }
    errors, of_constant = kind.errors(answers, values), kind.errors(constants, values)
    of_sample = objects.numpy()
    metrics = {name: kind.score(answers[rows], values[rows]) for name, rows in groups.items()}
    baselines = {name: kind.score(constants[rows], values[rows]) for name, rows in groups.items()}
    statistics = {name: _statistic(kind, errors.numpy()[rows], of_sample[rows]) for name, rows in groups.items()}
    scores = {kind.metric: 1 - errors}
    if not kind.targets_are_classes:
        mean = kind.metric.replace("_median", "_mean")
        metrics = {"r2_uniform": r2_uniform(predictions, samples.targets)} | metrics | {mean: float(errors.mean())}
        baselines |= {mean: float(of_constant.mean())}
        baselines |= {"r2_uniform": constant_baselines(samples.targets)["r2_uniform"].value}
        statistics["r2_uniform"] = r2_uniform_statistic(predictions, samples.targets, of_sample, test.num_objects)
        scores = {mean: errors}
    are_angles = kind.metric.startswith(ANGLE)
    return TaskResult(
        metrics=metrics,
        baselines={
            name: Baseline(value, "majority class" if kind.targets_are_classes else "constant")
            for name, value in baselines.items()
        },
        num_samples=len(samples),
        angle_errors_deg=errors.numpy() if are_angles else None,
        constant_angle_errors_deg=of_constant.numpy() if are_angles else None,
        object_scores={name: object_means(each, objects, test.num_objects) for name, each in scores.items()},
        statistics=statistics,
        notes=() if kind.targets_are_classes else r2_notes(samples.targets),
    )


def _statistic(kind: LatentKind, errors: np.ndarray, objects: np.ndarray) -> ObjectStatistic:
    """How the kind's metric follows from the objects [n] that errors [n] are of."""
    distinct, number = np.unique(objects, return_inverse=True)
    if not kind.targets_are_classes:
        return median_statistic(errors, number, len(distinct))
    return mean_statistic(np.bincount(number, weights=1 - errors) / np.bincount(number))
