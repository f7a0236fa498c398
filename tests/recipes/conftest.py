"""Recipes as modules, in small sizes, one run after another in this process, on one thread."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from ssl_equi.probing.protocol import PROBE_PROTOCOLS, EquivarianceProtocol, ProbeProtocol
from ssl_equi.training.pretraining import Pretraining
from ssl_equi.views import saliency
from tests.fakes import SmallConfig, end_without_probes

# Sizes of heads, queues, chunks and views in which a step takes milliseconds.
SMALL_SIZES: dict[str, Any] = {
    "projector": (32, 32, 32), "predictor_hidden_width": 16, "hidden_widths": (32, 32), "queue_size": 16,
    "chunk_size": 4, "hidden": (32,), "size": 16, "action_width": 8, "layers": 1, "feedforward_width": 32,
    "num_capsules": 4,
}  # fmt: skip


def shrunk(options: Any) -> Any:
    """A copy of a dataclass whose sizes, also those of the dataclasses in it, are small."""
    changes = {}
    for entry in dataclasses.fields(options):
        value = getattr(options, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = shrunk(value)
        elif entry.name in SMALL_SIZES:
            changes[entry.name] = SMALL_SIZES[entry.name]
    return dataclasses.replace(options, **changes)


@pytest.fixture(scope="session")
def small_config(tiny_data: Path) -> SmallConfig:
    """A named configuration of a recipe (the first by default) on the tiny set: 3 steps an epoch, 2 epochs."""

    def configure(recipe: ModuleType, name: str | None = None, **changes: Any) -> Any:
        config = shrunk(next(iter(recipe.CONFIGS.values()))() if name is None else recipe.CONFIGS[name]())
        sizes = {"data_dir": tiny_data, "image_size": 32, "batch_size": 8, "epochs": 2, "log_every": 1}
        return dataclasses.replace(config, **(sizes | changes))

    return configure


@pytest.fixture(scope="session")
def small_options(tiny_data: Path) -> list[str]:
    """The same sizes for the command line of recipes/sie.py."""
    return [
        "--data-dir", str(tiny_data), "--image-size", "32", "--batch-size", "8", "--epochs", "2", "--log-every", "1",
        "--objective.projector", "32", "32", "32",
    ]  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def saliency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Saliency maps that recipes compute are kept in a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency, "user_cache_path", lambda *_: folder)
        yield


@pytest.fixture(scope="session")
def quick_protocol() -> ProbeProtocol:
    """One epoch for every head."""
    return ProbeProtocol(
        name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,), rotation_pairs_per_object=2,
        absolute_rotation_epochs=1, absolute_rotation_hidden=(16,), translation_epochs=1, translation_hidden=(16,),
        augmentation_equivariance=EquivarianceProtocol(num_augmentations=2, num_compositions=1, max_images=64),
    )  # fmt: skip


@pytest.fixture
def quick_probes(quick_protocol: ProbeProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final heads train for one epoch, for tests that look at something else."""
    monkeypatch.setitem(PROBE_PROTOCOLS, "embedded", lambda: quick_protocol)


@pytest.fixture
def without_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs end after their last step, where export, probes and report aren't looked at."""
    monkeypatch.setattr(Pretraining, "finish", end_without_probes)


@pytest.fixture(autouse=True)
def start_afresh() -> Iterator[None]:
    """Accelerate's state belongs to a process, and the bits of a sum to a number of threads."""
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
