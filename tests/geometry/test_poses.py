"""Rigid motions against 4 x 4 matrices, SciPy's exponential and rotations, the group laws and the renderer."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.geometry import poses
from ssl_equi.geometry import rotations as so3
from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_RANGES
from ssl_equi.geometry.poses import BasePose, ObjectPose, Pose, matrix_of_action
from ssl_equi.scenes.scene import scene_parameters

FRAMES = pytest.mark.parametrize("frame", [BasePose, ObjectPose])
BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def latents_in_range(count: int, seed: int = 0) -> Tensor:
    low, high = torch.tensor([LATENT_RANGES[name] for name in LATENT_NAMES], dtype=torch.float64).unbind(-1)
    return low + (high - low) * torch.rand(count, 10, generator=generator(seed), dtype=torch.float64)


def random_poses(frame: type[Pose], count: int, seed: int) -> Pose:
    return frame(so3.random_quat(count, generator(seed)), normal(count, 3, seed=seed + 100))


def twists_of_angle(angle: float, count: int = 20, dtype: torch.dtype = torch.float64) -> Tensor:
    axes = torch.nn.functional.normalize(normal(count, 3), dim=-1)
    return torch.cat([axes * angle, normal(count, 3, seed=1)], dim=-1).to(dtype)


def twist_matrix(twist: np.ndarray) -> np.ndarray:
    (x, y, z), v = twist[:3], twist[3:]
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    matrix[:3, 3] = v
    return matrix


def rotation_and_translation_matrices(latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """R and T, both [N, 4, 4], by SciPy."""
    rotation, translation = (np.tile(np.eye(4), (len(latents), 1, 1)) for _ in range(2))
    rotation[:, :3, :3] = Rotation.from_euler("xyz", latents[:, :3].numpy()).as_matrix()
    translation[:, :3, 3] = latents[:, 7:].numpy()
    return rotation, translation


def assert_same_motion(first: Pose, second: Pose, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(first.matrix(), second.matrix(), atol=tolerance, rtol=0)


def test_base_pose_is_rotation_times_translation_and_object_pose_the_other_way_round() -> None:
    latents = latents_in_range(100)
    rotation, translation = rotation_and_translation_matrices(latents)
    np.testing.assert_allclose(BasePose.from_latents(latents).matrix(), rotation @ translation, atol=1e-12)
    np.testing.assert_allclose(ObjectPose.from_latents(latents).matrix(), translation @ rotation, atol=1e-12)


def test_base_pose_stands_where_the_renderer_puts_the_object() -> None:
    latents = latents_in_range(100).float()
    scene, pose = scene_parameters(latents), BasePose.from_latents(latents)
    torch.testing.assert_close(pose.translation, scene.centre)
    torch.testing.assert_close(pose.matrix()[:, :3, :3], scene.rotation)


def test_golden_action_in_both_frames() -> None:
    """View 1: a quarter turn about z and a step of .5 along x; view 2: no turn and a step of .25 along y."""
    latents = torch.zeros(2, 10, dtype=torch.float64)
    latents[0, 2], latents[0, 7], latents[1, 8] = math.pi / 2, 0.5, 0.25
    back_quarter = [0, 0, -math.sqrt(0.5), math.sqrt(0.5)]
    # base: R12 t2 - t1 with R12 the quarter turn back; object: the quarter turn back of (t2 - t1)
    for frame, translation in ((BasePose, [-0.25, 0.0, 0.0]), (ObjectPose, [0.25, 0.5, 0.0])):
        action = frame.from_latents(latents[0]).action_to(frame.from_latents(latents[1]))
        expected = torch.tensor([*back_quarter, *translation], dtype=torch.float64)
        torch.testing.assert_close(action.vector(), expected, atol=1e-15, rtol=0)


@FRAMES
def test_action_takes_the_first_pose_to_the_second_and_capsules_with_it(
    frame: type[BasePose | ObjectPose],
) -> None:
    first, second = frame.from_latents(latents_in_range(100, 1)), frame.from_latents(latents_in_range(100, 2))
    action = first.action_to(second)
    assert type(action) is frame
    assert_same_motion(first.compose(action), second)
    torch.testing.assert_close(first.matrix() @ action.matrix(), second.matrix(), atol=1e-12, rtol=0)
    capsules = normal(100, 4, 4)
    moved = capsules @ first.matrix() @ matrix_of_action(action.vector())
    torch.testing.assert_close(moved, capsules @ second.matrix(), atol=1e-12, rtol=0)


def test_translations_of_actions_are_those_of_the_formulas() -> None:
    first, second = latents_in_range(100, 1), latents_in_range(100, 2)
    turns = [Rotation.from_euler("xyz", latents[:, :3].numpy()) for latents in (first, second)]
    steps = [latents[:, 7:].numpy() for latents in (first, second)]
    base = BasePose.from_latents(first).action_to(BasePose.from_latents(second))
    np.testing.assert_allclose(base.translation, (turns[0].inv() * turns[1]).apply(steps[1]) - steps[0], atol=1e-12)
    of_object = ObjectPose.from_latents(first).action_to(ObjectPose.from_latents(second))
    np.testing.assert_allclose(of_object.translation, turns[0].inv().apply(steps[1] - steps[0]), atol=1e-12)


@FRAMES
@BOTH_TYPES
def test_quaternion_of_an_action_is_the_relative_one_to_the_bit(
    frame: type[BasePose | ObjectPose], dtype: torch.dtype
) -> None:
    first, second = latents_in_range(1000, 1).to(dtype), latents_in_range(1000, 2).to(dtype)
    expected = so3.relative_quat(so3.quat_from_euler_xyz(first[:, :3]), so3.quat_from_euler_xyz(second[:, :3]))
    action = frame.from_latents(first).action_to(frame.from_latents(second))
    assert torch.equal(action.vector()[:, :4], expected)
    assert (expected[:, 3] < 0).any()  # the sign is kept as it comes


@FRAMES
def test_group_laws(frame: type[Pose]) -> None:
    a, b, c = (random_poses(frame, 200, seed) for seed in range(3))
    identity = frame(torch.tensor([0.0, 0.0, 0.0, 1.0]).double(), torch.zeros(3, dtype=torch.float64))
    assert_same_motion(a.compose(b).compose(c), a.compose(b.compose(c)))
    for product in (a.compose(identity), identity.compose(a)):
        assert_same_motion(product, a)
    nothing = torch.eye(4, dtype=torch.float64).expand(200, 4, 4)
    for product in (a.compose(a.inverse()), a.inverse().compose(a), a.action_to(a)):
        torch.testing.assert_close(product.matrix(), nothing, atol=1e-12, rtol=0)
    torch.testing.assert_close(a.compose(b).matrix(), a.matrix() @ b.matrix(), atol=1e-12, rtol=0)
    torch.testing.assert_close(a.inverse().matrix(), torch.linalg.inv(a.matrix()), atol=1e-12, rtol=0)
    assert_same_motion(a.action_to(b).compose(b.action_to(c)), a.action_to(c))  # steps make a path


def test_frames_convert_into_each_other() -> None:
    latents = latents_in_range(100)
    base, of_object = BasePose.from_latents(latents), ObjectPose.from_latents(latents)
    assert type(base.in_object_frame()) is ObjectPose and type(of_object.in_base_frame()) is BasePose
    assert_same_motion(base.in_object_frame(), of_object)
    assert_same_motion(of_object.in_base_frame(), base)
    assert_same_motion(base.in_object_frame().in_base_frame(), base)


def test_frames_do_not_mix() -> None:
    base, of_object = random_poses(BasePose, 2, 0), random_poses(ObjectPose, 2, 1)
    with pytest.raises(TypeError, match=r"BasePose and ObjectPose don't go together: .*in_base_frame\(\)"):
        base.compose(of_object)
    with pytest.raises(TypeError, match="ObjectPose and BasePose don't go together"):
        of_object.action_to(base)
    with pytest.raises(TypeError, match="Pose and BasePose don't go together"):
        random_poses(Pose, 2, 0).compose(base)


def test_mixing_frames_is_an_error_of_types(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    script = tmp_path / "mixing.py"
    script.write_text(
        "from ssl_equi.geometry.poses import BasePose, ObjectPose\n"
        "def mix(base: BasePose, of_object: ObjectPose) -> None:\n"
        "    base.compose(of_object)\n"
        "    of_object.action_to(base)\n"
        "    base.compose(of_object.in_base_frame())\n"
    )
    # PyTorch is left out, which would take most of a minute to read.
    options = ["--cache-dir", str(tmp_path / "cache"), "--follow-imports", "skip"]
    output, _, _ = mypy.run([*options, poses.__file__, str(script)])
    assert [int(line) for line in re.findall(r"mixing.py:(\d+): error: .*\[arg-type\]", output)] == [3, 4], output


@FRAMES
def test_vectors_and_matrices_round_trip(frame: type[Pose]) -> None:
    poses = random_poses(frame, 100, 0)
    assert torch.equal(poses.vector(), torch.cat([poses.quat_xyzw, poses.translation], dim=-1))
    again = frame.from_vector(poses.vector())
    assert torch.equal(again.quat_xyzw, poses.quat_xyzw) and torch.equal(again.translation, poses.translation)
    from_matrix = frame.from_matrix(poses.matrix())
    assert type(again) is frame and type(from_matrix) is frame
    assert_same_motion(from_matrix, poses)
    assert (from_matrix.quat_xyzw[:, 3] >= 0).all()


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.499999, 0.500001, 1.0, 3.0, math.pi - 1e-6])
def test_exponential_is_that_of_the_twist_matrix(angle: float) -> None:
    twists = twists_of_angle(angle)
    expected = np.stack([expm(twist_matrix(twist)) for twist in twists.numpy()])
    np.testing.assert_allclose(BasePose.exp(twists).matrix(), expected, atol=1e-12)
    float32 = BasePose.exp(twists.float()).matrix()
    np.testing.assert_allclose(float32, expected, atol=3e-6)


@pytest.mark.parametrize("angle", [1e-3, 0.499999, 0.500001, 1.0, 2.0, 3.0])
def test_logarithm_is_that_of_the_matrix(angle: float) -> None:
    poses = ObjectPose.exp(twists_of_angle(angle, count=5))
    for pose, found in zip(poses.matrix().numpy(), poses.log(), strict=True):
        np.testing.assert_allclose(twist_matrix(found.numpy()), logm(pose).real, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.499999, 0.500001, 1.0, 2.0, 3.0, 3.1])
def test_exponential_and_logarithm_are_inverse(angle: float) -> None:
    twists = twists_of_angle(angle)
    poses = BasePose.exp(twists)
    torch.testing.assert_close(poses.log(), twists, atol=1e-10, rtol=0)
    opposite_sign = BasePose(-poses.quat_xyzw, poses.translation)
    torch.testing.assert_close(opposite_sign.log(), twists, atol=1e-10, rtol=0)
    single = BasePose.exp(twists.float()).log()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), twists, atol=2e-5, rtol=0)
    if angle < 0.1:  # small rotations keep their relative accuracy
        torch.testing.assert_close(single[:, :3].double(), twists[:, :3], atol=0, rtol=1e-5)


def test_exponential_of_the_logarithm_is_the_pose_also_at_half_turns() -> None:
    uniform = random_poses(ObjectPose, 1000, 0)
    assert_same_motion(ObjectPose.exp(uniform.log()), uniform)
    half_turns = ObjectPose.exp(twists_of_angle(math.pi))
    assert half_turns.log()[:, :3].norm(dim=-1).max() <= math.pi + 1e-12
    assert_same_motion(ObjectPose.exp(half_turns.log()), half_turns)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 0.6, 2.5])
def test_gradients_are_those_of_finite_differences(angle: float) -> None:
    twists = twists_of_angle(angle, count=2).requires_grad_()
    vectors = BasePose.exp(twists).vector().detach().requires_grad_()

    def to_pose(values: Tensor) -> Tensor:
        return BasePose.exp(values).vector()

    def to_twist(values: Tensor) -> Tensor:
        return BasePose.from_vector(values).log()

    compared: tuple[tuple[Callable[[Tensor], Tensor], Tensor], ...] = ((to_pose, twists), (to_twist, vectors))
    for function, values in compared:
        assert torch.autograd.gradcheck(function, values, atol=1e-5)


@BOTH_TYPES
def test_gradients_are_finite_at_the_identity(dtype: torch.dtype) -> None:
    twist = torch.zeros(6, dtype=dtype, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda values: BasePose.exp(values).log(), twist)
    torch.testing.assert_close(jacobian, torch.eye(6, dtype=dtype))


@BOTH_TYPES
def test_batch_shapes_broadcast_and_the_type_is_kept(dtype: torch.dtype) -> None:
    views = ObjectPose(so3.random_quat(6, generator()).to(dtype).unflatten(0, (2, 3)), normal(2, 3, 3, dtype=dtype))
    first = ObjectPose(views.quat_xyzw[:, :1], views.translation[:, :1])
    actions = first.action_to(views)
    assert actions.vector().shape == (2, 3, 7) and actions.log().shape == (2, 3, 6)
    assert actions.matrix().shape == (2, 3, 4, 4) and actions.matrix().dtype == actions.log().dtype == dtype
    one_rotation = BasePose(views.quat_xyzw[0, 0], views.translation)
    assert one_rotation.matrix().shape == (2, 3, 4, 4)
    assert one_rotation.vector().shape == (2, 3, 7) and one_rotation.log().shape == (2, 3, 6)
    one_translation = BasePose(views.quat_xyzw, views.translation[0, 0])
    assert one_translation.matrix().shape == (2, 3, 4, 4) and one_translation.log().shape == (2, 3, 6)
    assert torch.equal(one_rotation.compose(first.in_base_frame()).inverse().matrix()[..., 3, :3], torch.zeros(2, 3, 3))


def test_actions_as_matrices() -> None:
    pose = random_poses(Pose, 5, 0)
    torch.testing.assert_close(matrix_of_action(pose.vector()), pose.matrix())
    torch.testing.assert_close(matrix_of_action(pose.quat_xyzw), pose.matrix()[:, :3, :3])
    with pytest.raises(ValueError, match=r"\(5, 6\): a matrix is made of 4 columns \(quaternion\) or 7"):
        matrix_of_action(torch.zeros(5, 6))


@FRAMES
def test_latents_without_translation_are_refused(frame: type[BasePose | ObjectPose]) -> None:
    with pytest.raises(ValueError, match=r"\(5, 7\): a position takes the 10 columns of 3DIEBench-T"):
        frame.from_latents(torch.zeros(5, 7))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"quat_xyzw has shape \(2, 3\) and translation \(2, 3\)"):
        Pose(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"the shape of vectors is \(2, 6\): it must be \[..., 7\]"):
        Pose.from_vector(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"the shape of twists is \(2, 7\): it must be \[..., 6\]"):
        Pose.exp(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"must be \[..., 4, 4\]"):
        Pose.from_matrix(torch.zeros(2, 3, 3))
