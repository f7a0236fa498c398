"""Tar shards with one image a record, as WebDataset writes ImageNet: KEY.jpg (or .png, .webp, ...) and KEY.cls.

Shards with a manifest (`ssl_equi.data.image_writer` wrote them) have an index with a checksum of each image. Of others
the headers are walked once (`ssl_equi.data.foreign_shards`); after that every image is a single read at a known place,
in any order. What was found is kept beside the shards, in SPLIT.images.npz, if the folder can be written to. Nothing is
ever unpickled.
"""

import contextlib
import hashlib
import io
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.decode import decode_image
from ssl_equi.data.foreign_shards import CURE, ForeignRecord, records_of_shard
from ssl_equi.data.image_manifest import read_image_index, read_image_manifest
from ssl_equi.data.manifest import canonical_json, has_manifest
from ssl_equi.data.npy import read_stored_npz
from ssl_equi.data.shard import problem_of_bytes
from ssl_equi.data.shard_files import ShardFiles, open_shard_files
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.errors import DataError
from ssl_equi.files import FileState, file_state, list_folder, parse_json_object, write_atomically

MOST_UNNAMED_CLASSES = 25_000  # more than ImageNet-21k has; or ten for each image, if these are more
_INDEX_VERSION = 2  # raised when equal shards would give another index


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a split lies; arrays of n rows, in the order of the shards."""

    shard_numbers: np.ndarray  # int32
    offsets: np.ndarray  # int64, first byte of the image in its shard
    sizes: np.ndarray  # int64, bytes
    labels: np.ndarray  # int64
    keys: np.ndarray  # bytes


@dataclass(frozen=True)
class ForeignSplit:
    """What a walk of shards that others wrote found."""

    index: ShardIndex
    passed_over: dict[str, int]  # members that are no part of a record, counted by their suffix


class ImageShards:
    """The images of `folder`/`split`-*.tar; an `ssl_equi.data.single_views.ImageStore`.

    With a manifest, class names, normalisation and fingerprint are the manifest's, and every image that is read is
    compared with its CRC-32C. Without one, class names are the lines of `classes.txt` in the folder if there is one,
    else the numbers up to `num_classes`, or up to the largest label of this split if that is None (give the train
    split's for others); the fingerprint is of keys, labels, image sizes in bytes and class names, and the content key
    also of what changes once a shard is written anew; members that are no part of a record are counted in
    `passed_over`; and normalisation is by ImageNet's constants. `labelled_only` leaves out images without a label,
    which only a manifest allows.

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
        if has_manifest(self.folder, split):
            self._open_with_manifest()
        else:
            self._open_without_manifest(num_classes)
        if labelled_only and (self._index.labels < 0).any():
            rows = np.flatnonzero(self._index.labels >= 0)
            self._index = ShardIndex(**{name: array[rows] for name, array in vars(self._index).items()})
            self._crc32c = None if self._crc32c is None else self._crc32c[rows]
            self.fingerprint = self.content_key = hashlib.sha256(
                canonical_json({"labelled of": self.fingerprint})
            ).hexdigest()
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
        self.fingerprint = self.content_key = manifest.fingerprint
        self.passed_over: dict[str, int] = {}

    def _open_without_manifest(self, num_classes: int | None) -> None:
        shards = find_shards(self.folder, self.split)
        self._files = ShardFiles(shards)
        states = [_state_of_shard(shard) for shard in shards]
        found = _read_or_scan(self.folder, self.split, shards, states)
        self._index = index = found.index
        self.passed_over = found.passed_over
        self.class_names = self._class_names(num_classes)
        self.source = f"image shards {self.folder.name}"
        self.mean_rgb, self.std_rgb = IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
        digest = hashlib.sha256(canonical_json({"split": self.split, "classes": self.class_names}))
        for array in (index.keys, index.labels, index.sizes):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()
        self.content_key = hashlib.sha256(canonical_json([self.fingerprint, states])).hexdigest()

    def _class_names(self, num_classes: int | None) -> tuple[str, ...]:
        labels, names_file = self._index.labels, self.folder / "classes.txt"
        largest, record = int(labels.max()), self.name_of(int(labels.argmax()))
        if names_file.exists():
            names = _lines_of(names_file)
            where = f"{names_file} names {len(names)} classes"
        else:
            count = largest + 1 if num_classes is None else num_classes
            most = max(MOST_UNNAMED_CLASSES, 10 * len(labels))
            if count > most:
                raise DataError(
                    f"label {largest} of {record} would make {count:,} classes for {len(labels):,} images, where at "
                    f"most {most:,} go without names: number the classes from 0, or name them in {names_file}"
                )
            names = tuple(str(label) for label in range(count))
            where = f"the train split has {count} classes"
        if largest >= len(names):
            raise DataError(
                f"split {self.split!r} in {self.folder} has label {largest} and {where}: number the classes from 0 "
                f"in every split (label {largest} is of {record})"
            )
        return names

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
            raise DataError(f"image {self.name_of(index)} {problem}: {CURE}")
        return data

    def name_of(self, index: int) -> str:
        """What errors call image `index`: its key, and where it lies."""
        place = "in" if self._crc32c is None else f"at byte {int(self._index.offsets[index])} of"
        shard = self._files.paths[int(self._index.shard_numbers[index])]
        return f"{self._index.keys[index].decode(errors='replace')!r} {place} shard {shard}"


def _open_again(folder: Path, split: str, num_classes: int, labelled_only: bool) -> ImageShards:
    return ImageShards(folder, split, num_classes, labelled_only=labelled_only)


def _lines_of(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable text file ({error}): write a class name a line, in UTF-8") from error


def find_shards(folder: Path, split: str) -> list[Path]:
    """The split's tar files by name; DataError if there are none."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: give the folder that holds the tar shards as --data-dir")
    names = sorted(entry.name for entry in list_folder(folder) if re.fullmatch(r".*-[^-]*\.tar", entry.name))
    shards = [folder / name for name in names if name.startswith(f"{split}-")]
    if not shards:
        present = ", ".join(sorted({name.rpartition("-")[0] for name in names})) or "no shards"
        raise DataError(
            f"{folder} has no shards {split}-*.tar but {present}: choose a split that is there, or use "
            f"--dataset folder for images in folders"
        )
    return shards


def _state_of_shard(shard: Path) -> FileState:
    try:
        return file_state(shard)
    except OSError as error:
        raise DataError(f"shard {shard} can't be read ({error.strerror}): restore it, or take it out") from error


def _read_or_scan(folder: Path, split: str, shards: Sequence[Path], states: Sequence[FileState]) -> ForeignSplit:
    """What was kept if it belongs to these shards as they are now, else a new walk, kept if that is possible."""
    path = folder / f"{split}.images.npz"
    names = [shard.name for shard in shards]
    belongs_to = canonical_json({"version": _INDEX_VERSION, "shards": list(zip(names, states))})
    kept = _read_kept(path, belongs_to, [state[0] for state in states])
    if kept is not None:
        return kept
    found = _scan(shards)
    buffer = io.BytesIO()
    passed_over = np.frombuffer(canonical_json(found.passed_over), np.uint8)
    np.savez(buffer, belongs_to=np.frombuffer(belongs_to, np.uint8), passed_over=passed_over, **vars(found.index))
    with contextlib.suppress(DataError):  # a folder that can't be written to is scanned anew each time
        write_atomically(path, buffer.getvalue())
    return found


def _read_kept(path: Path, belongs_to: bytes, shard_bytes: Sequence[int]) -> ForeignSplit | None:
    """What an earlier walk left; None if it left nothing, of other shards, or something that was damaged since."""
    try:
        arrays = read_stored_npz(path, DataError, "")
        if arrays["belongs_to"].tobytes() != belongs_to:
            return None
        passed_over = parse_json_object(arrays["passed_over"].tobytes(), str(path), DataError)
        index = ShardIndex(**{name: arrays[name] for name in ShardIndex.__dataclass_fields__})
    except (DataError, KeyError):
        return None
    known = index.labels.ndim == 1 and all(array.shape == index.labels.shape for array in vars(index).values())
    if not known or index.shard_numbers.max(initial=-1) >= len(shard_bytes) or index.offsets.min(initial=0) < 0:
        return None
    ends = np.array(shard_bytes)[index.shard_numbers]
    return ForeignSplit(index, passed_over) if (index.offsets + index.sizes <= ends).all() else None


def _scan(shards: Sequence[Path]) -> ForeignSplit:
    shard_numbers: list[int] = []
    records: list[ForeignRecord] = []
    passed_over: Counter[str] = Counter()
    for number, shard in enumerate(shards):
        found = list(records_of_shard(shard, passed_over))
        shard_numbers += [number] * len(found)
        records += found
    keys = np.array([record.key.encode(errors="surrogateescape") for record in records])
    unique, counts = np.unique(keys, return_counts=True)
    if len(unique) < len(keys):
        raise DataError(
            f"key {unique[counts > 1][0].decode(errors='replace')!r} occurs more than once in the shards of "
            f"{shards[0].parent}: give every image a key of its own"
        )
    index = ShardIndex(
        shard_numbers=np.array(shard_numbers, dtype=np.int32),
        offsets=np.array([record.offset for record in records], dtype=np.int64),
        sizes=np.array([record.size for record in records], dtype=np.int64),
        labels=np.array([record.label for record in records], dtype=np.int64),
        keys=keys,
    )
    return ForeignSplit(index, dict(passed_over))
