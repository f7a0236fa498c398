"""What answers that know nothing score on poses of the Euler box, in closed form and by the suite's functions.

Angles are uniform in [-pi/2, pi/2]. With c the mean of cos(a / 2) = 4 / pi sin(pi / 4), and C, S the means of
cos^2(a / 2) and sin^2(a / 2) = 1/2 +- 1/pi: a quaternion has mean (0, 0, 0, c^3) and second moments (SC, SC, SC,
1 - 3 SC) without covariances.
"""

import math

import pytest
import torch

from ssl_equi.evaluation.baselines import constant_rotation_baselines
from ssl_equi.evaluation.predictors.retrieval import (
    chance_hit_at_k,
    chance_mean_reciprocal_rank,
    chance_retrieval_error,
    prediction_retrieval_error,
)
from ssl_equi.geometry.rotations import quat_from_euler_xyz, relative_quat

MEAN_COSINE = 4 / math.pi * math.sin(math.pi / 4)
SQUARES = (0.5 + 1 / math.pi) * (0.5 - 1 / math.pi)  # SC
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def pairs_xyzw() -> torch.Tensor:
    """Quaternions [n, 2, 4] of pairs of views, which fill the box evenly."""
    uniform = torch.quasirandom.SobolEngine(6).draw(2**20, dtype=torch.float64)
    return quat_from_euler_xyz((uniform.view(-1, 2, 3) - 0.5) * math.pi)


def test_the_best_constant_rotation_scores_229_pooled_and_0_uniform(pairs_xyzw: torch.Tensor) -> None:
    """Relative quaternions have mean (0, 0, 0, c^6) and length 1, so one scalar mean takes c^12 / 4 away."""
    mean_square = MEAN_COSINE**12
    pooled = 1 - (1 - mean_square) / (1 - mean_square / 4)
    baselines, _ = constant_rotation_baselines(relative_quat(*pairs_xyzw.unbind(1)))
    assert pooled == pytest.approx(0.229, abs=TOLERANCE)
    assert baselines["r2_pooled"].value == pytest.approx(pooled, abs=TOLERANCE)
    assert baselines["r2_uniform"].value == pytest.approx(0, abs=1e-9)


def test_a_random_view_is_627_away(pairs_xyzw: torch.Tensor) -> None:
    """The mean of (q1 . q2)^2 is the sum of the squared second moments."""
    closed = 1 - (3 * SQUARES**2 + (1 - 3 * SQUARES) ** 2)
    assert closed == pytest.approx(0.627, abs=TOLERANCE)
    assert chance_retrieval_error(pairs_xyzw) == pytest.approx(closed, abs=TOLERANCE)
    poses = pairs_xyzw[:4096].flatten(0, 1)
    asked = poses.roll(1, dims=0)
    embeddings = torch.randn(len(poses), 8, generator=torch.Generator().manual_seed(0))
    predictions = torch.randn(len(poses), 8, generator=torch.Generator().manual_seed(1))
    found = prediction_retrieval_error(predictions, embeddings, asked, poses)
    assert float(found.mean()) == pytest.approx(closed, abs=0.02)  # few queries: their own spread is .27


def test_random_order_among_fifty_views() -> None:
    harmonic = math.fsum(1 / rank for rank in range(1, 51))
    assert chance_mean_reciprocal_rank(50) == pytest.approx(harmonic / 50, abs=1e-12)
    assert harmonic / 50 == pytest.approx(0.090, abs=TOLERANCE)
    assert chance_hit_at_k(1, 50) == 0.02
