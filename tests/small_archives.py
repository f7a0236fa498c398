"""Small archives of every data set that recipes know, in the layouts and with the image sizes of the real ones."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.data.shards.format import ImageRecord, ObjectRecord
from ssl_equi.data.shards.writer import write_split
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH
from tests.data.image_sets import SETTINGS, write_pictures
from tests.data.test_torchvision_sets import write_cifar, write_stl10

Archives = dict[str, Path]
OBJECTS, VIEWS, SIDE = {"train": 8, "val": 2}, 5, 256  # 3DIEBench has 50 views of 256 x 256 pixels
PHOTOGRAPH, TINY_IMAGENET = (500, 375), (64, 64)  # width, height; the commonest size of ImageNet's


@contextmanager
def small_archives(root: Path, image_bytes: Callable[..., bytes]) -> Iterator[Archives]:
    """A few files of each data set, by its name; `tiny_imagenet` for the folder of that.

    Within the block torchvision takes the files of CIFAR and STL-10 for the published ones.
    """
    write_posed(root / "3diebench", 7, image_bytes)
    write_posed(root / "3diebench-t", 10, image_bytes)
    for name, translation in (("3diebench-p", 0.0), ("3diebench-pt", 0.5)):
        embedded = ProceduralConfig(
            families=("chair", "mug"), held_out_families=(), train_objects=4, val_objects=1, test_objects=1,
            views=VIEWS, translation=translation,
        )  # fmt: skip
        build_procedural(root / name, embedded, ("train", "val", "test"), workers=1, show_progress=False)
    for split, count in OBJECTS.items():
        records = [ImageRecord(f"{split}_{row}", row % 3, image_bytes(row, size=PHOTOGRAPH)) for row in range(count)]
        write_pictures(root / "imagenet", records, dataclasses.replace(SETTINGS, split=split))
    write_folder(root / "folder", PHOTOGRAPH, image_bytes)
    write_folder(root / "tiny_imagenet", TINY_IMAGENET, image_bytes)
    with pytest.MonkeyPatch.context() as patch:
        write_cifar(root / "cifar10", datasets.CIFAR10, "labels", ["cat", "dog", "frog"], patch)
        write_cifar(root / "cifar100", datasets.CIFAR100, "fine_labels", ["cat", "dog", "frog"], patch)
        write_stl10(root / "stl10", patch)
        yield {path.name: path for path in root.iterdir()}


def write_posed(folder: Path, latent_size: int, image_bytes: Callable[..., bytes]) -> None:
    generator = np.random.default_rng(0)
    for split, count in OBJECTS.items():
        records = [
            ObjectRecord(
                f"{split}_{number}", number % 2, generator.uniform(-0.5, 0.5, (VIEWS, latent_size)),
                [image_bytes(VIEWS * number + view, size=(SIDE, SIDE)) for view in range(VIEWS)],
            )
            for number in range(count)
        ]  # fmt: skip
        write_split(
            folder, split, records, ("cup", "chair"), source="tests", seed=0, license="CC0-1.0",
            schema=SCHEMA_OF_WIDTH[latent_size], mean_rgb=(0.5,) * 3, std_rgb=(0.1,) * 3,
        )  # fmt: skip


def write_folder(folder: Path, size: tuple[int, int], image_bytes: Callable[..., bytes]) -> None:
    for split, count in OBJECTS.items():
        for number in range(count):
            path = folder / split / ("cup", "chair")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(number, size=size))
