"""Measures of equivariance on features whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.evaluation.tasks.care_measures import (
    composition_error,
    gamma,
    has_enough_rows,
    is_collapsed,
    least_squares_error,
    nearest_rotation,
    rotation_error,
    shuffled,
    shuffled_displacements,
    unit_rows,
    wahba,
)


def points(count: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_rotation(dim: int, seed: int) -> Tensor:
    orthogonal, _ = torch.linalg.qr(points(dim, dim, seed))
    orthogonal[:, 0] *= torch.det(orthogonal).sign()
    return orthogonal


def numpy_gamma(features: np.ndarray, augmented: np.ndarray) -> float:
    """The definition, over all pairs of different images."""
    f = features / np.linalg.norm(features, axis=1, keepdims=True)
    a = augmented / np.linalg.norm(augmented, axis=1, keepdims=True)
    values = []
    for i in range(len(f)):
        for j in range(len(f)):
            if i != j:
                change = np.sum((a[j] - a[i]) ** 2) - np.sum((f[j] - f[i]) ** 2)
                values.append(change**2 / (np.sum((a[j] - f[j]) ** 2) + np.sum((a[i] - f[i]) ** 2)) ** 2)
    return float(np.mean(values))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_a_fixed_rotation_is_found(dim: int, dtype: torch.dtype, tolerance: float):
    features, rotation = points(200, dim, dtype=dtype), random_rotation(dim, seed=1)
    target = features @ rotation.T.to(dtype)
    found, error = wahba(features, target)
    assert error < tolerance
    torch.testing.assert_close(found, rotation, atol=10 * tolerance, rtol=0)
    assert gamma(features, target).value < 10 * tolerance
    assert gamma(features, target).share_left_out == 0


def test_the_rotation_is_scipys_in_three_dimensions():
    source, target = unit_rows(points(50, 3, 0)), unit_rows(points(50, 3, 1))
    expected, root_sum = Rotation.align_vectors(target.numpy(), source.numpy())
    found, error = wahba(source, target)
    np.testing.assert_allclose(found.numpy(), expected.as_matrix(), atol=1e-10)
    assert error == pytest.approx(root_sum / np.sqrt(50), rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_a_proper_rotation_and_no_other_one_is_better(seed: int):
    source, target = points(64, 5, seed), points(64, 5, seed + 10)
    found, error = wahba(source, target)
    torch.testing.assert_close(found @ found.T, torch.eye(5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.det(found).item() == pytest.approx(1)
    for step in range(20):
        skew = 0.1 * points(5, 5, step)
        nearby = torch.matrix_exp(skew - skew.T) @ found
        assert rotation_error(nearby, source, target) >= error


def test_a_reflection_is_not_matched():
    features = points(100, 4)
    mirrored = features * torch.tensor([1.0, 1, 1, -1])
    found, error = wahba(features, mirrored)
    assert torch.det(found).item() == pytest.approx(1)
    assert error > 0.1
    assert gamma(features, mirrored).value < 1e-20, "distances are kept by reflections, too"


@pytest.mark.parametrize(("num_rows", "expected"), [(64, 0.50), (128, 0.71), (512, 1.08), (2048, 1.26)])
def test_unrelated_points_seem_to_fit_when_they_are_few(num_rows: int, expected: float):
    source, target = points(num_rows, 128, 0), points(num_rows, 128, 1)
    error = rotation_error(nearest_rotation(source, target), source, target)
    assert error == pytest.approx(expected, abs=0.03)


def test_four_rows_per_dimension_are_enough():
    assert has_enough_rows(512, 128) and not has_enough_rows(511, 128)


def test_shuffling_gives_the_value_of_unrelated_points():
    features = points(2048, 128)
    target = features @ random_rotation(128, 1).T
    assert wahba(features, target)[1] < 1e-6
    assert wahba(features, shuffled(target))[1] == pytest.approx(1.26, abs=0.03)


def test_shuffling_is_seeded_and_leaves_no_row_in_its_place():
    for count in (2, 3, 50):
        rows = torch.arange(count, dtype=torch.float64)[:, None]
        other = shuffled(rows, seed=3)
        assert torch.equal(other, shuffled(rows, seed=3))
        assert sorted(other[:, 0].tolist()) == rows[:, 0].tolist()
        assert (other != rows).all()
    assert not torch.equal(shuffled(rows, seed=3), shuffled(rows, seed=4))


def test_gamma_equals_its_definition():
    features, augmented = points(9, 4, 0), points(9, 4, 1)
    estimate = gamma(features, augmented, partners=4)  # 4 partners each of 9 images are all pairs
    assert estimate.value == pytest.approx(numpy_gamma(features.numpy(), augmented.numpy()), rel=1e-12)
    assert estimate.share_left_out == 0


def test_gammas_pairs_are_seeded_and_stand_for_all_of_them():
    features, augmented = points(300, 16, 0), points(300, 16, 1)
    expected = numpy_gamma(features.numpy(), augmented.numpy())
    assert gamma(features, augmented, seed=0).value == gamma(features, augmented, seed=0).value
    assert gamma(features, augmented, seed=0).value != gamma(features, augmented, seed=1).value
    assert gamma(features, augmented).value == pytest.approx(expected, rel=0.1)


def test_images_that_do_not_move_are_left_out_and_counted():
    features = points(9, 4)
    augmented = features.clone()
    augmented[:3] = points(3, 4, 1)
    estimate = gamma(features, augmented, partners=4)
    assert estimate.share_left_out == pytest.approx(15 / 36)  # pairs among the 6 that stay
    assert estimate.value is not None and np.isfinite(estimate.value)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_invariant_features_have_no_gamma_and_fit_perfectly(noise: float):
    features = unit_rows(points(100, 4))
    augmented = features + noise * points(100, 4, 1)
    estimate = gamma(features, augmented)
    assert estimate.value is None and estimate.share_left_out == 1
    assert wahba(features, augmented)[1] < 1e-6


def test_shuffled_displacements_are_the_value_without_relation():
    features = unit_rows(points(1000, 32))
    turned = features @ torch.matrix_exp(0.02 * (points(32, 32, 1) - points(32, 32, 1).T)).T
    noisy = unit_rows(features + 0.1 * points(1000, 32, 2))
    null_of_turned = gamma(features, shuffled_displacements(features, turned)).value
    null_of_noisy = gamma(features, shuffled_displacements(features, noisy)).value
    assert gamma(features, turned).value < 1e-12 < 0.01 < null_of_turned
    assert gamma(features, noisy).value == pytest.approx(null_of_noisy, rel=0.25)


def test_shuffled_displacements_have_length_one():
    moved = shuffled_displacements(points(20, 6, 0), points(20, 6, 1))
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("row", [torch.ones(4), torch.zeros(4)])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_constant_features_are_flagged(row: Tensor, noise: float):
    constant = row.expand(50, 4) * (1 + noise * torch.randn(50, 1))
    assert is_collapsed(constant)
    assert not is_collapsed(points(50, 4))


def test_scale_plays_no_part():
    features, augmented = points(100, 6, 0), points(100, 6, 1)
    lengths = torch.rand(100, 1, dtype=torch.float64) + 0.1
    scaled = wahba(1000 * features, lengths * augmented)
    torch.testing.assert_close(scaled[0], wahba(features, augmented)[0])
    assert scaled[1] == pytest.approx(wahba(features, augmented)[1])
    assert gamma(1000 * features, lengths * augmented).value == pytest.approx(gamma(features, augmented).value)


def test_composition_error_of_a_representation_and_of_unrelated_rotations():
    first, second = random_rotation(64, 1), random_rotation(64, 2)
    assert composition_error(first, second, second @ first) < 1e-12
    assert composition_error(first, second, random_rotation(64, 3)) == pytest.approx(1, abs=0.05)
    assert composition_error(first, second, first @ second) == pytest.approx(1, abs=0.05), "the order counts"
    assert composition_error(first, second, -second @ first) == pytest.approx(2**0.5)


@pytest.mark.parametrize("basis", [torch.eye(10, dtype=torch.float64)[:, :6], random_rotation(10, 3)[:, :6]])
def test_unused_dimensions_are_not_turned(basis: Tensor):
    """Dead columns, or features in a subspace: what the rotation does elsewhere is not left to chance."""
    first, second = random_rotation(6, 1), random_rotation(6, 2)
    features, unused = points(500, 6), torch.eye(10, dtype=torch.float64) - basis @ basis.T
    rotations = []
    for turned in (first, second, second @ first):
        rotation, error = wahba((features @ basis.T).float(), (features @ turned.T @ basis.T).float())
        torch.testing.assert_close(rotation @ unused, unused, atol=1e-3, rtol=0)
        assert error < 1e-5
        rotations.append(rotation)
    assert composition_error(*rotations) < 1e-3


def test_fitted_rotations_compose():
    features = points(500, 12, dtype=torch.float32)
    first, second = random_rotation(12, 1).float(), random_rotation(12, 2).float()
    targets = (features @ first.T, features @ second.T, features @ first.T @ second.T)
    error = composition_error(*(wahba(features, target)[0] for target in targets))
    assert error < 1e-5


def test_least_squares_finds_any_linear_map_and_nothing_between_unrelated_features():
    features = unit_rows(points(400, 8))
    stretched = features * torch.linspace(1, 3, 8)  # no rotation, and not quite linear at length 1 again
    assert least_squares_error(features, features @ random_rotation(8, 1).T) < 1e-9
    assert least_squares_error(features, -features) < 1e-9, "nor need it keep orientation"
    assert least_squares_error(features, stretched) < wahba(features, stretched)[1]
    # Unrelated rows of length 1 and mean 0: the map can only lose by its d / n of noise.
    unrelated = least_squares_error(features, points(400, 8, seed=5))
    assert unrelated == pytest.approx((1 + 8 / 320) ** 0.5, abs=0.02)


def test_least_squares_is_cross_validated_as_by_numpy():
    source, target = points(60, 4), points(60, 4, seed=2) + points(60, 4)
    unit_source, unit_target = unit_rows(source).numpy(), unit_rows(target).numpy()
    order = np.random.default_rng([7, 2]).permutation(60)
    residuals = []
    for fold in np.array_split(order, 5):
        others = np.setdiff1d(order, fold)
        linear_map = np.linalg.lstsq(unit_source[others], unit_target[others], rcond=None)[0]
        residuals.append(((unit_source[fold] @ linear_map - unit_target[fold]) ** 2).sum(axis=1))
    expected = np.sqrt(np.concatenate(residuals).mean())
    assert least_squares_error(source, target, seed=7) == pytest.approx(expected, rel=1e-9)
