"""Ordinary images in tar shards, ours or others': `ImageShards`."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.images import decode_image
from ssl_equi.data.shards.files import ShardFiles, open_shard_files
from ssl_equi.data.shards.foreign import CURE, ShardIndex, find_shards, read_or_scan, state_of_shard
from ssl_equi.data.shards.format import problem_of_bytes
from ssl_equi.data.shards.index import read_image_index
from ssl_equi.data.shards.manifest import canonical_json, has_manifest, read_image_manifest
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.errors import DataError

MOST_UNNAMED_CLASSES = 25_000  # more than ImageNet-21k has; or ten for each image, if these are more


class ImageShards:
    """The images of `folder`/`split`-*.tar; an `ssl_equi.data.single_views.ImageStore`.

    With a manifest, class names, normalisation and fingerprint are the manifest's, and every image that is read is
    compared with its CRC-32C. Without one, class names are the lines of `classes.txt` in the folder if there is one,
    else the numbers up to `num_classes`, or up to the largest label of this split if that is None (give the train
    split's for others); the fingerprint is of keys, labels, image sizes in bytes and class names, and the content key
    also of what changes once a shard is written anew; members that are no part of a record are counted in
    `passed_over`; and normalisation is by ImageNet's constants. `labelled_only` leaves out images without a label,
    which only a manifest allows.

    Raises DataError for shards that are missing, damaged or not those of the manifest, and records that are incomplete,
    doubled or ill-labelled; whether members are images is seen when they are read.
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
        states = [state_of_shard(shard) for shard in shards]
        found = read_or_scan(self.folder, self.split, shards, states)
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
        again = partial(ImageShards, labelled_only=self._labelled_only)
        return again, (self.folder, self.split, len(self.class_names))

    @property
    def has_checksums(self) -> bool:
        """True if every image that is read is compared with its CRC-32C."""
        return self._crc32c is not None

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]; DataError naming shard and member if it is damaged."""
        with CLOCK.during("reading"):
            data = self.read_encoded(index)
        return decode_image(data, self.name_of(index))

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


def _lines_of(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable text file ({error}): write a class name a line, in UTF-8") from error
