"""The open shards of a split: bytes of any shard at any place, from any thread or process."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_equi.data.shards.manifest import ShardEntry
from ssl_equi.errors import DataError, LostShardError
from ssl_equi.files import size_of_regular_file

_MOST_DESCRIPTORS = 256  # many systems allow a process 1024 open files
_AGAIN = "download it again or rebuild this data set"


class ShardFiles:
    """Reads from `paths` with `os.pread`, from descriptors opened lazily and once for each process.

    The first few hundred shards stay open; of a split with more, the others are opened for each read. It may be used
    from threads and be forked with.
    """

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.paths = tuple(paths)
        self.descriptors: dict[tuple[int, int], int] = {}  # (process, shard number) -> descriptor

    def __del__(self) -> None:
        self.close()

    def read(self, shard_number: int, offset: int, size: int) -> bytes:
        """At most `size` bytes from byte `offset` on; LostShardError if the shard cannot be opened any more."""
        key = (os.getpid(), shard_number)
        descriptor = self.descriptors.get(key)
        if descriptor is not None:
            # A file that shrinks under the reader gives too few bytes, where a memory map would kill the process.
            return os.pread(descriptor, size, offset)
        opened = self._open(shard_number)
        if len(self.descriptors) >= _MOST_DESCRIPTORS:
            try:
                return os.pread(opened, size, offset)
            finally:
                os.close(opened)
        descriptor = self.descriptors.setdefault(key, opened)  # another thread may have been faster
        if descriptor != opened:
            os.close(opened)
        return os.pread(descriptor, size, offset)

    def close(self) -> None:
        """Close this process's descriptors; reading again opens them again."""
        for process, number in list(self.descriptors):
            if process == os.getpid():
                os.close(self.descriptors.pop((process, number)))

    def _open(self, shard_number: int) -> int:
        path = self.paths[shard_number]
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            cure = "allow reading it" if isinstance(error, PermissionError) else "put it back, then start again"
            raise LostShardError(f"shard {path} cannot be opened any more ({error.strerror}): {cure}") from error


def open_shard_files(folder: Path, entries: Sequence[ShardEntry]) -> ShardFiles:
    """The shards of a manifest, whose sizes are compared; DataError for one that is missing or of another size."""
    files = ShardFiles([f"{folder}/{entry.name}" for entry in entries])  # thousands of Paths take milliseconds
    for path, entry in zip(files.paths, entries, strict=True):
        size = size_of_regular_file(path, f"shard {path}", DataError, _AGAIN)
        if size != entry.bytes:
            raise DataError(f"shard {path} has {size} bytes where the manifest says {entry.bytes}: {_AGAIN}")
    return files
