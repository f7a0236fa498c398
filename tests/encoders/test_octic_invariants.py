"""Invariants of octic features: none changes under any element, and how much of the features each of them keeps."""

import math

import pytest
import torch
from torch import Tensor

from ssl_equi.encoders.octic.features import act_on_components
from ssl_equi.encoders.octic.invariants import INVARIANTS, MaxFiltering, PolynomialInvariants, make_invariants
from ssl_equi.encoders.square.symmetries import ELEMENTS
from tests.encoders.symmetric_encoders import relative_error

DIM = 32
COLUMNS = {
    "linear": 4, "power_spectrum": 24, "third_order": 60, "polynomial": 128, "max_filtering": 32, "canonisation": 32,
    "none": 32,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", INVARIANTS)
def test_no_element_changes_them(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module, columns = make_invariants(name, DIM)
    module = module.to(dtype)
    assert columns == COLUMNS[name]
    for features in (torch.randn(6, DIM, dtype=dtype), torch.randn(2, 5, DIM, dtype=dtype)):
        expected = module(features)
        assert expected.shape == (*features.shape[:-1], columns)
        for g in range(1, ELEMENTS):
            error = relative_error(module(act_on_components(g, features)), expected)
            assert error < tolerance if name != "none" else error > 0.1
        assert relative_error(module(features.flip(-1)), expected) > 0.1


@pytest.mark.parametrize("name", INVARIANTS)
def test_their_gradients_are_finite_also_at_zero_and_in_bfloat16(name: str) -> None:
    module, _ = make_invariants(name, DIM)
    for features in (torch.zeros(2, DIM, requires_grad=True), torch.randn(2, DIM, requires_grad=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(features)
        out.float().sum().backward()
        assert features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize(("name", "told_apart"), [("power_spectrum", False), ("third_order", True)])
def test_which_of_them_see_how_representations_are_oriented_to_each_other(name: str, told_apart: bool) -> None:
    """Two features that differ by more than a symmetry, only in how B1 is oriented to E."""
    torch.manual_seed(0)
    first = torch.randn(1, 8, dtype=torch.float64)
    second = first * torch.tensor([1, 1, -1, 1, 1, 1, 1, 1])
    module = make_invariants(name, 8)[0].double()
    assert (relative_error(module(second), module(first)) > 0.01) == told_apart


def invariant_polynomials(degree: int) -> int:
    """How many there are of the regular representation, by Molien's formula: the mean trace on monomials."""
    total = 0.0
    vectors = torch.eye(8, dtype=torch.float64)
    for g in range(ELEMENTS):
        eigenvalues = torch.linalg.eigvals(act_on_components(g, vectors))
        series = torch.zeros(degree + 1, dtype=torch.complex128)
        series[0] = 1
        for eigenvalue in eigenvalues:
            for power in range(1, degree + 1):
                series[power] = series[power] + eigenvalue * series[power - 1]
        total += float(series[degree].real)
    return round(total / ELEMENTS)


def generator_degrees(module: PolynomialInvariants) -> list[int]:
    """Of each polynomial, from what doubling the features multiplies it by."""
    features = torch.randn(1, 8, dtype=torch.float64)
    return [round(math.log2(ratio)) for ratio in (module(2 * features) / module(features))[0].tolist()]


def orthonormal_basis(columns: list[Tensor]) -> Tensor:
    """[P, rank], of what columns [P, ...] span."""
    normalised = torch.nn.functional.normalize(torch.cat(columns, dim=1), dim=0)
    values, vectors = torch.linalg.eigh(normalised @ normalised.T)
    return vectors[:, values > 1e-9 * values.max()]


@pytest.mark.parametrize(("degree", "up_to"), [(3, 3), (5, ELEMENTS)])
def test_the_polynomials_generate_all_invariant_ones_and_fewer_would_not_do(degree: int, up_to: int) -> None:
    """Up to the order of the group: those of higher degree are products of them (Noether's bound).

    Polynomials are known by their values at random points, and those of a degree are generators times invariant ones of
    lower degree. Without one of its generators, a degree has too few.
    """
    torch.manual_seed(0)
    module = PolynomialInvariants(8, degree)
    degrees = generator_degrees(module)
    assert [degrees.count(d) for d in range(1, degree + 1)] == [1, 6, 8, 12, 5][:degree]
    points = torch.nn.functional.normalize(torch.randn(900, 8, dtype=torch.float64))
    generators = torch.nn.functional.normalize(module(points), dim=0)
    bases = [torch.ones(len(points), 1, dtype=torch.float64)]
    for d in range(1, up_to + 1):
        products = [generators[:, k : k + 1] * bases[d - e] for k, e in enumerate(degrees) if e < d]
        new = generators[:, [e == d for e in degrees]]
        bases.append(orthonormal_basis([*products, new]))
        assert bases[d].shape[1] == invariant_polynomials(d) < len(points)
        if 1 < d <= degree:
            assert orthonormal_basis(products).shape[1] == invariant_polynomials(d) - new.shape[1]


def test_max_filtering_is_the_best_match_in_any_orientation() -> None:
    torch.manual_seed(0)
    module = MaxFiltering(16, 5).double()
    features = torch.randn(7, 16, dtype=torch.float64)
    # The templates as vectors: the response in orientation 0 is linear in the features.
    weights = module.templates.weight_ones, module.templates.weight_twos
    ones = weights[0].permute(1, 0, 2).reshape(5, 8) * 8**-0.5
    twos = torch.cat([weights[1][:5], weights[1][5:]], dim=1) * 0.5
    templates = torch.cat([ones, twos], dim=1)
    matches = torch.stack([features @ act_on_components(g, templates).T for g in range(ELEMENTS)])
    assert torch.allclose(module(features), matches.amax(dim=0), atol=1e-12)


def test_canonisation_gives_the_features_in_one_of_their_orientations() -> None:
    torch.manual_seed(0)
    module = make_invariants("canonisation", DIM)[0].double()
    features = torch.randn(20, DIM, dtype=torch.float64)
    canonical = module(features)
    copies = torch.stack([act_on_components(g, features) for g in range(ELEMENTS)])
    assert (copies == canonical).all(dim=-1).any(dim=0).all()
    assert torch.equal(canonical @ module.reference, (copies @ module.reference).amax(dim=0))
    assert not list(module.parameters()) and "reference" in module.state_dict()


def test_what_cannot_be_made_is_named() -> None:
    with pytest.raises(ValueError, match="no invariants 'cubic': choose one of linear, power_spectrum, third_order"):
        make_invariants("cubic", DIM)
    with pytest.raises(ValueError, match="degree is 4: choose 3"):
        PolynomialInvariants(DIM, 4)
    for name in INVARIANTS:
        with pytest.raises(ValueError, match="is 20: octic features need a multiple of 8, use 16"):
            make_invariants(name, 20)
