"""The manifest of a split of ordinary images, and the arrays that say where each image lies.

As for rendered objects (`ssl_equi.data.manifest`), `{split}.manifest.json` is written last, states the SHA-256 of all
shards and arrays, and its fingerprint identifies the data.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.decode import SUFFIX_OF_KIND
from ssl_equi.data.index import open_sidecar, rows_of_shards
from ssl_equi.data.index_stamps import IndexStamp
from ssl_equi.data.manifest import (
    ShardEntry,
    canonical_json,
    fields_as_json,
    index_folder,
    manifest_path,
    read_manifest_as,
    write_manifest_content,
)
from ssl_equi.errors import DataError
from ssl_equi.files import read_json_object

FORMAT_NAME = "ssl-equi-image-shards"
FORMAT_VERSION = 1
KINDS = tuple(SUFFIX_OF_KIND)  # the array `kinds` holds places in it
_DTYPES: dict[str, np.dtype] = {
    "shard_numbers": np.dtype(np.int32),
    "offsets": np.dtype(np.int64),
    "sizes": np.dtype(np.int32),
    "crc32c": np.dtype(np.uint32),
    "labels": np.dtype(np.int64),
    "heights": np.dtype(np.int32),
    "widths": np.dtype(np.int32),
    "kinds": np.dtype(np.uint8),
    "keys": np.dtype("S100"),
}

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class ImageIndex:
    """n images in the order of the shards; one .npy file a field."""

    shard_numbers: np.ndarray  # int32 [n]
    offsets: np.ndarray  # int64 [n], first byte of the image in its shard
    sizes: np.ndarray  # int32 [n], bytes
    crc32c: np.ndarray  # uint32 [n]
    labels: np.ndarray  # int64 [n], -1 for an image without a label
    heights: np.ndarray  # int32 [n], pixels
    widths: np.ndarray  # int32 [n], pixels
    kinds: np.ndarray  # uint8 [n], place in KINDS
    keys: np.ndarray  # S100 [n]

    @classmethod
    def from_columns(cls, columns: dict[str, Any]) -> "ImageIndex":
        """Lists or arrays by field name, brought to their types."""
        return cls(**{name: np.asarray(columns[name], dtype=dtype) for name, dtype in _DTYPES.items()})


@dataclass(frozen=True)
class ImageManifest:
    """Everything about a split of images but its pixels.

    `mean_rgb` and `std_rgb` are what training normalises with; the measured ones are of the first `measured_images`
    stored, each image counting the same, in units of [0, 1].
    """

    split: str
    num_objects: int  # images
    num_unlabelled: int
    class_names: tuple[str, ...]  # a label is an index into them
    images_per_class: tuple[int, ...]
    kinds: dict[str, int]  # JPEG, PNG, ...: how many images
    height_range: tuple[int, int]  # pixels
    width_range: tuple[int, int]
    mean_rgb: Rgb
    std_rgb: Rgb
    measured_mean_rgb: Rgb
    measured_std_rgb: Rgb
    measured_images: int
    source: str
    source_version: str
    license: str
    reencoding: str | None  # how the pixels differ from the source's; None where all bytes are the source's
    seed: int  # of the order in which the images are stored
    writer: str
    plan_sha256: str  # of the settings and the list of images the writer was given
    shards: tuple[ShardEntry, ...]
    sidecars: dict[str, str]  # file name in the index folder -> SHA-256

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this manifest."""
        return hashlib.sha256(canonical_json(self._as_json())).hexdigest()

    def _as_json(self) -> dict[str, Any]:
        return {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **fields_as_json(self)}

    def write(self, folder: Path) -> None:
        """Write the manifest, with its own fingerprint beside the fields, atomically."""
        write_manifest_content(manifest_path(folder, self.split), self._as_json(), self.fingerprint)


def read_image_manifest(folder: Path, split: str) -> ImageManifest:
    """Read and check a manifest of images.

    Raises DataError when it is absent, of rendered objects, of another split or format version, malformed, or edited by
    hand.
    """
    return read_manifest_as(ImageManifest, folder, split, FORMAT_NAME, FORMAT_VERSION)


def is_image_manifest(path: Path) -> bool:
    """True for a manifest of images, whole or not; what is no manifest at all is refused by the readers."""
    try:
        return read_json_object(path, DataError).get("format") == FORMAT_NAME
    except DataError:
        return False


def read_image_index(folder: Path, manifest: ImageManifest, *, always_verify: bool = False) -> ImageIndex:
    """Memory-map the arrays of a split of images, verified now or, unless `always_verify`, earlier on this machine.

    Raises DataError when an array is absent, is not the one the manifest was written with, has an unexpected type or
    shape, or contradicts the manifest.
    """
    source = index_folder(folder, manifest.split)
    stamp = IndexStamp(source, manifest.fingerprint, [f"{name}.npy" for name in _DTYPES])
    verify = always_verify or not stamp.is_known()
    checksums = manifest.sidecars if verify else None
    shape = (manifest.num_objects,)
    index = ImageIndex(
        **{name: open_sidecar(source / f"{name}.npy", checksums, dtype, shape) for name, dtype in _DTYPES.items()}
    )
    if verify:
        _check_values(index, manifest, source)
        if not always_verify:
            stamp.write()
    return index


def _check_values(index: ImageIndex, manifest: ImageManifest, source: Path) -> None:
    for rows, shard_numbers, shard_bytes in rows_of_shards(manifest.shards):
        offsets, sizes, labels = index.offsets[rows], index.sizes[rows], index.labels[rows]
        wrong = {
            "shard_numbers": (index.shard_numbers[rows] != shard_numbers).any(),
            "offsets": ((offsets < 0) | (sizes <= 0) | (offsets + sizes > shard_bytes)).any(),
            "labels": ((labels < -1) | (labels >= len(manifest.class_names))).any(),
            "kinds": (index.kinds[rows] >= len(KINDS)).any(),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise DataError(f"sidecar {source / name}.npy contradicts the manifest: rebuild this data set")
