"""Tasks of capsule poses without any head: the rotation between two views, and how well poses follow the action.

If poses are equivariant, P' = s P M12 for every capsule, with one unknown scale s each. The first three columns of
P M12 are then those of P turned by R12, with 3 x 3 and with 4 x 4 poses alike; the rotation that turns the columns of
all capsules best is found in closed form (orthogonal Procrustes problem, Schönemann 1966; Kabsch 1976).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.sources import DataSource
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.evaluation.baselines import Baseline, constant_rotation_baselines
from ssl_equi.evaluation.features import FeatureCache, encode_split
from ssl_equi.evaluation.metrics import angle_errors_deg, summarise_angles
from ssl_equi.evaluation.predictors.action_gain import TASK as GAIN
from ssl_equi.evaluation.predictors.action_gain import predictor_gain
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.samples import evaluated_pairs
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.export.predictor import TrainedPredictor
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.geometry.rotations import quat_from_matrix
from ssl_equi.latents.actions import actions_of
from ssl_equi.objectives.parts.capsule_terms import TURNED_COLUMNS, unit_poses
from ssl_equi.objectives.parts.predictors import PoseProduct


def rotation_between(first: Tensor, second: Tensor) -> Tensor:
    """The rotations R [N, 3, 3] that bring poses P1 R closest to P2 [N, K, d, d], whatever the scales of all poses."""
    first_columns, second_columns = (
        unit_poses(poses[..., :TURNED_COLUMNS]).flatten(1, 2).double() for poses in (first, second)
    )
    left, _, right = torch.linalg.svd(first_columns.mT @ second_columns)
    # The closest orthogonal matrix may be a reflection; the closest rotation then turns the weakest direction around.
    reflected = torch.linalg.det(left @ right) < 0
    left = torch.where(reflected[:, None, None], left * left.new_tensor([1.0, 1.0, -1.0]), left)
    return left @ right


def capsule_results(
    network: CapsuleNetwork,
    predictor: TrainedPredictor,
    data: DataSource,
    protocol: ProbeProtocol,
    device: torch.device | str = "cpu",
) -> dict[str, TaskResult]:
    """Whether the predictor of poses uses its actions, on the evaluated split, whose every view is encoded.

    Poses that are multiplied with the action, and so should follow it by themselves, also answer both tasks of
    `probe_capsule_poses`; others follow, if at all, in a way that only their predictor knows.
    """
    capsules = encode_split(network, data.evaluation, data.mean_rgb, data.std_rgb, device)
    results = {}
    if isinstance(predictor.module, PoseProduct):
        told = predictor.actions.names
        results = probe_capsule_poses(capsules, network.num_capsules, network.pose_side, told, protocol)
    return results | {GAIN: predictor_gain(predictor, capsules, device)}


def probe_capsule_poses(
    test: FeatureCache, num_capsules: int, pose_side: int, told: Sequence[str], protocol: ProbeProtocol
) -> dict[str, TaskResult]:
    """Both tasks by name, on the pairs that the heads of other tasks are judged on.

    - `capsule_rotation`: angle between the rotation read from the poses and the true one.
    - `capsule_equivariance`: `pose_error`, the mean squared distance of u(P M12) from u(P'), where u scales the first
      three columns to norm 1: 0 for poses that follow the action. Baseline: the actions of other objects' pairs.

    Args:
        test: what a capsule network answers: activations of K = `num_capsules`, then poses of side d row by row.
        told: name of the action that the poses are multiplied with, a rotation or rigid motion; UserError if the views
            don't have it.
    """
    known = actions_of(test.schema, told)
    pairs = evaluated_pairs(test.num_objects, test.views_of_each, protocol)
    pairs_per_object = int(np.bincount(pairs.object_indices).max())  # rolled by that, actions are of other objects
    objects, first_view, second_view = (
        torch.from_numpy(indices) for indices in (pairs.object_indices, pairs.first_view, pairs.second_view)
    )
    poses = test.features[..., num_capsules:].unflatten(-1, (num_capsules, pose_side, pose_side))
    first, second = poses[objects, first_view], poses[objects, second_view]
    actions = known.between_all(test.latents, test.quats_xyzw)[objects, first_view, second_view]
    true_xyzw = actions[:, :4]
    errors_deg = angle_errors_deg(quat_from_matrix(rotation_between(first, second)), true_xyzw)
    baselines, constant_errors_deg = constant_rotation_baselines(true_xyzw)
    angles = summarise_angles(errors_deg)
    other_actions = Baseline(_pose_error(first, second, actions.roll(pairs_per_object, 0)), "other actions")
    return {
        "capsule_rotation": TaskResult(
            metrics=angles,
            baselines={name: baselines[name] for name in angles},
            num_samples=len(errors_deg),
            angle_errors_deg=errors_deg.numpy(),
            constant_angle_errors_deg=constant_errors_deg.numpy(),
        ),
        "capsule_equivariance": TaskResult(
            metrics={"pose_error": _pose_error(first, second, actions)},
            baselines={"pose_error": other_actions},
            num_samples=len(pairs),
        ),
    }


def _pose_error(first: Tensor, second: Tensor, actions: Tensor) -> float:
    moved = unit_poses(first @ matrix_of_action(actions).unsqueeze(1), TURNED_COLUMNS)
    return float((moved - unit_poses(second, TURNED_COLUMNS)).square().sum(dim=(2, 3)).mean())
