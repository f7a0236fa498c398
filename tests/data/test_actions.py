import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ssl_equi.data.actions import (
    ACTION_SIZES,
    POSE_ACTION_KINDS,
    ActionKind,
    action_between_views,
    action_from_batch,
    actions_between_all_views,
    beyond_euler_box,
    relative_hues,
    relative_rotation,
)
from ssl_equi.data.batch import ViewBatch
from ssl_equi.geometry.poses import matrix_of_action


def _batch_of_latents(latents: np.ndarray) -> ViewBatch:
    quats = Rotation.from_euler("xyz", latents[..., :3].reshape(-1, 3)).as_quat().reshape(*latents.shape[:2], 4)
    count, views = latents.shape[:2]
    return ViewBatch(
        images=torch.zeros(count, views, 2, 2, 3, dtype=torch.uint8),
        latents=torch.from_numpy(latents).float(),
        quat_xyzw=torch.from_numpy(quats).float(),
        labels=torch.zeros(count, dtype=torch.int64),
        object_indices=torch.arange(count),
        view_indices=torch.zeros(count, views, dtype=torch.int64),
        seconds_waited=1.5,
    )


@pytest.fixture
def pair_latents() -> np.ndarray:
    generator = np.random.default_rng(0)
    rotations = generator.uniform(-math.pi / 2, math.pi / 2, (500, 2, 3))
    return np.concatenate([rotations, generator.uniform(0, 1, (500, 2, 4))], axis=-1)


@pytest.fixture
def moving_pair_latents(pair_latents: np.ndarray) -> np.ndarray:
    translations = np.random.default_rng(1).uniform(-0.5, 0.5, (500, 2, 3))
    return np.concatenate([pair_latents, translations], axis=-1)


def test_rotation_is_the_body_frame_one_of_scipy_with_its_sign(pair_latents):
    batch = _batch_of_latents(pair_latents)
    first = Rotation.from_euler("xyz", pair_latents[:, 0, :3])
    second = Rotation.from_euler("xyz", pair_latents[:, 1, :3])
    expected = (first.inv() * second).as_quat()
    found = relative_rotation(batch.quat_xyzw).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[:, 3] < 0).any()  # not canonicalised


def test_rotation_takes_the_first_pose_to_the_second(pair_latents):
    batch = _batch_of_latents(pair_latents)
    action = Rotation.from_quat(relative_rotation(batch.quat_xyzw).numpy())
    first, second = (Rotation.from_quat(batch.quat_xyzw[:, view].numpy()) for view in (0, 1))
    np.testing.assert_allclose((first * action).as_matrix(), second.as_matrix(), atol=1e-5)


def test_hues_are_plain_differences_second_minus_first():
    latents = torch.zeros(1, 2, 7)
    latents[0, 0, [3, 6]] = torch.tensor([0.9, 0.2])
    latents[0, 1, [3, 6]] = torch.tensor([0.1, 0.5])
    torch.testing.assert_close(relative_hues(latents), torch.tensor([[-0.8, 0.3]]))  # -0.8 is not wrapped to 0.2


def test_action_of_rotation_and_color_is_their_concatenation(pair_latents):
    batch = _batch_of_latents(pair_latents)
    action = action_from_batch(batch, "rotation_color")
    assert action.shape == (500, 6)
    torch.testing.assert_close(action[:, :4], action_from_batch(batch, "rotation"))
    torch.testing.assert_close(action[:, 4:], relative_hues(batch.latents))


def test_action_needs_pairs_and_a_known_kind(pair_latents):
    batch = _batch_of_latents(pair_latents)
    with pytest.raises(ValueError, match="action kind 'crop' is unknown: choose one of rotation, rotation_color"):
        action_from_batch(batch, "crop")
    with pytest.raises(ValueError, match="3 views an object"):
        action_from_batch(_batch_of_latents(np.zeros((4, 3, 7))), "rotation")


def _motion_matrices(latents: np.ndarray, rotate_last: bool) -> np.ndarray:
    """R T [N, 4, 4] if `rotate_last`, else T R, of latents [N, 10]."""
    rotation, translation = np.tile(np.eye(4), (2, len(latents), 1, 1))
    rotation[:, :3, :3] = Rotation.from_euler("xyz", latents[:, :3]).as_matrix()
    translation[:, :3, 3] = latents[:, 7:]
    return rotation @ translation if rotate_last else translation @ rotation


@pytest.mark.parametrize(("kind", "rotate_last"), [("pose_base", True), ("pose_object", False)])
def test_pose_is_the_relative_rigid_motion_after_the_rotation_to_the_bit(
    moving_pair_latents: np.ndarray, kind: ActionKind, rotate_last: bool
) -> None:
    batch = _batch_of_latents(moving_pair_latents)
    action = action_from_batch(batch, kind)
    assert action.shape == (500, 7) and action.dtype == torch.float32
    assert torch.equal(action[:, :4], action_from_batch(batch, "rotation"))
    first, second = (_motion_matrices(moving_pair_latents[:, view], rotate_last) for view in (0, 1))
    np.testing.assert_allclose(matrix_of_action(action), np.linalg.inv(first) @ second, atol=1e-5)
    back = action_between_views(batch, kind, 1, 0)
    identity = torch.eye(4).expand(500, 4, 4)
    torch.testing.assert_close(matrix_of_action(action) @ matrix_of_action(back), identity, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", POSE_ACTION_KINDS)
def test_pose_needs_translations(pair_latents: np.ndarray, kind: ActionKind) -> None:
    message = f"the views have 7 latents and actions '{kind}' need 10: .*--dataset 3diebench-pt or 3diebench-t"
    batch = _batch_of_latents(pair_latents)
    with pytest.raises(ValueError, match=message):
        action_from_batch(batch, kind)
    with pytest.raises(ValueError, match=message):
        actions_between_all_views(batch.quat_xyzw, batch.latents, kind)


def test_batch_moves_but_for_indices(pair_latents):
    batch = _batch_of_latents(pair_latents)
    moved = batch.to("meta")
    assert moved.images.device.type == moved.labels.device.type == moved.latents.device.type == "meta"
    assert moved.object_indices.device.type == moved.view_indices.device.type == "cpu"
    assert moved.seconds_waited == 1.5
    assert batch.to("cpu").images.data_ptr() == batch.images.data_ptr()


def full_turns(count: int = 500) -> np.ndarray:
    """Latents of pairs of views from all around."""
    generator = np.random.default_rng(0)
    rotations = generator.uniform(-math.pi, math.pi, (count, 2, 3))
    return np.concatenate([rotations, generator.uniform(0, 1, (count, 2, 4))], axis=-1)


def test_rotations_without_a_sign_are_columns_and_rows_of_scipys_matrix() -> None:
    latents = full_turns()
    batch = _batch_of_latents(latents)
    first, second = (Rotation.from_euler("xyz", latents[:, view, :3]) for view in (0, 1))
    matrices = (first.inv() * second).as_matrix()
    six_numbers = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1)
    np.testing.assert_allclose(action_from_batch(batch, "rotation_6d"), six_numbers, atol=2e-6)
    np.testing.assert_allclose(action_from_batch(batch, "rotation_matrix"), matrices.reshape(-1, 9), atol=2e-6)


def test_equal_rotations_of_a_full_turn_differ_in_sign_as_quaternions_only() -> None:
    """The same turn about z from any pose of a turntable."""
    start = np.linspace(-math.pi, math.pi, 100, endpoint=False)
    latents = np.zeros((100, 2, 7))
    latents[:, 0, 2], latents[:, 1, 2] = start, start + 2.0
    batch = _batch_of_latents(latents)
    batch.quat_xyzw.mul_(torch.where(batch.quat_xyzw[..., 3:] < 0, -1, 1))  # w > 0, as shards store them
    quats = action_from_batch(batch, "rotation")
    share = float((quats[:, 3] < 0).float().mean())
    assert 0.2 < share < 0.4
    for kind in ("rotation_6d", "rotation_matrix"):
        assert float(action_from_batch(batch, kind).std(dim=0).max()) < 1e-6


def test_poses_beyond_the_euler_box_are_told() -> None:
    def views(furthest_deg: float, num_latents: int = 7, posed: bool = True) -> SimpleNamespace:
        latents = np.zeros((3, 2, num_latents), np.float32)
        latents[1, 0, :3] = -math.radians(furthest_deg)
        return SimpleNamespace(split="train", latents=latents, quats_xyzw=np.zeros((3, 2, 4)) if posed else None)

    for within in (views(90), views(90.01, 10), views(170, 0, posed=False), views(0)):
        assert beyond_euler_box(within) is None
    assert "split 'train' turn by up to 180 degrees" in beyond_euler_box(views(180))


@pytest.mark.parametrize("kind", ACTION_SIZES)
def test_actions_between_all_views_are_those_of_each_pair(kind: ActionKind) -> None:
    latents = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, 10))
    batch = _batch_of_latents(latents)
    assert batch.quat_xyzw is not None
    together = actions_between_all_views(batch.quat_xyzw, batch.latents, kind)
    assert together.shape == (2, 3, 3, ACTION_SIZES[kind])
    for first in range(3):
        for second in range(3):
            expected = action_between_views(batch, kind, first, second)
            assert torch.allclose(together[:, first, second], expected, atol=1e-6)


def test_actions_between_all_views_are_of_a_known_kind() -> None:
    with pytest.raises(ValueError, match="action kind 'crop' is unknown"):
        actions_between_all_views(torch.zeros(2, 3, 4), torch.zeros(2, 3, 7), "crop")
