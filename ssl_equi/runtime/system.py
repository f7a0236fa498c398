"""The machine and the software that a process runs on."""

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ssl_equi.errors import visible

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIPS = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
# The second version of control groups has one file where the first has two, or other names.
_TIME_FILES = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
_MEMORY_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
_FREED_ON_DEMAND = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)


def usable_cores() -> int:
    """CPU cores that this process may keep busy: those that it may run on, or fewer where its time is limited.

    Containers, and jobs of a scheduler, are often given cores in either way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # "max" or -1 stand for no limit.
    limits = [(numbers[0] / numbers[1]) for _, numbers in _control_groups("cpu", _TIME_FILES) if len(numbers) == 2]
    return min([cores, *(math.ceil(limit) for limit in limits)])


def share_of_cores(environment: Mapping[str, str] = os.environ) -> int:
    """The usable cores for each of the processes that a launcher has started on this machine."""
    return max(1, usable_cores() // local_processes(environment))


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher has started on this machine; 1 without a launcher."""
    return int(environment.get("LOCAL_WORLD_SIZE", "1"))


def free_memory() -> int | None:
    """Bytes that this process may take without others losing theirs; None where Linux doesn't tell.

    What the system can free at once counts as free, and in a control group with a limit what is left of that.
    """
    found = re.search(r"^MemAvailable: +(\d+) kB$", _MEMORY.read_text(), re.MULTILINE) if _MEMORY.exists() else None
    if found is None:
        return None
    free = int(found[1]) * 1024
    for folder, numbers in _control_groups("memory", _MEMORY_FILES):
        if len(numbers) == 2:
            statistics = (folder / "memory.stat").read_text() if (folder / "memory.stat").is_file() else ""
            cached = _FREED_ON_DEMAND.search(statistics)
            free = min(free, numbers[0] - numbers[1] + (int(cached[1]) if cached else 0))
    return max(0, free)


def anonymous_memory(name: str, size: int) -> int:
    """Descriptor of `size` bytes that processes can share, of no file system, so that nothing is left behind.

    Raises OSError where there is too little memory; AttributeError outside of Linux.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)  # or a lack of memory would kill whoever touches it first
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _control_groups(
    controller: str, files_of_versions: tuple[tuple[str, ...], tuple[str, ...]]
) -> Iterator[tuple[Path, list[int]]]:
    """Folders of the control groups of Linux that this process is in, and of those around them, outermost last.

    With the numbers in a controller's files for the second version of control groups or the first; words are left out.
    """
    memberships = _MEMBERSHIPS.read_text().splitlines() if _MEMBERSHIPS.exists() else []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # The second version of control groups names no controllers.
        top, files = (
            (_CONTROL_GROUPS / controller, files_of_versions[1])
            if controllers
            else (_CONTROL_GROUPS, files_of_versions[0])
        )
        group = top / path.lstrip("/")
        # A container may be told its path as it is outside, and find its group's files in the first folder.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            words = [
                word for file in files if (folder / file).is_file() for word in (folder / file).read_text().split()
            ]
            yield folder, [int(word) for word in words if word.isdecimal()]


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
