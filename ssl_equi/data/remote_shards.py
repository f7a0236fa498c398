"""Splits that lie elsewhere, as collections: manifest and index are fetched at once, views by byte range when read."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ssl_equi.data.collection import ViewCollection, check_request
from ssl_equi.data.decode import SUFFIX_OF_KIND, decode_image
from ssl_equi.data.fit import Fit
from ssl_equi.data.image_manifest import KINDS, ImageIndex, ImageManifest, read_image_index, read_image_manifest
from ssl_equi.data.index import SplitIndex, read_index
from ssl_equi.data.manifest import Manifest, index_folder, manifest_path, read_manifest
from ssl_equi.data.remote_files import Patience, RemoteFolder, open_folder
from ssl_equi.data.remote_records import RemoteRecords
from ssl_equi.data.resizing import Resizing
from ssl_equi.data.shard import view_suffix
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError, LostShardError
from ssl_equi.files import write_errors_named

_OBJECTS_PER_REQUEST = 16
_MAX_MANIFEST_BYTES = 256 << 20

_Contents = TypeVar("_Contents")


class RemoteCollection(ViewCollection, Protocol):
    """A collection whose views can be fetched ahead and decoded later."""

    @property
    def location(self) -> str | Path:
        """The folder or address that was given."""

    @property
    def fit(self) -> Fit | None:
        """How images are brought to one size; None for rendered objects that keep their stored one."""

    @property
    def records(self) -> RemoteRecords:
        """Where the views lie."""

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """Decode views [k] of an object into `out` uint8 [k, H, W, 3]; DataError naming one that does not decode.

        Returns height and width of each picture in `out`, int64 [k, 2].
        """


class RemoteShards:
    """Rendered objects: the split `split` of the data set at `location`, a folder or a web or S3 address.

    A `RemoteCollection`, whose attributes are described there and in `ViewCollection`; also `keys` (bytes [n]) and
    `manifest`. `read_views` fetches what it needs each time; `ssl_equi.data.streaming` reads ahead.

    Args:
        location: where manifest, index folder and shards lie, as `ssl_equi.data.writer` leaves them.
        split: name of the split.
        patience: how long a server is waited for.
        image_size: side in pixels of the squares that views are resized to when they are read; None keeps their size.

    Raises:
        DataError: the location is refused or can't be reached, or manifest or index are missing, changed, of another
            version or inconsistent, or views that are no squares are to be resized.
    """

    def __init__(
        self, location: str | Path, split: str, patience: Patience | None = None, image_size: int | None = None
    ) -> None:
        remote = open_folder(location, patience)
        self.manifest, index = _open_metadata(remote, split, read_rendered_metadata)
        manifest = self.manifest
        self.records = RemoteRecords(
            remote, manifest.shards, shard_numbers=index.shard_numbers, offsets=index.offsets, sizes=index.sizes,
            crc32c=index.crc32c, keys=index.keys,
            suffix_of=lambda _, view: view_suffix(view, manifest.num_views, manifest.view_format),
        )  # fmt: skip
        self._resizing = Resizing(manifest, image_size)
        self.stored_size = self._resizing.stored_size
        self.fit: Fit | None = self._resizing.fit
        self.location = location
        self.split = split
        self.folder = Path(location)  # says where the data are from; only a local one can be opened as a path
        self.num_objects = manifest.num_objects
        self.num_views = manifest.num_views
        self.class_names = manifest.class_names
        self.image_size = self._resizing.image_size
        self.fills_image = True
        self.mean_rgb = manifest.mean_rgb
        self.std_rgb = manifest.std_rgb
        self.source = self._resizing.source
        self.plan_sha256 = self._resizing.plan_sha256
        self.fingerprint = self.content_key = self._resizing.fingerprint
        self.labels = index.labels
        self.latents = index.latents
        self.quats_xyzw = index.quats_xyzw
        self.keys = index.keys

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Fetch and decode views into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`."""
        return _read_now(self, object_indices, view_indices, out, content_sizes_out)

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """Decode fetched views; see `RemoteCollection.decode`."""
        for view_index, data, pixels in zip(view_indices.tolist(), encoded, out, strict=True):
            problem = self._resizing.decode(data, pixels)
            if problem:
                raise self.records.damaged(object_index, view_index, problem)
        return np.tile(np.array(self.image_size), (len(encoded), 1))


class RemoteImages:
    """Ordinary images with a manifest: the split `split` at `location`, each image brought to one size by `fit`.

    A `RemoteCollection` with one view an object; arguments and errors are those of `RemoteShards`.
    """

    def __init__(self, location: str | Path, split: str, fit: Fit, patience: Patience | None = None) -> None:
        remote = open_folder(location, patience)
        self.manifest, index = _open_metadata(remote, split, read_image_metadata)
        manifest = self.manifest
        self.records = RemoteRecords(
            remote, manifest.shards, shard_numbers=index.shard_numbers, offsets=index.offsets[:, None],
            sizes=index.sizes[:, None], crc32c=index.crc32c[:, None], keys=index.keys,
            suffix_of=lambda number, _: SUFFIX_OF_KIND[KINDS[int(index.kinds[number])]],
        )  # fmt: skip
        self.fit = fit
        self.location = location
        self.split = split
        self.folder = Path(location)  # says where the data are from; only a local one can be opened as a path
        self.num_objects = manifest.num_objects
        self.num_views = 1
        self.class_names = manifest.class_names
        self.image_size = fit.image_size
        self.fills_image = fit.fills_image
        self.mean_rgb: tuple[float, float, float] | None = manifest.mean_rgb
        self.std_rgb: tuple[float, float, float] | None = manifest.std_rgb
        self.source = manifest.source
        self.plan_sha256 = manifest.plan_sha256
        self.fingerprint = self.content_key = manifest.fingerprint
        self.labels = index.labels
        self.latents = np.zeros((self.num_objects, 1, 0), dtype=np.float32)
        self.quats_xyzw: np.ndarray | None = None
        self.keys = index.keys

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Fetch and decode images into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`."""
        return _read_now(self, object_indices, view_indices, out, content_sizes_out)

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """Decode fetched images; see `RemoteCollection.decode`."""
        name = self.records.place(object_index, 0)
        sizes = [self.fit.place(decode_image(data, name), pixels) for data, pixels in zip(encoded, out, strict=True)]
        return np.array(sizes, dtype=np.int64)


def _read_now(
    collection: RemoteCollection,
    object_indices: np.ndarray,
    view_indices: np.ndarray,
    out: np.ndarray,
    content_sizes_out: np.ndarray | None,
) -> StageSeconds:
    check_request(
        object_indices, view_indices, out, content_sizes_out,
        num_objects=collection.num_objects, num_views=collection.num_views, image_size=collection.image_size,
    )  # fmt: skip
    began, reading = time.perf_counter(), 0.0
    for run in runs_of_neighbours(collection.records.shards_of(object_indices)):
        began_to_read = time.perf_counter()
        try:
            fetched = collection.records.fetch(object_indices[run], view_indices[run])
        except DataError as error:
            raise LostShardError(str(error)) from error
        reading += time.perf_counter() - began_to_read
        for row, encoded in zip(range(run.start, run.stop), fetched, strict=True):
            if isinstance(encoded, DataError):
                raise encoded
            content_sizes = collection.decode(int(object_indices[row]), view_indices[row], encoded, out[row])
            if content_sizes_out is not None:
                content_sizes_out[row] = content_sizes
    return StageSeconds(reading, time.perf_counter() - began - reading)


def runs_of_neighbours(shard_numbers: np.ndarray) -> list[slice]:
    """Parts of a sequence of objects that lie in one shard, so many at most as one request fetches."""
    ends = [*(np.flatnonzero(np.diff(shard_numbers)) + 1).tolist(), len(shard_numbers)]
    runs, first = [], 0
    for end in ends:
        runs += [
            slice(start, min(start + _OBJECTS_PER_REQUEST, end)) for start in range(first, end, _OBJECTS_PER_REQUEST)
        ]
        first = end
    return runs


def read_rendered_metadata(remote: RemoteFolder, split: str, folder: Path) -> tuple[Manifest, SplitIndex]:
    """Copy manifest and index of rendered objects into a local folder and open them; DataError if that can't be."""
    fetch_manifest(remote, split, folder)
    manifest = read_manifest(folder, split)
    _fetch_sidecars(remote, split, folder, SplitIndex)
    return manifest, read_index(folder, manifest, always_verify=True)


def read_image_metadata(remote: RemoteFolder, split: str, folder: Path) -> tuple[ImageManifest, ImageIndex]:
    """Copy manifest and index of ordinary images into a local folder and open them; DataError if that can't be."""
    fetch_manifest(remote, split, folder)
    manifest = read_image_manifest(folder, split)
    _fetch_sidecars(remote, split, folder, ImageIndex)
    return manifest, read_image_index(folder, manifest, always_verify=True)


def _open_metadata(remote: RemoteFolder, split: str, read: Callable[[RemoteFolder, str, Path], _Contents]) -> _Contents:
    """What `read` makes of a split's small files, in a folder that goes away; what is mapped outlives its name."""
    with tempfile.TemporaryDirectory(prefix="ssl-equi-index-") as folder, named_by_address(remote, Path(folder)):
        return read(remote, split, Path(folder))


@contextmanager
def named_by_address(remote: RemoteFolder, folder: Path) -> Iterator[None]:
    """Inside, errors about copies in a folder that goes away name the files that they are copies of."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(f"{folder}/", remote.describe(""))) from error


def fetch_manifest(remote: RemoteFolder, split: str, folder: Path) -> Path:
    """Copy a split's manifest into a local folder."""
    path = manifest_path(folder, split)
    if remote.size(path.name) > _MAX_MANIFEST_BYTES:
        raise DataError(f"{remote.describe(path.name)} is larger than any manifest: give another location")
    fetch_file(remote, path.name, path)
    return path


def _fetch_sidecars(remote: RemoteFolder, split: str, folder: Path, index_type: type) -> None:
    """Copy the arrays of an index, one a field of its dataclass; their names in a manifest are not trusted."""
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for field in dataclasses.fields(index_type):
        fetch_file(remote, f"{sidecars.name}/{field.name}.npy", sidecars / f"{field.name}.npy")


def fetch_file(remote: RemoteFolder, name: str, path: Path, expected_bytes: int | None = None) -> None:
    """Copy one file; DataError if it can't be read, has another size than expected, or fits on no disk here."""
    size = remote.size(name) if expected_bytes is None else expected_bytes
    with write_errors_named(path), open(path, "wb") as file:
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise DataError(
                f"{remote.describe(name)} has {size:,} bytes and {free:,} are free in {path.parent}: free some space"
            )
        remote.copy(name, file, size)
