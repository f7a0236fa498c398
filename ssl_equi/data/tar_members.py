"""What lies where in tar files that others wrote, in any dialect, also in a tar within a tar."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from ssl_equi.data.errors import DataError


def tar_members(
    path: Path, cure: str, inner: tarfile.TarInfo | None = None, *, what: str = "shard"
) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar, without reading their contents; `offset_data` counts from the start of `path`.

    With `inner`, a member of `path` that is itself a tar, those within it. Python's tarfile takes a file that ends at
    a member's boundary for complete, and one that ends within its last member too; so the end marker is looked for
    here.

    Args:
        path: the tar file.
        cure: what the errors tell the user to do.
        inner: a member that `tar_members(path, cure)` gave.
        what: what the errors call the file.

    Raises:
        DataError: the file can't be read, is no tar file, or is cut.
    """
    name = f"{what} {path}" if inner is None else f"'{inner.name}' in {what} {path}"
    end = 0 if inner is None else inner.offset_data
    try:
        with open(path, "rb") as file:
            limit = file.seek(0, 2) if inner is None else inner.offset_data + inner.size
            file.seek(end)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if end > limit:
                        break
                    if member.isreg():
                        yield member
            file.seek(end)
            whole = end < limit and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{name} is no readable tar file ({error}): {cure}") from error
    if not whole:
        raise DataError(f"{name} is cut or damaged at byte {end}: {cure}")
