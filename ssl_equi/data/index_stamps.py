"""Stamps in the user's cache folder: which indexes were verified on this machine and need not be at each opening.

Hashing and checking an index of ten million images takes seconds; opening one that is stamped takes milliseconds. A
stamp holds for the manifest it was made with and for files of the same size, modification time, change time and inode.
The change time can't be set back by hand, so a file that was written to is verified again, whatever its other times.
What no stamp sees: a disk that alters bytes by itself, and whoever sets the machine's clock back to forge one.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ssl_equi.data.manifest import canonical_json
from ssl_equi.files import replace_file

_VERSION = 1  # raised when more is checked than before, so that indexes are verified again
# Small indexes are verified each time, in a few milliseconds, and leave nothing in the cache folder.
_SMALLEST_BYTES = 1 << 22
# A file that was written to twice within one tick of the clock shows one change time; so fresh files aren't stamped.
_SETTLED_NS = 2_000_000_000


def stamp_folder() -> Path:
    """Where the stamps lie: the user's cache folder (XDG on Linux)."""
    return user_cache_path("ssl_equi") / "verified-indexes"


class IndexStamp:
    """The stamp of the index in `folder`, which consists of `file_names`, under a manifest of this fingerprint.

    The state of the files is taken when this is made: do so before they are verified. Without a usable cache folder
    nothing is ever known.
    """

    def __init__(self, folder: Path, fingerprint: str, file_names: Iterable[str]) -> None:
        self._folder, self._fingerprint, self._file_names = folder.resolve(), fingerprint, tuple(file_names)
        self._state = self._state_now()
        self.path = stamp_folder() / f"{hashlib.sha256(bytes(self._folder)).hexdigest()}.json"

    def is_known(self) -> bool:
        """True if these very files were verified before."""
        if self._state is None:
            return False
        try:
            return self.path.read_bytes() == canonical_json(self._state)
        except OSError:
            return False

    def write(self) -> None:
        """Note that the files were verified, unless they are small, fresh, or changed in the meantime."""
        if self._state is None or self._state != self._state_now():
            return
        if any(time.time_ns() - file["ctime_ns"] < _SETTLED_NS for file in self._state["files"]):
            return
        with contextlib.suppress(OSError):  # then it is verified again next time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, canonical_json(self._state))

    def _state_now(self) -> dict[str, Any] | None:
        """What a stamp says; None where there shall be none."""
        files: list[dict[str, Any]] = []
        for name in sorted(self._file_names):
            try:
                stat = (self._folder / name).stat()
            except OSError:
                return None
            files.append(
                {
                    "name": name,
                    "bytes": stat.st_size,
                    "mtime_ns": stat.st_mtime_ns,
                    "ctime_ns": stat.st_ctime_ns,
                    "inode": stat.st_ino,
                }
            )
        if sum(file["bytes"] for file in files) < _SMALLEST_BYTES:
            return None
        return {"version": _VERSION, "folder": str(self._folder), "manifest": self._fingerprint, "files": files}
