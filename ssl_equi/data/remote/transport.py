"""Byte ranges of files in a local folder, behind http(s), or in S3; nothing here starts a program or opens a shell.

http(s) is the standard library's, with proxies as the environment names them. S3 needs the extra `streaming`. Faults
that may pass (no connection, a stall, a body cut short, HTTP 408, 429 and 5xx) are tried again from the first missing
byte, all others are errors at once.
"""

import functools
import http.client
import io
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ssl_equi.errors import DataError

_Answer = TypeVar("_Answer")
_SCHEME_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_URL_PATTERN = re.compile(r"(https?|s3)://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~%+=,-]+)*/?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_CHUNK_BYTES = 1 << 16
_PIECE_BYTES = 8 << 20  # a whole file is fetched in such pieces
_MIB = 1 << 20
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often it is asked again."""

    timeout_seconds: float = 30.0
    """Longest silence of a server; also the longest time that a MiB may take."""
    retries: int = 4
    """How often a failed request is made again."""
    first_pause_seconds: float = 1.0
    """Pause before the first retry; it doubles with each further one."""

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0 or self.retries < 0 or self.first_pause_seconds < 0:
            raise ValueError(f"{self}: give a positive timeout_seconds, retries >= 0 and first_pause_seconds >= 0")


class RemoteFolder(ABC):
    """A folder whose files are read in pieces, from any thread."""

    max_gap_bytes = 1 << 20  # about what a fast connection carries while a request is under way
    """Between two pieces that are wanted, so many bytes are rather read and dropped than asked around."""

    def __init__(self, location: str) -> None:
        self._location = location.rstrip("/")

    def describe(self, name: str) -> str:
        """The path or address of a file, for messages."""
        return f"{self._location}/{name}"

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file; DataError if it isn't there."""

    @abstractmethod
    def read(self, name: str, start: int, end: int, file_bytes: int) -> bytes:
        """The bytes [start, end) of a file that should have `file_bytes` of them.

        Raises DataError if the file is missing, has another size or can't be read.
        """

    def copy(self, name: str, out: BinaryIO, file_bytes: int) -> None:
        """Write a whole file of `file_bytes` to the empty `out`, piece by piece; errors as of `read`."""
        for start in range(0, file_bytes, _PIECE_BYTES):
            out.write(self.read(name, start, min(start + _PIECE_BYTES, file_bytes), file_bytes))

    def close(self) -> None:  # noqa: B027 - most never pause
        """End the pauses before retries; reads that are under way fail."""


def is_address(location: str | Path) -> bool:
    """True for what names a place that isn't a local path (also one that `open_folder` refuses)."""
    return isinstance(location, str) and _SCHEME_PATTERN.match(location) is not None


def open_folder(location: str | Path, patience: Patience | None = None) -> RemoteFolder:
    """A local folder, or one behind http://, https:// or s3://.

    Raises DataError for any other address (pipe:, file:, ...), and for one with credentials, a query, or characters
    that an address doesn't need.
    """
    patience = patience or Patience()
    scheme = None if isinstance(location, Path) else _SCHEME_PATTERN.match(location)
    if isinstance(location, Path) or scheme is None:
        return LocalFolder(str(location))
    if not _URL_PATTERN.fullmatch(location) or not _has_usable_host(location):
        raise DataError(
            f"location {location!r} is refused: give the path of a local folder, or a plain http://, https:// or "
            f"s3:// address without password or query (commands are never run)"
        )
    if scheme[1] == "s3":
        return S3Folder(location, patience)
    return HttpFolder(location, patience)


def _has_usable_host(location: str) -> bool:
    """False for brackets that don't close, a port that is none, and a name that no server can have."""
    try:
        parts = urllib.parse.urlsplit(location)
        host, port = parts.hostname or "", parts.port
        return bool(host.encode("idna")) and port != 0
    except ValueError:  # also what is no name in IDNA
        return False


class LocalFolder(RemoteFolder):
    """Files on a disk or a network file system."""

    max_gap_bytes = 0

    def size(self, name: str) -> int:
        try:
            return os.stat(self.describe(name)).st_size
        except OSError as error:
            raise _unreadable(self.describe(name), error.strerror or str(error)) from error

    def read(self, name: str, start: int, end: int, file_bytes: int) -> bytes:
        try:
            with open(self.describe(name), "rb") as file:
                found_bytes = os.fstat(file.fileno()).st_size
                data = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise _unreadable(self.describe(name), error.strerror or str(error)) from error
        if found_bytes != file_bytes:
            raise _of_other_size(self.describe(name), found_bytes, file_bytes)
        return data


class HttpFolder(RemoteFolder):
    """Files behind a web server that answers byte ranges, as those of object stores, nginx and Apache do.

    A plain server, which always sends the whole file, is good enough for `copy`.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__(url)
        self._patience = patience
        self._closed = threading.Event()
        self._opener = _web_opener()

    def size(self, name: str) -> int:
        request = urllib.request.Request(self.describe(name), method="HEAD")

        def ask() -> int:
            with self._answer(request) as response:
                length = response.headers.get("Content-Length", "")
            if not _NUMBER.fullmatch(length):
                raise _unreadable(self.describe(name), "the server does not say how long it is")
            return int(length)

        return self._with_retries(self.describe(name), ask)

    def read(self, name: str, start: int, end: int, file_bytes: int) -> bytes:
        received = io.BytesIO()
        self._with_retries(
            self.describe(name), lambda: self._receive(name, start + received.tell(), end, file_bytes, received)
        )
        return received.getvalue()

    def copy(self, name: str, out: BinaryIO, file_bytes: int) -> None:
        def receive_until(end: int) -> None:
            self._receive(name, out.tell(), end, file_bytes, out, whole=True)

        while (begun := out.tell()) < file_bytes:
            ask = functools.partial(receive_until, min(begun + _PIECE_BYTES, file_bytes))
            self._with_retries(self.describe(name), ask)

    def close(self) -> None:
        self._closed.set()

    def _answer(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """The answer's headers, all of which come within the patience: no single silence of a socket bounds that."""
        answers: queue.SimpleQueue[http.client.HTTPResponse | BaseException] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._opener.open(request, timeout=self._patience.timeout_seconds))
            except BaseException as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=self._patience.timeout_seconds)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _receive(
        self, name: str, start: int, end: int, file_bytes: int, received: BinaryIO, *, whole: bool = False
    ) -> None:
        """Append what comes of [start, end) to `received`; OSError or HTTPException if that isn't all.

        With `whole`, a server that ignores ranges may send all of the file instead, for which `received` begins anew.
        """
        url = self.describe(name)
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{end - 1}"})
        deadline = time.monotonic() + self._patience.timeout_seconds * (1 + (end - start) / _MIB)
        with self._answer(request) as response:
            if response.status == 200 and whole:
                length = response.headers.get("Content-Length", str(file_bytes))
                if not _NUMBER.fullmatch(length) or int(length) != file_bytes:
                    raise _of_other_size(url, length, file_bytes)
                received.seek(0)
                received.truncate()
                start, end = 0, file_bytes
                deadline = time.monotonic() + self._patience.timeout_seconds * (1 + file_bytes / _MIB)
            elif response.status != 206:
                raise DataError(
                    f"{url} cannot be read in parts, the server ignores byte ranges (status {response.status}): copy "
                    f"the folder here and give its path, or use a server that answers them (nginx, Apache and S3 do, "
                    f"`python -m http.server` doesn't)"
                )
            else:
                answered = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if answered is None or int(answered[1]) != start:
                    raise _unreadable(url, "the server answers with another byte range than was asked for")
                if int(answered[3]) != file_bytes:
                    raise _of_other_size(url, answered[3], file_bytes)
            missing = end - start
            while missing:
                chunk = response.read1(min(_CHUNK_BYTES, missing))
                if not chunk:
                    raise ConnectionError(f"the connection ended {missing} bytes early")
                try:
                    received.write(chunk)
                except OSError as error:  # which is no fault of the server
                    raise DataError(f"{url} cannot be stored ({error.strerror}): free some space") from error
                missing -= len(chunk)
                if time.monotonic() > deadline:  # it drips: no single read times out
                    raise TimeoutError
                if self._closed.is_set():
                    raise _unreadable(url, "reading was stopped")

    def _with_retries(self, url: str, ask: Callable[[], _Answer]) -> _Answer:
        attempts = 0
        while True:
            attempts += 1
            try:
                return ask()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:
                    size = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
                    raise _unreadable(url, f"it is cut, with {size[1] if size else 'too few'} bytes") from None
                problem = f"the server answers {error.code} {error.reason}"
                if error.code not in _TRANSIENT_STATUS:
                    raise _unreadable(url, problem) from None
            except ValueError as error:  # of an address that the server redirects to
                raise _unreadable(url, f"the server answers with an address that is none: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                problem = "the server stalls" if isinstance(reason, TimeoutError) else str(reason) or repr(reason)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise _unreadable(url, problem) from error
            if attempts > self._patience.retries:
                raise _unreadable(url, f"{problem}; {attempts} attempts")
            if self._closed.wait(self._patience.first_pause_seconds * 2 ** (attempts - 1)):
                raise _unreadable(url, "reading was stopped")


class S3Folder(RemoteFolder):
    """Files in S3, with the credentials and retries of s3fs; needs the extra `streaming`."""

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__(url)
        try:
            import fsspec

            self._files: Any = fsspec.filesystem(
                "s3",
                config_kwargs={
                    "connect_timeout": patience.timeout_seconds,
                    "read_timeout": patience.timeout_seconds,
                    "retries": {"max_attempts": patience.retries},
                },
            )
        except ImportError as error:
            raise DataError(
                f"location {url!r} needs s3fs ({error}): install it with `pip install 'ssl-equi[streaming]'`"
            ) from error
        self._known_sizes: dict[str, int] = {}  # of shards, which are asked for once

    def size(self, name: str) -> int:
        return int(self._asked(name, self._files.info)["size"])

    def read(self, name: str, start: int, end: int, file_bytes: int) -> bytes:
        found_bytes = self._known_sizes.get(name)
        if found_bytes is None:
            found_bytes = self._known_sizes[name] = self.size(name)
        if found_bytes != file_bytes:
            raise _of_other_size(self.describe(name), found_bytes, file_bytes)
        return bytes(self._asked(name, self._files.cat_file, start=start, end=end))

    def _asked(self, name: str, ask: Callable[..., Any], **options: int) -> Any:
        try:
            return ask(self.describe(name), **options)
        except FileNotFoundError as error:
            raise _unreadable(self.describe(name), "there is no such file or bucket") from error
        except Exception as error:  # botocore's errors have no common base
            raise _unreadable(self.describe(name), str(error) or repr(error)) from error


def _web_opener() -> urllib.request.OpenerDirector:
    """Opens http(s) addresses only, also when a server redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _unreadable(file: str, problem: str) -> DataError:
    return DataError(f"{file} cannot be read ({problem}): see that it is there and can be reached, then start again")


def _of_other_size(file: str, found_bytes: int | str, expected_bytes: int) -> DataError:
    return DataError(
        f"{file} has {found_bytes} bytes where the manifest says {expected_bytes}: it is cut or of another build, "
        f"upload it again or rebuild this data set"
    )
