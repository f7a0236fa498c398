"""Tar shards with one image a record, as WebDataset writes ImageNet: KEY.jpg (or .jpeg, .png) and KEY.cls.

Shards with a manifest (`ssl_equi.data.image_writer` wrote them) have an index with a checksum of each image. Of others
the headers are walked once; after that every image is a single read at a known place, in any order. What was
found is kept beside the shards, in SPLIT.images.npz, if the folder can be written to; members of other suffixes
(KEY.json) are passed over. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import io
import os
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.decode import decode_image
from ssl_equi.data.errors import DataError
from ssl_equi.data.files import write_atomically
from ssl_equi.data.image_manifest import read_image_index, read_image_manifest
from ssl_equi.data.manifest import canonical_json, manifest_path
from ssl_equi.data.shard import problem_of_bytes
from ssl_equi.data.shard_files import ShardFiles, open_shard_files
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.data.tar_members import tar_members

IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
LABEL_SUFFIX = "cls"
_INDEX_VERSION = 1
_CURE = "download this shard again or write it anew"


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a split lies; arrays of n rows, in the order of the shards."""

    shard_numbers: np.ndarray  # int32
    offsets: np.ndarray  # int64, first byte of the image in its shard
    sizes: np.ndarray  # int64, bytes
    labels: np.ndarray  # int64
    keys: np.ndarray  # bytes


class ImageShards:
    """The images of `folder`/`split`-*.tar; an `ssl_equi.data.single_views.ImageStore`.

    With a manifest, class names, normalisation and fingerprint are the manifest's, and every image that is read is
    compared with its CRC-32C. Without one, class names are the lines of `classes.txt` in the folder if there is one,
    else the numbers up to `num_classes`, or up to the largest label of this split if that is None (give the train
    split's for others); the fingerprint is of keys, labels, image sizes in bytes and class names; and normalisation is
    by ImageNet's constants. `labelled_only` leaves out images without a label, which only a manifest allows.

    Raises:
        DataError: there are no shards, or one is cut, damaged or holds incomplete, doubled or ill-labelled records; or
            shards or index aren't those of the manifest. Whether the members are images is seen when they are read.
    """

    def __init__(
        self, folder: Path, split: str, num_classes: int | None = None, *, labelled_only: bool = False
    ) -> None:
        self.folder, self.split = Path(folder), split
        self._labelled_only = labelled_only
        self._index: ShardIndex
        self._crc32c: np.ndarray | None = None  # of each image, from a manifest's index
        self.fingerprint: str
        if manifest_path(self.folder, split).exists():
            self._open_with_manifest()
        else:
            self._open_without_manifest(num_classes)
        if labelled_only and (self._index.labels < 0).any():
            rows = np.flatnonzero(self._index.labels >= 0)
            self._index = ShardIndex(**{name: array[rows] for name, array in vars(self._index).items()})
            self._crc32c = None if self._crc32c is None else self._crc32c[rows]
            self.fingerprint = hashlib.sha256(canonical_json({"labelled of": self.fingerprint})).hexdigest()
        self.labels = self._index.labels
        self.shard_numbers = self._index.shard_numbers

    def _open_with_manifest(self) -> None:
        manifest = read_image_manifest(self.folder, self.split)
        self._files = open_shard_files(self.folder, manifest.shards)
        index = read_image_index(self.folder, manifest)
        self._index = ShardIndex(**{name: getattr(index, name) for name in ShardIndex.__dataclass_fields__})
        self._crc32c = index.crc32c
        self.class_names = manifest.class_names
        self.source = manifest.source
        self.mean_rgb, self.std_rgb = manifest.mean_rgb, manifest.std_rgb
        self.fingerprint = manifest.fingerprint

    def _open_without_manifest(self, num_classes: int | None) -> None:
        shards = find_shards(self.folder, self.split)
        self._files = ShardFiles(shards)
        self._index = index = _read_or_scan(self.folder, self.split, shards)
        self.class_names = _class_names(self.folder, self.split, index.labels, num_classes)
        self.source = f"image shards {self.folder.name}"
        self.mean_rgb, self.std_rgb = IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
        digest = hashlib.sha256(canonical_json({"split": self.split, "classes": self.class_names}))
        for array in (index.keys, index.labels, index.sizes):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.folder, self.split, len(self.class_names), self._labelled_only)

    @property
    def has_checksums(self) -> bool:
        """True if every image that is read is compared with its CRC-32C."""
        return self._crc32c is not None

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]; DataError naming shard and member if it is damaged."""
        return self.load(index)[0]

    def load(self, index: int) -> tuple[np.ndarray, float]:
        """The same, and the seconds that reading and checking its bytes took."""
        began = time.perf_counter()
        data = self.read_encoded(index)
        seconds = time.perf_counter() - began
        return decode_image(data, self.name_of(index)), seconds

    def read_encoded(self, index: int) -> bytes:
        """The file of image `index`; DataError naming shard and member if it is cut or changed."""
        size = int(self._index.sizes[index])
        data = self._files.read(int(self._index.shard_numbers[index]), int(self._index.offsets[index]), size)
        problem = problem_of_bytes(data, size, None if self._crc32c is None else int(self._crc32c[index]))
        if problem:
            raise DataError(f"image {self.name_of(index)} {problem}: {_CURE}")
        return data

    def name_of(self, index: int) -> str:
        """What errors call image `index`: its key, and where it lies."""
        place = "in" if self._crc32c is None else f"at byte {int(self._index.offsets[index])} of"
        shard = self._files.paths[int(self._index.shard_numbers[index])]
        return f"'{self._index.keys[index].decode()}' {place} shard {shard}"


def _open_again(folder: Path, split: str, num_classes: int, labelled_only: bool) -> ImageShards:
    return ImageShards(folder, split, num_classes, labelled_only=labelled_only)


def find_shards(folder: Path, split: str) -> list[Path]:
    """The split's tar files by name; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give the folder that holds the tar shards as --data-dir")
    shards = sorted(folder.glob(f"{split}-*.tar"))
    if not shards:
        present = ", ".join(sorted({path.name.rpartition("-")[0] for path in folder.glob("*-*.tar")})) or "no shards"
        raise DataError(
            f"{folder} has no shards {split}-*.tar but {present}: choose a split that is there, or use "
            f"--dataset folder for images in folders"
        )
    return shards


def _class_names(folder: Path, split: str, labels: np.ndarray, num_classes: int | None) -> tuple[str, ...]:
    largest = int(labels.max())
    names_file = folder / "classes.txt"
    if names_file.is_file():
        names = tuple(names_file.read_text(encoding="utf-8").splitlines())
        where = f"{names_file} names {len(names)} classes"
    else:
        count = largest + 1 if num_classes is None else num_classes
        names = tuple(str(label) for label in range(count))
        where = f"the train split has {count} classes"
    if largest >= len(names):
        raise DataError(
            f"split {split!r} in {folder} has label {largest} and {where}: number the classes from 0 in every split"
        )
    return names


def _read_or_scan(folder: Path, split: str, shards: Sequence[Path]) -> ShardIndex:
    """The kept index if it belongs to these shards as they are now, else a new one, kept if that is possible."""
    path = folder / f"{split}.images.npz"
    stats = [(shard.name, shard.stat()) for shard in shards]
    belongs_to = canonical_json(
        {"version": _INDEX_VERSION, "shards": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]}
    )
    kept = _read_index(path, belongs_to)
    if kept is not None:
        return kept
    index = _scan(shards)
    buffer = io.BytesIO()
    np.savez(buffer, belongs_to=np.frombuffer(belongs_to, np.uint8), **vars(index))
    with contextlib.suppress(DataError):  # a folder that can't be written to is scanned anew each time
        write_atomically(path, buffer.getvalue())
    return index


def _read_index(path: Path, belongs_to: bytes) -> ShardIndex | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if arrays["belongs_to"].tobytes() != belongs_to:
                return None
            return ShardIndex(**{name: arrays[name] for name in ShardIndex.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _scan(shards: Sequence[Path]) -> ShardIndex:
    shard_numbers: list[int] = []
    records: list[ForeignRecord] = []
    for number, shard in enumerate(shards):
        found = list(records_of_shard(shard))
        if not found:
            raise DataError(f"shard {shard} holds no image: {_CURE}")
        shard_numbers += [number] * len(found)
        records += found
    keys = np.array([record.key.encode() for record in records])
    unique, counts = np.unique(keys, return_counts=True)
    if len(unique) < len(keys):
        raise DataError(
            f"key '{unique[counts > 1][0].decode()}' occurs more than once in the shards of {shards[0].parent}: "
            f"give every image a key of its own"
        )
    return ShardIndex(
        shard_numbers=np.array(shard_numbers, dtype=np.int32),
        offsets=np.array([record.offset for record in records], dtype=np.int64),
        sizes=np.array([record.size for record in records], dtype=np.int64),
        labels=np.array([record.label for record in records], dtype=np.int64),
        keys=keys,
    )


@dataclass
class ForeignRecord:
    """The members of one key that were met so far; -1 for what is still missing."""

    key: str
    offset: int = -1
    size: int = -1
    label: int = -1


def records_of_shard(shard: Path) -> Iterator[ForeignRecord]:
    """The records of one shard that others wrote, whose members stand side by side.

    Raises DataError for a shard that is cut or damaged, and for a record that is incomplete, doubled or ill-labelled.
    """
    record: ForeignRecord | None = None
    with open(shard, "rb") as file:
        for member in tar_members(shard, _CURE):
            key, suffix = _split_name(member.name)
            if suffix not in (*IMAGE_SUFFIXES, LABEL_SUFFIX):
                continue
            if record is None or record.key != key:
                if record is not None:
                    yield _whole(record, shard)
                record = ForeignRecord(key)
            if suffix == LABEL_SUFFIX:
                content = os.pread(file.fileno(), member.size, member.offset_data).strip()
                if not re.fullmatch(rb"\d{1,9}", content):
                    raise DataError(
                        f"member '{member.name}' of shard {shard} is {content[:20]!r}, not a class number in decimal "
                        f"digits: {_CURE}"
                    )
                if record.label >= 0:
                    raise DataError(f"key '{key}' of shard {shard} has two labels: give every image a key of its own")
                record.label = int(content)
            elif record.offset >= 0:
                raise DataError(f"key '{key}' of shard {shard} has two images: give every image a key of its own")
            else:
                record.offset, record.size = member.offset_data, member.size
    if record is not None:
        yield _whole(record, shard)


def _whole(record: ForeignRecord, shard: Path) -> ForeignRecord:
    missing = "image" if record.offset < 0 else f".{LABEL_SUFFIX}" if record.label < 0 else None
    if missing:
        raise DataError(
            f"key '{record.key}' of shard {shard} has no {missing} member beside its other one: {_CURE}, with the "
            f"members of a key side by side"
        )
    return record


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix, parted at the first dot of the last path component, as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return f"{folder}{slash}{key}", suffix.lower()
