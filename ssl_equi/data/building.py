"""What is built once and read ever after: one process works while others wait, and a bar says how far it is."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_equi.data.errors import DataError


@contextmanager
def working_alone(lock_file: Path, what: str) -> Iterator[None]:
    """Holds a lock: of two processes that want the same thing, one makes it and the other waits, saying so.

    Args:
        lock_file: in an existing folder.
        what: "building FOLDER", say, for the one that waits.

    Raises:
        DataError: the lock file can't be made, since nothing may be written there.
    """
    lock = FileLock(lock_file)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            if not lock_file.exists():  # some file systems say that the file to be made isn't there
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
            print(f"another process is {what}: waiting for it", flush=True)
            lock.acquire()
    except OSError as error:  # Timeout is one too, and was dealt with
        raise DataError(
            f"{what} is needed and {lock_file.parent} can't be written to ({error.strerror}): allow it, or choose "
            f"another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def building_progress(enabled: bool = True) -> Progress:
    """A progress bar that goes away when it is done; nothing at all where the output is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    progress = Progress(*columns, transient=True)
    progress.disable = not (enabled and progress.console.is_terminal)
    return progress
