"""Grids over SO(3): equal volumes by the means of Wigner matrices, even neighbours, and the volume of a ball."""

import math

import pytest
import torch

from ssl_equi.geometry.rotation_grids import even_rotations, volume_share_within
from ssl_equi.geometry.rotations import quat_to_matrix, random_quat, rotation_angle


@pytest.mark.parametrize("count", [2000, 10_000, 40_000])
def test_means_of_wigner_matrices_vanish(count: int) -> None:
    """That of degree 1 is the matrix; that of degree 2 is in R_ia R_jb, whose mean is delta_ij delta_ab / 3."""
    matrices = quat_to_matrix(even_rotations(count))
    assert matrices.mean(dim=0).abs().max() < 1e-3
    products = torch.einsum("nia,njb->ijab", matrices, matrices) / count
    identity = torch.eye(3, dtype=torch.float64)
    assert (products - torch.einsum("ij,ab->ijab", identity, identity) / 3).abs().max() < 1e-3


def angles_deg(dot_products: torch.Tensor) -> torch.Tensor:
    """Of the rotations between unit quaternions that have these products."""
    return torch.rad2deg(2 * dot_products.clamp(max=1).arccos())


def test_neighbours_are_evenly_apart_and_gaps_are_small() -> None:
    """A ball around each of 2,000 rotations that holds a 2,000th of the volume has a radius of 12.2 degrees."""
    grid = even_rotations(2000)
    assert torch.allclose(grid.norm(dim=1), torch.ones(2000, dtype=torch.float64), atol=1e-12)
    nearest = angles_deg((grid @ grid.T).fill_diagonal_(0).abs().amax(dim=1))
    assert nearest.min() > 13 and nearest.max() < 18.6
    anywhere = random_quat(500, torch.Generator().manual_seed(0))
    gaps = angles_deg((anywhere @ grid.T).abs().amax(dim=1))
    assert gaps.mean() < 10 and gaps.max() < 18.5


def test_the_share_within_an_angle_is_that_of_random_rotations() -> None:
    angles = rotation_angle(random_quat(200_000, torch.Generator().manual_seed(0)))
    for degrees in (15, 30, 90, 150):
        share = (angles <= math.radians(degrees)).double().mean()
        assert volume_share_within(math.radians(degrees)) == pytest.approx(float(share), abs=3e-3)
    assert volume_share_within(math.pi) == pytest.approx(1)
    assert even_rotations(50, torch.float32).dtype == torch.float32
