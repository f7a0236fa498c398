"""Which rotation, which translation? Asked of one view, or of two, as a regression with several targets.

A rotation is asked for as a quaternion (SIE's target), as the first two columns of its matrix (6-D, Zhou et al.,
"On the Continuity of Rotation Representations in Neural Networks", CVPR 2019) and as the whole matrix (9-D, Levinson
et al., "An Analysis of SVD for Deep Rotation Estimation", NeurIPS 2020). R2 is that of the target's own components, so
it differs between the targets; angles, of the rotation that an answer stands for, can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.baselines import (
    Baseline,
    constant_baselines,
    constant_rotation_baselines,
    constant_translation_baselines,
)
from ssl_equi.evaluation.bootstrap import median_statistic, r2_uniform_statistic
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, Samples
from ssl_equi.evaluation.metrics import (
    ANGLE_MEDIAN,
    angle_errors_deg,
    distance_median,
    name_of_class_metric,
    r2_metrics,
    r2_notes,
    summarise_angles,
)
from ssl_equi.evaluation.samples import TargetsOf, rows_of_classes, sample_objects
from ssl_equi.evaluation.task import POSE, TRANSLATION, Ask, Probe, TaskResult, object_means, task
from ssl_equi.geometry.poses import ObjectPose
from ssl_equi.geometry.rotations import (
    matrix_from_rotation_6d,
    nearest_rotation_matrix,
    quat_from_matrix,
    quat_to_matrix,
    relative_quat,
    rotation_6d_from_matrix,
)
from ssl_equi.latents.schema import THREEDIEBENCH_T


@dataclass(frozen=True)
class RotationTarget:
    """How a rotation is written for a head.

    Attributes:
        suffix: of the tasks' names.
        words: for the list of tasks.
        encode: unit quaternions xyzw `[n, 4]` -> targets `[n, K]`.
        decode: a head's answers `[n, K]` -> quaternions `[n, 4]`, of any length and sign.
    """

    suffix: str
    words: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


QUATERNION = RotationTarget("", "as a quaternion", encode=lambda quats: quats, decode=lambda answers: answers)
SIX_NUMBERS = RotationTarget(
    "_6d",
    "as the first two columns of its matrix",
    encode=lambda quats: rotation_6d_from_matrix(quat_to_matrix(quats)),
    decode=lambda answers: quat_from_matrix(matrix_from_rotation_6d(answers.double())),
)
MATRIX = RotationTarget(
    "_matrix",
    "as a matrix",
    encode=lambda quats: quat_to_matrix(quats).flatten(-2),
    decode=lambda answers: quat_from_matrix(nearest_rotation_matrix(answers.double().unflatten(-1, (3, 3)))),
)


def register_relative_rotation(target: RotationTarget) -> Probe:
    """The task `relative_rotation` with this target, and its head."""
    probe = Probe(
        "pairs",
        targets=lambda cache, rows: target.encode(_relative_rotations(cache, rows)),
        plan=lambda ask: HeadPlan(
            ask.protocol.rotation_hidden, ask.protocol.rotation_epochs, ask.protocol.rotation_pairs_per_object
        ),
    )

    def relative_rotation(ask: Ask) -> TaskResult:
        predictions, samples = ask.probe(probe)
        return rotation_result(ask.test, samples, predictions, _relative_rotations(ask.test, samples.rows), target)

    relative_rotation.__doc__ = (
        f"Body-frame relative rotation of two views, {target.words}: MLP on their features, mean squared error."
    )
    task(f"relative_rotation{target.suffix}", needs=POSE, probes=[probe])(relative_rotation)
    return probe


def register_absolute_rotation(target: RotationTarget) -> Probe:
    """The task `absolute_rotation` with this target, and its head.

    The "individual rotation" of seq-JEPA (Ghaemi et al., NeurIPS 2025), whose quaternions have w > 0. The pose is that
    of an object in its family's own frame, which no view shows: of an object whose front can't be told from its back,
    it can't be known.
    """
    probe = Probe(
        "views",
        targets=lambda cache, rows: target.encode(_rotations(cache, rows)),
        plan=lambda ask: HeadPlan(
            ask.protocol.absolute_rotation_hidden, ask.protocol.absolute_rotation_epochs,
            ask.protocol.absolute_rotation_views_per_object,
        ),
    )  # fmt: skip

    def absolute_rotation(ask: Ask) -> TaskResult:
        predictions, samples = ask.probe(probe)
        return rotation_result(ask.test, samples, predictions, _rotations(ask.test, samples.rows), target)

    absolute_rotation.__doc__ = (
        f"Rotation of a single view's pose, {target.words}: MLP on its features, mean squared error."
    )
    task(f"absolute_rotation{target.suffix}", needs=POSE, probes=[probe])(absolute_rotation)
    return probe


TARGETS = (QUATERNION, SIX_NUMBERS, MATRIX)
RELATIVE_ROTATION, *_ = [register_relative_rotation(target) for target in TARGETS]  # that of quaternions
ABSOLUTE_ROTATION, *_ = [register_absolute_rotation(target) for target in TARGETS]


def judge_relative_rotation(ask: Ask, test: FeatureCache) -> TaskResult:
    """What the head of `relative_rotation` achieves on another split's features of this part."""
    predictions, samples = ask.probe(RELATIVE_ROTATION, test)
    return rotation_result(test, samples, predictions, _relative_rotations(test, samples.rows), QUATERNION)


def displacement_in_object_frame(cache: FeatureCache, rows: Tensor) -> Tensor:
    """t2 - t1 `[n, 3]` of pairs of views `rows [n, 2]` (see `feature_matrix`)."""
    positions = _object_poses(cache, rows).translation
    return positions[:, 1] - positions[:, 0]


def displacement_in_base_frame(cache: FeatureCache, rows: Tensor) -> Tensor:
    """R2 t2 - R1 t1 `[n, 3]` of pairs of views `rows [n, 2]`: how the object's centre moves in the world."""
    positions = _object_poses(cache, rows).in_base_frame().translation
    return positions[:, 1] - positions[:, 0]


def _object_poses(cache: FeatureCache, rows: Tensor) -> ObjectPose:
    """Poses of views `rows [n, k]` in the object's frame."""
    latents = cache.rows(cache.latents)[rows]
    if cache.schema == THREEDIEBENCH_T:  # float32 throughout, as these numbers have always been computed
        return ObjectPose.from_latents(latents)
    (translation,) = TRANSLATION.require(cache)
    return ObjectPose(_quats_xyzw(cache)[rows], latents[..., translation.columns])


def _translation_probe(displacement: TargetsOf) -> Probe:
    return Probe(
        "pairs",
        targets=displacement,
        plan=lambda ask: HeadPlan(
            ask.protocol.translation_hidden, ask.protocol.translation_epochs, ask.protocol.translation_pairs_per_object
        ),
    )


IN_OBJECT_FRAME, IN_BASE_FRAME = (
    _translation_probe(displacement) for displacement in (displacement_in_object_frame, displacement_in_base_frame)
)


@task("translation_object", needs=TRANSLATION, probes=[IN_OBJECT_FRAME])
def translation_object(ask: Ask) -> TaskResult:
    """How far the second view's translation is from the first's, t2 - t1, in the object's own frame.

    MLP on two views' features, mean squared error, as in EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895). It
    asks for the rotations too: what a view shows is where the object stands, R t.
    """
    return _translation_result(*ask.probe(IN_OBJECT_FRAME))


@task("translation_base", needs=TRANSLATION, probes=[IN_BASE_FRAME])
def translation_base(ask: Ask) -> TaskResult:
    """How the object's centre moves in the world from the first view to the second, R2 t2 - R1 t1.

    MLP on two views' features, mean squared error, as in EquiCaps (Konstantinou et al., 2025, arXiv:2506.09895).
    """
    return _translation_result(*ask.probe(IN_BASE_FRAME))


def _translation_result(predictions: Tensor, samples: Samples) -> TaskResult:
    """Predicted displacements beside those of the best constant."""
    return TaskResult(
        metrics=r2_metrics(predictions, samples.targets)
        | {"distance_median": distance_median(predictions, samples.targets)},
        baselines=constant_translation_baselines(samples.targets),
        num_samples=len(samples),
        notes=r2_notes(samples.targets),
    )


def _rotations(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Absolute quaternions `[n, 4]` of views `[n, 1]`, w > 0."""
    return _quats_xyzw(cache)[rows[:, 0]]


def _relative_rotations(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Relative quaternions `[n, 4]` of pairs `[n, 2]`, sign as it comes."""
    return relative_quat(*_quats_xyzw(cache)[rows].unbind(1))


def _quats_xyzw(cache: FeatureCache) -> Tensor:
    """Absolute rotations as rows, in the order of the features' rows."""
    assert cache.quats_xyzw is not None, "the task needs poses"
    return cache.rows(cache.quats_xyzw)


def rotation_result(
    test: FeatureCache, samples: Samples, answers: Tensor, true_xyzw: Tensor, target: RotationTarget
) -> TaskResult:
    """R2 of a head's answers to its targets `[n, K]`, and angles between the rotations; both beside the constants'."""
    errors_deg = angle_errors_deg(target.decode(answers), true_xyzw)
    angle_baselines, constant_errors_deg = constant_rotation_baselines(true_xyzw)
    objects, targets = sample_objects(test, samples.rows).cpu(), samples.targets
    of_sample = objects.numpy()
    classes = {name_of_class_metric(ANGLE_MEDIAN, name): rows for name, rows in rows_of_classes(test, objects).items()}
    constants = {name: Baseline(_median(constant_errors_deg[rows]), "constant") for name, rows in classes.items()}
    metrics = r2_metrics(answers, targets)
    statistics = {"angle_deg_median": median_statistic(errors_deg.numpy(), of_sample, test.num_objects)}
    if metrics:
        statistics["r2_uniform"] = r2_uniform_statistic(answers, targets, of_sample, test.num_objects)
    for name, rows in classes.items():
        distinct, number = np.unique(of_sample[rows], return_inverse=True)
        statistics[name] = median_statistic(errors_deg[rows].numpy(), number, len(distinct))
    by_class = {name: _median(errors_deg[rows]) for name, rows in classes.items()}
    return TaskResult(
        metrics=metrics | summarise_angles(errors_deg) | by_class,
        baselines=angle_baselines | constant_baselines(targets) | constants,
        num_samples=len(targets),
        angle_errors_deg=errors_deg.numpy(),
        constant_angle_errors_deg=constant_errors_deg.numpy(),
        object_scores={"angle_deg_mean": object_means(errors_deg, objects, test.num_objects)},
        statistics=statistics,
        notes=r2_notes(targets),
    )


def _median(errors_deg: Tensor) -> float:
    return float(np.median(errors_deg.numpy()))
