"""A tiny rendered data set, made once for every test that trains, and a tiny folder of ordinary images."""

import atexit
import dataclasses
import gc
import io
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.data.shards.reader import ShardDataset
from tests.data.uneven_objects import write_uneven
from tests.simulated_device import SimulatedDevice, simulated_device

TINY = ProceduralConfig(
    families=("chair", "teapot", "dog"), held_out_families=("mug",), train_objects=8, val_objects=2, test_objects=4,
    views=4, image_size=32, objects_per_shard=5,
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Importing and collecting make millions of objects that stay, so nothing of them is looked through for garbage."""
    # Looking again and again took a third of the time of collecting, and later some of that of every test.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries that look for leaks at the end find what they made
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `cuda` where there is no such device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none"))


@pytest.fixture(autouse=True, scope="session")
def one_thread_a_worker() -> None:
    """Test processes side by side that each used all cores would wait for one another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> ProceduralConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training objects of 3 families, 4 views of 32 x 32 pixels each; splits train, val, test."""
    folder = tmp_path_factory.mktemp("tiny") / "3diebench-p"
    build_procedural(folder, TINY, ("train", "val", "test"), workers=1, show_progress=False)
    return folder


@pytest.fixture(scope="session")
def tiny_moving_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same objects, which also move: ten latents a view."""
    folder = tmp_path_factory.mktemp("tiny") / "3diebench-pt"
    moving = dataclasses.replace(TINY, translation=0.5)
    build_procedural(folder, moving, ("train", "val", "test"), workers=1, show_progress=False)
    return folder


@pytest.fixture(scope="session")
def uneven_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The objects of the tiny set with 3 to 6 views each, see `tests.data.uneven_objects.COUNTS`."""
    folder = tmp_path_factory.mktemp("uneven") / "posed"
    for split in ("train", "val", "test"):
        write_uneven(ShardDataset(tiny_data, split), folder)
    return folder


def _image_bytes(number: int, image_format: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """A smooth picture whose tint depends on `number`; `size` is width, height."""
    columns, rows = np.meshgrid(np.linspace(0, 60, size[0]), np.linspace(0, 60, size[1]))
    pixels = np.stack([rows + 7 * number, columns, rows + columns], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray((pixels[..., 0].astype(np.uint16) + 1) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def image_bytes() -> Callable[..., bytes]:
    """image_bytes(number, image_format="JPEG", mode="RGB", size=(40, 30)): an encoded picture."""
    return _image_bytes


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    """A simulated CUDA device."""
    with simulated_device(monkeypatch) as device:
        yield device


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """train/ and val/ with 2 classes: 12 and 4 images of different sizes, formats and modes."""
    folder = tmp_path / "pictures"
    kinds = [
        ("jpg", "JPEG", "RGB"), ("jpeg", "JPEG", "L"), ("png", "PNG", "RGBA"),
        ("png", "PNG", "I;16"), ("webp", "WEBP", "RGB"), ("bmp", "BMP", "P"),
    ]  # fmt: skip
    for split, per_class in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for number in range(per_class):
                suffix, image_format, mode = kinds[number % len(kinds)]
                size = (20 + 17 * number, 90 - 11 * number)
                data = _image_bytes(number + 10 * label, image_format, mode, size)
                (folder / split / name / f"{number}.{suffix}").write_bytes(data)
    return folder


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """30 images side by side, of different sizes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(_image_bytes(number, size=(40 + number, 60 - number)))
    return folder
