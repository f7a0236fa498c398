"""Tar files: written so that equal records give equal bytes, and walked without trusting them."""

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ssl_equi.errors import DataError
from ssl_equi.files import sync_folder, write_errors_named

_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 1 << 20


class ShardWriter:
    """Streams records into the plain USTAR file `path` under a temporary name; `finish` fsyncs and renames it.

    Equal records give equal bytes: time, user and group of every member are zero.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._temporary = path.with_name(path.name + ".partial")
        with write_errors_named(path):
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or abort
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, key: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Append one record as its members KEY.SUFFIX, given as (suffix, content), side by side."""
        with write_errors_named(self.path):
            for suffix, content in members:
                member = tarfile.TarInfo(f"{key}.{suffix}")  # time, user and group are zero and nameless by default
                member.size = len(content)
                self._tar.addfile(member, io.BytesIO(content))
        self.count += 1

    def finish(self) -> None:
        """Write the end marker, make the bytes durable and give the shard its final name."""
        with write_errors_named(self.path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Drop the unfinished shard and give its space back."""
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes what is left, which fails again on a full disk
            self._file.close()


def walk_members(
    file: BinaryIO, path: Path, check_name: Callable[[str, Path], None]
) -> Iterator[tuple[str, int, bytes]]:
    """Yield (name, offset of the content, content) of each member of one of our shards, up to its end marker.

    `check_name` is called with each member's name, before its content is read, and raises DataError for one that may
    not be there.
    """
    # Python's tarfile takes a file that ends at a member's boundary for complete; this walk does not.
    last_name = "the first member"
    while True:
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            break
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            reason = "ends" if len(header) < _BLOCK else "has a damaged header"
            raise DataError(
                f"shard {path} {reason} after '{last_name}' at byte {file.tell()} ({error}): "
                f"rebuild this shard or download it again"
            ) from error
        if not member.isreg():
            raise DataError(f"member '{member.name}' of shard {path} is not a plain file: rebuild this shard")
        check_name(member.name, path)
        last_name = member.name
        offset = file.tell()
        left = os.fstat(file.fileno()).st_size - offset  # asked before so many bytes are made room for
        if not 0 <= member.size <= left or member.size + -member.size % _BLOCK > left:
            raise DataError(
                f"shard {path} ends inside member '{member.name}' (expected {member.size} bytes, found "
                f"{min(left, max(member.size, 0))}): rebuild this shard or download it again"
            )
        content = file.read(member.size)
        file.seek(-member.size % _BLOCK, os.SEEK_CUR)
        yield member.name, offset, content
    tail = file.read()
    if len(tail) < _BLOCK or tail.strip(b"\0"):
        raise DataError(f"shard {path} is damaged after '{last_name}': rebuild this shard or download it again")


def tar_members(
    path: Path, cure: str, inner: tarfile.TarInfo | None = None, *, what: str = "shard"
) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar of any dialect, without reading them; `offset_data` counts from the start of `path`.

    With `inner`, a member of `path` that is itself a tar, those within it. Folders are passed over. `what` is what
    errors call the file, and `cure` what they advise.

    Raises DataError if the file can't be read, is no tar file, is cut, goes on behind its end marker, or holds a link,
    a sparse file or another member whose content doesn't lie there byte by byte.
    """
    name = f"{what} {path}" if inner is None else f"{inner.name!r} in {what} {path}"
    end = 0 if inner is None else inner.offset_data
    try:
        with open(path, "rb") as file:
            limit = file.seek(0, 2) if inner is None else inner.offset_data + inner.size
            file.seek(end)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.size < 0 or not (member.isdir() or member.isreg()) or member.issparse():
                        raise DataError(
                            f"member {member.name!r} of {name} is a link or another member without bytes of its own: "
                            f"write the tar anew with the files themselves (GNU tar: --dereference --hard-dereference)"
                        )
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if end > limit:
                        break
                    if member.isreg():
                        yield member
            # tarfile takes a file that ends at a member's boundary for complete, one that ends within its last member
            # too, and a header of zeros for the end; so the end marker is looked for, with only zeros behind it.
            file.seek(end)
            whole = end < limit and file.read(_BLOCK) == bytes(_BLOCK)
            if whole and not _only_zeros(file, limit):
                raise DataError(
                    f"{name} goes on behind its end marker at byte {end}, where a header was overwritten or another "
                    f"tar appended: {cure}"
                )
    except DataError:
        raise
    except Exception as error:  # tarfile raises errors of many types for damaged headers
        raise DataError(f"{name} is no readable tar file ({error}): {cure}") from error
    if not whole:
        raise DataError(f"{name} is cut or damaged at byte {end}: {cure}")


def _only_zeros(file: BinaryIO, limit: int) -> bool:
    while data := file.read(min(_AT_ONCE, limit - file.tell())):
        if data.strip(b"\0"):
            return False
    return True
