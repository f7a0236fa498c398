"""Distributions of the sampled latents."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_RANGES
from ssl_equi.scenes.sampling import sample_latents


def sample(count: int = 4000, seed: int = 0, **options: object) -> np.ndarray:
    return sample_latents(count, np.random.default_rng(seed), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("translation", [0.0, 0.2, 0.5])
def test_euler_box_latents_are_uniform_in_their_ranges(translation: float) -> None:
    latents = sample(translation=translation)
    assert latents.shape == (4000, 10 if translation else 7) and latents.dtype == np.float64
    for name, values in zip(LATENT_NAMES, latents.T):
        low, high = (-translation, translation) if name.startswith("translation") else LATENT_RANGES[name]
        assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3, name


@pytest.mark.parametrize("rotation", ["euler_box", "uniform", "outside_box"])
def test_the_rotation_mode_leaves_the_other_latents_uniform(rotation: str) -> None:
    latents = sample(rotation=rotation, translation=0.5)
    for column in range(3, 10):
        low, high = LATENT_RANGES[LATENT_NAMES[column]]
        assert kstest(latents[:, column], "uniform", (low, high - low)).pvalue > 1e-3


def test_uniform_rotations_follow_the_haar_measure() -> None:
    rotations = Rotation.from_euler("xyz", sample(rotation="uniform")[:, :3])
    # the density of the rotation angle on SO(3) is (1 - cos a) / pi
    assert kstest(rotations.magnitude(), lambda a: (a - np.sin(a)) / math.pi).pvalue > 1e-3
    # every axis is carried to a point uniform on the sphere, whose z is uniform in [-1, 1]
    for axis in np.eye(3):
        assert kstest(rotations.apply(axis)[:, 2], "uniform", (-1, 2)).pvalue > 1e-3


def inside_box(latents: np.ndarray) -> np.ndarray:
    """Whether a pose has any Euler angles within the box: SciPy's have |y| <= pi/2 and are then the only ones."""
    canonical = Rotation.from_euler("xyz", latents[:, :3]).as_euler("xyz")
    return (np.abs(canonical) <= math.pi / 2 + 1e-9).all(axis=1)


def test_outside_box_poses_are_not_in_the_box_under_any_angles() -> None:
    latents = sample(rotation="outside_box")
    assert not inside_box(latents).any()
    assert (np.abs(latents[:, :3]).max(axis=1) > math.pi / 2).all()
    assert np.abs(latents[:, :3]).max() <= math.pi
    assert inside_box(sample(rotation="euler_box")).all()


def test_outside_box_poses_cover_all_regions_evenly() -> None:
    beyond = np.abs(sample(rotation="outside_box")[:, :3]) > math.pi / 2
    assert not beyond[:, 1].any()
    regions = [(beyond[:, 0] == x) & (beyond[:, 2] == z) for x, z in ((True, False), (False, True), (True, True))]
    assert all(abs(region.mean() - 1 / 3) < 0.03 for region in regions)


def test_three_angles_beyond_a_quarter_turn_are_a_pose_of_the_box() -> None:
    # why "outside_box" does not draw all three magnitudes in [pi/2, pi]
    generator = np.random.default_rng(1)
    magnitudes = generator.uniform(math.pi / 2, math.pi, size=(500, 3))
    assert inside_box(magnitudes * generator.choice([-1, 1], size=(500, 3))).all()


def test_the_generator_decides_the_sample() -> None:
    assert np.array_equal(sample(seed=5), sample(seed=5))
    assert not np.array_equal(sample(seed=5), sample(seed=6))


def test_empty_sample_and_wrong_arguments() -> None:
    assert sample(0, rotation="uniform", translation=0.5).shape == (0, 10)
    with pytest.raises(ValueError, match="count is -1"):
        sample(-1)
    with pytest.raises(ValueError, match=r"translation is -0\.1"):
        sample(translation=-0.1)
    with pytest.raises(ValueError, match=r"'box'.*euler_box, uniform, outside_box"):
        sample(rotation="box")
