"""Compiled and exported encoders are the same functions, and keep the symmetry."""

from collections.abc import Iterator

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import nn

from tests.encoders.symmetric_encoders import (
    ARCHITECTURES,
    CASES,
    TOLERANCES,
    Case,
    errors_by_element,
    relative_error,
    train_two_steps,
)


def trained(label: str) -> tuple[Case, nn.Module]:
    case = CASES[label]
    subject = case.subject()
    train_two_steps(subject, case.images(4))
    return case, subject


def parameters_of_cases() -> Iterator[ParameterSet]:
    """The architectures; those that are made of the layers of others take their time in the slow tests."""
    others = ("octic_vit_small_patch16_224", "hybrid_octic_vit_small_patch16_224")
    for label in ARCHITECTURES:
        yield pytest.param(label, marks=[pytest.mark.slow] if label in others else [])


@torch.no_grad()
@pytest.mark.parametrize("label", parameters_of_cases())
def test_compiled_as_one_graph(label: str) -> None:
    case, subject = trained(label)
    torch.compiler.reset()
    compiled = torch.compile(subject, backend="aot_eager", fullgraph=True)
    errors = errors_by_element(case, compiled, subject.double().act_on_features, case.images().double())
    assert max(errors.values()) < TOLERANCES["float64"], errors
    images = case.images(2 * len(case.elements)).double()
    assert relative_error(compiled(images), subject(images)) < TOLERANCES["float64"]


@torch.no_grad()
@pytest.mark.parametrize("label", parameters_of_cases())
def test_exported_for_any_number_of_images(label: str) -> None:
    case, subject = trained(label)
    images = case.images(4)
    number = torch.export.Dim("n", min=2, max=2048)
    exported = torch.export.export(subject, (images,), dynamic_shapes=({0: number},)).module()
    for count in (2, 4):
        errors = errors_by_element(case, exported, subject.act_on_features, images[:count])
        assert max(errors.values()) < TOLERANCES["float32"], errors
        assert relative_error(exported(images[:count]), subject(images[:count])) < TOLERANCES["float32"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("label", ARCHITECTURES)
def test_trained_and_used_as_compiled_code(label: str) -> None:
    case = CASES[label]
    subject = case.subject()
    torch.compiler.reset()
    compiled = torch.compile(subject)
    train_two_steps(compiled, case.images(4))
    with torch.no_grad():
        assert relative_error(compiled(case.images()), subject(case.images())) < TOLERANCES["float32"]
    for precision in ("float32", "bfloat16"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            errors = errors_by_element(case, compiled, subject.act_on_features, case.images())
        assert max(errors.values()) < TOLERANCES[precision], (precision, errors)
