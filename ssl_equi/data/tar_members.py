"""What lies where in tar files that others wrote, in any dialect, also in a tar within a tar."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ssl_equi.errors import DataError

_AT_ONCE = 1 << 20


def tar_members(
    path: Path, cure: str, inner: tarfile.TarInfo | None = None, *, what: str = "shard"
) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar, without reading their contents; `offset_data` counts from the start of `path`.

    With `inner`, a member of `path` that is itself a tar, those within it. Folders are passed over. Python's tarfile
    takes a file that ends at a member's boundary for complete, one that ends within its last member too, and a header
    of zeros for the end; so the end marker is looked for here, with nothing but zeros behind it.

    Args:
        path: the tar file.
        cure: what the errors tell the user to do.
        inner: a member that `tar_members(path, cure)` gave.
        what: what the errors call the file.

    Raises:
        DataError: the file can't be read, is no tar file, is cut, goes on behind its end marker, or holds a link, a
            sparse file or another member whose content doesn't lie there byte by byte.
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
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if end > limit:
                        break
                    if member.isreg():
                        yield member
            file.seek(end)
            whole = end < limit and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
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
    """True if nothing but zeros lies between where the file stands and byte `limit`."""
    while data := file.read(min(_AT_ONCE, limit - file.tell())):
        if data.strip(b"\0"):
            return False
    return True
