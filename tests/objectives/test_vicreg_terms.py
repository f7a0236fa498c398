"""The VICReg terms against their formulas, recorded values and lightly."""

import numpy as np
import pytest
import torch
from lightly.loss import VICRegLoss

from ssl_equi.objectives.parts.vicreg_terms import (
    _spread_terms_at_once,
    covariance_term,
    invariance_term,
    spread_terms,
    std_per_dim,
    variance_term,
)
from tests.references.formulas import covariances, hinge, mean_squared_error


def wave(samples: int, dims: int, phase: float) -> torch.Tensor:
    """A fixed matrix without a random generator, so recorded values hold everywhere."""
    grid = torch.arange(samples * dims, dtype=torch.float64).reshape(samples, dims)
    return 0.8 * torch.sin(0.7 * grid + phase) + 0.3 * torch.cos(0.05 * grid**1.5)


@pytest.mark.parametrize(("samples", "dims"), [(2, 3), (16, 8), (5, 9), (5, 10), (5, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_equal_the_formulas(samples: int, dims: int, dtype: torch.dtype):
    rng = np.random.default_rng(samples)
    mixing = rng.normal(size=(dims, dims)) / np.sqrt(dims)
    first = rng.normal(size=(samples, dims)) @ mixing + 3
    second = rng.normal(size=(samples, dims)) * 0.4
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    exact = torch.tensor(first), torch.tensor(second)
    given = [tensor.to(dtype) for tensor in exact]
    for tensor, expected in zip(given, exact, strict=True):
        assert variance_term(tensor).item() == pytest.approx(hinge(expected).item(), rel=tolerance)
        assert covariance_term(tensor).item() == pytest.approx(covariances(expected).item(), rel=tolerance)
    assert invariance_term(*given).item() == pytest.approx(mean_squared_error(*exact).item(), rel=tolerance)
    of_both = spread_terms(torch.stack(given, dim=1))
    variance = sum(hinge(embedding) for embedding in exact) / 2
    assert of_both["variance"].item() == pytest.approx(variance.item(), rel=tolerance)
    covariance = sum(covariances(embedding) for embedding in exact)
    assert of_both["covariance"].item() == pytest.approx(covariance.item(), rel=tolerance)


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


@pytest.mark.parametrize("scaled", [False, True])
def test_what_a_gpu_computes_at_once_is_the_same_with_the_same_gradient(scaled: bool):
    pairs = torch.stack([wave(12, 5, 0.2), wave(12, 5, 1.3)], dim=1).double().mul(0.8).requires_grad_()
    std_targets = torch.tensor([0.5, 1.0, 0.7, 2.0, 0.3]).double() if scaled else None
    plain, at_once = (terms(pairs, std_targets) for terms in (spread_terms, _spread_terms_at_once))
    assert plain.keys() == at_once.keys() and plain["variance"] > 0
    for name in plain:
        torch.testing.assert_close(at_once[name], plain[name])
        gradients = [torch.autograd.grad(terms[name], pairs, retain_graph=True) for terms in (at_once, plain)]
        torch.testing.assert_close(*gradients)
