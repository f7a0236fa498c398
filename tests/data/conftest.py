"""Small splits made of random images, shared by the tests of the data layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ssl_equi.data.shards.format import ImageRecord, ObjectRecord
from ssl_equi.data.shards.manifest import Manifest
from ssl_equi.data.shards.writer import write_split
from tests.data.image_sets import write_pictures

CLASS_NAMES = ("bottle", "chair", "lamp")
IMAGE_SIZE = (24, 32)


def _random_records(num_objects: int = 23, num_views: int = 6, seed: int = 0) -> list[ObjectRecord]:
    generator = np.random.default_rng(seed)
    records = []
    for number in range(num_objects):
        rotations = generator.uniform(-np.pi / 2, np.pi / 2, (num_views, 3))
        others = generator.uniform(0, 0.7, (num_views, 4))
        images = [
            simplejpeg.encode_jpeg(generator.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8), colorsubsampling="420")
            for _ in range(num_views)
        ]
        label = number % len(CLASS_NAMES)
        records.append(ObjectRecord(f"object_{number:03d}", label, np.hstack([rotations, others]), images))
    return records


def _write_train_split(folder: Path, records: list[ObjectRecord], objects_per_shard: int = 5) -> Manifest:
    return write_split(
        folder,
        "train",
        records,
        CLASS_NAMES,
        source="random images of the tests",
        seed=0,
        license="CC0-1.0",
        objects_per_shard=objects_per_shard,
        mean_rgb=(0.5, 0.5, 0.5),
        std_rgb=(0.25, 0.25, 0.25),
    )


@pytest.fixture(scope="session")
def random_records() -> Callable[..., list[ObjectRecord]]:
    """random_records(num_objects=23, num_views=6, seed=0): records with random JPEGs and latents."""
    return _random_records


@pytest.fixture(scope="session")
def write_train_split() -> Callable[..., Manifest]:
    """write_train_split(folder, records, objects_per_shard=5): records as the train split of a folder."""
    return _write_train_split


@pytest.fixture(scope="session")
def records() -> list[ObjectRecord]:
    """23 objects with 6 views of 24 x 32 pixels."""
    return _random_records()


@pytest.fixture(scope="session")
def shared_split(tmp_path_factory: pytest.TempPathFactory, records: list[ObjectRecord]) -> Path:
    """A split of those objects that tests only read."""
    folder = tmp_path_factory.mktemp("shared_split")
    _write_train_split(folder, records)
    return folder


@pytest.fixture
def own_split(tmp_path: Path, records: list[ObjectRecord]) -> Path:
    """A split of those objects that the test may damage."""
    folder = tmp_path / "split"
    _write_train_split(folder, records)
    return folder


@pytest.fixture(scope="session")
def pictures(image_bytes: Callable[..., bytes]) -> list[ImageRecord]:
    """11 images of 3 classes: JPEG, one of them in CMYK, one PNG; of different sizes."""
    kinds = {3: ("JPEG", "CMYK"), 5: ("PNG", "RGB")}
    return [
        ImageRecord(f"img_{row:02d}", row % 3, image_bytes(row, *kinds.get(row, ()), size=(20 + row, 30)))
        for row in range(11)
    ]


@pytest.fixture
def picture_shards(tmp_path: Path, pictures: list[ImageRecord]) -> Path:
    """Those images in three shards, which the test may damage."""
    write_pictures(tmp_path / "picture_shards", pictures)
    return tmp_path / "picture_shards"
