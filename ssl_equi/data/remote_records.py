"""Members of tar shards that lie elsewhere, fetched by byte range.

Only the manifest's and the index's word is taken for where a member lies, and each one's tar header, size and CRC-32C
must agree with it. Members of other names are never opened.
"""

import tarfile
from collections.abc import Callable, Sequence

import numpy as np

from ssl_equi.data.manifest import ShardEntry
from ssl_equi.data.remote_files import RemoteFolder
from ssl_equi.data.shard import problem_of_bytes
from ssl_equi.errors import DataError

_BLOCK = tarfile.BLOCKSIZE


class RemoteRecords:
    """Where each view of n objects with V views each lies in the shards of a remote folder.

    Args:
        remote: the folder.
        shards: the shards' names and sizes.
        shard_numbers: of each object, int [n].
        offsets: first byte of each view in its shard, int64 [n, V].
        sizes: bytes of each view, int [n, V].
        crc32c: uint32 [n, V].
        keys: bytes [n].
        suffix_of: from object and view to what follows the key and a dot in the member's name.

    Raises:
        DataError: a key occurs twice.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        shards: Sequence[ShardEntry],
        *,
        shard_numbers: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        crc32c: np.ndarray,
        keys: np.ndarray,
        suffix_of: Callable[[int, int], str],
    ) -> None:
        self.remote = remote
        self.shards = tuple(shards)
        self._shard_numbers, self._offsets, self._sizes, self._crc32c = shard_numbers, offsets, sizes, crc32c
        self._keys, self._suffix_of = keys, suffix_of
        unique, counts = np.unique(keys, return_counts=True)
        if len(unique) < len(keys):
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
