import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ssl_equi.data.actions import (
    ACTION_SIZES,
    action_from_batch,
    actions_between_all_views,
    relative_hues,
    relative_rotation,
)
from ssl_equi.data.batch import ViewBatch
from ssl_equi.geometry.rotations import quat_positive, random_quat


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


def test_batch_moves_as_a_whole(pair_latents):
    batch = _batch_of_latents(pair_latents)
    moved = batch.to("meta")
    assert moved.images.device.type == moved.labels.device.type == moved.view_indices.device.type == "meta"
    assert moved.seconds_waited == 1.5
    assert batch.to("cpu").images.data_ptr() == batch.images.data_ptr()


@pytest.mark.parametrize("kind", ["rotation", "rotation_color"])
def test_actions_between_all_views_are_those_of_each_pair(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    quats = quat_positive(random_quat(6, generator)).float().unflatten(0, (2, 3))
    latents = torch.rand(2, 3, 7, generator=generator)
    together = actions_between_all_views(quats, latents, kind)
    assert together.shape == (2, 3, 3, ACTION_SIZES[kind])
    for first in range(3):
        for second in range(3):
            pair = [first, second]
            expected = relative_rotation(quats[:, pair])
            if kind == "rotation_color":
                expected = torch.cat([expected, relative_hues(latents[:, pair])], dim=1)
            assert torch.allclose(together[:, first, second], expected, atol=1e-6)
