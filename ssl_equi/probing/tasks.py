"""The questions asked of frozen features: which class, which rotation, which translation, which change of colour.

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
from ssl_equi.geometry.latents import LATENT_SIZE_WITH_TRANSLATION
from ssl_equi.geometry.poses import BasePose, ObjectPose
from ssl_equi.probing.baselines import (
    Baseline,
    classification_baselines,
    constant_baselines,
    constant_rotation_baselines,
    constant_translation_baselines,
)
from ssl_equi.probing.encode import FeatureCache
from ssl_equi.probing.heads import Samples, build_head, fit_ridge, predict, train_head
from ssl_equi.probing.metrics import (
    angle_errors_deg,
    balanced_top1,
    distance_median,
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
        object_scores: by the name of a metric that is a mean, the mean of each evaluated object `[n_objects]`, NaN if
            it has none.
    """

    metrics: dict[str, float]
    baselines: dict[str, Baseline]
    num_samples: int
    angle_errors_deg: np.ndarray | None = None
    constant_angle_errors_deg: np.ndarray | None = None
    per_class_recall: np.ndarray | None = None
    object_scores: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class HeadPlan:
    """Widths of an MLP's hidden layers (none: a linear head), and the epochs and samples of each object in one."""

    hidden: tuple[int, ...]
    epochs: int
    samples_per_object: int


Task = Callable[[FeatureCache, FeatureCache, int, ProbeProtocol, int], TaskResult]
TargetsOf = Callable[[FeatureCache, Tensor], Tensor]  # of rows [n, k], k views a sample: [n, K]


def classification(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class of the object from a single view: linear head, cross-entropy."""
    features = _matrix(train)
    head = build_head(features.shape[1], (), num_classes, torch.Generator().manual_seed(seed))
    views_per_object = protocol.classification_views_per_object or train.num_views

    def samples_of_epoch(epoch: int) -> Samples:
        views = training_views(train.num_objects, train.num_views, views_per_object, seed, epoch)
        return _samples(train, _view_rows(train, views), _classes)

    epochs = protocol.classification_epochs
    train_head(head, features, samples_of_epoch, F.cross_entropy, protocol, epochs=epochs, seed=seed)

    samples = _samples(test, _view_rows(test, _test_views(test, protocol)), _classes)
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
    plan = HeadPlan(protocol.rotation_hidden, protocol.rotation_epochs, protocol.rotation_pairs_per_object)
    return _rotation_result(*_regress_pairs(train, test, _relative_rotations, plan, protocol, seed))


def absolute_rotation_task(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Quaternion (w > 0) of a single view's pose: MLP on its features, mean squared error.

    The "individual rotation" of seq-JEPA (Ghaemi et al., NeurIPS 2025). The pose is that of an object in its family's
    own frame, which no view shows: of an object whose front can't be told from its back, it can't be known.
    """
    views_per_object = protocol.absolute_rotation_views_per_object or train.num_views
    plan = HeadPlan(protocol.absolute_rotation_hidden, protocol.absolute_rotation_epochs, views_per_object)

    def samples_of_epoch(epoch: int) -> Samples:
        views = training_views(train.num_objects, train.num_views, plan.samples_per_object, seed, epoch)
        return _samples(train, _view_rows(train, views), _rotations)

    samples = _samples(test, _view_rows(test, _test_views(test, protocol)), _rotations)
    return _rotation_result(_regress(train, test, samples_of_epoch, samples, plan, protocol, seed), samples.targets)


def translation_object_task(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """How far the second view's translation is from the first's, t2 - t1, in the object's own frame.

    MLP on two views' features, mean squared error, as in EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895). It
    asks for the rotations too: what a view shows is where the object stands, R t.
    """
    return _translation_task(train, test, displacement_in_object_frame, protocol, seed)


def translation_base_task(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """How the object's centre moves in the world from the first view to the second, R2 t2 - R1 t1.

    MLP on two views' features, mean squared error, as in EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895).
    """
    return _translation_task(train, test, displacement_in_base_frame, protocol, seed)


def colour(train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int) -> TaskResult:
    """Differences of floor hue and light hue between two views (not wrapped): linear head on their features."""
    if protocol.colour_solver == "ridge":
        features = _matrix(train)
        pairs = training_pairs(train.num_objects, train.num_views, protocol.colour_pairs_per_object, seed, epoch=0)
        held_out_objects = _held_out_objects(train.num_objects, protocol.ridge_held_out_share, seed)
        held_out = torch.from_numpy(held_out_objects[pairs.object_indices]).to(features.device)
        head, _ = fit_ridge(features, _samples(train, _pair_rows(train, pairs), _relative_hues), held_out, protocol)
        samples = _samples(test, _pair_rows(test, _test_pairs(test, protocol)), _relative_hues)
        predictions, targets = predict(head, _matrix(test), samples.rows), samples.targets
    else:
        plan = HeadPlan((), protocol.colour_epochs, protocol.colour_pairs_per_object)
        predictions, targets = _regress_pairs(train, test, _relative_hues, plan, protocol, seed)
    return TaskResult(_r2(predictions, targets), constant_baselines(targets), len(targets))


TASKS: dict[str, Task] = {
    "classification": classification,
    "relative_rotation": relative_rotation_task,
    "absolute_rotation": absolute_rotation_task,
    "translation_object": translation_object_task,
    "translation_base": translation_base_task,
    "colour": colour,
}

NEEDS_TRANSLATIONS = ("translation_object", "translation_base")
NEEDS_POSES = ("relative_rotation", "absolute_rotation", "colour", *NEEDS_TRANSLATIONS)


def tasks_for(cache: FeatureCache) -> dict[str, Task]:
    """The tasks that can be asked of a split: without known poses, and of objects that don't move, some are absent."""
    absent: tuple[str, ...] = ()
    if cache.quats_xyzw is None:
        absent = NEEDS_POSES
    elif cache.latents.shape[-1] != LATENT_SIZE_WITH_TRANSLATION:
        absent = NEEDS_TRANSLATIONS
    return {name: task for name, task in TASKS.items() if name not in absent}


def _regress(
    train: FeatureCache,
    test: FeatureCache,
    samples_of_epoch: Callable[[int], Samples],
    test_samples: Samples,
    plan: HeadPlan,
    protocol: ProbeProtocol,
    seed: int,
) -> Tensor:
    """What an MLP trained on samples of `train` (mean squared error) answers to those of `test`: `[n, K]`."""
    features = _matrix(train)
    views_per_sample, num_targets = test_samples.rows.shape[1], test_samples.targets.shape[1]
    generator = torch.Generator().manual_seed(seed)
    head = build_head(views_per_sample * features.shape[1], plan.hidden, num_targets, generator)
    train_head(head, features, samples_of_epoch, F.mse_loss, protocol, epochs=plan.epochs, seed=seed)
    return predict(head, _matrix(test), test_samples.rows)


def _regress_pairs(
    train: FeatureCache, test: FeatureCache, targets_of: TargetsOf, plan: HeadPlan, protocol: ProbeProtocol, seed: int
) -> tuple[Tensor, Tensor]:
    """Answers to the fixed pairs of `test`, of an MLP that met new pairs of `train` each epoch, and their targets."""

    def samples_of_epoch(epoch: int) -> Samples:
        pairs = training_pairs(train.num_objects, train.num_views, plan.samples_per_object, seed, epoch)
        return _samples(train, _pair_rows(train, pairs), targets_of)

    samples = _samples(test, _pair_rows(test, _test_pairs(test, protocol)), targets_of)
    return _regress(train, test, samples_of_epoch, samples, plan, protocol, seed), samples.targets


def _translation_task(
    train: FeatureCache, test: FeatureCache, displacement: TargetsOf, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Predicted displacements beside those of the best constant."""
    plan = HeadPlan(protocol.translation_hidden, protocol.translation_epochs, protocol.translation_pairs_per_object)
    predictions, targets = _regress_pairs(train, test, displacement, plan, protocol, seed)
    return TaskResult(
        metrics=_r2(predictions, targets) | {"distance_median": distance_median(predictions, targets)},
        baselines=constant_translation_baselines(targets),
        num_samples=len(targets),
    )


def _matrix(cache: FeatureCache) -> Tensor:
    """Features as rows: view v of object o is row `o * num_views + v`."""
    return cache.features.flatten(0, 1)


def _view_rows(cache: FeatureCache, view_indices: np.ndarray) -> Tensor:
    """Rows `[n_objects * k, 1]`: one sample for each of the views `view_indices [n_objects, k]`."""
    rows = np.arange(cache.num_objects)[:, None] * cache.num_views + view_indices
    return torch.from_numpy(rows.reshape(-1, 1)).to(cache.features.device)


def _samples(cache: FeatureCache, rows: Tensor, targets_of: TargetsOf) -> Samples:
    return Samples(rows, targets_of(cache, rows))


def _pair_rows(cache: FeatureCache, pairs: ViewPairs) -> Tensor:
    """Rows `[n, 2]`: one sample for each pair."""
    views = np.stack([pairs.first_view, pairs.second_view], axis=1)
    return torch.from_numpy(pairs.object_indices[:, None] * cache.num_views + views).to(cache.features.device)


def _classes(cache: FeatureCache, rows: Tensor) -> Tensor:
    """The objects' classes `[n]` of views `[n, 1]`."""
    return cache.labels[rows[:, 0] // cache.num_views]


def _rotations(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Absolute quaternions `[n, 4]` of views `[n, 1]`."""
    return _quats_xyzw(cache)[rows[:, 0]]


def _relative_rotations(cache: FeatureCache, rows: Tensor) -> Tensor:
    return relative_rotation(_quats_xyzw(cache)[rows])


def _relative_hues(cache: FeatureCache, rows: Tensor) -> Tensor:
    return relative_hues(cache.latents.flatten(0, 1)[rows])


def displacement_in_object_frame(cache: FeatureCache, rows: Tensor) -> Tensor:
    """t2 - t1 `[n, 3]` of pairs of views `rows [n, 2]` (row `o * num_views + v` is view v of object o)."""
    positions = ObjectPose.from_latents(cache.latents.flatten(0, 1)[rows]).translation
    return positions[:, 1] - positions[:, 0]


def displacement_in_base_frame(cache: FeatureCache, rows: Tensor) -> Tensor:
    """R2 t2 - R1 t1 `[n, 3]` of pairs of views `rows [n, 2]`: how the object's centre moves in the world."""
    positions = BasePose.from_latents(cache.latents.flatten(0, 1)[rows]).translation
    return positions[:, 1] - positions[:, 0]


def _quats_xyzw(cache: FeatureCache) -> Tensor:
    """Absolute rotations as rows, in the order of `_matrix`."""
    assert cache.quats_xyzw is not None, "the task needs poses"
    return cache.quats_xyzw.flatten(0, 1)


def _r2(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    return {"r2_uniform": r2_uniform(predictions, targets), "r2_pooled": r2_pooled(predictions, targets)}


def _rotation_result(predictions: Tensor, targets_xyzw: Tensor) -> TaskResult:
    """Metrics of predicted quaternions `[n, 4]` beside those of the best constants."""
    errors_deg = angle_errors_deg(predictions, targets_xyzw)
    baselines, constant_errors_deg = constant_rotation_baselines(targets_xyzw)
    return TaskResult(
        metrics=_r2(predictions, targets_xyzw) | summarise_angles(errors_deg),
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
