"""Splits that lie elsewhere, as collections: manifest and index are fetched at once, views by byte range when read."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import SUFFIX_OF_KIND, Fit, decode_image
from ssl_equi.data.remote.transport import Patience, RemoteFolder, open_folder
from ssl_equi.data.shards.format import decode_view, problem_of_bytes, view_suffix
from ssl_equi.data.shards.index import KINDS, ImageIndex, SplitIndex, read_image_index, read_index, shapes_of_arrays
from ssl_equi.data.shards.manifest import (
    ImageManifest,
    Manifest,
    ShardEntry,
    index_folder,
    manifest_path,
    read_image_manifest,
    read_manifest,
)
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.errors import DataError, LostShardError
from ssl_equi.files import write_errors_named

_OBJECTS_PER_REQUEST = 16
_MAX_MANIFEST_BYTES = 256 << 20
_BLOCK = tarfile.BLOCKSIZE

_Contents = TypeVar("_Contents")


class RemoteRecords:
    """Where each view of n objects with V views each lies in the shards of a remote folder.

    Only the manifest's and the index's word is taken for where a member lies, and each one's tar header, size and
    CRC-32C must agree with it. Members of other names are never opened.

    Args:
        index: with arrays [n] of images, or [n, V] of views.
        suffix_of: from object and view to what follows the key and a dot in the member's name.

    Raises DataError if a key occurs twice.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        shards: Sequence[ShardEntry],
        index: SplitIndex | ImageIndex,
        suffix_of: Callable[[int, int], str],
    ) -> None:
        self.remote, self.shards = remote, tuple(shards)
        self._shard_numbers, self._keys, self._suffix_of = index.shard_numbers, index.keys, suffix_of
        n = len(index.keys)
        self._offsets, self._sizes, self._crc32c = (
            array.reshape(n, -1) for array in (index.offsets, index.sizes, index.crc32c)
        )
        unique, counts = np.unique(index.keys, return_counts=True)
        if len(unique) < n:
            raise DataError(
                f"key '{unique[counts > 1][0].decode()}' occurs twice in the shards of {remote.describe('')}: give "
                f"every object a key of its own and rebuild this data set"
            )

    @property
    def shard_counts(self) -> tuple[int, ...]:
        """Objects in each shard."""
        return tuple(entry.count for entry in self.shards)

    def shards_of(self, object_indices: np.ndarray) -> np.ndarray:
        """Number of the shard that each object lies in."""
        return self._shard_numbers[object_indices]

    def fetch(self, object_indices: np.ndarray, view_indices: np.ndarray) -> list[list[bytes] | DataError]:
        """The encoded views `view_indices` [b, k] of objects `object_indices` [b] of one shard.

        Returns a row for each object: its views' bytes as they were written, or what is wrong with one of them. Views
        with little between them are fetched in one request. Raises DataError if the shard can't be read at all.
        """
        shard = self.shards[int(self.shards_of(object_indices[0]))]
        starts = self._offsets[object_indices[:, None], view_indices].ravel() - _BLOCK  # with the tar header
        ends = starts + _BLOCK + self._sizes[object_indices[:, None], view_indices].ravel()
        contents = [b""] * starts.size
        for places in _close_together(starts, ends, self.remote.max_gap_bytes):
            first, end = int(starts[places[0]]), int(ends[places].max())
            try:
                data = self.remote.read(shard.name, first, end, shard.bytes)
            except DataError as error:
                rows = sorted({place // view_indices.shape[1] for place in places.tolist()})
                keys = ", ".join(f"'{self._keys[object_indices[row]].decode()}'" for row in rows[:3])
                more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
                raise DataError(f"views of {keys}{more} are not to be had: {error}") from error
            for place in places.tolist():
                contents[place] = data[starts[place] - first : ends[place] - first]
        views = view_indices.shape[1]
        return [
            self._checked(int(object_index), view_indices[row], contents[row * views : (row + 1) * views])
            for row, object_index in enumerate(object_indices)
        ]

    def place(self, object_index: int, view_index: int) -> str:
        """A view's member, offset and shard, for messages."""
        shard = self.remote.describe(self.shards[int(self._shard_numbers[object_index])].name)
        offset = int(self._offsets[object_index, view_index])
        return f"'{self._member_name(object_index, view_index)}' at byte {offset} of shard {shard}"

    def damaged(self, object_index: int, view_index: int, problem: str) -> DataError:
        """The error that says what is wrong with a view."""
        return DataError(
            f"image {self.place(object_index, view_index)} {problem}: upload this shard again or rebuild this data set"
        )

    def _checked(self, object_index: int, view_indices: np.ndarray, members: list[bytes]) -> list[bytes] | DataError:
        """The contents of the members (header and content) of an object's views, or what is wrong with one."""
        encoded = []
        for view_index, member in zip(view_indices.tolist(), members, strict=True):
            size = int(self._sizes[object_index, view_index])
            content = member[_BLOCK:]
            problem = problem_of_bytes(content, size, int(self._crc32c[object_index, view_index]))
            problem = problem or _problem_of_header(member[:_BLOCK], self._member_name(object_index, view_index), size)
            if problem:
                return self.damaged(object_index, view_index, problem)
            encoded.append(content)
        return encoded

    def _member_name(self, object_index: int, view_index: int) -> str:
        return f"{self._keys[object_index].decode()}.{self._suffix_of(object_index, view_index)}"


class RemoteViews(ViewCollection):
    """A split whose views are fetched by byte range and can be decoded later; also `keys` (bytes [n]).

    `read_views` fetches what it needs each time; `ssl_equi.data.remote.streaming` reads ahead.
    """

    location: str | Path  # the folder or address that was given
    manifest: Manifest | ImageManifest
    records: RemoteRecords  # where the views lie

    def _set_metadata(self, location: str | Path, split: str, index: SplitIndex | ImageIndex) -> None:
        manifest = self.manifest
        self.location, self.split = location, split
        self.folder = Path(location)  # says where the data are from; only a local one can be opened as a path
        self.source, self.plan_sha256 = manifest.source, manifest.plan_sha256
        self.fingerprint = self.content_key = manifest.fingerprint
        self.num_objects, self.class_names = manifest.num_objects, manifest.class_names
        self.mean_rgb, self.std_rgb = manifest.mean_rgb, manifest.std_rgb
        self.labels, self.keys = index.labels, index.keys

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """Decode views [k] of an object into `out` uint8 [k, H, W, 3]; DataError naming one that does not decode.

        Returns height and width of each picture in `out`, int64 [k, 2].
        """
        raise NotImplementedError

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        for run in runs_of_neighbours(self.records.shards_of(object_indices)):
            try:
                with CLOCK.during("reading"):
                    fetched = self.records.fetch(object_indices[run], view_indices[run])
            except DataError as error:
                raise LostShardError(str(error)) from error
            for row, encoded in zip(range(run.start, run.stop), fetched, strict=True):
                if isinstance(encoded, DataError):
                    raise encoded
                sizes = self.decode(int(object_indices[row]), view_indices[row], encoded, out[row])
                if sizes_out is not None:
                    sizes_out[row] = sizes


class RemoteShards(RemoteViews):
    """Rendered objects: the split `split` of the data set at `location`, a folder or a web or S3 address.

    Raises DataError if the location is refused or can't be reached, or manifest or index are missing, changed, of
    another version or inconsistent.
    """

    manifest: Manifest

    def __init__(self, location: str | Path, split: str, patience: Patience | None = None) -> None:
        remote = open_folder(location, patience)
        self.manifest, index = _open_metadata(remote, split, read_rendered_metadata)
        manifest = self.manifest
        self._set_metadata(location, split, index)
        self.records = RemoteRecords(
            remote, manifest.shards, index, lambda _, view: view_suffix(view, manifest.num_views, manifest.view_format)
        )
        self.num_views = manifest.num_views
        self.image_size, self.fills_image = manifest.image_size, True
        self.schema, self.latents, self.quats_xyzw = manifest.schema, index.latents, index.quats_xyzw

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """See `RemoteViews.decode`."""
        for view_index, data, pixels in zip(view_indices.tolist(), encoded, out, strict=True):
            problem = decode_view(data, pixels, self.manifest.view_format)
            if problem:
                raise self.records.damaged(object_index, view_index, problem)
        return np.tile(np.array(self.image_size), (len(encoded), 1))


class RemoteImages(RemoteViews):
    """Ordinary images with a manifest, one view per object, each brought to one size by `fit`; as `RemoteShards`."""

    manifest: ImageManifest

    def __init__(self, location: str | Path, split: str, fit: Fit, patience: Patience | None = None) -> None:
        remote = open_folder(location, patience)
        self.manifest, index = _open_metadata(remote, split, read_image_metadata)
        self._set_metadata(location, split, index)
        self.records = RemoteRecords(
            remote, self.manifest.shards, index, lambda number, _: SUFFIX_OF_KIND[KINDS[int(index.kinds[number])]]
        )
        self.fit = fit
        self.num_views = 1
        self.image_size, self.fills_image = fit.image_size, fit.fills_image
        self.latents = np.zeros((self.num_objects, 1, 0), dtype=np.float32)
        self.quats_xyzw = None

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> np.ndarray:
        """See `RemoteViews.decode`."""
        name = self.records.place(object_index, 0)
        sizes = [self.fit.place(decode_image(data, name), pixels) for data, pixels in zip(encoded, out, strict=True)]
        return np.array(sizes, dtype=np.int64)


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


def _close_together(starts: np.ndarray, ends: np.ndarray, max_gap_bytes: int) -> list[np.ndarray]:
    """Places of byte ranges in ascending order, grouped so that within a group no gap is larger than that."""
    ascending = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(ends[ascending])
    gaps = starts[ascending][1:] - reached[:-1]
    return np.split(ascending, np.flatnonzero(gaps > max_gap_bytes) + 1)


def _problem_of_header(header: bytes, name: str, size: int) -> str | None:
    """What is wrong with a tar header that should announce the plain file `name` of `size` bytes, None if nothing."""
    try:
        member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f"has a damaged tar header ({error})"
    if member.name != name or not member.isreg() or member.size != size:
        return f"has the tar header of '{member.name}' with {member.size} bytes (no other member may be here)"
    return None


# ---------------------------------------------------------------- manifest and index


def read_rendered_metadata(remote: RemoteFolder, split: str, folder: Path) -> tuple[Manifest, SplitIndex]:
    """Copy manifest and index of rendered objects into a local folder and open them; DataError if that can't be."""
    fetch_manifest(remote, split, folder)
    manifest = read_manifest(folder, split)
    _fetch_sidecars(remote, split, folder, shapes_of_arrays(manifest))
    return manifest, read_index(folder, manifest, verify=True)


def read_image_metadata(remote: RemoteFolder, split: str, folder: Path) -> tuple[ImageManifest, ImageIndex]:
    """Copy manifest and index of ordinary images into a local folder and open them; DataError if that can't be."""
    fetch_manifest(remote, split, folder)
    manifest = read_image_manifest(folder, split)
    _fetch_sidecars(remote, split, folder, shapes_of_arrays(manifest))
    return manifest, read_image_index(folder, manifest, verify=True)


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


def _fetch_sidecars(remote: RemoteFolder, split: str, folder: Path, names: Iterable[str]) -> None:
    """Copy the arrays of an index; their names in a manifest are not trusted."""
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for name in names:
        fetch_file(remote, f"{sidecars.name}/{name}.npy", sidecars / f"{name}.npy")


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
