"""Recipes as modules, in small sizes, one run after another in this process, on one thread."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, EquivarianceProtocol, ProbeProtocol
from ssl_equi.training.pretraining import Pretraining
from ssl_equi.views import saliency
from tests.fakes import SmallConfig, end_without_probes, process_of_its_own

# Sizes of heads, queues, chunks and views in which a step takes milliseconds.
SMALL_SIZES: dict[str, Any] = {
    "projector": (32, 32, 32), "predictor_hidden_width": 16, "hidden_widths": (32, 32), "queue_size": 16,
    "chunk_size": 4, "hidden": (32,), "size": 16, "action_width": 8, "layers": 1, "feedforward_width": 32,
    "num_capsules": 4,
}  # fmt: skip

# Encoders for images of 32 pixels in place of those for 64.
NANO = {"strided_cnn_tiny": "strided_cnn_nano", "strided_cnn_pooled": "strided_cnn_nano_pooled"}

QUICK = ProbeProtocol(
    name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,), rotation_pairs_per_object=2,
    absolute_rotation_epochs=1, absolute_rotation_hidden=(16,), translation_epochs=1, translation_hidden=(16,),
    augmentation_equivariance=EquivarianceProtocol(num_augmentations=2, num_compositions=1, max_images=64),
)  # fmt: skip


def shrunk(options: Any, sizes: dict[str, Any] = SMALL_SIZES) -> Any:
    """A copy of a dataclass with other sizes, also in the dataclasses in it; a size may be a function of the former."""
    changes = {}
    for entry in dataclasses.fields(options):
        value = getattr(options, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = shrunk(value, sizes)
        elif entry.name in sizes:
            size = sizes[entry.name]
            changes[entry.name] = size(value) if callable(size) else size
    return dataclasses.replace(options, **changes)


def with_changes(options: Any, changes: dict[str, Any]) -> Any:
    """A copy with other options, which are named OPTION or GROUP.OPTION."""
    for name, value in changes.items():
        group, _, rest = name.partition(".")
        changed = with_changes(getattr(options, group), {rest: value}) if rest else value
        options = dataclasses.replace(options, **{group: changed})
    return options


def small_configuration(data: Path, recipe: ModuleType, name: str = "embedded", **changes: Any) -> Any:
    """A named configuration of a recipe on the tiny set: 3 steps an epoch, 2 epochs, the encoder for 32 pixels."""
    sizes = {"data_dir": data, "image_size": 32, "batch_size": 8, "epochs": 2, "log_every": 1}
    configuration = shrunk(recipe.CONFIGS[name]())
    sizes["encoder"] = NANO.get(configuration.encoder, configuration.encoder)
    return with_changes(configuration, sizes | changes)


@pytest.fixture(scope="session")
def small_config(tiny_data: Path) -> SmallConfig:
    """small_config(recipe, name="embedded", **changes): the same on the tiny set of these tests."""
    return functools.partial(small_configuration, tiny_data)


@pytest.fixture(scope="session")
def small_options(tiny_data: Path) -> list[str]:
    """The same sizes for the command line of recipes/sie.py."""
    return [
        "--data-dir", str(tiny_data), "--image-size", "32", "--batch-size", "8", "--epochs", "2", "--log-every", "1",
        "--objective.projector", "32", "32", "32", "--encoder", NANO["strided_cnn_tiny"],
    ]  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def saliency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Saliency maps that recipes compute are kept in a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency, "user_cache_path", lambda *_: folder)
        yield


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The final heads train for one epoch, for tests that look at something else."""
    monkeypatch.setitem(PROBE_PROTOCOLS, "embedded", lambda: QUICK)


@pytest.fixture
def without_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs end after their last step, where export, probes and report aren't looked at."""
    monkeypatch.setattr(Pretraining, "finish", end_without_probes)


@pytest.fixture(autouse=True)
def start_afresh() -> Iterator[None]:
    with process_of_its_own():
        yield
