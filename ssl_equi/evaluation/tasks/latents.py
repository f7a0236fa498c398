"""Tasks of any latent by its kind: `absolute_NAME`, the value in one view, and `relative_NAME`, its change between two.

A head is trained on what the kind encodes of a value, or on its action between two values; the metric is the kind's,
beside `r2_uniform` of the targets. A change is judged by where it leads: the first view's true value, moved by the
predicted action, against the second's. Categories have no changes, since their actions are pairs of values: they are
asked for in single views alone, by cross-entropy.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline, constant_baselines
from ssl_equi.evaluation.bootstrap import MeanStatistic, ObjectStatistic, median_statistic, r2_uniform_statistic
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, Samples
from ssl_equi.evaluation.metrics import ANGLE, name_of_class_metric, r2_notes, r2_uniform, varying_components
from ssl_equi.evaluation.samples import (
    SampleKind,
    TaskSkipped,
    evaluated_rows,
    require_views,
    rows_of_classes,
    sample_objects,
)
from ssl_equi.evaluation.task import Ask, Probe, Task, TaskResult, object_means
from ssl_equi.evaluation.tasks.pose import absolute_plan, relative_plan
from ssl_equi.latents.kind import LatentKind
from ssl_equi.latents.schema import Latent

RELATIVE, ABSOLUTE = "relative_", "absolute_"  # begin the names of tasks


def tasks_of_latent(latent: Latent) -> dict[str, Task]:
    """The tasks of a latent by name."""
    kinds: tuple[SampleKind, ...] = ("views",) if latent.kind.targets_are_classes else ("pairs", "views")
    return {task.name: task for task in (_task_of(latent, of) for of in kinds)}


def _task_of(latent: Latent, of: SampleKind) -> Task:
    """The value of a latent in single views, or its change in pairs: an MLP, the protocol's head of rotations."""
    kind, are_classes = latent.kind, latent.kind.targets_are_classes

    def targets_of(cache: FeatureCache, rows: Tensor) -> Tensor:
        values = _values(latent, cache)[rows]
        return kind.encode(values[:, 0]) if of == "views" else kind.relative(*values.unbind(dim=1))

    def plan(ask: Ask) -> HeadPlan:
        if of == "pairs":
            return replace(relative_plan(ask), scaled=True)
        return replace(absolute_plan(ask), classes=kind.sizes.targets if are_classes else None, scaled=not are_classes)

    def require(ask: Ask) -> None:
        if of == "pairs":
            require_views(ask.train, ask.test)
        rows = evaluated_rows(ask.test, of, ask.protocol)
        targets = targets_of(ask.test, rows)
        if len(targets.unique()) > 1 if are_classes else bool(varying_components(targets).any()):
            return
        if of == "views":
            raise TaskSkipped(
                f"latent {latent.name!r} is the same in all {len(rows)} evaluated views: use data in which it varies"
            )
        raise TaskSkipped(
            f"latent {latent.name!r} changes alike in all {len(rows)} evaluated pairs of views, if at all: use data in "
            "which it changes between views"
        )

    probe = Probe(of, targets_of, plan, require)

    def answer(ask: Ask) -> TaskResult:
        predictions, samples = ask.probe(probe)
        values = _values(latent, ask.test)[samples.rows]
        start = kind.encode(values[:, 0])

        def decode(found: Tensor) -> Tensor:
            return kind.decode(found if of == "views" else kind.compose(start, found))

        return _result(kind, ask.test, samples, predictions, decode, values[:, -1])

    return Task(f"{ABSOLUTE if of == 'views' else RELATIVE}{latent.name}", answer, probes=(probe,), group="latents")


def _values(latent: Latent, cache: FeatureCache) -> Tensor:
    """Of all views, in the order of the features' rows."""
    return cache.rows(cache.latents[..., latent.columns])


def _result(
    kind: LatentKind,
    test: FeatureCache,
    samples: Samples,
    predictions: Tensor,
    decode: Callable[[Tensor], Tensor],
    values: Tensor,
) -> TaskResult:
    """A head's predictions [n, K], which stand for values [n, C], and the best constant one, against the true ones."""
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
    if not kind.targets_are_classes:
        return median_statistic(errors, objects)
    _, number = np.unique(objects, return_inverse=True)
    return MeanStatistic(np.bincount(number, weights=1 - errors) / np.bincount(number))
