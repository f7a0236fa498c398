"""Writing files so that a crash or a full disk never leaves half of one under its final name."""

import errno
import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: written under a temporary name in the same folder, flushed, renamed.

    Raises OSError; the file that stood there before is then intact and nothing is left behind.
    """
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        write_durably(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut; file systems that can't (some network ones) are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
