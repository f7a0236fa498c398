"""Decoded views kept on the disk: every view is decoded once, and reading one is a copy ever after.

The cache of a split is a folder of its pixels in one plain file, a CRC-32C of each view, each picture's size where
sizes differ, and what is wrong with views that can't be decoded. It is named after what the pixels depend on, so that
changed data or another size never meet an old cache; a folder that nobody needs any more may be deleted.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from platformdirs import user_cache_path

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import DerivedViews
from ssl_equi.data.npy import map_npy, npy_bytes
from ssl_equi.data.shards.files import ShardFiles
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.data.view_counts import is_view
from ssl_equi.errors import DataError, LostShardError
from ssl_equi.files import (
    building_progress,
    map_in_order,
    read_json_object,
    sync_folder,
    working_alone,
    write_durably,
    write_errors_named,
)
from ssl_equi.runtime.system import usable_cores

_VERSION = 1  # raised when equal data would give another file
_DECODERS = ("simplejpeg", "pillow")  # whose releases may round differently
_BYTES_AT_ONCE = 8 << 20  # decoded by a thread in one go
_MIB = 2**20
_CURE = "delete this folder, it is made anew"
_PIXELS, _CHECKSUMS, _SIZES, _BAD_VIEWS = "pixels.bin", "crc32c.npy", "content_sizes.npy", "bad_views.json"


def decoded_cache_folder() -> Path:
    """Where the caches lie: the user's cache folder (XDG on Linux)."""
    return user_cache_path("ssl_equi") / "decoded-views"


class CachedViews(DerivedViews):
    """The views of `stored` from the cache, with the same pixels; `stored` has one content key for one content.

    The first process decodes all views into the cache, says how large it becomes, and shows how far it is; others
    that want the same wait for it. A view that can't be read raises then or, with `keep_bad_views`, is noted and raises
    when it is read, so that a loader can skip it; a cache with such a view is made anew once it can be read again.

    Raises DataError if the disk has too little space, or the cache is damaged.
    """

    def __init__(
        self,
        stored: ViewCollection,
        parent: Path | None = None,  # folder of all caches; `decoded_cache_folder()` when None
        *,
        keep_bad_views: bool = False,
        show_progress: bool = False,
    ) -> None:
        super().__init__(stored)
        self._parent, self._keep_bad_views = decoded_cache_folder() if parent is None else parent, keep_bad_views
        self.cache_folder = self._parent / f"{stored.split}-{_key_of(stored)}"
        if not self._is_usable():
            with write_errors_named(self._parent):
                self._parent.mkdir(parents=True, exist_ok=True)
            with working_alone(self._parent / f".{self.cache_folder.name}.lock", f"decoding {stored.split!r}"):
                if not self._is_usable():
                    _build(stored, self.cache_folder, keep_bad_views, show_progress)
        self._bad_views = _bad_views_of(self.cache_folder)
        self._bytes_per_view = _bytes_per_view(stored)
        # Read with `pread`: a file that is cut gives an error where a memory map would kill the process.
        self._pixels = ShardFiles([self.cache_folder / _PIXELS])
        self._checksums = self._opened(_CHECKSUMS, np.uint32, (self.num_objects, self.num_views))
        # Pixels lie one view behind the other, without padding.
        counts = np.broadcast_to(self.views_of_each, self.num_objects).astype(np.int64)
        self._first_images = np.cumsum(counts) - counts
        self._content_sizes: np.ndarray | None = None
        if not self.fills_image:
            self._content_sizes = self._opened(_SIZES, np.int64, (self.num_objects, self.num_views, 2))
        path, expected = self.cache_folder / _PIXELS, self.num_images * self._bytes_per_view
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise self._damaged(f"has {found} bytes of pixels where {expected} belong")

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.stored, self._parent, self._keep_bad_views)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        if sizes_out is not None and self._content_sizes is not None:
            sizes_out[...] = self._content_sizes[object_indices[:, None], view_indices]
        for row, object_index in enumerate(object_indices.tolist()):
            for column, view in enumerate(view_indices[row].tolist()):
                with CLOCK.during("reading"):
                    data = self._read_view(object_index, view)
                out[row, column] = np.frombuffer(data, dtype=np.uint8).reshape(out.shape[2:])

    def _read_view(self, object_index: int, view: int) -> bytes:
        if (object_index, view) in self._bad_views:
            raise DataError(self._bad_views[object_index, view])
        place = (int(self._first_images[object_index]) + view) * self._bytes_per_view
        data = self._pixels.read(0, place, self._bytes_per_view)
        if len(data) != self._bytes_per_view:
            raise self._damaged(f"ends within view {view} of object {object_index}")
        size = None if self._content_sizes is None else self._content_sizes[object_index, view]
        if _checksum(data, size) != self._checksums[object_index, view]:
            raise self._damaged(f"does not match the CRC-32C of view {view} of object {object_index}")
        return data

    def _is_usable(self) -> bool:
        """Whether the cache is there, and all views that were bad when it was made may be and still are."""
        if not self.cache_folder.exists():
            return False
        for object_index, view in _bad_views_of(self.cache_folder):
            try:
                self.stored.images(np.array([object_index]), np.array([[view]]))
            except LostShardError:
                raise
            except DataError:
                if self._keep_bad_views:
                    continue
                raise
            return False
        return True

    def _opened(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        described = f"{name} in the cache of decoded views {self.cache_folder}"
        return map_npy(self.cache_folder / name, described, DataError, _CURE, dtype=dtype, shape=shape)

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"the cache of decoded views {self.cache_folder} {problem}: {_CURE}")


def _open_again(stored: ViewCollection, parent: Path, keep_bad_views: bool) -> CachedViews:
    return CachedViews(stored, parent, keep_bad_views=keep_bad_views)


def _key_of(stored: ViewCollection) -> str:
    """Sixteen hexadecimal digits that change with anything that the pixels depend on."""
    decoders = {name: importlib.metadata.version(name) for name in _DECODERS}
    content = {
        "version": _VERSION,
        "decoders": decoders,
        "fingerprint": stored.content_key,
        "image_size": list(stored.image_size),
        "fit": repr(getattr(stored, "fit", None)),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]


def _bytes_per_view(stored: ViewCollection) -> int:
    return stored.image_size[0] * stored.image_size[1] * 3


def _checksum(pixels: bytes, content_size: np.ndarray | None) -> int:
    """CRC-32C of a view's pixels, followed by its picture's height and width where sizes differ."""
    checksum = google_crc32c.value(pixels)
    return checksum if content_size is None else google_crc32c.extend(checksum, content_size.tobytes())


def _bad_views_of(folder: Path) -> dict[tuple[int, int], str]:
    """What was wrong with views that could not be decoded, by object and view."""
    path = folder / _BAD_VIEWS
    if not path.exists():
        return {}
    try:
        problems = read_json_object(path, DataError, _CURE)
        return {(int(object_index), int(view)): str(problem) for object_index, view, problem in problems["views"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no list of bad views ({error}): {_CURE}") from error


def _build(stored: ViewCollection, folder: Path, keep_bad_views: bool, show_progress: bool) -> None:
    """Decode all views under another name, then give the folder its own."""
    count = stored.num_images
    total_bytes = count * _bytes_per_view(stored)
    temporary = folder.with_name(f".building-{folder.name}")  # of this name once, for the lock is held
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if total_bytes > free:
        raise DataError(
            f"the decoded views of split {stored.split!r} need {total_bytes / _MIB:,.1f} MiB in {folder.parent} and "
            f"{free / _MIB:,.1f} MiB are free: free some space, or leave --cache-decoded out"
        )
    if show_progress:
        print(f"decoding {count:,} views once into {folder}: {total_bytes / _MIB:,.1f} MiB", flush=True)
    try:
        with write_errors_named(temporary):
            temporary.mkdir()
            _write_views(stored, temporary, keep_bad_views, show_progress)
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_views(stored: ViewCollection, folder: Path, keep_bad_views: bool, show_progress: bool) -> None:
    checksums = np.empty((stored.num_objects, stored.num_views), dtype=np.uint32)
    content_sizes = np.empty((stored.num_objects, stored.num_views, 2), dtype=np.int64)
    bad_views: list[tuple[int, int, str]] = []
    with building_progress(show_progress) as progress, open(folder / _PIXELS, "wb") as file:
        bar = progress.add_task(f"decoding {stored.split}", total=stored.num_objects * stored.num_views)
        for objects, pixels, sizes, bad in _decoded(stored, keep_bad_views):
            for row, object_index in enumerate(objects.tolist()):
                for view in range(stored.num_views):
                    size = None if stored.fills_image else sizes[row, view]
                    checksums[object_index, view] = _checksum(pixels[row, view].tobytes(), size)
            content_sizes[objects] = sizes
            bad_views += bad
            if stored.view_counts is not None:
                pixels = pixels[is_view(stored.view_counts[objects], stored.num_views)]
            file.write(pixels.data)
            progress.advance(bar, len(objects) * stored.num_views)
        file.flush()
        os.fsync(file.fileno())
    write_durably(folder / _CHECKSUMS, npy_bytes(checksums))
    if not stored.fills_image:
        write_durably(folder / _SIZES, npy_bytes(content_sizes))
    if bad_views:
        write_durably(folder / _BAD_VIEWS, json.dumps({"views": bad_views}).encode())


_DecodedObjects = tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, str]]]


def _decoded(stored: ViewCollection, keep_bad_views: bool) -> Iterator[_DecodedObjects]:
    """All views in order, some objects at a time.

    Yields the objects [b], their pixels [b, V, H, W, 3] and sizes [b, V, 2], and object, view and problem of bad views.
    """

    def decode(objects: np.ndarray) -> _DecodedObjects:
        pixels = np.zeros((len(objects), stored.num_views, *stored.image_size, 3), dtype=np.uint8)
        sizes = np.zeros((len(objects), stored.num_views, 2), dtype=np.int64)
        bad_views: list[tuple[int, int, str]] = []
        try:
            stored.read_all_views(objects, pixels, sizes)
        except DataError as error:
            if not keep_bad_views or isinstance(error, LostShardError):
                raise
            bad_views = _decode_one_by_one(stored, objects, pixels, sizes)
        return objects, pixels, sizes, bad_views

    at_once = max(1, _BYTES_AT_ONCE // (stored.num_views * _bytes_per_view(stored)))
    chunks = (
        np.arange(first, min(first + at_once, stored.num_objects)) for first in range(0, stored.num_objects, at_once)
    )
    threads = usable_cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from map_in_order(pool, decode, chunks, ahead=threads)


def _decode_one_by_one(
    stored: ViewCollection, objects: np.ndarray, pixels: np.ndarray, sizes: np.ndarray
) -> list[tuple[int, int, str]]:
    bad_views = []
    counts = np.broadcast_to(stored.views_of_each, stored.num_objects)[objects]
    for row, view in np.argwhere(is_view(counts, stored.num_views)).tolist():
        one = slice(row, row + 1), slice(view, view + 1)
        try:
            stored.read_views(objects[one[0]], np.array([[view]]), pixels[one], sizes[one])
        except LostShardError:
            raise
        except DataError as error:
            pixels[one] = 0
            bad_views.append((int(objects[row]), view, str(error)))
    return bad_views
