"""Batches on the device: on a simulated one, in which order streams, events and the loader take their turns.

That no batch is torn, only a GPU can show: tests/test_cuda.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.training.devices import STEPS_AHEAD, on_device
from tests.fakes import view_batch
from tests.simulated_device import DEVICE, SimulatedDevice

CPU = torch.device("cpu")


def numbered_batch(number: int) -> ViewBatch:
    return view_batch(torch.full((2, 2, 3, 3, 3), number, dtype=torch.uint8))


@pytest.fixture
def turns(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams and events are told, in order; each stream by its name."""
    told: list[str] = []

    class Stream:
        current = "training"

        def __init__(self, name: str = "loading") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            told.append(f"{self.name} waits for {other.name}")

    class Event:
        recorded = 0

        def __init__(self, blocking: bool) -> None:
            assert blocking, "a host that spins takes a core from the loader"

        def record(self, stream: Stream) -> None:
            self.number, Event.recorded = Event.recorded, Event.recorded + 1
            told.append(f"step {self.number} is queued on {stream.name}")

        def synchronize(self) -> None:
            told.append(f"the host waits for step {self.number}")

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        Stream.current = stream.name
        yield
        Stream.current = "training"

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        assert tensor.device == DEVICE
        told.append(f"memory is kept for {stream.name}")

    def noted_copy(batch: ViewBatch, target: Any) -> ViewBatch:
        told.append(f"copied on {Stream.current}")
        return to(batch, target)

    to = ViewBatch.to
    monkeypatch.setattr(ViewBatch, "to", noted_copy)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    return told


def test_a_batch_is_loaded_beside_the_step_before_and_the_host_is_never_far_ahead(turns: list[str]) -> None:
    steps = 4
    for number, batch in enumerate(on_device(map(numbered_batch, range(steps)), DEVICE)):
        assert batch.images.device == batch.latents.device == batch.labels.device == DEVICE
        assert batch.object_indices.device == batch.view_indices.device == CPU
        turns.append(f"step {number} runs")
    expected = ["loading waits for training"]
    for step in range(steps):
        loaded = ["copied on loading", "training waits for loading", *["memory is kept for training"] * 4]
        expected += [*waiting(step), *loaded, f"step {step} runs", f"step {step} is queued on training"]
    assert turns == expected + waiting(steps)


def waiting(step: int) -> list[str]:
    """What the host waits for before it asks for a batch."""
    return [f"the host waits for step {step - STEPS_AHEAD}"] if step >= STEPS_AHEAD else []


def test_the_loader_works_on_the_stream_of_the_copies(turns: list[str]) -> None:
    """What it renders or decodes is then beside the step, too, and what it records comes after the copies."""

    def loader() -> Iterator[ViewBatch]:
        for number in range(2):
            yield numbered_batch(number).to(CPU)

    assert len(list(on_device(loader(), DEVICE))) == 2
    assert [turn for turn in turns if turn.startswith("copied")] == ["copied on loading"] * 4


def test_on_the_cpu_batches_are_those_of_the_loader() -> None:
    batches = [numbered_batch(number) for number in range(3)]
    found = list(on_device(iter(batches), CPU))
    assert [batch.images.data_ptr() for batch in found] == [batch.images.data_ptr() for batch in batches]
