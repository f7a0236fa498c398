"""The VICReg terms against few-line NumPy formulas, recorded values and lightly."""

import numpy as np
import pytest
import torch
from lightly.loss import VICRegLoss

from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.vicreg_terms import (
    covariance_term,
    invariance_term,
    spread_terms,
    std_per_dim,
    variance_term,
)


def wave(samples: int, dims: int, phase: float) -> torch.Tensor:
    """A fixed matrix without a random generator, so recorded values hold everywhere."""
    grid = torch.arange(samples * dims, dtype=torch.float64).reshape(samples, dims)
    return 0.8 * torch.sin(0.7 * grid + phase) + 0.3 * torch.cos(0.05 * grid**1.5)


def numpy_variance(z: np.ndarray) -> float:
    return float(np.mean(np.maximum(0, 1 - np.sqrt(np.var(z, axis=0, ddof=1) + 1e-4))))


def numpy_covariance(z: np.ndarray) -> float:
    covariance = np.cov(z, rowvar=False)
    return float((np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)) / z.shape[1])


@pytest.mark.parametrize(("samples", "dims"), [(2, 3), (16, 8), (5, 9), (5, 10), (5, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_equal_numpy(samples: int, dims: int, dtype: torch.dtype):
    rng = np.random.default_rng(samples)
    mixing = rng.normal(size=(dims, dims)) / np.sqrt(dims)
    first = rng.normal(size=(samples, dims)) @ mixing + 3
    second = rng.normal(size=(samples, dims)) * 0.4
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    as_torch = torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)
    for array, tensor in zip((first, second), as_torch, strict=True):
        assert variance_term(tensor).item() == pytest.approx(numpy_variance(array), rel=tolerance)
        assert covariance_term(tensor).item() == pytest.approx(numpy_covariance(array), rel=tolerance)
    assert invariance_term(*as_torch).item() == pytest.approx(np.mean((first - second) ** 2), rel=tolerance)
    of_both = spread_terms(torch.stack(as_torch, dim=1))
    variance = (numpy_variance(first) + numpy_variance(second)) / 2
    assert of_both["variance"].item() == pytest.approx(variance, rel=tolerance)
    covariance = numpy_covariance(first) + numpy_covariance(second)
    assert of_both["covariance"].item() == pytest.approx(covariance, rel=tolerance)


def test_recorded_values():
    first, second = wave(6, 4, 0.0), wave(6, 4, 0.5)
    assert variance_term(first).item() == pytest.approx(0.328379251007, abs=1e-9)
    assert covariance_term(first).item() == pytest.approx(0.204060456554, abs=1e-9)
    assert invariance_term(first, second).item() == pytest.approx(0.081170877871, abs=1e-9)


def test_weighted_sum_equals_lightly_without_any_factor():
    first, second = wave(12, 7, 0.0).float(), wave(12, 7, 1.0).float()
    ours = (
        10 * invariance_term(first, second)
        + 10 * (variance_term(first) + variance_term(second)) / 2
        + covariance_term(first)
        + covariance_term(second)
    )
    reference = VICRegLoss(lambda_param=10, mu_param=10, nu_param=1)(first, second)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-6)


def test_collapsed_embeddings_have_variance_term_one_per_dimension_and_finite_gradients():
    z = torch.full((8, 5), 2.5, requires_grad=True)
    loss = variance_term(z) + covariance_term(z)
    loss.backward()
    assert variance_term(z).item() == pytest.approx(1 - 1e-4**0.5, rel=1e-6)
    assert std_per_dim(z).tolist() == pytest.approx([0.01] * 5)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dims", [2, 64])
def test_covariance_ignores_the_diagonal_even_when_it_is_huge(dims: int):
    z = torch.zeros(4, dims)
    z[:, 0] = torch.tensor([1e3, -1e3, 1e3, -1e3])
    assert covariance_term(z).item() == 0


def test_covariance_of_few_samples_has_the_gradient_of_the_matrix_beside_a_huge_dimension():
    z = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    z[:, 0] *= 300
    exact, few = z.double().requires_grad_(), z.clone().requires_grad_()
    covariance = torch.cov(exact.T)
    ((covariance - covariance.diag().diag()).square().sum() / 32).backward()
    covariance_term(few).backward()
    for column in range(32):
        assert torch.allclose(few.grad[:, column], exact.grad[:, column].float(), rtol=1e-4, atol=1e-4)


def test_full_precision_lifts_half_types_only():
    for dtype, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert full_precision(torch.zeros(2, dtype=dtype)).dtype == expected
