"""Everything that is wrong with a split on the disk: every byte is read, every checksum compared, every image decoded.

Works for rendered objects, for images with a manifest, and for image shards that others wrote, which have no checksums:
of those, tar headers are walked and every image is decoded.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_equi.data.images import decode_image
from ssl_equi.data.shards.files import ShardFiles
from ssl_equi.data.shards.foreign import find_shards, records_of_shard
from ssl_equi.data.shards.format import decode_view, problem_of_bytes, scan_image_shard, scan_shard, view_suffix
from ssl_equi.data.shards.index import ImageIndex, SplitIndex, read_image_index, read_index
from ssl_equi.data.shards.manifest import (
    ImageManifest,
    Manifest,
    ShardEntry,
    has_manifest,
    index_folder,
    manifest_path,
    manifest_type_of,
    read_image_manifest,
    read_manifest,
)
from ssl_equi.errors import DataError
from ssl_equi.files import map_in_order, sha256_of_file

SplitKind = Literal["objects", "images", "foreign images"]
Decode = Callable[[bytes], str | None]  # what is wrong with an image file; None if nothing is


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong: in which file, with which record at which byte (None if with the file as a whole)."""

    file: Path
    key: str | None
    offset: int | None
    what: str

    @property
    def sentence(self) -> str:
        """All of it in words, without a cure."""
        record = "" if self.key is None else f"'{self.key}' at byte {self.offset} of "
        return f"{record}{self.file} {self.what}"


@dataclass(frozen=True)
class _Record:
    """One image of a shard, as the index has it."""

    key: str
    offset: int
    size: int
    crc32c: int | None  # None where nobody computed it


def verify_split(
    folder: Path, split: str, *, workers: int = 1, report_shard: Callable[[str], None] = lambda name: None
) -> None:
    """Reads and decodes all of a split in so many threads; DataError with the first thing that `find_damage` finds."""
    for damage in find_damage(folder, split, workers=workers, report_shard=report_shard):
        raise DataError(f"{damage.sentence}: rebuild this data set, or download it again")


def kind_of_split(folder: Path, split: str) -> SplitKind:
    """What the shards of a split hold: told by its manifest; without one they are taken for images others wrote."""
    if not has_manifest(folder, split):
        return "foreign images"
    return "images" if manifest_type_of(manifest_path(folder, split)) is ImageManifest else "objects"


def find_damage(
    folder: Path, split: str, *, workers: int = 1, report_shard: Callable[[str], None] = lambda name: None
) -> Iterator[Damage]:
    """Read every byte of a split with so many threads and yield what is wrong, shard by shard.

    `report_shard` is called with each shard's name once it was read. Raises DataError only for a folder without such a
    split.
    """
    kind = kind_of_split(folder, split)
    if kind == "foreign images":
        yield from _damage_of_foreign_images(find_shards(folder, split), workers, report_shard)
        return
    manifest: Manifest | ImageManifest
    index: SplitIndex | ImageIndex | None = None
    try:
        manifest = read_image_manifest(folder, split) if kind == "images" else read_manifest(folder, split)
    except DataError as error:
        yield Damage(manifest_path(folder, split), None, None, f"is no whole manifest: {error}")
        return
    try:
        if isinstance(manifest, ImageManifest):
            index = read_image_index(folder, manifest, verify=True)
        else:
            index = read_index(folder, manifest, verify=True)
    except DataError as error:
        yield Damage(index_folder(folder, split), None, None, f"is no whole index: {error}")

    def check(entry: ShardEntry) -> list[Damage]:
        return _check_shard(folder / entry.name, entry, manifest, index)

    with ThreadPoolExecutor(workers) as pool:
        for entry, found in zip(manifest.shards, map_in_order(pool, check, manifest.shards, ahead=workers)):
            yield from found
            report_shard(entry.name)


def _check_shard(
    path: Path, entry: ShardEntry, manifest: Manifest | ImageManifest, index: SplitIndex | ImageIndex | None
) -> list[Damage]:
    """What is wrong with a shard: its size, its images and, if its SHA-256 differs, the rest of it."""
    found = _damage_of_file(path, entry)
    if found and not os.access(path, os.R_OK):
        return found
    rows = range(entry.first, entry.first + entry.count)
    try:
        if isinstance(index, SplitIndex) and isinstance(manifest, Manifest):
            buffer, view_format = np.empty((*manifest.image_size, 3), dtype=np.uint8), manifest.view_format
            records = _records_of_objects(index, rows, view_format)
            found += _damaged_records(path, records, lambda data: decode_view(data, buffer, view_format))
        elif isinstance(index, ImageIndex):
            found += _damaged_records(path, _records_of_images(index, rows), _problem_of_image)
        if found and (index is None or path.stat().st_size == entry.bytes):
            # What isn't an image: a walk compares it with the index or, where that is of no use, says what is broken.
            found += _damage_beside_images(path, rows, isinstance(manifest, ImageManifest), index)
    except (DataError, OSError) as error:
        found.append(_damage_of_walk(path, error))
    return found


def _records_of_objects(index: SplitIndex, rows: range, view_format: str) -> list[_Record]:
    return [
        _Record(
            f"{index.keys[row].decode()}.{view_suffix(view, index.views_of(row), view_format)}",
            int(index.offsets[row, view]), int(index.sizes[row, view]), int(index.crc32c[row, view]),
        )
        for row in rows
        for view in range(index.views_of(row))
    ]  # fmt: skip


def _records_of_images(index: ImageIndex, rows: range) -> list[_Record]:
    return [
        _Record(index.keys[row].decode(), int(index.offsets[row]), int(index.sizes[row]), int(index.crc32c[row]))
        for row in rows
    ]


def _damage_beside_images(
    path: Path, rows: range, holds_images: bool, index: SplitIndex | ImageIndex | None
) -> Iterator[Damage]:
    if holds_images:
        for row, image in zip(rows, scan_image_shard(path)):
            if isinstance(index, ImageIndex) and image.label != index.labels[row]:
                what = f"has label {image.label}, the index {index.labels[row]}"
                yield Damage(path, image.key, image.offset, what)
        return
    for row, found in zip(rows, scan_shard(path)):
        if not isinstance(index, SplitIndex):
            continue
        latents = index.latents[row, : index.views_of(row)]
        if found.label != index.labels[row] or not np.array_equal(found.latents.astype(np.float32), latents):
            yield Damage(path, found.key, found.offsets[0], "has another label or other latents than the index")


def _damage_of_walk(path: Path, error: Exception) -> Damage:
    """What ended the walk of a shard: the error without the shard's name, which stands beside it, and the cure."""
    what = str(error).rpartition(": ")[0] or str(error)
    for words in (f" in shard {path}", f" of shard {path}", f"shard {path} "):
        what = what.replace(words, "")
    return Damage(path, None, None, what)


def _damage_of_file(path: Path, entry: ShardEntry) -> list[Damage]:
    try:
        if not path.is_file():
            return [Damage(path, None, None, "is missing")]
        size = path.stat().st_size
        if size != entry.bytes:
            return [Damage(path, None, None, f"has {size} bytes where the manifest says {entry.bytes}")]
        if sha256_of_file(path) != entry.sha256:
            return [Damage(path, None, None, "does not match its SHA-256 in the manifest")]
    except OSError as error:
        return [Damage(path, None, None, f"can't be read ({error.strerror})")]
    return []


def _damaged_records(path: Path, records: Sequence[_Record], decode: Decode) -> list[Damage]:
    files = ShardFiles([path])
    found = []
    for record in records:
        data = files.read(0, record.offset, record.size)
        problem = problem_of_bytes(data, record.size, record.crc32c) or decode(data)
        if problem:
            found.append(Damage(path, record.key, record.offset, problem))
    files.close()
    return found


def _problem_of_image(data: bytes) -> str | None:
    try:
        decode_image(data, "")
    except DataError as error:
        return f"does not decode ({error.__cause__ or error})"
    return None


def _damage_of_foreign_images(
    shards: Sequence[Path], workers: int, report_shard: Callable[[str], None]
) -> Iterator[Damage]:
    def check(path: Path) -> tuple[list[str], list[Damage]]:
        records: list[_Record] = []
        ending = []
        try:
            for found in records_of_shard(path):
                records.append(_Record(found.key, found.offset, found.size, None))
        except DataError as error:
            ending.append(_damage_of_walk(path, error))
        try:
            damaged = _damaged_records(path, records, _problem_of_image)
        except DataError as error:
            damaged = [_damage_of_walk(path, error)]
        return [record.key for record in records], [*damaged, *ending]

    times: Counter[str] = Counter()
    with ThreadPoolExecutor(workers) as pool:
        for path, (keys, found) in zip(shards, map_in_order(pool, check, shards, ahead=workers)):
            yield from found
            times.update(keys)
            for key in (key for key in dict.fromkeys(keys) if times[key] > 1):
                yield Damage(path, key, None, "has a key that occurs more than once in the split")
            report_shard(path.name)
