"""The asymmetry score: symmetric solids score zero, the object families do not."""

import numpy as np
import pytest
import torch

from ssl_equi.scenes.families import FAMILIES, build_object
from ssl_equi.scenes.mesh import Mesh, MeshBuilder
from ssl_equi.scenes.primitives import box, cylinder, ellipsoid
from ssl_equi.scenes.symmetry import SAFE_SCORE, asymmetry_score, candidate_symmetries

GREY, BROWN = (0.4, 0.4, 0.4), (0.3, 0.15, 0.1)


def square_table() -> list:
    legs = [cylinder((x, y, 0), (x, y, 1), 0.06, sides=12) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]
    return [box((1.2, 1.2, 0.1), (0, 0, 1)), *legs]


SYMMETRIC = {
    "sphere": [ellipsoid(1.0, sides=24, stacks=16)],
    "cylinder": [cylinder((0, 0, 0), (0, 0, 1.5), 0.4, sides=24)],
    "cube": [box((1, 1, 1))],
    "square table": square_table(),
}


def painted(parts) -> Mesh:
    builder = MeshBuilder()
    for index, part in enumerate(parts):
        builder.add(part, BROWN if index else GREY)
    return builder.build()


def test_candidates_are_28_different_rotations_of_their_order():
    symmetries = candidate_symmetries()
    matrices = torch.stack(list(symmetries.values()))
    assert matrices.shape == (28, 3, 3)
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(matrices @ matrices.mT, identity.expand(28, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(28, dtype=torch.float64))
    for name, matrix in symmetries.items():
        fold = int(name[1])
        assert torch.allclose(torch.linalg.matrix_power(matrix, fold), identity, atol=1e-12)
        assert not torch.allclose(matrix, identity)
    distances = torch.cdist(matrices.reshape(28, 9), matrices.reshape(28, 9)) + 10 * torch.eye(28)
    assert distances.min() > 0.1


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_solids_score_zero(name):
    score = asymmetry_score([painted(SYMMETRIC[name])], poses=3, resolution=32)
    assert score.score < 0.05


def test_the_nearest_symmetry_is_named():
    rod = painted([box((0.3, 0.3, 1.0)), ellipsoid(0.3, (0, 0, 0.6))])
    score = asymmetry_score([rod], poses=3, resolution=32)
    assert score.score < 0.05
    assert score.symmetry in ("C2z", "C4z")


@pytest.mark.parametrize("family", ["chair", "dog", "teapot", "satellite"])
def test_default_families_are_safe(family):
    score = asymmetry_score([build_object(family, seed) for seed in range(2)], poses=4, resolution=32)
    assert score.score >= SAFE_SCORE
    assert 0 < score.worst_instance <= score.score < 1.5


def test_the_score_depends_on_the_seed_of_the_poses_only():
    meshes = [build_object("mug", 0)]
    first, again = (asymmetry_score(meshes, poses=2, resolution=24, seed=1) for _ in range(2))
    assert first == again
    assert first != asymmetry_score(meshes, poses=2, resolution=24, seed=2)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no meshes"):
        asymmetry_score([])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_safe(family):
    score = asymmetry_score([build_object(family, seed) for seed in range(3)])
    assert score.score >= SAFE_SCORE, f"{family} is nearly symmetric under {score.symmetry}"
    assert np.isfinite(score.worst_instance)
