"""Encoders that are compiled, or exported as graphs, are the same functions and keep the symmetry."""

import pytest
import torch

from tests.encoders.symmetric_encoders import (
    ARCHITECTURES,
    ARCHITECTURES_TO_COMPILE,
    CASES,
    TOLERANCES,
    errors_by_element,
    relative_error,
    train_two_steps,
    trained,
)


@torch.no_grad()
@pytest.mark.parametrize("label", ARCHITECTURES_TO_COMPILE)
def test_compiled_as_one_graph(label: str) -> None:
    case, subject = trained(label)
    torch.compiler.reset()
    compiled = torch.compile(subject, backend="aot_eager", fullgraph=True)
    errors = errors_by_element(case, compiled, subject.double().act_on_features, case.images().double())
    assert max(errors.values()) < TOLERANCES["float64"], errors
    images = case.images(2 * len(case.elements)).double()
    assert relative_error(compiled(images), subject(images)) < TOLERANCES["float64"]


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


@torch.no_grad()
@pytest.mark.parametrize("label", ARCHITECTURES_TO_COMPILE)
def test_exported_for_any_number_of_images(label: str) -> None:
    case, subject = trained(label)
    subject, images = subject.double(), case.images(4).double()
    number = torch.export.Dim("n", min=2, max=2048)
    exported = torch.export.export(subject, (images,), dynamic_shapes=({0: number},)).module()
    for count in (2, 4):
        errors = errors_by_element(case, exported, subject.act_on_features, images[:count])
        assert max(errors.values()) < TOLERANCES["float64"], errors
        assert relative_error(exported(images[:count]), subject(images[:count])) < TOLERANCES["float64"]
