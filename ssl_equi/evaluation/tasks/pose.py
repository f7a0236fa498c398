"""Which rotation, which translation? Asked of one view, or of two, as a regression with several targets.

A rotation is asked for as a quaternion (SIE's target), as the first two columns of its matrix (6-D, Zhou et al.,
"On the Continuity of Rotation Representations in Neural Networks", CVPR 2019) and as the whole matrix (9-D, Levinson
et al., "An Analysis of SVD for Deep Rotation Estimation", NeurIPS 2020). R2 is that of the target's own components, so
it differs between the targets; angles, of the rotation that an answer stands for, can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline, constant_baselines, constant_rotation_baselines
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
from ssl_equi.evaluation.samples import SampleKind, TargetsOf, rows_of_classes, sample_objects
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


def relative_plan(ask: Ask) -> HeadPlan:
    """The protocol's head of relative rotations."""
    protocol = ask.protocol
    return HeadPlan(protocol.rotation_hidden, protocol.rotation_epochs, protocol.rotation_pairs_per_object)


def absolute_plan(ask: Ask) -> HeadPlan:
    """The protocol's head of absolute rotations."""
    protocol = ask.protocol
    return HeadPlan(
        protocol.absolute_rotation_hidden, protocol.absolute_rotation_epochs,
        protocol.absolute_rotation_views_per_object,
    )  # fmt: skip


def register_rotation(
    target: RotationTarget, name: str, description: str, of: SampleKind, plan: Callable[[Ask], HeadPlan]
) -> Probe:
    """A task of rotations with this target, and its head."""
    probe = Probe(of, targets=lambda cache, rows: target.encode(rotations(cache, rows)), plan=plan)

    def answer(ask: Ask) -> TaskResult:
        return rotation_result(ask.test, *ask.probe(probe), target)

    answer.__doc__ = description.format(target.words)
    task(f"{name}{target.suffix}", needs=POSE, probes=[probe])(answer)
    return probe


TARGETS = (QUATERNION, SIX_NUMBERS, MATRIX)
OF_TWO_VIEWS = "Body-frame relative rotation of two views, {}: MLP on their features, mean squared error."
OF_ONE_VIEW = "Rotation of a single view's pose, {}: MLP on its features, mean squared error."
RELATIVE_ROTATION, *_ = [
    register_rotation(target, "relative_rotation", OF_TWO_VIEWS, "pairs", relative_plan) for target in TARGETS
]
# The "individual rotation" of seq-JEPA (Ghaemi et al., NeurIPS 2025), whose quaternions have w > 0. The pose is that of
# an object in its family's own frame, which no view shows: of an object whose front can't be told from its back, it
# can't be known.
for each_target in TARGETS:
    register_rotation(each_target, "absolute_rotation", OF_ONE_VIEW, "views", absolute_plan)


def judge_relative_rotation(ask: Ask, test: FeatureCache) -> TaskResult:
    """What the head of `relative_rotation` achieves on another split's features of this part."""
    return rotation_result(test, *ask.probe(RELATIVE_ROTATION, test), QUATERNION)


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
    return ObjectPose(cache.rows(quats_of(cache))[rows], latents[..., translation.columns])


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
        metrics=_displacement_metrics(predictions, samples.targets),
        baselines=constant_baselines(samples.targets, _displacement_metrics),
        num_samples=len(samples),
        notes=r2_notes(samples.targets),
    )


def _displacement_metrics(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    return r2_metrics(predictions, targets) | {"distance_median": distance_median(predictions, targets)}


def quats_of(cache: FeatureCache) -> Tensor:
    """Absolute rotations `[n_objects, n_views, 4]`, w > 0, of data that have them."""
    assert cache.quats_xyzw is not None, "the task needs poses"
    return cache.quats_xyzw


def rotations(cache: FeatureCache, rows: Tensor) -> Tensor:
    """Absolute quaternions `[n, 4]` of views `[n, 1]`, w > 0; relative ones of pairs `[n, 2]`, sign as it comes."""
    quats_xyzw = cache.rows(quats_of(cache))[rows]
    return quats_xyzw[:, 0] if rows.shape[1] == 1 else relative_quat(*quats_xyzw.unbind(1))


def rotation_result(test: FeatureCache, answers: Tensor, samples: Samples, target: RotationTarget) -> TaskResult:
    """R2 of a head's answers to its targets `[n, K]`, and angles between the rotations; both beside the constants'."""
    true_xyzw, targets = rotations(test, samples.rows), samples.targets
    angles = angle_result(test, samples.rows, angle_errors_deg(target.decode(answers), true_xyzw), true_xyzw)
    metrics, statistics = r2_metrics(answers, targets), dict(angles.statistics or {})
    if metrics:
        objects = sample_objects(test, samples.rows).cpu().numpy()
        statistics["r2_uniform"] = r2_uniform_statistic(answers, targets, objects, test.num_objects)
    return replace(
        angles, metrics=metrics | angles.metrics, baselines=angles.baselines | constant_baselines(targets),
        statistics=statistics, notes=r2_notes(targets),
    )  # fmt: skip


def angle_result(test: FeatureCache, rows: Tensor, errors_deg: Tensor, true_xyzw: Tensor) -> TaskResult:
    """Angles `[n]` (CPU) between answers and true rotations `[n, 4]`, of all samples and of each class."""
    of_constant, constant_errors_deg = constant_rotation_baselines(true_xyzw)
    objects = sample_objects(test, rows).cpu()
    of_sample = objects.numpy()
    metrics = summarise_angles(errors_deg)
    baselines = {name: of_constant[name] for name in metrics}
    statistics = {ANGLE_MEDIAN: median_statistic(errors_deg.numpy(), of_sample, test.num_objects)}
    for class_name, chosen in rows_of_classes(test, objects).items():
        name, of_class = name_of_class_metric(ANGLE_MEDIAN, class_name), errors_deg[chosen].numpy()
        metrics[name] = float(np.median(of_class))
        baselines[name] = Baseline(float(np.median(constant_errors_deg[chosen].numpy())), "constant")
        statistics[name] = median_statistic(of_class, of_sample[chosen])
    return TaskResult(
        metrics=metrics,
        baselines=baselines,
        num_samples=len(errors_deg),
        angle_errors_deg=errors_deg.numpy(),
        constant_angle_errors_deg=constant_errors_deg.numpy(),
        object_scores={"angle_deg_mean": object_means(errors_deg, objects, test.num_objects)},
        statistics=statistics,
    )
