"""Actions are SciPy's relative rotations and rigid motions, with the sign that makes them continuous."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.geometry.actions import (
    ACTION_SIZES,
    POSE_ACTION_KINDS,
    ActionKind,
    action_of_pairs,
    actions_between_all_views,
    beyond_euler_box,
    relative_hues,
)
from ssl_equi.geometry.poses import matrix_of_action


def pairs(furthest_rad: float = math.pi / 2) -> np.ndarray:
    """Latents [500, 2, 10] of moving objects turned by up to this angle about each axis."""
    generator = np.random.default_rng(0)
    rotations = generator.uniform(-furthest_rad, furthest_rad, (500, 2, 3))
    return np.concatenate(
        [rotations, generator.uniform(0, 1, (500, 2, 4)), generator.uniform(-0.5, 0.5, (500, 2, 3))], -1
    )


def rotations_of(latents: np.ndarray) -> list[Rotation]:
    return [Rotation.from_euler("xyz", latents[:, view, :3]) for view in (0, 1)]


def actions(latents: np.ndarray, kind: ActionKind, flipped: bool = False) -> Tensor:
    """From view 1 to view 2, or back."""
    quat_xyzw = torch.from_numpy(np.stack([each.as_quat() for each in rotations_of(latents)], axis=1)).float()
    known = [quat_xyzw, torch.from_numpy(latents).float()]
    return action_of_pairs(*(values.flip(1) if flipped else values for values in known), kind)


def test_rotation_is_the_body_frame_one_of_scipy_with_its_sign() -> None:
    first, second = rotations_of(pairs())
    found = actions(pairs(), "rotation").numpy()
    np.testing.assert_allclose(found, (first.inv() * second).as_quat(), atol=1e-6)
    assert (found[:, 3] < 0).any()  # not canonicalised
    np.testing.assert_allclose((first * Rotation.from_quat(found)).as_matrix(), second.as_matrix(), atol=1e-5)


def test_hues_are_plain_differences_second_minus_first() -> None:
    latents = torch.zeros(1, 2, 7)
    latents[0, 0, [3, 6]] = torch.tensor([0.9, 0.2])
    latents[0, 1, [3, 6]] = torch.tensor([0.1, 0.5])
    torch.testing.assert_close(relative_hues(latents), torch.tensor([[-0.8, 0.3]]))  # -0.8 is not wrapped to 0.2
    action = actions(pairs(), "rotation_color")
    assert torch.equal(action[:, :4], actions(pairs(), "rotation"))
    assert torch.equal(action[:, 4:], relative_hues(torch.from_numpy(pairs()).float()))


def test_rotations_without_a_sign_are_columns_and_rows_of_scipys_matrix() -> None:
    latents = pairs(math.pi)
    first, second = rotations_of(latents)
    matrices = (first.inv() * second).as_matrix()
    six_numbers = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1)
    np.testing.assert_allclose(actions(latents, "rotation_6d"), six_numbers, atol=2e-6)
    np.testing.assert_allclose(actions(latents, "rotation_matrix"), matrices.reshape(-1, 9), atol=2e-6)


def motion_matrices(latents: np.ndarray, rotate_last: bool) -> np.ndarray:
    """R T [N, 4, 4] if `rotate_last`, else T R, of latents [N, 10]."""
    rotation, translation = np.tile(np.eye(4), (2, len(latents), 1, 1))
    rotation[:, :3, :3] = Rotation.from_euler("xyz", latents[:, :3]).as_matrix()
    translation[:, :3, 3] = latents[:, 7:]
    return rotation @ translation if rotate_last else translation @ rotation


@pytest.mark.parametrize(("kind", "rotate_last"), [("pose_base", True), ("pose_object", False)])
def test_pose_is_the_relative_rigid_motion_after_the_rotation_to_the_bit(kind: ActionKind, rotate_last: bool) -> None:
    action, back = (actions(pairs(), kind, flipped) for flipped in (False, True))
    assert action.shape == (500, 7) and action.dtype == torch.float32
    assert torch.equal(action[:, :4], actions(pairs(), "rotation"))
    first, second = (motion_matrices(pairs()[:, view], rotate_last) for view in (0, 1))
    np.testing.assert_allclose(matrix_of_action(action), np.linalg.inv(first) @ second, atol=1e-5)
    identity = torch.eye(4).expand(500, 4, 4)
    torch.testing.assert_close(matrix_of_action(action) @ matrix_of_action(back), identity, atol=1e-5, rtol=0)


def test_equal_rotations_of_a_full_turn_differ_in_sign_as_quaternions_only() -> None:
    """The same turn about z from any pose of a turntable."""
    start = np.linspace(-math.pi, math.pi, 100, endpoint=False)
    latents = np.zeros((100, 2, 7))
    latents[:, 0, 2], latents[:, 1, 2] = start, start + 2.0
    stored = np.stack([each.as_quat() for each in rotations_of(latents)], axis=1)
    quat_xyzw = torch.from_numpy(np.where(stored[..., 3:] < 0, -1, 1) * stored).float()  # w > 0, as shards have it
    quats, *without_sign = (
        action_of_pairs(quat_xyzw, torch.from_numpy(latents), kind)
        for kind in ("rotation", "rotation_6d", "rotation_matrix")
    )
    assert 0.2 < float((quats[:, 3] < 0).float().mean()) < 0.4
    assert all(float(found.std(dim=0).max()) < 1e-6 for found in without_sign)


def test_poses_beyond_the_euler_box_are_told() -> None:
    def told(furthest_deg: float, num_latents: int = 7) -> str | None:
        latents = np.zeros((3, 2, num_latents), np.float32)
        latents[1, 0, :3] = -math.radians(furthest_deg)
        return beyond_euler_box("train", latents)

    assert not any((told(90), told(90.01, 10), told(170, 0), told(0)))
    assert "split 'train' turn by up to 180 degrees" in (told(180) or "")


def test_angles_beyond_the_box_need_not_be_poses_beyond_it() -> None:
    generator = np.random.default_rng(0)
    latents = np.zeros((20, 4, 7))
    latents[..., :3] = generator.choice([-1, 1], (20, 4, 3)) * generator.uniform(math.pi / 2, math.pi, (20, 4, 3))
    others = Rotation.from_euler("xyz", latents[..., :3].reshape(-1, 3)).as_euler("xyz")
    assert float(np.abs(others).max()) <= math.pi / 2
    assert "no pose is new" in (beyond_euler_box("ood_rotation", latents) or "")
    latents[3, 2, 1] = 0.3  # now x and z are really beyond 90 degrees
    assert "come with both signs" in (beyond_euler_box("ood_rotation", latents) or "")


@pytest.mark.parametrize("kind", ACTION_SIZES)
def test_actions_between_all_views_are_those_of_each_pair(kind: ActionKind) -> None:
    latents = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, 10))).float()
    quat_xyzw = torch.from_numpy(Rotation.from_euler("xyz", latents[..., :3].reshape(-1, 3)).as_quat()).float()
    quat_xyzw = quat_xyzw.unflatten(0, (2, 3))
    together = actions_between_all_views(quat_xyzw, latents, kind)
    assert together.shape == (2, 3, 3, ACTION_SIZES[kind])
    for first, second in np.ndindex(3, 3):
        expected = action_of_pairs(quat_xyzw[:, [first, second]], latents[:, [first, second]], kind)
        assert torch.allclose(together[:, first, second], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("crop", "action kind 'crop' is unknown: choose one of rotation, rotation_color"),
        *(
            (kind, f"the views have 7 latents and actions '{kind}' need 10: .*--dataset 3diebench-pt or 3diebench-t")
            for kind in POSE_ACTION_KINDS
        ),
    ],
)
def test_actions_that_cannot_be_made_are_refused(kind: ActionKind, message: str) -> None:
    for make in (action_of_pairs, actions_between_all_views):
        with pytest.raises(ValueError, match=message):
            make(torch.zeros(2, 2, 4), torch.zeros(2, 2, 7), kind)
