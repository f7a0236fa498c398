"""The questions asked of frozen features: which class, which relative and absolute rotation, which change of colour.

Each task trains its head on one split's features and measures it on another's. A result carries its metrics, the same
metrics of the best answer that looks at no image, and what the figures of the report need.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.data.actions import relative_hues, relative_rotation
from ssl_equi.probing.baselines import (
    Baseline,
    classification_baselines,
    constant_baselines,
    constant_rotation_baselines,
)
from ssl_equi.probing.encode import FeatureCache
from ssl_equi.probing.heads import Samples, build_head, fit_ridge, predict, train_head
from ssl_equi.probing.metrics import (
    angle_errors_deg,
    balanced_top1,
    per_class_recall,
    r2_pooled,
    r2_uniform,
    summarise_angles,
    top1,
)
from ssl_equi.probing.pairs import ViewPairs, evaluation_pairs, evaluation_views, training_pairs, training_views
from ssl_equi.probing.protocol import ProbeProtocol


@dataclass(frozen=True)
class TaskResult:
    """What one head achieved on one part.

    Attributes:
        metrics: value by metric name.
        baselines: the best answer without an image, by metric name.
        num_samples: evaluated views or pairs.
        angle_errors_deg: rotation tasks only, error of each pair or view `[num_samples]`.
        constant_angle_errors_deg: rotation tasks only, the same for the constant rotation.
        per_class_recall: classification task only, `[C]`, NaN for a class without test objects.
    """

    metrics: dict[str, float]
    baselines: dict[str, Baseline]
    num_samples: int
    angle_errors_deg: np.ndarray | None = None
    constant_angle_errors_deg: np.ndarray | None = None
    per_class_recall: np.ndarray | None = None


Task = Callable[[FeatureCache, FeatureCache, int, ProbeProtocol, int], TaskResult]


def classification(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class of the object from a single view: linear head, cross-entropy."""
    features = _matrix(train)
    head = build_head(features.shape[1], (), num_classes, torch.Generator().manual_seed(seed))
    views_per_object = protocol.classification_views_per_object or train.num_views

    def samples_of_epoch(epoch: int) -> Samples:
        return _view_samples(train, training_views(train.num_objects, train.num_views, views_per_object, seed, epoch))

    epochs = protocol.classification_epochs
    train_head(head, features, samples_of_epoch, F.cross_entropy, protocol, epochs=epochs, seed=seed)

    samples = _view_samples(test, _test_views(test, protocol))
    logits = predict(head, _matrix(test), samples.rows)
    return TaskResult(
        metrics={"top1": top1(logits, samples.targets), "balanced_top1": balanced_top1(logits, samples.targets)},
        baselines=classification_baselines(train.labels, samples.targets),
        num_samples=len(samples),
        per_class_recall=per_class_recall(logits, samples.targets).numpy(),
    )


def relative_rotation_task(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Body-frame relative quaternion (sign as it comes) of two views: MLP on their features, mean squared error."""
    features = _matrix(train)
    generator = torch.Generator().manual_seed(seed)
    head = build_head(2 * features.shape[1], protocol.rotation_hidden, 4, generator)

    def samples_of_epoch(epoch: int) -> Samples:
        pairs = training_pairs(train.num_objects, train.num_views, protocol.rotation_pairs_per_object, seed, epoch)
        return _rotation_samples(train, pairs)

    train_head(head, features, samples_of_epoch, F.mse_loss, protocol, epochs=protocol.rotation_epochs, seed=seed)

    samples = _rotation_samples(test, _test_pairs(test, protocol))
    return _rotation_result(predict(head, _matrix(test), samples.rows), samples.targets)


def absolute_rotation_task(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Quaternion (w > 0) of a single view's pose: MLP on its features, mean squared error.

    The "individual rotation" of seq-JEPA (Ghaemi et al., NeurIPS 2025). The pose is that of an object in its family's
    own frame, which no view shows: of an object whose front can't be told from its back, it can't be known.
    """
    features = _matrix(train)
    generator = torch.Generator().manual_seed(seed)
    head = build_head(features.shape[1], protocol.absolute_rotation_hidden, 4, generator)
    views_per_object = protocol.absolute_rotation_views_per_object or train.num_views

    def samples_of_epoch(epoch: int) -> Samples:
        views = training_views(train.num_objects, train.num_views, views_per_object, seed, epoch)
        return _pose_samples(train, views)

    epochs = protocol.absolute_rotation_epochs
    train_head(head, features, samples_of_epoch, F.mse_loss, protocol, epochs=epochs, seed=seed)

    samples = _pose_samples(test, _test_views(test, protocol))
    return _rotation_result(predict(head, _matrix(test), samples.rows), samples.targets)


def colour(train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int) -> TaskResult:
    """Differences of floor hue and light hue between two views (not wrapped): linear head on their features."""
    features = _matrix(train)
    if protocol.colour_solver == "ridge":
        pairs = training_pairs(train.num_objects, train.num_views, protocol.colour_pairs_per_object, seed, epoch=0)
        held_out_objects = _held_out_objects(train.num_objects, protocol.ridge_held_out_share, seed)
        held_out = torch.from_numpy(held_out_objects[pairs.object_indices]).to(features.device)
        head, _ = fit_ridge(features, _colour_samples(train, pairs), held_out, protocol)
    else:
        head = build_head(2 * features.shape[1], (), 2, torch.Generator().manual_seed(seed))

        def samples_of_epoch(epoch: int) -> Samples:
            pairs_per_object = protocol.colour_pairs_per_object
            return _colour_samples(
                train, training_pairs(train.num_objects, train.num_views, pairs_per_object, seed, epoch)
            )

        train_head(head, features, samples_of_epoch, F.mse_loss, protocol, epochs=protocol.colour_epochs, seed=seed)

    samples = _colour_samples(test, _test_pairs(test, protocol))
    predictions = predict(head, _matrix(test), samples.rows)
    return TaskResult(
        metrics={
            "r2_uniform": r2_uniform(predictions, samples.targets),
            "r2_pooled": r2_pooled(predictions, samples.targets),
        },
        baselines=constant_baselines(samples.targets),
        num_samples=len(samples),
    )


TASKS: dict[str, Task] = {
    "classification": classification,
    "relative_rotation": relative_rotation_task,
    "absolute_rotation": absolute_rotation_task,
    "colour": colour,
}


NEEDS_POSES = ("relative_rotation", "absolute_rotation", "colour")


def tasks_for(cache: FeatureCache) -> dict[str, Task]:
    """The tasks that can be asked of a split: those that need known poses are left out without them."""
    return {name: task for name, task in TASKS.items() if cache.quats_xyzw is not None or name not in NEEDS_POSES}


def _matrix(cache: FeatureCache) -> Tensor:
    """Features as rows: view v of object o is row `o * num_views + v`."""
    return cache.features.flatten(0, 1)


def _view_rows(cache: FeatureCache, view_indices: np.ndarray) -> Tensor:
    """Rows `[n_objects, k]` of the views `view_indices [n_objects, k]`."""
    rows = np.arange(cache.num_objects)[:, None] * cache.num_views + view_indices
    return torch.from_numpy(rows).to(cache.features.device)


def _view_samples(cache: FeatureCache, view_indices: np.ndarray) -> Samples:
    """One sample for each of `view_indices [n_objects, k]`, labelled with the object's class."""
    rows = _view_rows(cache, view_indices)
    labels = cache.labels.to(rows.device)[:, None].expand_as(rows)
    return Samples(rows.reshape(-1, 1), labels.reshape(-1))


def _pose_samples(cache: FeatureCache, view_indices: np.ndarray) -> Samples:
    """One sample for each of `view_indices [n_objects, k]`, with the view's absolute quaternion."""
    assert cache.quats_xyzw is not None, "the task needs poses"
    rows = _view_rows(cache, view_indices).reshape(-1, 1)
    return Samples(rows, cache.quats_xyzw.flatten(0, 1)[rows[:, 0]])


def _pair_rows(cache: FeatureCache, pairs: ViewPairs) -> Tensor:
    views = np.stack([pairs.first_view, pairs.second_view], axis=1)
    return torch.from_numpy(pairs.object_indices[:, None] * cache.num_views + views).to(cache.features.device)


def _rotation_samples(cache: FeatureCache, pairs: ViewPairs) -> Samples:
    assert cache.quats_xyzw is not None, "the task needs poses"
    rows = _pair_rows(cache, pairs)
    return Samples(rows, relative_rotation(cache.quats_xyzw.flatten(0, 1)[rows]))


def _colour_samples(cache: FeatureCache, pairs: ViewPairs) -> Samples:
    rows = _pair_rows(cache, pairs)
    return Samples(rows, relative_hues(cache.latents.flatten(0, 1)[rows]))


def _rotation_result(predictions: Tensor, targets_xyzw: Tensor) -> TaskResult:
    """Metrics of predicted quaternions `[n, 4]` beside those of the best constants."""
    errors_deg = angle_errors_deg(predictions, targets_xyzw)
    baselines, constant_errors_deg = constant_rotation_baselines(targets_xyzw)
    return TaskResult(
        metrics={
            "r2_uniform": r2_uniform(predictions, targets_xyzw),
            "r2_pooled": r2_pooled(predictions, targets_xyzw),
            **summarise_angles(errors_deg),
        },
        baselines=baselines,
        num_samples=len(targets_xyzw),
        angle_errors_deg=errors_deg.numpy(),
        constant_angle_errors_deg=constant_errors_deg.numpy(),
    )


def _test_views(test: FeatureCache, protocol: ProbeProtocol) -> np.ndarray:
    views_per_object = protocol.evaluation_views_per_object or test.num_views
    return evaluation_views(test.num_objects, test.num_views, views_per_object, protocol.evaluation_seed)


def _test_pairs(test: FeatureCache, protocol: ProbeProtocol) -> ViewPairs:
    return evaluation_pairs(
        test.num_objects, test.num_views, protocol.evaluation_pairs_per_object, protocol.evaluation_seed
    )


def _held_out_objects(num_objects: int, share: float, seed: int) -> np.ndarray:
    """Bool `[num_objects]`: which objects choose the ridge strength; at least one, and at least one is left."""
    count = min(max(1, round(share * num_objects)), num_objects - 1)
    held_out = np.zeros(num_objects, dtype=bool)
    held_out[np.random.default_rng(seed).permutation(num_objects)[:count]] = True
    return held_out
