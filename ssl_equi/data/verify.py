"""Checking every byte of a split against its manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_equi.data.reader import ShardDataset
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file


@dataclass(frozen=True)
class Verification:
    """What was checked, all of it found good."""

    fingerprint: str
    num_shards: int
    num_bytes: int
    num_images_decoded: int


def verify_split(
    folder: Path, split: str, *, decode: bool = False, report_shard: Callable[[str], None] | None = None
) -> Verification:
    """Compare the SHA-256 of all shards and sidecars with the manifest; with `decode`, also decode every view.

    `report_shard` is called with each shard's name once it is good. Raises DataError naming the first file, or with
    `decode` the first image, that is not.
    """
    dataset = ShardDataset(folder, split)  # checks the manifest, the sizes and the sidecars' SHA-256
    images_decoded = 0
    for entry in dataset.manifest.shards:
        path = dataset.folder / entry.name
        if sha256_of_file(path) != entry.sha256:
            raise DataError(
                f"shard {path} does not match its SHA-256 in the manifest: download it again or rebuild this data set"
            )
        if decode:
            images_decoded += _decode_objects(dataset, range(entry.first, entry.first + entry.count))
        if report_shard is not None:
            report_shard(entry.name)
    dataset.close()
    num_bytes = sum(entry.bytes for entry in dataset.manifest.shards)
    return Verification(dataset.fingerprint, len(dataset.manifest.shards), num_bytes, images_decoded)


def _decode_objects(dataset: ShardDataset, objects: range) -> int:
    views = np.arange(dataset.num_views)[None]
    out = np.empty((1, dataset.num_views, *dataset.image_size, 3), dtype=np.uint8)
    for object_index in objects:
        dataset.read_views(np.array([object_index]), views, out)
    return len(objects) * dataset.num_views
