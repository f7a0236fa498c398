"""Writing a file so that a crash or a full disk never leaves half of it under its final name."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_equi.data.errors import DataError


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name in the same folder, fsync it and rename it to `path`.

    Raises DataError when the file cannot be written (a full disk, a quota, missing rights).
    """
    temporary = path.with_name(path.name + ".partial")
    with write_errors_named(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a DataError that names the file and the cure."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror}): free some space or choose another folder, then run again"
        ) from error
