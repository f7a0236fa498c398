"""Shards of rendered objects that lie elsewhere: the small files are fetched once, views by byte range.

Only the manifest's and the index's word is taken for where a view lies, and each view's tar header, size and CRC-32C
must agree with it. Members of other types than JPEG are never opened.
"""

import dataclasses
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssl_equi.data.building import working_alone
from ssl_equi.data.collection import check_request
from ssl_equi.data.errors import DataError
from ssl_equi.data.files import sha256_of_file, write_atomically, write_errors_named
from ssl_equi.data.index import SplitIndex, read_index
from ssl_equi.data.manifest import Manifest, index_folder, manifest_path, read_manifest
from ssl_equi.data.remote_files import Patience, RemoteFolder, open_folder
from ssl_equi.data.shard import decode_view, problem_of_bytes, view_suffix

_BLOCK = tarfile.BLOCKSIZE
_SIDECAR_NAMES = tuple(f"{field.name}.npy" for field in dataclasses.fields(SplitIndex))
_PIECE_BYTES = 8 << 20  # a whole file is fetched in such pieces
_MAX_MANIFEST_BYTES = 256 << 20


class RemoteShards:
    """The split `split` of the data set at `location`: a local folder, or an http://, https:// or s3:// address.

    A `ssl_equi.data.collection.ViewCollection`, whose attributes are described there; also `keys` (bytes [n]) and
    `manifest`. `read_views` fetches what it needs each time; `ssl_equi.data.streaming` reads ahead.

    Args:
        location: where manifest, index folder and shards lie, as `ssl_equi.data.writer` leaves them.
        split: name of the split.
        patience: how long a server is waited for.

    Raises:
        DataError: the location is refused or can't be reached, or manifest or index are missing, changed, of another
            version or inconsistent.
    """

    def __init__(self, location: str | Path, split: str, patience: Patience | None = None) -> None:
        self.remote = open_folder(location, patience)
        self.split = split
        self.folder = Path(location)  # says where the data are from; only a local one can be opened as a path
        with tempfile.TemporaryDirectory(prefix="ssl-equi-index-") as name:  # what is mapped outlives its name
            local = Path(name)
            try:
                fetch_metadata(self.remote, split, local)
                self.manifest: Manifest = read_manifest(local, split)
                self._index: SplitIndex = read_index(local, self.manifest)
            except DataError as error:
                raise DataError(str(error).replace(f"{local}/", self.remote.describe(""))) from error
        self._check_keys()

        self.num_objects = self.manifest.num_objects
        self.num_views = self.manifest.num_views
        self.class_names = self.manifest.class_names
        self.image_size = self.manifest.image_size
        self.fills_image = True
        self.mean_rgb = self.manifest.mean_rgb
        self.std_rgb = self.manifest.std_rgb
        self.source = self.manifest.source
        self.plan_sha256 = self.manifest.plan_sha256
        self.fingerprint = self.manifest.fingerprint
        self.labels = self._index.labels
        self.latents = self._index.latents
        self.quats_xyzw = self._index.quats_xyzw
        self.keys = self._index.keys

    @property
    def shard_counts(self) -> tuple[int, ...]:
        """Objects in each shard."""
        return tuple(entry.count for entry in self.manifest.shards)

    def shards_of(self, object_indices: np.ndarray) -> np.ndarray:
        """Number of the shard that each object lies in."""
        return self._index.shard_numbers[object_indices]

    def fetch_views(self, object_indices: np.ndarray, view_indices: np.ndarray) -> list[list[bytes] | DataError]:
        """The encoded views `view_indices` [b, k] of objects `object_indices` [b] of one shard.

        Returns a row for each object: its views' bytes as they were written, or what is wrong with one of them. Views
        with little between them are fetched in one request. Raises DataError if the shard can't be read at all.
        """
        shard = self.manifest.shards[int(self.shards_of(object_indices[0]))]
        starts = self._index.offsets[object_indices[:, None], view_indices].ravel() - _BLOCK  # with the tar header
        ends = starts + _BLOCK + self._index.sizes[object_indices[:, None], view_indices].ravel()
        contents = [b""] * starts.size
        for places in _close_together(starts, ends, self.remote.max_gap_bytes):
            first, end = int(starts[places[0]]), int(ends[places].max())
            try:
                data = self.remote.read(shard.name, first, end, shard.bytes)
            except DataError as error:
                rows = sorted({place // view_indices.shape[1] for place in places.tolist()})
                keys = ", ".join(f"'{self.keys[object_indices[row]].decode()}'" for row in rows[:3])
                more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
                raise DataError(f"views of {keys}{more} are not to be had: {error}") from error
            for place in places.tolist():
                contents[place] = data[starts[place] - first : ends[place] - first]
        views = view_indices.shape[1]
        return [
            self._checked(int(object_index), view_indices[row], contents[row * views : (row + 1) * views])
            for row, object_index in enumerate(object_indices)
        ]

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> None:
        """Fetch and decode views into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`."""
        self.check_request(object_indices, view_indices, out, content_sizes_out)
        for row in range(len(object_indices)):
            (encoded,) = self.fetch_views(object_indices[row : row + 1], view_indices[row : row + 1])
            if isinstance(encoded, DataError):
                raise encoded
            self.decode(int(object_indices[row]), view_indices[row], encoded, out[row])

    def check_request(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None,
    ) -> None:
        """Raise ValueError or IndexError for wrong arguments of `read_views`; fill `content_sizes_out`."""
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=self.num_objects, num_views=self.num_views, image_size=self.image_size,
        )  # fmt: skip
        if content_sizes_out is not None:
            content_sizes_out[...] = self.image_size

    def decode(self, object_index: int, view_indices: np.ndarray, encoded: list[bytes], out: np.ndarray) -> None:
        """Decode views [k] of an object into `out` uint8 [k, H, W, 3]; DataError naming one that does not decode."""
        for view_index, data, pixels in zip(view_indices.tolist(), encoded, out, strict=True):
            problem = decode_view(data, pixels)
            if problem:
                raise self._damaged(object_index, view_index, problem)

    def close(self) -> None:
        """End the pauses before retries; reads that are under way fail."""
        self.remote.close()

    def _checked(self, object_index: int, view_indices: np.ndarray, members: list[bytes]) -> list[bytes] | DataError:
        """The contents of the members (header and content) of an object's views, or what is wrong with one."""
        encoded = []
        for view_index, member in zip(view_indices.tolist(), members, strict=True):
            size = int(self._index.sizes[object_index, view_index])
            content = member[_BLOCK:]
            problem = problem_of_bytes(content, size, int(self._index.crc32c[object_index, view_index]))
            problem = problem or _problem_of_header(member[:_BLOCK], self._member_name(object_index, view_index), size)
            if problem:
                return self._damaged(object_index, view_index, problem)
            encoded.append(content)
        return encoded

    def _member_name(self, object_index: int, view_index: int) -> str:
        return f"{self.keys[object_index].decode()}.{view_suffix(view_index, self.num_views)}"

    def _damaged(self, object_index: int, view_index: int, problem: str) -> DataError:
        shard = self.remote.describe(self.manifest.shards[int(self.shards_of(np.array(object_index)))].name)
        offset = int(self._index.offsets[object_index, view_index])
        return DataError(
            f"image '{self._member_name(object_index, view_index)}' at byte {offset} of shard {shard} {problem}: "
            f"upload this shard again or rebuild this data set"
        )

    def _check_keys(self) -> None:
        unique, counts = np.unique(self._index.keys, return_counts=True)
        if len(unique) < len(self._index.keys):
            raise DataError(
                f"key '{unique[counts > 1][0].decode()}' occurs twice in split '{self.split}' of "
                f"{self.remote.describe('')}: give every object a key of its own and rebuild this data set"
            )


def fetch_metadata(remote: RemoteFolder, split: str, folder: Path) -> None:
    """Copy a split's manifest and index into a local folder, which must exist; DataError if one can't be read."""
    manifest = manifest_path(folder, split)
    _fetch_file(remote, manifest.name, manifest, max_bytes=_MAX_MANIFEST_BYTES)
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for name in _SIDECAR_NAMES:
        _fetch_file(remote, f"{sidecars.name}/{name}", sidecars / name)


def download_split(
    location: str | Path,
    split: str,
    folder: Path,
    *,
    max_bytes: int,
    patience: Patience | None = None,
    report_shard: Callable[[str], None] | None = None,
) -> Manifest:
    """Copy a whole split into a local folder, where `ShardDataset` opens it.

    Each shard is compared with the manifest's SHA-256 before it gets its final name, and the manifest comes last.
    Called again after an interruption, shards that are there and intact are kept. Of several processes that want the
    same folder one works and the others wait.

    Args:
        location: local folder, or http://, https:// or s3:// address.
        split: name of the split.
        folder: where to put it; made if it isn't there.
        max_bytes: refuse a split whose shards are larger than this together.
        patience: how long a server is waited for.
        report_shard: called with each shard's name once it is there.

    Raises:
        DataError: something can't be read or written, does not match its checksum, or is too large.
    """
    remote = open_folder(location, patience)
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            working_alone(folder / f".{split}.lock", f"downloading split '{split}' to {folder}"),
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as fetched,
        ):
            return _download(remote, split, folder, Path(fetched), max_bytes, report_shard)
    finally:
        remote.close()


def _download(
    remote: RemoteFolder,
    split: str,
    folder: Path,
    fetched: Path,
    max_bytes: int,
    report_shard: Callable[[str], None] | None,
) -> Manifest:
    """Fetch what isn't there into the folder `fetched` and rename it from there, shards first."""
    fetch_metadata(remote, split, fetched)
    manifest = read_manifest(fetched, split)
    read_index(fetched, manifest)
    total = sum(entry.bytes for entry in manifest.shards)
    if total > max_bytes:
        raise DataError(
            f"the shards of split '{split}' at {remote.describe('')} have {total:,} bytes together and max_bytes is "
            f"{max_bytes:,}: allow more, or stream them"
        )
    for entry in manifest.shards:
        target = folder / entry.name
        if not (target.is_file() and sha256_of_file(target) == entry.sha256):
            _fetch_file(remote, entry.name, fetched / entry.name, expected_bytes=entry.bytes)
            if sha256_of_file(fetched / entry.name) != entry.sha256:
                raise DataError(
                    f"shard {remote.describe(entry.name)} does not match its SHA-256 in the manifest: upload it again "
                    f"or rebuild this data set"
                )
            with write_errors_named(target):
                (fetched / entry.name).replace(target)
        if report_shard is not None:
            report_shard(entry.name)
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for name in _SIDECAR_NAMES:
        write_atomically(sidecars / name, (index_folder(fetched, split) / name).read_bytes())
    write_atomically(manifest_path(folder, split), manifest_path(fetched, split).read_bytes())
    return manifest


def _fetch_file(
    remote: RemoteFolder, name: str, path: Path, *, expected_bytes: int | None = None, max_bytes: int | None = None
) -> None:
    """Copy one file piece by piece; DataError if it can't be read, has another size or is too large."""
    size = remote.size(name) if expected_bytes is None else expected_bytes
    if max_bytes is not None and size > max_bytes:
        raise DataError(f"{remote.describe(name)} has {size:,} bytes, more than a manifest's: name another location")
    with write_errors_named(path), open(path, "wb") as file:
        for start in range(0, size, _PIECE_BYTES):
            file.write(remote.read(name, start, min(start + _PIECE_BYTES, size), size))


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
        return f"has the tar header of '{member.name}' with {member.size} bytes (only this .jpg may be here)"
    return None
