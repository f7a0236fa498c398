"""States of files, listing folders, and writing with errors that name the file and the cure."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_equi.data.errors import DataError
from ssl_equi.files import replace_file

FileState = tuple[int, int, int, int]


def file_state(path: str | Path | os.DirEntry[str]) -> FileState:
    """Bytes, modification and change time in ns, and inode: what differs once a file was written to or replaced.

    The change time can't be set back by hand. Raises OSError.
    """
    status = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder; DataError if it isn't there or can't be read, which `Path.glob` takes for empty."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"folder {folder} can't be read ({error.strerror}): allow it, or take it out") from error


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
