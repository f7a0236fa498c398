"""Turning a picture in its plane, and what that does to the pose: proved by rendering the turned scene."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from scipy.spatial.transform import Rotation

from ssl_equi.data.derived import TurnedViews, Turns, turn_quat_xyzw
from ssl_equi.data.images import Canvas, CenterCrop
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.poses import BasePose
from ssl_equi.geometry.rotations import quat_multiply, random_quat, relative_quat
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.render import Renderer, SceneSettings
from ssl_equi.scenes.scene import CAMERA_POSITION, scene_parameters
from tests.fakes import ViewsInMemory

TOWARDS_CAMERA = np.array(CAMERA_POSITION) / np.linalg.norm(CAMERA_POSITION)


def read_all(views: ShardDataset | TurnedViews) -> np.ndarray:
    """uint8 [n * V, H, W, 3]."""
    images = np.empty((views.num_objects, views.num_views, *views.image_size, 3), dtype=np.uint8)
    every_view = np.tile(np.arange(views.num_views), (views.num_objects, 1))
    views.read_views(np.arange(views.num_objects), every_view, images)
    return images.reshape(-1, *images.shape[2:])


@pytest.fixture(scope="module", params=["still", "moving"])
def stored(request: pytest.FixtureRequest, tiny_data: Path, tiny_moving_data: Path) -> ShardDataset:
    return ShardDataset(tiny_data if request.param == "still" else tiny_moving_data, "train")


def test_quarter_turns_move_pixels_counter_clockwise(stored: ShardDataset) -> None:
    turned = TurnedViews(stored)
    assert set(turned.angles_deg.flat) == {0.0, 90.0, 180.0, 270.0}
    for angle_deg, before, after in zip(turned.angles_deg.flat, read_all(stored), read_all(turned), strict=True):
        height = before.shape[0]
        for _ in range(int(angle_deg) // 90):
            # Counter-clockwise: the right column becomes the top row.
            before = np.stack([before[:, height - 1 - row] for row in range(height)])
        assert (after == before).all()


def test_any_turn_is_counter_clockwise_too(stored: ShardDataset) -> None:
    turned = TurnedViews(stored, "any")
    assert turned.angles_deg.min() < 20 and turned.angles_deg.max() > 340
    rows, columns = np.indices(stored.image_size) - (stored.image_size[0] - 1) / 2
    inside = np.hypot(rows, columns) < stored.image_size[0] / 2 - 2
    for angle_deg, before, after in zip(turned.angles_deg.flat, read_all(stored), read_all(turned), strict=True):
        expected = rotate(before.astype(float), angle_deg, reshape=False, order=3, mode="mirror")
        assert np.abs(after - expected)[inside].mean() < 3
        assert abs(after.mean() - before.mean()) < 12  # no black corners


@pytest.mark.parametrize("turns", get_args(Turns))
def test_poses_turn_about_the_direction_to_the_camera(stored: ShardDataset, turns: Turns) -> None:
    turned = TurnedViews(stored, turns)
    assert turned.quats_xyzw is not None and stored.quats_xyzw is not None
    before = Rotation.from_quat(stored.quats_xyzw.reshape(-1, 4))
    about_axis = Rotation.from_rotvec(np.deg2rad(turned.angles_deg).reshape(-1, 1) * TOWARDS_CAMERA)
    errors = (about_axis * before).inv() * Rotation.from_quat(turned.quats_xyzw.reshape(-1, 4))
    assert errors.magnitude().max() < 1e-6
    assert (turned.quats_xyzw[..., 3] >= 0).all()
    # The latents tell of the same pose, of the turned spot light, and of the same colours and translations.
    latents = torch.from_numpy(turned.latents).double()
    assert np.abs(quat_xyzw_from_latents(latents).numpy() - turned.quats_xyzw).max() < 1e-5
    lights = scene_parameters(latents.flatten(0, 1)).light_position
    lights_before = scene_parameters(torch.from_numpy(np.array(stored.latents)).flatten(0, 1)).light_position
    assert np.abs(about_axis.apply(lights_before) - lights.numpy()).max() < 1e-5
    kept = [column for column in range(latents.shape[-1]) if column not in (0, 1, 2, 4, 5)]
    assert (turned.latents[..., kept] == stored.latents[..., kept]).all()


def test_the_same_turn_of_both_views_leaves_the_relative_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = random_quat(5, generator), random_quat(5, generator)
    turn = turn_quat_xyzw(torch.tensor(1.2, dtype=torch.float64)).expand(5, 4)
    found = relative_quat(quat_multiply(turn, first), quat_multiply(turn, second))
    torch.testing.assert_close(found, relative_quat(first, second))


def tetrahedron() -> Mesh:
    """A blue one without any symmetry."""
    vertices = np.array([[0.6, 0.0, -0.1], [-0.3, 0.25, -0.1], [-0.2, -0.3, 0.0], [0.1, 0.1, 0.5]], dtype=np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], dtype=np.int32)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.repeat((normals / np.linalg.norm(normals, axis=1, keepdims=True))[:, None], 3, axis=1)
    return Mesh(vertices, faces, normals.astype(np.float32), np.tile(np.float32([0.02, 0.02, 0.9]), (4, 1)))


@pytest.mark.parametrize("latent_size", [7, 10])
def test_rendering_the_turned_pose_gives_the_turned_outline(latent_size: int) -> None:
    """The floor is red and lit red, so an object's pixels are those that are more blue than red."""
    generator = np.random.default_rng(0)
    latents = np.zeros((6, 1, latent_size), dtype=np.float64)
    latents[..., :3] = generator.uniform(-1.5, 1.5, (6, 1, 3))
    latents[..., 7:] = generator.uniform(-0.2, 0.2, (6, 1, latent_size - 7))
    renderer = Renderer([tetrahedron()], SceneSettings(resolution=128))

    def outlines(of: np.ndarray) -> np.ndarray:
        images = renderer.render(torch.zeros(6, dtype=torch.int64), torch.from_numpy(of.reshape(6, -1))).numpy()
        return images[..., 2] > images[..., 0]

    turned = TurnedViews(
        ViewsInMemory(
            np.zeros((6, 1, 128, 128, 3), dtype=np.uint8), latents=latents,
            quats_xyzw=quat_xyzw_from_latents(torch.from_numpy(latents)).numpy(),
        )
    )  # fmt: skip
    before, after = outlines(latents), outlines(turned.latents.astype(np.float64))
    assert before.sum(axis=(1, 2)).min() > 400 and len(set(turned.angles_deg.flat)) > 2
    for angle_deg, one, other in zip(turned.angles_deg.flat, before, after, strict=True):
        expected = np.rot90(one, int(angle_deg) // 90)
        assert (expected & other).sum() / (expected | other).sum() > 0.92
    unturned = [(one & other).sum() / (one | other).sum() for one, other in zip(before, after)]
    assert min(unturned) < 0.8
    if latent_size == 10:
        centres = BasePose.from_latents(torch.from_numpy(turned.latents[:, 0])).translation.numpy()
        centres_before = BasePose.from_latents(torch.from_numpy(latents[:, 0])).translation.numpy()
        about_axis = Rotation.from_rotvec(np.deg2rad(turned.angles_deg) * TOWARDS_CAMERA)
        assert np.abs(about_axis.apply(centres_before) - centres).max() < 1e-6


def test_angles_depend_on_the_seed_and_hashes_on_what_was_asked(stored: ShardDataset) -> None:
    same, other = TurnedViews(stored, seed=0), TurnedViews(stored, seed=1)
    assert (same.angles_deg == TurnedViews(stored).angles_deg).all()
    assert (same.angles_deg != other.angles_deg).any()
    prints = {views.fingerprint for views in (stored, same, other, TurnedViews(stored, "any"))}
    plans = {views.plan_sha256 for views in (stored, same, other, TurnedViews(stored, "any"))}
    assert len(prints) == len(plans) == 4
    assert same.split == "train_quarter_turns" and "quarter turns" in same.source


def test_the_first_angles_stay_what_they_are() -> None:
    """Numbers that were published must be measured on the same turned views again."""
    words = np.random.Philox(key=np.array([0, 0], dtype=np.uint64)).random_raw(4)
    assert (words >> np.uint64(62)).tolist() == [0, 0, 0, 2]


def test_ordinary_images_turn_without_poses_and_canvases_are_refused(mixed_folder: Path) -> None:
    store = ImageFolder(mixed_folder, "train")
    cropped = TurnedViews(SingleViews(store, CenterCrop(16, 16)))
    images = np.empty((3, 1, 16, 16, 3), dtype=np.uint8)
    cropped.read_views(np.arange(3), np.zeros((3, 1), dtype=np.int64), images)
    assert cropped.quats_xyzw is None and cropped.latents.shape == (12, 1, 0) and images.any()
    with pytest.raises(DataError, match="only views that fill a square can be turned, crop them first"):
        TurnedViews(SingleViews(store, Canvas(64)))


def test_unknown_turns_are_named(stored: ShardDataset) -> None:
    with pytest.raises(ValueError, match="turns is 'half': choose 'quarter' or 'any'"):
        TurnedViews(stored, "half")  # type: ignore[arg-type]
