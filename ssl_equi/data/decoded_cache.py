"""Decoded views kept on the disk: every view is decoded once, and reading one is a copy ever after.

The cache of a split is a folder of its pixels in one plain file, a CRC-32C of each view, and each picture's size where
sizes differ. It is named after what the pixels depend on, so that changed data or another size never meet an old
cache; a folder that nobody needs any more may be deleted. Views are read with `pread`, so that a file that is cut gives
an error where a memory map would kill the process.
"""

import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from platformdirs import user_cache_path

from ssl_equi.data.collection import ViewCollection, check_request
from ssl_equi.data.manifest import canonical_json
from ssl_equi.data.npy import map_npy, npy_bytes
from ssl_equi.data.shard_files import ShardFiles
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError
from ssl_equi.files import (
    building_progress,
    map_in_order,
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
_PIXELS, _CHECKSUMS, _SIZES = "pixels.bin", "crc32c.npy", "content_sizes.npy"


def decoded_cache_folder() -> Path:
    """Where the caches lie: the user's cache folder (XDG on Linux)."""
    return user_cache_path("ssl_equi") / "decoded-views"


class CachedViews:
    """Another collection whose views were decoded once; a `ViewCollection` with the same pixels, described there.

    The first process decodes all views into the cache, says how large it becomes, and shows how far it is; others
    that want the same wait for it.

    Args:
        stored: the views to decode, with one content key for one content.
        parent: folder of all caches; `decoded_cache_folder()` when None.
        show_progress: says what is made, and how far it is.

    Raises:
        DataError: the disk has too little space, a view of `stored` can't be read, or the cache is damaged.
    """

    def __init__(self, stored: ViewCollection, parent: Path | None = None, *, show_progress: bool = False) -> None:
        self._stored = stored
        self._parent = decoded_cache_folder() if parent is None else parent
        self.split = stored.split
        self.folder = stored.folder
        self.source = stored.source
        self.fingerprint = stored.fingerprint
        self.content_key = stored.content_key
        self.plan_sha256 = stored.plan_sha256
        self.num_objects = stored.num_objects
        self.num_views = stored.num_views
        self.image_size = stored.image_size
        self.fills_image = stored.fills_image
        self.class_names = stored.class_names
        self.labels = stored.labels
        self.latents = stored.latents
        self.quats_xyzw = stored.quats_xyzw
        self.mean_rgb, self.std_rgb = stored.mean_rgb, stored.std_rgb
        self.cache_folder = self._parent / f"{stored.split}-{_key_of(stored)}"
        if not self.cache_folder.exists():
            with write_errors_named(self._parent):
                self._parent.mkdir(parents=True, exist_ok=True)
            with working_alone(self._parent / f".{self.cache_folder.name}.lock", f"decoding {stored.split!r}"):
                if not self.cache_folder.exists():
                    _build(stored, self.cache_folder, show_progress)
        self._bytes_per_view = _bytes_per_view(stored)
        self._pixels = ShardFiles([self.cache_folder / _PIXELS])
        self._checksums = self._opened(_CHECKSUMS, np.uint32, (self.num_objects, self.num_views))
        self._content_sizes: np.ndarray | None = None
        if not self.fills_image:
            self._content_sizes = self._opened(_SIZES, np.int64, (self.num_objects, self.num_views, 2))
        self._check_size()

    def __reduce__(self) -> tuple[type["CachedViews"], tuple[ViewCollection, Path]]:
        return CachedViews, (self._stored, self._parent)

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Copy views into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`.

        Raises DataError for a view that is cut or fails its CRC-32C.
        """
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=self.num_objects, num_views=self.num_views, image_size=self.image_size,
        )  # fmt: skip
        now, reading, began = time.perf_counter, 0.0, time.perf_counter()
        if content_sizes_out is not None and self._content_sizes is None:
            content_sizes_out[...] = self.image_size
        elif content_sizes_out is not None and self._content_sizes is not None:
            content_sizes_out[...] = self._content_sizes[object_indices[:, None], view_indices]
        for row, object_index in enumerate(object_indices.tolist()):
            for column, view in enumerate(view_indices[row].tolist()):
                place = (object_index * self.num_views + view) * self._bytes_per_view
                began_to_read = now()
                data = self._pixels.read(0, place, self._bytes_per_view)
                if len(data) != self._bytes_per_view:
                    raise self._damaged(f"ends within view {view} of object {object_index}")
                size = None if self._content_sizes is None else self._content_sizes[object_index, view]
                if _checksum(data, size) != self._checksums[object_index, view]:
                    raise self._damaged(f"does not match the CRC-32C of view {view} of object {object_index}")
                reading += now() - began_to_read
                out[row, column] = np.frombuffer(data, dtype=np.uint8).reshape(out.shape[2:])
        return StageSeconds(reading, now() - began - reading)

    def _opened(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        described = f"{name} in the cache of decoded views {self.cache_folder}"
        return map_npy(self.cache_folder / name, described, DataError, _CURE, dtype=dtype, shape=shape)

    def _check_size(self) -> None:
        path, expected = self.cache_folder / _PIXELS, self.num_objects * self.num_views * self._bytes_per_view
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise self._damaged(f"has {found} bytes of pixels where {expected} belong")

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"the cache of decoded views {self.cache_folder} {problem}: {_CURE}")


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


def _build(stored: ViewCollection, folder: Path, show_progress: bool) -> None:
    """Decode all views under another name, then give the folder its own."""
    count = stored.num_objects * stored.num_views
    total_bytes = count * _bytes_per_view(stored)
    temporary = folder.with_name(f".building-{folder.name}")  # of this name once, for the lock is held
    shutil.rmtree(temporary, ignore_errors=True)
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
            _write_views(stored, temporary, show_progress)
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_views(stored: ViewCollection, folder: Path, show_progress: bool) -> None:
    checksums = np.empty((stored.num_objects, stored.num_views), dtype=np.uint32)
    content_sizes = np.empty((stored.num_objects, stored.num_views, 2), dtype=np.int64)
    with building_progress(show_progress) as progress, open(folder / _PIXELS, "wb") as file:
        bar = progress.add_task(f"decoding {stored.split}", total=stored.num_objects * stored.num_views)
        for objects, pixels, sizes in _decoded(stored):
            for row, object_index in enumerate(objects.tolist()):
                for view in range(stored.num_views):
                    size = None if stored.fills_image else sizes[row, view]
                    checksums[object_index, view] = _checksum(pixels[row, view].tobytes(), size)
            content_sizes[objects] = sizes
            file.write(pixels.data)
            progress.advance(bar, len(objects) * stored.num_views)
        file.flush()
        os.fsync(file.fileno())
    write_durably(folder / _CHECKSUMS, npy_bytes(checksums))
    if not stored.fills_image:
        write_durably(folder / _SIZES, npy_bytes(content_sizes))


def _decoded(stored: ViewCollection) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All views in order, some objects at a time: the objects [b], their pixels [b, V, H, W, 3] and sizes [b, V, 2]."""

    def decode(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pixels = np.zeros((len(objects), stored.num_views, *stored.image_size, 3), dtype=np.uint8)
        sizes = np.empty((len(objects), stored.num_views, 2), dtype=np.int64)
        stored.read_views(objects, np.tile(np.arange(stored.num_views), (len(objects), 1)), pixels, sizes)
        return objects, pixels, sizes

    at_once = max(1, _BYTES_AT_ONCE // (stored.num_views * _bytes_per_view(stored)))
    chunks = (
        np.arange(first, min(first + at_once, stored.num_objects)) for first in range(0, stored.num_objects, at_once)
    )
    threads = usable_cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from map_in_order(pool, decode, chunks, ahead=threads)
