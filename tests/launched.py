"""Processes of a run, started as users start them and looked at from outside; limits that a busy machine keeps."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
TOY = "tests/toy_recipe.py"
PATIENCE_SECONDS = 900  # only what hangs takes as long
_AROUND = ("ACCELERATE_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_")


def seconds_now(seconds: float) -> float:
    """So many seconds where nothing else runs, and in proportion more on a machine that is busy now."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    usual = 0.05  # of an idle machine that is slow
    return seconds * max(1, (time.perf_counter() - began) / usual)


def load_script(path: Path) -> ModuleType:
    """A script of the repository, imported: its folder is no package."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def clean_environment(**added: str) -> dict[str, str]:
    """One thread a process, no GPU, and no trace of a launcher or a scheduler around the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_AROUND)}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | added


def launcher_command(processes: int) -> list[str]:
    # Without a GPU, `--multi_gpu` starts processes that talk over gloo; `--cpu --num_processes 2` would start only one.
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    return [
        sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    ]  # fmt: skip


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own. It is gone afterwards, and with it those that it started in this session."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def trainers(launcher: int) -> list[int]:
    """Numbers of the processes that a launcher has started, by their rank."""
    ranks = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):  # it has just ended
            continue
        if parent == launcher:
            ranks[int(next((word[5:] for word in environment if word.startswith(b"RANK=")), 0))] = int(process.name)
    return [ranks[rank] for rank in sorted(ranks)]


def wait_until_gone(processes: list[int]) -> None:
    """Returns once none is there, but for those that only wait for a parent that asks for their status."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, f"one of {processes} has not ended"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_line(process: subprocess.Popen[str], folder: Path, steps: int = 1) -> None:
    """Returns once a run has logged so many steps."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    log = folder / "metrics.jsonl"
    while not (log.exists() and log.read_text().count('"event": "loss"') >= steps):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the run ended or hung before its line {steps}: {process.communicate()}")
        time.sleep(0.02)
