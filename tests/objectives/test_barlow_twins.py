"""Barlow Twins against its formulas and against lightly, and its terms on known embeddings."""

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import nn

from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig, cross_correlation_terms, standardise
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.invariant import barlow_twins
from tests.references.table import APART, JOINT, TWO_LAYERS, reference


def numpy_terms(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Equations 1 and 2, with batch norm's 1e-5 beside the variance."""
    first, second = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (first, second))
    correlation = first.T @ second / len(first)
    diagonal = np.diag(correlation)
    return float(((1 - diagonal) ** 2).sum()), float((correlation**2).sum() - (diagonal**2).sum())


@pytest.mark.parametrize("separate", [False, True])
def test_it_agrees_with_the_formulas(separate: bool):
    objective = BarlowTwins(SmallEncoder(), BarlowTwinsConfig(0.01, (24, 8), separate))
    weights, calls = {"on_diagonal": 1.0, "off_diagonal": 0.01}, APART if separate else JOINT
    assert not disagreements(objective, reference(barlow_twins, calls=calls, projector=TWO_LAYERS, weights=weights))


@pytest.mark.parametrize(("samples", "dims"), [(2, 3), (16, 8), (5, 20)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_terms_equal_numpy(samples: int, dims: int, dtype: torch.dtype, tolerance: float):
    rng = np.random.default_rng(samples)
    first = rng.normal(size=(samples, dims)) @ rng.normal(size=(dims, dims)) + 3
    second = first + rng.normal(size=(samples, dims))
    found = cross_correlation_terms(torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype))
    assert [term.item() for term in found] == pytest.approx(numpy_terms(first, second), rel=tolerance)


def test_its_loss_is_lightlys():
    output = BarlowTwins(PixelEncoder(), BarlowTwinsConfig(0.01, (24, 8)))(random_pairs(16)[0])
    expected = BarlowTwinsLoss(lambda_param=0.01)(*output.embeddings.unbind(1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_standardised_dimensions_have_mean_0_and_biased_variance_1():
    z = standardise(5 * torch.randn(7, 4, dtype=torch.float64) + 2)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(z.square().mean(0), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


def test_equal_decorrelated_views_have_loss_zero():
    """The columns of a Hadamard matrix have mean 0 and are orthogonal."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    views = torch.kron(torch.kron(pair, pair), pair)[:, 1:]
    on_diagonal, off_diagonal = cross_correlation_terms(views, views)
    assert on_diagonal.item() == pytest.approx(0, abs=1e-8)
    assert off_diagonal.item() == pytest.approx(0, abs=1e-8)


def test_collapsed_embeddings_cost_one_per_dimension_and_have_finite_gradients():
    z = torch.full((8, 5), 2.5, requires_grad=True)
    on_diagonal, off_diagonal = cross_correlation_terms(z, z)
    (on_diagonal + off_diagonal).backward()
    assert (on_diagonal.item(), off_diagonal.item()) == (5, 0)
    assert torch.isfinite(z.grad).all()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    views = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(cross_correlation_terms, views)


def test_projector_of_the_paper():
    with torch.device("meta"):
        head = BarlowTwins(PixelEncoder()).projector.layers
    assert [type(layer) for layer in head] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [8192, 8192, 8192]


@pytest.mark.parametrize("widths", [(), (0,), (24, -1)])
def test_impossible_projectors_are_refused(widths: tuple[int, ...]):
    with pytest.raises(ValueError, match="the head's widths are"):
        BarlowTwins(PixelEncoder(), BarlowTwinsConfig(projector=widths))
