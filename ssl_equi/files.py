"""Files: written as a whole or not at all, read as if they might hold anything, built by one process."""

import errno
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn, TypeVar

from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_equi.errors import DataError, UserError

MOST_JSON_BYTES = 1 << 30
MOST_JSON_LEVELS = 100  # what is nested deeper can't be written again, or printed, within Python's recursion limit
_WRITE_AGAIN = "write it again, or restore it from a copy"


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


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def read_json_object(path: Path, error_type: type[Exception], cure: str = _WRITE_AGAIN) -> dict[str, Any]:
    """The object in a JSON file that may hold anything.

    Raises `error_type`, with a sentence that names the file and the cure, for what can't be read or
    `parse_json_object` refuses.
    """
    size = size_of_regular_file(path, str(path), error_type, cure)
    if size > MOST_JSON_BYTES:
        raise error_type(f"{path} has {size:,} bytes, more than the {MOST_JSON_BYTES:,} that are read: {cure}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} can't be read ({error.strerror}): {_cure_of(error, cure)}") from error
    return parse_json_object(content, str(path), error_type, cure)


def size_of_regular_file(path: Path | str, name: str, error_type: type[Exception], cure: str) -> int:
    """Bytes of a file; `error_type` with one sentence that calls it `name` if it is missing, or a folder or a pipe."""
    # Opening a pipe would wait for somebody who writes to it.
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise error_type(f"{name} is missing: {cure}") from None
    except OSError as error:
        raise error_type(f"{name} can't be read ({error.strerror}): {_cure_of(error, cure)}") from error
    if not S_ISREG(status.st_mode):
        raise error_type(f"{name} is not a file: {cure}")
    return status.st_size


def _cure_of(error: OSError, cure: str) -> str:
    return "allow reading it" if isinstance(error, PermissionError) else cure


def parse_json_object(
    content: bytes, name: str, error_type: type[Exception], cure: str = _WRITE_AGAIN
) -> dict[str, Any]:
    """The JSON object that `content` is; errors, of `error_type`, call it `name`.

    Refused are what is no JSON in UTF-8, no object, nested over 100 levels deep, or names a key twice, and NaN,
    infinity, integers beyond 64 bits and text that is no Unicode: Python would take them, other readers don't.
    """
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(
            text,
            object_pairs_hook=_without_doubles,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except UnicodeDecodeError as error:
        raise error_type(f"{name} is not text in UTF-8 (byte {error.start}): {cure}") from error
    except UnicodeEncodeError as error:
        raise error_type(f"{name} holds half of a surrogate pair, which is no Unicode: {cure}") from error
    except RecursionError:
        raise error_type(f"{name} is nested over {MOST_JSON_LEVELS} levels deep: {cure}") from None
    except ValueError as error:
        raise error_type(f"{name} is not valid JSON ({error}): {cure}") from error
    if not isinstance(value, dict):
        raise error_type(f"{name} holds a JSON {_JSON_TYPES[type(value)]}, not an object: {cure}")
    if _is_deeper_than(value, MOST_JSON_LEVELS):
        raise error_type(f"{name} is nested over {MOST_JSON_LEVELS} levels deep: {cure}")
    return value


_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"key {twice!r} is there twice")
    return values


def _integer(digits: str) -> int:
    # By their number first, since Python refuses to read thousands of digits with a sentence of its own.
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"{digits[:30]} is an integer beyond 64 bits")
    return value


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:30]} is a number beyond float64")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _is_deeper_than(value: Any, levels: int) -> bool:
    containers = [value]
    for _ in range(levels):
        containers = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))  # of a union, that takes three times as long
        ]
        if not containers:
            return False
    return True


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


def write_atomically(path: Path, content: bytes | str, error_type: type[UserError] = DataError) -> None:
    """Replaces a file as a whole, and makes its folder if need be.

    Raises `error_type` if it can't be written (a full disk, a quota, missing rights); the old one is then intact.
    """
    with write_errors_named(path, error_type):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode() if isinstance(content, str) else content)


@contextmanager
def write_errors_named(path: Path, error_type: type[UserError] = DataError) -> Iterator[None]:
    """Turns an OSError raised while writing `path` into an error that names the file and the cure."""
    try:
        yield
    except OSError as error:
        raise error_type(
            f"cannot write {path} ({error.strerror}): free some space or choose another folder, then run again"
        ) from error


@contextmanager
def working_alone(lock_file: Path, what: str) -> Iterator[None]:
    """Holds a lock: of two processes that want the same thing, one makes it and the other waits, saying so.

    Args:
        lock_file: in an existing folder; DataError if nothing may be written there.
        what: "building FOLDER", say, for the one that waits.
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


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results of `function` in the order of `items`, at most `ahead` of them computed before they are asked for."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
