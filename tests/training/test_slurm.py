"""docs/slurm.sbatch with a stand-in for SLURM: two tasks of a step are one run, which its time limit doesn't end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_equi.training.processes import first_host, join_slurm_tasks
from ssl_equi.training.stopping import EXIT_STOPPED
from tests.launched import PATIENCE_SECONDS, ROOT, TOY, clean_environment
from tests.toy_recipe import SCRIPT_STEPS, loss_lines

# Starts the tasks with the variables that the real one sets. In the job's first start the limit comes near once the
# run has logged a step; ends with the highest status of the tasks.
SRUN = """
import os, pathlib, signal, subprocess, sys, time

command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
shared = {"SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"], "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
tasks = [
    subprocess.Popen(command, env=os.environ | shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
log = pathlib.Path(command[command.index("--out") + 1]) / "metrics.jsonl"
if os.environ["SLURM_RESTART_COUNT"] == "0":
    while not log.exists() and all(task.poll() is None for task in tasks):
        time.sleep(0.02)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""
SCONTROL = """
import os, pathlib, sys
with open("scontrol.txt", "a") as file:
    print(*sys.argv[1:], file=file)
"""


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the batch script as SLURM does in the job's first, second, ... start."""
    commands = tmp_path / "bin"
    commands.mkdir()
    scripts = {
        "srun": f"#!{sys.executable}\n{SRUN}",
        "scontrol": f"#!{sys.executable}\n{SCONTROL}",
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, script in scripts.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)

    def run(name: str, restarts: int, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # The script around the steps is a task of its own, with the number of tasks that the steps will have.
        job = {
            "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": name,
            "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(ROOT / "docs" / "slurm.sbatch"), str(ROOT / TOY), *options],
            cwd=tmp_path, env=clean_environment(**(job | variables)), capture_output=True, text=True,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("compared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_job_is_requeued_until_its_run_is_finished(
    compared: bool, submit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Compared with a run that nothing stopped, its losses are equal to the bit."""
    job = str(os.getpid())
    run = tmp_path / "runs" / f"toy-{job}"
    first = submit("toy", 0, TOY_PAUSE="0.2")
    assert first.returncode == EXIT_STOPPED, first.stderr
    assert first.stdout.count("SIGUSR1: saved") == 1
    assert 0 < len(loss_lines(run)) < SCRIPT_STEPS
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {job}\n"
    # One task is enough to see that it goes on, and a task takes seconds to import torch.
    second = submit("toy", 1, SLURM_NTASKS="2" if compared else "1")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("ended") == 1, "the tasks are one run"
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {job}\n"
    assert len(loss_lines(run)) == SCRIPT_STEPS
    if compared:
        assert submit("whole", 1).returncode == 0
        assert loss_lines(run) == loss_lines(tmp_path / "runs" / f"whole-{job}")


@pytest.mark.slow
def test_a_job_that_fails_is_not_requeued(
    submit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    failed = submit("toy", 1, "--save-every", "5", TOY_FULL_DISK="7")
    assert failed.returncode == 1
    assert "the disk is full while writing" in failed.stderr
    assert not (tmp_path / "scontrol.txt").exists()


TASK = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_task_of_a_step_knows_its_place_in_the_run() -> None:
    environment = dict(TASK)
    join_slurm_tasks(environment)
    joined = {name: value for name, value in environment.items() if name not in TASK}
    port = joined.pop("MASTER_PORT")
    assert joined == {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu07"}
    other_step = TASK | {"SLURM_STEP_ID": "3"}
    join_slurm_tasks(other_step)
    assert 1024 < int(port) < 32_768 and other_step["MASTER_PORT"] != port
    given = TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    join_slurm_tasks(given)
    assert (given["MASTER_ADDR"], given["MASTER_PORT"], given["RANK"]) == ("10.0.0.1", "4000", "5")


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "0"},  # of a launcher
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "8"},  # the script around the steps
        {"SLURM_PROCID": ""},
        {"SLURM_STEP_NODELIST": ""},
    ],
)
def test_other_processes_are_left_alone(changes: dict[str, str]) -> None:
    environment = TASK | changes
    join_slurm_tasks(environment)
    assert environment == TASK | changes


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("alpha,beta[1-2]", "alpha"),
        ("node[003-006,010],other", "node003"),
        ("rack[2,4]node[10-11]-ib", "rack2node10-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
