"""The collapse monitor at both ends and against NumPy."""

import numpy as np
import pytest
import torch

from ssl_equi.objectives.parts.batch import normalised_std


def test_equals_numpy():
    z = np.random.default_rng(0).normal(size=(10, 2, 6)) + 1
    directions = z / np.linalg.norm(z, axis=2, keepdims=True)
    expected = directions.std(axis=0).mean() * np.sqrt(6)
    assert normalised_std(torch.tensor(z)).item() == pytest.approx(expected, rel=1e-12)


def test_embeddings_that_point_the_same_way_give_0_whatever_their_length():
    lengths = torch.rand(8, 2, 1, dtype=torch.float64) + 0.1
    assert normalised_std(lengths * torch.ones(5, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)


def test_directions_all_over_the_sphere_give_1_and_opposite_ones_along_the_diagonal_exactly_1():
    torch.manual_seed(0)
    assert normalised_std(torch.randn(2000, 2, 64)).item() == pytest.approx(1, abs=0.01)
    diagonal = torch.ones(4, 2, 16)
    assert normalised_std(torch.cat([diagonal, -diagonal])).item() == pytest.approx(1, rel=1e-6)


def test_half_precision_and_gradients():
    z = torch.randn(8, 2, 4, requires_grad=True)
    monitor = normalised_std(z.bfloat16())
    assert monitor.dtype == torch.float32
    assert not monitor.requires_grad
