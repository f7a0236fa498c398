"""Rotations and pose errors read from capsule poses, against poses that are known to follow the objects."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.capsules import probe_capsule_poses, rotation_between
from ssl_equi.evaluation.protocol import ProbeProtocol
from tests.fakes import feature_cache

NUM_OBJECTS, NUM_VIEWS, NUM_CAPSULES = 6, 5, 4
PROTOCOL = ProbeProtocol(evaluation_pairs_per_object=4, evaluation_least_pairs=0)


def latents_and_rotations(generator: np.random.Generator) -> tuple[np.ndarray, Rotation]:
    latents = generator.uniform(-0.5, 0.5, (NUM_OBJECTS * NUM_VIEWS, 10))
    latents[:, :3] *= np.pi
    return latents, Rotation.from_euler("xyz", latents[:, :3])


def pose_matrices(latents: np.ndarray, rotations: Rotation, kind: str) -> np.ndarray:
    """R, R T or T R of each view, from 4 x 4 products."""
    if kind == "rotation":
        return rotations.as_matrix()
    r, t = (np.tile(np.eye(4), (len(latents), 1, 1)) for _ in range(2))
    r[:, :3, :3], t[:, :3, 3] = rotations.as_matrix(), latents[:, 7:]
    return r @ t if kind == "pose_base" else t @ r


def cache_of(poses: np.ndarray, latents: np.ndarray, rotations: Rotation) -> FeatureCache:
    """A split whose capsule network answered with these poses [views, K, d, d]."""
    activations = np.full((len(poses), NUM_CAPSULES), 1 / NUM_CAPSULES)
    features = np.concatenate([activations, poses.reshape(len(poses), -1)], axis=1)

    def per_object(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().unflatten(0, (NUM_OBJECTS, NUM_VIEWS))

    quats = rotations.as_quat()
    quats *= np.where(quats[:, 3:] < 0, -1, 1)
    return feature_cache(per_object(features), torch.zeros(NUM_OBJECTS).long(), per_object(latents), per_object(quats))


@pytest.mark.parametrize("kind", ["rotation", "pose_base", "pose_object"])
def test_poses_that_follow_the_action_tell_the_rotation_exactly(kind: str) -> None:
    generator = np.random.default_rng(0)
    latents, rotations = latents_and_rotations(generator)
    matrices = pose_matrices(latents, rotations, kind)
    side = matrices.shape[-1]
    a = generator.normal(size=(NUM_OBJECTS, 1, NUM_CAPSULES, side, side)).repeat(NUM_VIEWS, axis=1)
    scales = generator.uniform(0.5, 2, (len(latents), NUM_CAPSULES, 1, 1))
    poses = scales * (a.reshape(-1, NUM_CAPSULES, side, side) @ matrices[:, None])
    answers = probe_capsule_poses(cache_of(poses, latents, rotations), NUM_CAPSULES, side, [kind], PROTOCOL)
    rotation, equivariance = answers["capsule_rotation"], answers["capsule_equivariance"]
    assert rotation.num_samples == equivariance.num_samples == 4 * NUM_OBJECTS
    assert rotation.metrics["angle_deg_p90"] < 0.1
    assert rotation.baselines["angle_deg_median"].value > 30
    assert equivariance.metrics["pose_error"] < 1e-9
    assert equivariance.baselines["pose_error"].value > 0.1


def test_poses_multiplied_from_the_left_do_not_follow() -> None:
    generator = np.random.default_rng(1)
    latents, rotations = latents_and_rotations(generator)
    poses = rotations.as_matrix()[:, None] @ generator.normal(size=(1, NUM_CAPSULES, 3, 3))
    answers = probe_capsule_poses(cache_of(poses, latents, rotations), NUM_CAPSULES, 3, ["rotation"], PROTOCOL)
    assert answers["capsule_equivariance"].metrics["pose_error"] > 0.1
    assert answers["capsule_rotation"].metrics["angle_deg_median"] > 20


def test_the_rotation_equals_scipys_and_is_never_a_reflection() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(2, 20, NUM_CAPSULES, 3, 3))
    found = rotation_between(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(np.linalg.det(found), 1)
    for index in range(20):
        rows = [
            (poses[index] / np.linalg.norm(poses[index], axis=(1, 2), keepdims=True)).reshape(-1, 3)
            for poses in (first, second)
        ]
        # SciPy's rotation turns column vectors: rows v R are the columns R^T v.
        expected, _ = Rotation.align_vectors(rows[1], rows[0])
        np.testing.assert_allclose(found[index], expected.as_matrix().T, atol=1e-6)


def test_a_split_without_poses_is_refused() -> None:
    cache = feature_cache(torch.zeros(2, 3, 40), torch.zeros(2).long(), torch.zeros(2, 3, 0), None)
    with pytest.raises(UserError, match="none are known of these views"):
        probe_capsule_poses(cache, NUM_CAPSULES, 3, ["rotation"], PROTOCOL)
