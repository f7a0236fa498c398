"""Barlow Twins' loss against an independent NumPy computation of equations 1 and 2, and against lightly."""

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn

from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig, cross_correlation_terms, standardise


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def numpy_terms(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Equations 1 and 2, with batch norm's 1e-5 beside the variance."""
    dims = first.shape[1]
    correlation = np.zeros((dims, dims))
    for i in range(dims):
        for j in range(dims):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            correlation[i, j] = np.mean(a * b) / np.sqrt((np.mean(a**2) + 1e-5) * (np.mean(b**2) + 1e-5))
    on_diagonal = sum((1 - correlation[i, i]) ** 2 for i in range(dims))
    off_diagonal = sum(correlation[i, j] ** 2 for i in range(dims) for j in range(dims) if i != j)
    return float(on_diagonal), float(off_diagonal)


@pytest.mark.parametrize(("samples", "dims"), [(2, 3), (16, 8), (5, 20)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_terms_equal_numpy(samples: int, dims: int, dtype: torch.dtype, tolerance: float):
    rng = np.random.default_rng(samples)
    first = rng.normal(size=(samples, dims)) @ rng.normal(size=(dims, dims)) + 3
    second = first + rng.normal(size=(samples, dims))
    found = cross_correlation_terms(torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype))
    assert [term.item() for term in found] == pytest.approx(numpy_terms(first, second), rel=tolerance)


@pytest.mark.parametrize("separate_batch_norm", [False, True])
def test_loss_equals_numpy_and_lightly(separate_batch_norm: bool):
    torch.manual_seed(0)
    config = BarlowTwinsConfig(0.01, (24, 8), separate_batch_norm)
    output = BarlowTwins(PixelEncoder(), config)(torch.randn(16, 2, 3, 2, 2))
    first, second = output.embeddings.detach().unbind(1)
    on_diagonal, off_diagonal = numpy_terms(first.double().numpy(), second.double().numpy())
    assert output.terms["on_diagonal"].item() == pytest.approx(on_diagonal, rel=1e-5)
    assert output.terms["off_diagonal"].item() == pytest.approx(off_diagonal, rel=1e-5)
    assert output.loss.item() == pytest.approx(on_diagonal + 0.01 * off_diagonal, rel=1e-5)
    assert output.loss.item() == pytest.approx(BarlowTwinsLoss(lambda_param=0.01)(first, second).item(), rel=1e-5)


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


def test_collapsed_embeddings_cost_one_a_dimension_and_have_finite_gradients():
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
