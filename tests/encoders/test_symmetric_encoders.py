"""Every encoder with a symmetry keeps what it promises: at first, trained, stored, and in every precision.

One check for all: the features of a moved image are what the encoder's own `act_on_features` makes of those of the
image, at every element of the group (a few of the circular shifts; all of them in a test of their own).
"""

import functools

import pytest
import safetensors.torch
import torch
from torch import nn

from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.export.encoder import module_tensors
from tests.encoders.symmetric_encoders import (
    ARCHITECTURES,
    CASES,
    TOLERANCES,
    errors_by_element,
    relative_error,
    train_two_steps,
)

OTHER_MODULES = (
    "ssl_equi.encoders.capsules",
    "ssl_equi.encoders.resnets",
    "ssl_equi.encoders.steerable",
    "ssl_equi.encoders.strided_cnn",
)
"""Encoders without a symmetry, and steerable CNNs, which have a test of their own; see `_names_with_symmetry`."""


def _names_with_symmetry() -> set[str]:
    timm = timm_with_our_encoders()
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    return {
        name
        for name, module in modules.items()
        if module.startswith("ssl_equi.encoders.") and not module.startswith(OTHER_MODULES)
    }


def test_every_registered_name_is_checked() -> None:
    assert {case.name for case in CASES.values()} == _names_with_symmetry()
    assert set(ARCHITECTURES) <= set(CASES)


@functools.cache
def subject_in_state(label: str, state: str) -> nn.Module:
    case = CASES[label]
    if state == "initial":
        return case.subject()
    if state == "trained":
        subject = case.subject()
        train_two_steps(subject, case.images(4))
        return subject
    restored = case.subject(seed=1)
    weights = safetensors.torch.load(safetensors.torch.save(module_tensors(subject_in_state(label, "trained"))))
    restored.load_state_dict(weights, strict=True)
    return restored


@torch.no_grad()
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("state", ["initial", "trained", "restored"])
@pytest.mark.parametrize("label", CASES)
def test_moving_images_acts_on_features_as_predicted(label: str, state: str, precision: str) -> None:
    case, subject = CASES[label], subject_in_state(label, state)
    images = case.images()
    if state == "trained":
        assert relative_error(subject(images), subject_in_state(label, "initial")(images)) > 0.01
    if state == "restored":
        assert torch.equal(subject(images), subject_in_state(label, "trained")(images))
    if precision == "float64":
        subject, images = subject.double(), images.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        errors = errors_by_element(case, subject, subject.act_on_features, images)
    subject.float()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < TOLERANCES[precision], f"{errors[worst]:.1e} at element {worst}"
