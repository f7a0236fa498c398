"""Checksums of files, and writing them with errors that name the file and the cure."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_equi.data.errors import DataError
from ssl_equi.files import replace_file


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file as a whole.

    Raises DataError when the file cannot be written (a full disk, a quota, missing rights).
    """
    with write_errors_named(path):
        replace_file(path, content)


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a DataError that names the file and the cure."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror}): free some space or choose another folder, then run again"
        ) from error
