"""What a process may use of the machine, from files that say it as Linux does."""

from pathlib import Path

import pytest

from ssl_equi.runtime import system
from ssl_equi.runtime.system import free_memory, share_of_cores, usable_cores


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of which this process may run on all."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    return 16


def in_groups(monkeypatch: pytest.MonkeyPatch, folder: Path, memberships: str, files: dict[str, str]) -> None:
    """The control groups of this process, and what is written in files below the folder of all groups."""
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    (folder / "memberships").write_text(memberships)
    monkeypatch.setattr(system, "_CONTROL_GROUPS", folder / "groups")
    monkeypatch.setattr(system, "_MEMBERSHIPS", folder / "memberships")


@pytest.mark.parametrize(
    ("memberships", "files", "expected"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"}, 4),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "200000 100000\n"}, 2),
        ("0::/path/on/the/host\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        (
            "4:memory:/\n1:cpuset,cpu:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "600000\n", "cpu/job/cpu.cfs_period_us": "200000\n"},
            3,
        ),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
)
def test_a_limit_of_time_counts_in_whole_cores(
    memberships: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_groups(monkeypatch, tmp_path, memberships, files)
    assert usable_cores() == expected


GIB = 2**30


@pytest.mark.parametrize(
    ("memberships", "files", "expected"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 8 * GIB),
        ("0::/job\n", {"job/memory.max": f"{4 * GIB}\n", "job/memory.current": f"{3 * GIB}\n"}, GIB),
        (
            "0::/job\n",
            {
                "job/memory.max": f"{4 * GIB}\n", "job/memory.current": f"{3 * GIB}\n",
                "job/memory.stat": f"active_file 7\ninactive_file {2 * GIB}\n",
            },
            3 * GIB,
        ),
        ("0::/\n", {"memory.max": "10\n", "memory.current": "12\n"}, 0),
        (
            "2:cpu:/\n1:memory:/job\n",
            {"memory/job/memory.limit_in_bytes": f"{2 * GIB}\n", "memory/job/memory.usage_in_bytes": "0\n"},
            2 * GIB,
        ),
    ],
)  # fmt: skip
def test_memory_is_free_up_to_the_limit_of_a_control_group(
    memberships: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_groups(monkeypatch, tmp_path, memberships, files)
    monkeypatch.setattr(system, "_MEMORY", tmp_path / "meminfo")
    assert free_memory() is None
    (tmp_path / "meminfo").write_text(f"MemTotal:       99999999 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    assert free_memory() == expected


def test_processes_of_a_launcher_share_the_cores(tmp_path: Path, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(monkeypatch, tmp_path, "", {})
    assert share_of_cores({}) == cores
    assert [share_of_cores({"LOCAL_WORLD_SIZE": str(processes)}) for processes in (1, 3, 8, 40)] == [16, 5, 2, 1]
