"""Copies that the host doesn't wait for, on a simulated device, which notes what it does wait for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_equi.encoders.octic.invariants import INVARIANTS
from ssl_equi.runtime.device_copies import Unread, constant, copy_together, merged, together
from ssl_equi.views import transforms
from ssl_equi.views.pipeline import ViewPipeline
from tests.encoders.symmetric_encoders import ARCHITECTURES, CASES
from tests.simulated_device import DEVICE, SimulatedDevice, Wait

MIXED = [
    torch.tensor([True, False, True]), torch.arange(6).view(2, 3), torch.rand(5), torch.zeros(0), torch.tensor(7),
    torch.rand(4, 6).T, torch.rand(3, dtype=torch.float64),
]  # fmt: skip


def read_an_item(values: Tensor) -> None:
    values.sum().item()


def index_by_a_mask(values: Tensor) -> None:
    values[values > 0.5]


def make_a_constant(values: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=values.device)


def index_by_a_list(values: Tensor) -> None:
    values[:, [0, 2]]


def copy_back(values: Tensor) -> None:
    values.tolist()


def copy_from_pageable_memory(values: Tensor) -> None:
    torch.ones(3).to(values.device, non_blocking=True)


def count_by_values(values: Tensor) -> None:
    values.repeat_interleave(values[:, 0].long(), dim=0)


@pytest.mark.parametrize(
    ("act", "operation"),
    [
        (read_an_item, "_local_scalar_dense"),
        (index_by_a_mask, "boolean index"),
        (make_a_constant, "blocking copy to the device"),
        (index_by_a_list, "blocking copy to the device"),
        (copy_back, "blocking copy from the device"),
        (copy_from_pageable_memory, "pageable copy to the device"),
        (count_by_values, "repeat_interleave"),
    ],
)
def test_the_simulated_device_notes_each_wait_with_its_line(
    act: Callable[[Tensor], None], operation: str, device: SimulatedDevice
) -> None:
    values = torch.arange(12.0, device="cuda").view(3, 4) / 12
    with device.noted() as waits:
        for _ in range(2):
            act(values)
    assert waits == 2 * [Wait(operation, f"tests/runtime/test_device_copies.py:{act.__code__.co_firstlineno + 1}")]


def test_tensors_go_to_a_device_in_one_copy_that_is_not_waited_for(device: SimulatedDevice) -> None:
    there = torch.ones(2, device="cuda")
    with device.noted() as waits:
        first, *copies = copy_together([there, *MIXED], DEVICE)
    assert (waits, device.copies) == ([], 1)
    assert first is there
    for copy, tensor in zip(copies, MIXED, strict=True):
        assert copy.device == DEVICE
        assert torch.equal(copy.cpu(), tensor) and copy.dtype == tensor.dtype and copy.shape == tensor.shape


def test_on_the_cpu_tensors_stay_what_they_are() -> None:
    assert all(copy is tensor for copy, tensor in zip(copy_together(MIXED, "cpu"), MIXED, strict=True))


def test_a_constant_is_made_once(device: SimulatedDevice) -> None:
    with device.noted() as waits:
        first, second = (constant(((1, 2), (3, 4)), DEVICE, torch.int64) for _ in range(2))
    assert (waits, device.copies) == ([], 1)
    assert second is first and first.tolist() == [[1, 2], [3, 4]] and first.dtype == torch.int64
    with torch.device("meta"):
        assert constant((0.5,), torch.device("cpu")).tolist() == [0.5]


def test_numbers_of_several_are_read_in_one_copy_and_exactly(device: SimulatedDevice) -> None:
    third, count = torch.tensor(1 / 3, device="cuda"), torch.tensor([2**53, 3], device="cuda")
    nothing: Unread[str] = Unread((), lambda values: f"{values}")
    with device.noted() as waits:
        read = together([Unread((third, count), lambda values: values), nothing]).read()
    assert [wait.operation for wait in waits] == ["blocking copy from the device"]
    assert read == [[torch.tensor(1 / 3).item(), [2**53, 3]], "[]"]
    with device.noted() as waits:
        assert nothing.read() == "[]"
    assert waits == []


def test_entries_of_several_are_merged() -> None:
    several = merged([Unread((torch.tensor(1.0),), lambda values: {"a": values[0]}), Unread((), lambda _: {"b": 2.0})])
    assert several.read() == {"a": 1.0, "b": 2.0}


PIPELINE = ViewPipeline(
    (
        transforms.RandomResizedCrop(32), transforms.HorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8), transforms.Grayscale(probability=0.3),
        transforms.GaussianBlur(5, probability=0.5), transforms.Solarize(probability=0.3),
    )
)  # fmt: skip


def test_a_pipeline_tells_a_device_all_in_one_copy_and_makes_the_same_views(device: SimulatedDevice) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(13, 3, 40, 52, generator=generator)
    parameters = PIPELINE.draw(13, source_sizes=(40, 52), generator=generator)
    images_there = images.to("cuda")
    PIPELINE.apply(images_there, parameters)  # makes the constants
    device.copies = 0
    with device.noted() as waits:
        views = PIPELINE.apply(images_there, parameters)
    assert (waits, device.copies) == ([], 1)
    torch.testing.assert_close(views.cpu(), PIPELINE.apply(images, parameters), atol=2e-5, rtol=0)


@pytest.mark.parametrize("label", ARCHITECTURES)
def test_no_encoder_waits(label: str, device: SimulatedDevice) -> None:
    encoder, images = CASES[label].make().train().to("cuda"), CASES[label].images().to("cuda")
    with device.noted() as waits:
        encoder(images)
    assert waits == []


@pytest.mark.parametrize("name", INVARIANTS)
def test_no_invariants_wait(name: str, device: SimulatedDevice) -> None:
    invariants, features = INVARIANTS[name](16).to("cuda"), torch.randn(2, 5, 16).to("cuda")
    with device.noted() as waits:
        invariants(features)
    assert waits == []
