"""Encoders exported as graphs are the same functions, and keep the symmetry."""

import pytest
import torch

from tests.encoders.symmetric_encoders import (
    ARCHITECTURES_TO_COMPILE,
    TOLERANCES,
    errors_by_element,
    relative_error,
    trained,
)


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
