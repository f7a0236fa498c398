"""Decoded views kept on the disk or in memory: every view is decoded once, and reading one is a copy ever after.

`ssl_equi.data.loading.device` keeps them on a GPU.

On the disk the cache of a split is a folder of its pixels in one plain file, a CRC-32C of each view, each picture's
size where sizes differ, and what is wrong with views that can't be decoded. It is named after what the pixels depend
on, so that changed data or another size never meet an old cache; a folder that nobody needs any more may be deleted.
"""

import errno
import functools
import hashlib
import importlib.metadata
import json
import mmap
import os
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from ssl_equi.data.bad_records import problems_of_rows
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
from ssl_equi.runtime.system import anonymous_memory, free_memory, local_processes, usable_cores

_VERSION = 1  # raised when equal data would give another file
_DECODERS = ("simplejpeg", "pillow")  # whose releases may round differently
_BYTES_AT_ONCE = 8 << 20  # decoded by a thread in one go
MIB = 2**20
_CURE = "delete this folder, it is made anew"
_PIXELS, _CHECKSUMS, _SIZES, _BAD_VIEWS = "pixels.bin", "crc32c.npy", "content_sizes.npy", "bad_views.json"


def decoded_cache_folder() -> Path:
    """Where the caches lie: the user's cache folder (XDG on Linux)."""
    return user_cache_path("ssl_equi") / "decoded-views"


class DecodedViews(DerivedViews):
    """Views of `stored` that were decoded once; where their pixels lie is for subclasses to say."""

    _bad_views: dict[tuple[int, int], str]
    """What was wrong with views that could not be decoded, by object and view."""
    _content_sizes: np.ndarray | None
    """Each picture's height and width [n, V, 2] where sizes differ."""

    def __init__(self, stored: ViewCollection) -> None:
        super().__init__(stored)
        # Where an object's views begin; see `places`.
        counts = np.broadcast_to(stored.views_of_each, stored.num_objects).astype(np.int64)
        self._first_images = np.cumsum(counts) - counts

    def places(self, objects: np.ndarray, views: np.ndarray) -> np.ndarray:
        """int64 [b, V] of views [b, V] of objects [b] among all, which lie one behind the other, without padding."""
        places: np.ndarray = self._first_images[objects][:, None] + views
        return places

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        places = self.places(object_indices, view_indices)
        if sizes_out is not None and self._content_sizes is not None:
            sizes_out[...] = self._content_sizes[object_indices[:, None], view_indices]
        for row, object_index in enumerate(object_indices.tolist()):
            for column, view in enumerate(view_indices[row].tolist()):
                if (object_index, view) in self._bad_views:
                    raise DataError(self._bad_views[object_index, view])
                with CLOCK.during("reading"):
                    pixels = self._pixels_of(object_index, view, int(places[row, column]))
                out[row, column] = pixels

    def _pixels_of(self, object_index: int, view: int, place: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3] of a view that could be decoded, at its place among all views."""
        raise NotImplementedError

    def _decode_into(self, pixels: Tensor, keep_bad_views: bool, show_progress: bool) -> None:
        """Decodes all views into uint8 [n, H, W, 3] on any device, and notes sizes and bad views.

        Raises DataError for a view that can't be read, unless they are kept.
        """
        stored = self.stored
        self._bad_views, sizes = {}, np.empty((stored.num_objects, stored.num_views, 2), dtype=np.int64)
        for objects, decoded, content_sizes, bad_views in _decoded(stored, keep_bad_views, show_progress):
            own, first = _own_pixels(stored, objects, decoded), int(self._first_images[objects[0]])
            pixels[first : first + len(own)] = torch.from_numpy(own)
            sizes[objects] = content_sizes
            self._bad_views |= {(object_index, view): problem for object_index, view, problem in bad_views}
        self._content_sizes = None if stored.fills_image else sizes


class CachedViews(DecodedViews):
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
        self._content_sizes = None
        if not self.fills_image:
            self._content_sizes = self._opened(_SIZES, np.int64, (self.num_objects, self.num_views, 2))
        path, expected = self.cache_folder / _PIXELS, bytes_of_all_views(stored)
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise self._damaged(f"has {found} bytes of pixels where {expected} belong")

    def __reduce__(self) -> tuple[Any, ...]:
        again = functools.partial(CachedViews, keep_bad_views=self._keep_bad_views)
        return again, (self.stored, self._parent)

    def _pixels_of(self, object_index: int, view: int, place: int) -> np.ndarray:
        data = self._pixels.read(0, place * self._bytes_per_view, self._bytes_per_view)
        if len(data) != self._bytes_per_view:
            raise self._damaged(f"ends within view {view} of object {object_index}")
        size = None if self._content_sizes is None else self._content_sizes[object_index, view]
        if _checksum(data, size) != self._checksums[object_index, view]:
            raise self._damaged(f"does not match the CRC-32C of view {view} of object {object_index}")
        return np.frombuffer(data, dtype=np.uint8).reshape(*self.image_size, 3)

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


class DecodedInMemory(DecodedViews):
    """The views of `stored`, decoded once into memory that worker processes share with this one, read-only.

    A view that can't be read raises then or, with `keep_bad_views`, is noted and raises when it is read. Each process
    of a launcher has such memory of its own.

    Raises DataError if there is too little memory, and outside of Linux.
    """

    def __init__(self, stored: ViewCollection, *, keep_bad_views: bool = False, show_progress: bool = False) -> None:
        super().__init__(stored)
        count, size = stored.num_images, bytes_of_all_views(stored)
        descriptor = _reserved_memory(stored.split, size)
        weakref.finalize(self, os.close, descriptor)
        if show_progress:
            print(f"decoding {count:,} views once into memory: {size / MIB:,.1f} MiB", flush=True)
        written = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        self._decode_into(written.view(count, *stored.image_size, 3), keep_bad_views, show_progress)
        self._map(f"/proc/{os.getpid()}/fd/{descriptor}", os.fstat(descriptor).st_ino)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (self.stored, self._content_sizes, self._bad_views, *self._place)

    def _map(self, path: str, inode: int) -> None:
        """Map the pixels, read-only, by the path of the descriptor of the process that decoded them."""
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_ino != inode:  # the number of a descriptor that was closed is given again
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                memory = mmap.mmap(file.fileno(), bytes_of_all_views(self.stored), prot=mmap.PROT_READ)
        except OSError as error:
            raise DataError(
                f"decoded views in memory can't be shared with a worker process ({error.strerror}): give "
                f"--loader-workers 0, or --cache-in disk"
            ) from error
        shape = (self.stored.num_images, *self.image_size, 3)
        self._place, self._pixels = (path, inode), np.frombuffer(memory, dtype=np.uint8).reshape(shape)

    def _pixels_of(self, object_index: int, view: int, place: int) -> np.ndarray:
        return self._pixels[place]


def _attached(
    stored: ViewCollection, content_sizes: np.ndarray | None, bad_views: dict[tuple[int, int], str], *place: Any
) -> DecodedInMemory:
    views = DecodedInMemory.__new__(DecodedInMemory)
    DecodedViews.__init__(views, stored)
    views._content_sizes, views._bad_views = content_sizes, bad_views
    views._map(*place)
    return views


def _reserved_memory(split: str, size: int) -> int:
    """Descriptor of memory for the views of a split; DataError where they don't fit, for each local process."""
    free, processes = free_memory(), local_processes()
    if free is None:
        raise DataError("decoded views are kept in memory on Linux only: give --cache-in disk")
    needed = f"the decoded views of split {split!r} need {size / MIB:,.1f} MiB of memory"
    if processes > 1:
        needed += f" in each of {processes} processes"
    try:
        if size * processes <= free:
            return anonymous_memory("ssl_equi_views", size)
    except OSError:
        pass  # others were faster
    raise DataError(f"{needed} and {free / MIB:,.1f} MiB are free: give --cache-in disk")


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


def bytes_of_all_views(stored: ViewCollection) -> int:
    return stored.num_images * _bytes_per_view(stored)


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
    count, total_bytes = stored.num_images, bytes_of_all_views(stored)
    temporary = folder.with_name(f".building-{folder.name}")  # of this name once, for the lock is held
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if total_bytes > free:
        raise DataError(
            f"the decoded views of split {stored.split!r} need {total_bytes / MIB:,.1f} MiB in {folder.parent} and "
            f"{free / MIB:,.1f} MiB are free: free some space, or leave --cache-decoded out"
        )
    if show_progress:
        print(f"decoding {count:,} views once into {folder}: {total_bytes / MIB:,.1f} MiB", flush=True)
    checksums = np.empty((stored.num_objects, stored.num_views), dtype=np.uint32)
    content_sizes = np.empty((stored.num_objects, stored.num_views, 2), dtype=np.int64)
    bad_views: list[tuple[int, int, str]] = []
    try:
        with write_errors_named(temporary):
            temporary.mkdir()
            with open(temporary / _PIXELS, "wb") as file:
                for objects, pixels, sizes, bad in _decoded(stored, keep_bad_views, show_progress):
                    for row, view in np.ndindex(pixels.shape[:2]):
                        size = None if stored.fills_image else sizes[row, view]
                        checksums[objects[row], view] = _checksum(pixels[row, view].tobytes(), size)
                    content_sizes[objects] = sizes
                    bad_views += bad
                    file.write(_own_pixels(stored, objects, pixels).data)
                file.flush()
                os.fsync(file.fileno())
            write_durably(temporary / _CHECKSUMS, npy_bytes(checksums))
            if not stored.fills_image:
                write_durably(temporary / _SIZES, npy_bytes(content_sizes))
            if bad_views:
                write_durably(temporary / _BAD_VIEWS, json.dumps({"views": bad_views}).encode())
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _own_pixels(stored: ViewCollection, objects: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The views [k, H, W, 3] of objects in order, of their padded pixels [b, V, H, W, 3]."""
    if stored.view_counts is None:
        return pixels.reshape(-1, *pixels.shape[2:])
    return pixels[is_view(stored.view_counts[objects], stored.num_views)]


_DecodedObjects = tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, str]]]


def _decoded(stored: ViewCollection, keep_bad_views: bool, show_progress: bool) -> Iterator[_DecodedObjects]:
    """All views in order, some objects at a time.

    Yields the objects [b], their pixels [b, V, H, W, 3] and sizes [b, V, 2], and object, view and problem of bad views.
    """
    num_views = stored.num_views
    counts = np.broadcast_to(stored.views_of_each, stored.num_objects)

    def decode(objects: np.ndarray) -> _DecodedObjects:
        pixels = np.zeros((len(objects), num_views, *stored.image_size, 3), dtype=np.uint8)
        sizes = np.zeros((len(objects), num_views, 2), dtype=np.int64)
        places = np.argwhere(is_view(counts[objects], num_views))

        def read_alone(place: int) -> None:
            row, view = places[place].tolist()
            one = slice(row, row + 1), slice(view, view + 1)
            stored.read_views(objects[one[0]], np.array([[view]]), pixels[one], sizes[one])

        bad_views = []
        try:
            stored.read_all_views(objects, pixels, sizes)
        except DataError as error:
            if not keep_bad_views or isinstance(error, LostShardError):
                raise
            for place, problem in problems_of_rows(read_alone, range(len(places))).items():
                row, view = places[place].tolist()
                pixels[row, view] = 0
                bad_views.append((int(objects[row]), view, str(problem)))
        return objects, pixels, sizes, bad_views

    at_once = max(1, _BYTES_AT_ONCE // (num_views * _bytes_per_view(stored)))
    chunks = (
        np.arange(first, min(first + at_once, stored.num_objects)) for first in range(0, stored.num_objects, at_once)
    )
    threads = usable_cores()
    with (
        building_progress(show_progress) as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
    ):
        bar = progress.add_task(f"decoding {stored.split}", total=stored.num_objects * num_views)
        for decoded in map_in_order(pool, decode, chunks, ahead=threads):
            yield decoded
            progress.advance(bar, len(decoded[0]) * num_views)
