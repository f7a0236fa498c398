"""The machine and the software that a process runs on."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ssl_equi.errors import visible

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIPS = Path("/proc/self/cgroup")
_FIRST_VERSION = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def usable_cores() -> int:
    """CPU cores that this process may keep busy: those that it may run on, or fewer where its time is limited.

    Containers, and jobs of a scheduler, are often given cores in either way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(math.ceil(limit) for limit in _limits_of_time())])


def share_of_cores(environment: Mapping[str, str] = os.environ) -> int:
    """The usable cores for each of the processes that a launcher has started on this machine."""
    return max(1, usable_cores() // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def _limits_of_time() -> Iterator[float]:
    """How many cores the control groups of Linux that this process is in, and those around them, may use."""
    memberships = _MEMBERSHIPS.read_text().splitlines() if _MEMBERSHIPS.exists() else []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # The second version of control groups names no controllers, and has one file where the first has two.
        top, files = (_CONTROL_GROUPS, ("cpu.max",)) if not controllers else (_CONTROL_GROUPS / "cpu", _FIRST_VERSION)
        group = top / path.lstrip("/")
        # A container may be told its path as it is outside, and find its group's files in the first folder.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            words = [
                word for file in files if (folder / file).is_file() for word in (folder / file).read_text().split()
            ]
            if len(words) == 2 and words[0].isdecimal():  # "max" or -1 without a limit
                yield int(words[0]) / int(words[1])


RECORDED_PACKAGES = (
    "ssl-equi", "torch", "torchvision", "timm", "accelerate", "numpy", "simplejpeg", "safetensors",
)  # fmt: skip


def software_versions() -> dict[str, str]:
    """Versions of the packages that matter, the machine's kind, the commit, and the command."""
    import torch  # here, since processes that decode images do without it

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    versions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    versions["commit"] = _git_commit()
    versions["command"] = visible(" ".join(sys.argv))
    return versions


def _git_commit() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "not a git checkout"
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
