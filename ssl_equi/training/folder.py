"""The folder of a run: which one it is, that only one run at a time writes there, and what it says of the run."""

import errno
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssl_equi.checkpoint import describe_os_error, list_checkpoints
from ssl_equi.errors import CheckpointError, RunError
from ssl_equi.files import read_json_object, write_atomically
from ssl_equi.runtime.system import software_versions
from ssl_equi.training.log import cut_after

LOCK_FILE = ".lock"
STOPPED_FILE = "stopped.json"
"""There from when a signal stopped the run until it goes on."""


class RunFolder:
    """A folder that belongs to this run from here on until `release`, or until the process ends, however it does.

    The lock is the operating system's, so a killed run leaves nothing behind that would block the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._created = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]  # innermost first
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_of(path)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(in_use(path)) from None
        except (OSError, NotImplementedError) as error:
            without_locks = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
            if isinstance(error, OSError) and error.errno not in without_locks:
                raise RunError(describe_os_error(error, path)) from error
            print(f"warning: the file system of {path} has no locks: don't start another run there", flush=True)

    def release(self) -> None:
        """Lets other runs use the folder; safe to call twice."""
        self._lock.release(force=True)

    def withdraw(self) -> None:
        """Releases the folder, and removes what was created for a run that never started."""
        self.release()
        if self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._created[1:]:
            try:
                parent.rmdir()
            except OSError:  # another run has put its folder there
                return

    def begin(self, options: dict[str, Any], step: int) -> None:
        """Writes what the run is; removes what a killed or stopped one left, and lines of the log after a step."""
        try:
            for leftover in [*self.path.glob(".writing-*"), *self.path.glob("checkpoints/.writing-*")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            (self.path / STOPPED_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(describe_os_error(error, self.path)) from error
        cut_after(self.path / "metrics.jsonl", step)
        write_atomically(self.path / "config.json", json.dumps(options, indent=1), CheckpointError)
        process = {"process": f"process {os.getpid()} on {platform.node()}"}
        write_atomically(
            self.path / "versions.json", json.dumps(software_versions() | process, indent=1), CheckpointError
        )


def choose_folder(out: Path | None, name: str, resume: bool) -> Path:
    """The folder that the options mean: `out`, or runs/NAME, runs/NAME-2, ...; nothing is written.

    Without `out`, a new run takes the first folder that holds no checkpoint and that no run is using, and a resumed one
    the last that holds a checkpoint.
    """
    if out is not None:
        if list_checkpoints(out / "checkpoints") and not resume:
            raise RunError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
        if is_in_use(out):
            raise RunError(in_use(out))
        return out
    runs = [Path("runs") / name]
    while list_checkpoints(runs[-1] / "checkpoints") or (not resume and is_in_use(runs[-1])):
        runs.append(Path("runs") / f"{name}-{len(runs) + 1}")
    newest_started = runs[-2] if len(runs) > 1 else runs[-1]
    return newest_started if resume else runs[-1]


def recorded_versions(folder: Path) -> dict[str, Any]:
    """What the run noted when it started; what is here now, if that file was lost meanwhile."""
    try:
        return read_json_object(folder / "versions.json", RunError)
    except RunError:
        return dict(software_versions())


def set_aside_earlier_results(folder: Path) -> None:
    """Renames a results.json written before the run was resumed: its numbers are those of an earlier encoder."""
    results = folder / "results.json"
    if results.is_file():
        number = 1 + len(list(folder.glob("results-earlier-*.json")))
        results.replace(folder / f"results-earlier-{number}.json")


def is_in_use(folder: Path) -> bool:
    """Whether a run of another process holds the folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = _lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # `RunFolder` says what is wrong
        return False
    lock.release()
    return False


def in_use(folder: Path) -> str:
    """The sentence for a folder that another run holds, with the process where that is known."""
    try:
        process = json.loads((folder / "versions.json").read_text())["process"]
    except (OSError, ValueError, KeyError, TypeError):
        process = "another process"
    return f"{folder} is in use by another run ({process}): wait until it has ended, or choose another --out"


def _lock_of(folder: Path) -> FileLock:
    # One lock a path within a process: it may start a run again whose error still holds on to the first lock.
    return FileLock(folder / LOCK_FILE, is_singleton=True)
