"""SO(3) against SciPy, the group laws and golden values."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from ssl_equi.geometry import rotations as so3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def euler_box(count: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(count, 3, generator=generator(seed), dtype=torch.float64) - 0.5) * math.pi


def assert_same_rotation(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-7) -> None:
    assert so3.geodesic_distance(first, second).max() < tolerance


def test_quarter_turn_about_z_is_counter_clockwise() -> None:
    quarter = so3.quat_from_euler_xyz(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    turned = so3.rotate_vectors(quarter, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert torch.allclose(turned, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-15)
    expected = torch.tensor([0, 0, math.sqrt(0.5), math.sqrt(0.5)], dtype=torch.float64)
    assert torch.allclose(quarter, expected, atol=1e-15)


def test_euler_angles_are_extrinsic_xyz() -> None:
    angles = euler_box(500)
    expected = torch.from_numpy(Rotation.from_euler("xyz", angles.numpy()).as_matrix())
    assert torch.allclose(so3.quat_to_matrix(so3.quat_from_euler_xyz(angles)), expected, atol=1e-12)
    x, y, z = angles[0]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    turn_x = torch.stack([one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos()]).view(3, 3)
    turn_y = torch.stack([y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos()]).view(3, 3)
    turn_z = torch.stack([z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one]).view(3, 3)
    assert torch.allclose(expected[0], turn_z @ turn_y @ turn_x, atol=1e-12)


def test_every_pose_of_the_euler_box_has_positive_w() -> None:
    assert so3.quat_from_euler_xyz(euler_box(20_000))[:, 3].min() > 0


def test_relative_quaternion_equals_scipy_to_the_sign() -> None:
    first, second = euler_box(20_000, 1), euler_box(20_000, 2)
    ours = so3.relative_quat(so3.quat_from_euler_xyz(first), so3.quat_from_euler_xyz(second))
    scipys = (Rotation.from_euler("xyz", first.numpy()).inv() * Rotation.from_euler("xyz", second.numpy())).as_quat()
    assert torch.allclose(ours, torch.from_numpy(scipys), atol=1e-12)


def test_published_statistics_of_relative_rotations() -> None:
    """Shares measured on simulated 3DIEBench pairs: w < 0 in 4.4 %, mean w .535, mean angle 108 degrees."""
    first = so3.quat_from_euler_xyz(euler_box(400_000, 3))
    second = so3.quat_from_euler_xyz(euler_box(400_000, 4))
    relative = so3.relative_quat(first, second)
    assert (relative[:, 3] < 0).double().mean().item() == pytest.approx(0.044, abs=0.001)
    assert relative[:, 3].mean().item() == pytest.approx(0.535, abs=0.003)
    angle_deg = torch.rad2deg(so3.rotation_angle(relative))
    assert angle_deg.mean().item() == pytest.approx(108, abs=0.5)
    assert (angle_deg > 170).double().mean().item() == pytest.approx(0.050, abs=0.002)


def test_sign_of_scipy_before_1_11_is_the_exact_negative() -> None:
    """Before 1.11, Rotation.inv() negated w instead of the vector part: the same rotation, every action negated."""
    first = so3.quat_from_euler_xyz(euler_box(50_000, 5))
    second = so3.quat_from_euler_xyz(euler_box(50_000, 6))
    old_inverse = first * torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    old_action = so3.quat_multiply(old_inverse, second)
    new_action = so3.relative_quat(first, second)
    assert torch.equal(old_action, -new_action)
    assert (old_action[:, 3] < 0).double().mean().item() == pytest.approx(0.957, abs=0.003)
    assert_same_rotation(old_action, new_action)


def test_golden_relative_quaternion() -> None:
    """Value printed by SciPy 1.17 for `(R1.inv() * R2).as_quat()`."""
    first = so3.quat_from_euler_xyz(torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64))
    second = so3.quat_from_euler_xyz(torch.tensor([-0.9, 0.4, 0.2], dtype=torch.float64))
    golden = torch.tensor([-0.48709680, 0.57672895, -0.27178516, 0.59686955], dtype=torch.float64)
    assert torch.allclose(so3.relative_quat(first, second), golden, atol=1e-8)


def test_group_laws() -> None:
    a, b, c = (so3.random_quat(1000, generator(seed)) for seed in range(3))
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(1000, 4)
    product = so3.quat_multiply
    assert torch.allclose(product(product(a, b), c), product(a, product(b, c)), atol=1e-14)
    assert torch.allclose(product(a, identity), a) and torch.allclose(product(identity, a), a)
    assert torch.allclose(product(a, so3.quat_conjugate(a)), identity, atol=1e-14)
    matrices = so3.quat_to_matrix(a) @ so3.quat_to_matrix(b)
    assert torch.allclose(so3.quat_to_matrix(product(a, b)), matrices, atol=1e-14)
    assert torch.allclose(product(a, so3.relative_quat(a, b)), b, atol=1e-14)


def test_body_and_world_frame_differ_in_axis_only() -> None:
    first, second = so3.random_quat(100, generator(1)), so3.random_quat(100, generator(2))
    body = so3.relative_quat(first, second)
    world = so3.quat_multiply(second, so3.quat_conjugate(first))
    assert torch.allclose(so3.rotation_angle(body), so3.rotation_angle(world), atol=1e-12)
    assert so3.geodesic_distance(body, world).min() > 1e-3


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, math.pi - 1e-6, math.pi])
def test_matrix_round_trip_also_at_half_turns(angle: float) -> None:
    axes = torch.nn.functional.normalize(
        torch.cat([torch.eye(3, dtype=torch.float64), torch.randn(50, 3, generator=generator(), dtype=torch.float64)])
    )
    quat = so3.quat_exp(axes * angle)
    back = so3.quat_from_matrix(so3.quat_to_matrix(quat))
    assert_same_rotation(quat, back)
    assert (back[..., 3] >= 0).all()


def test_euler_round_trip_and_gimbal_lock() -> None:
    angles = euler_box(1000)
    matrices = so3.quat_to_matrix(so3.quat_from_euler_xyz(angles))
    assert torch.allclose(so3.euler_xyz_from_matrix(matrices), angles, atol=1e-9)
    uniform = so3.quat_to_matrix(so3.random_quat(1000, generator()))
    again = so3.quat_to_matrix(so3.quat_from_euler_xyz(so3.euler_xyz_from_matrix(uniform)))
    assert torch.allclose(again, uniform, atol=1e-9)
    locked = so3.quat_to_matrix(
        so3.quat_from_euler_xyz(torch.tensor([[0.4, math.pi / 2, 0.1], [0.4, -math.pi / 2, 0.1]], dtype=torch.float64))
    )
    again = so3.quat_to_matrix(so3.quat_from_euler_xyz(so3.euler_xyz_from_matrix(locked)))
    assert torch.allclose(again, locked, atol=1e-6)


def test_exponential_and_logarithm() -> None:
    vectors = torch.randn(1000, 3, generator=generator(), dtype=torch.float64)
    vectors = (
        vectors
        / vectors.norm(dim=-1, keepdim=True)
        * torch.rand(1000, 1, dtype=torch.float64, generator=generator(1))
        * 3.1
    )
    assert torch.allclose(so3.quat_log(so3.quat_exp(vectors)), vectors, atol=1e-9)
    expected = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    assert torch.allclose(so3.quat_to_matrix(so3.quat_exp(vectors)), expected, atol=1e-12)
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    so3.quat_exp(zero).sum().backward()
    assert torch.isfinite(zero.grad).all() and torch.equal(so3.quat_exp(zero)[0, 3], torch.tensor(1.0).double())


def test_six_dimensional_representation() -> None:
    matrices = so3.quat_to_matrix(so3.random_quat(200, generator()))
    assert torch.allclose(so3.matrix_from_rotation_6d(so3.rotation_6d_from_matrix(matrices)), matrices, atol=1e-12)
    free = so3.matrix_from_rotation_6d(torch.randn(200, 6, generator=generator(), dtype=torch.float64))
    assert torch.allclose(torch.linalg.det(free), torch.ones(200, dtype=torch.float64))


def test_the_nearest_rotation_matrix() -> None:
    matrices = so3.quat_to_matrix(so3.random_quat(300, generator()))
    assert torch.allclose(so3.nearest_rotation_matrix(matrices), matrices, atol=1e-12)
    any_matrices = torch.randn(300, 3, 3, generator=generator(1), dtype=torch.float64)
    nearest = so3.nearest_rotation_matrix(any_matrices)
    identity = torch.eye(3, dtype=torch.float64).expand(300, 3, 3)
    assert torch.allclose(nearest @ nearest.mT, identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(nearest), torch.ones(300, dtype=torch.float64)), "no reflections"
    # It follows rotations from both sides, R1 M R2 -> R1 nearest(M) R2, and no other rotation is nearer.
    left, right = (so3.quat_to_matrix(so3.random_quat(300, generator(seed))) for seed in (2, 3))
    assert torch.allclose(so3.nearest_rotation_matrix(left @ any_matrices @ right), left @ nearest @ right, atol=1e-9)
    distance = (nearest - any_matrices).square().sum((1, 2))
    for turn in (left, so3.quat_to_matrix(so3.quat_exp(0.01 * torch.randn(300, 3, generator=generator(4)).double()))):
        assert (((nearest @ turn) - any_matrices).square().sum((1, 2)) >= distance - 1e-12).all()
    # SciPy orthogonalises by the singular value decomposition too (for a positive determinant).
    positive = any_matrices[torch.linalg.det(any_matrices) > 0]
    expected = torch.from_numpy(Rotation.from_matrix(positive.numpy()).as_matrix())
    assert torch.allclose(so3.nearest_rotation_matrix(positive), expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"\[..., 3, 3\]"):
        so3.nearest_rotation_matrix(torch.zeros(2, 9))


def test_uniform_rotations_have_the_haar_angle_density() -> None:
    """Haar measure: density (1 - cos a) / pi, so the mean angle is pi/2 + 2/pi (126.5 degrees)."""
    angles = so3.rotation_angle(so3.random_quat(200_000, generator()))
    assert angles.mean().item() == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.005)


def test_positive_and_zero_quaternions() -> None:
    assert so3.quat_positive(torch.tensor([0.1, 0.0, 0.0, -0.9])).tolist() == pytest.approx([-0.1, 0.0, 0.0, 0.9])
    assert so3.quat_normalize(torch.zeros(4)).tolist() == [0, 0, 0, 1]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"the shape of quat_xyzw is \(2, 3\)"):
        so3.quat_conjugate(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\[..., 3, 3\]"):
        so3.quat_from_matrix(torch.zeros(2, 4))


def test_matrices_that_a_gpu_makes_at_once_are_the_same() -> None:
    quats = so3.quat_from_euler_xyz(euler_box(60)).view(3, 20, 4)
    torch.testing.assert_close(so3._quat_to_matrix_at_once(quats), so3.quat_to_matrix(quats))
