"""Signals to launcher and processes: what is saved, said and left, and that the resumed run goes on to the bit."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_equi.checkpoint import list_checkpoints
from tests.fakes import event_lines, process_of_its_own
from tests.launched import (
    PATIENCE_SECONDS,
    TOY,
    clean_environment,
    launcher_command,
    seconds_now,
    started,
    trainers,
    wait_for_line,
    wait_until_gone,
)
from tests.toy_recipe import SCRIPT_STEPS, ToyConfig, main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found under /proc")

PAUSE = {"TOY_PAUSE": "0.2"}


def run_toy(processes: int, folder: Path, resume: bool = False) -> None:
    """Trains with nothing in its way; one process does so within the test's, which saves seconds."""
    if processes == 1:
        with process_of_its_own():
            main(ToyConfig(out=folder, threads=1, resume=resume))
        return
    command = [*launcher_command(processes), TOY, "--out", str(folder), "--threads", "1", *["--resume"] * resume]
    with started(command, clean_environment()) as launcher:
        output, errors = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 0, errors
    assert output.count("ended") == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[str]]:
    """Losses of runs in 1 or 2 processes that nothing stopped."""
    runs: dict[int, list[str]] = {}

    def losses(processes: int) -> list[str]:
        if processes not in runs:
            folder = tmp_path_factory.mktemp("whole") / "run"
            run_toy(processes, folder)
            runs[processes] = event_lines(folder)
            assert len(runs[processes]) == SCRIPT_STEPS
        return runs[processes]

    return losses


TARGETS = ((1, "launcher"), (1, "first"), (2, "launcher"), (2, "first"), (2, "other"))
MATRIX = [
    (processes, target, name) for processes, target in TARGETS for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGKILL")
    if name != "SIGKILL" or target == "launcher"
]  # fmt: skip
BY_DEFAULT = [(1, "launcher", "SIGTERM")]


@pytest.mark.parametrize(
    ("processes", "target", "name"),
    [case if case in BY_DEFAULT else pytest.param(*case, marks=pytest.mark.slow) for case in MATRIX],
)
def test_a_run_that_is_stopped_anywhere_saves_leaves_and_goes_on(
    processes: int, target: str, name: str, whole: Callable[[int], list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*launcher_command(processes), TOY, "--out", str(run), "--threads", "1"]
    with started(command, clean_environment(**PAUSE)) as launcher:
        wait_for_line(launcher, run)
        started_by_it = trainers(launcher.pid)
        assert len(started_by_it) == processes
        numbers = {"launcher": launcher.pid, "first": started_by_it[0], "other": started_by_it[-1]}
        os.kill(numbers[target], signal.Signals[name])
        output, errors = launcher.communicate(timeout=PATIENCE_SECONDS)  # until all have closed their output
    assert launcher.returncode != 0, "a launcher makes its own status of that of a run that was stopped"
    wait_until_gone(started_by_it)
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["last_step"] == SCRIPT_STEPS and 0 < stopped["step"] < SCRIPT_STEPS
    said = re.findall(r"^(SIG\w+): saved .* after step (\d+) of", output, re.MULTILINE)
    assert said == [(stopped["signal"], str(stopped["step"]))], errors
    assert "error: " not in errors
    assert len(event_lines(run)) == stopped["step"]
    run_toy(processes, run, resume=True)
    assert event_lines(run) == whole(processes)
    assert not (run / "stopped.json").exists()


@pytest.mark.slow  # by default test_run.py stands in for kills
def test_killed_at_two_places_the_resumed_run_logs_the_same_to_the_byte(
    whole: Callable[[int], list[str]], tmp_path: Path
) -> None:
    """The same run is killed, resumed, killed again later, and resumed to its end."""
    run = tmp_path / "killed"
    for resumed, steps in (([], 3), (["--resume"], 17)):  # checkpoints are those of every fifth step
        command = [sys.executable, TOY, "--out", str(run), "--threads", "1", *resumed]
        with started(command, clean_environment(**PAUSE)) as process:
            wait_for_line(process, run, steps)
            process.kill()
            process.wait()
        logged = event_lines(run)
        assert steps <= len(logged) < SCRIPT_STEPS and logged == whole(1)[: len(logged)]
    assert list_checkpoints(run / "checkpoints")[-1].name != f"step-{len(logged):08d}"
    run_toy(1, run, resume=True)
    assert event_lines(run) == whole(1)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("SIGKILL", -1),
        pytest.param("SIGKILL", 0, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", -1, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", 0, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_lost_ends_the_others_with_one_sentence(name: str, target: int, tmp_path: Path) -> None:
    """One that was killed at once, one that hangs after the timeout, at the end of which a launcher kills it."""
    run = tmp_path / "run"
    command = [*launcher_command(2), TOY, "--out", str(run), "--collective-timeout", f"{seconds_now(3) / 60}"]
    with started(command, clean_environment(**PAUSE)) as launcher:
        wait_for_line(launcher, run)
        started_by_it = trainers(launcher.pid)
        os.kill(started_by_it[target], signal.Signals[name])
        _, errors = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 1
    wait_until_gone(started_by_it)
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "another process of this run has ended or does not answer" in sentences[0]
    assert "[rank" not in errors, "no traceback of torch's processes"


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_first_process_ends_both_with_the_same_sentence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*launcher_command(2), TOY, "--out", str(run), "--save-every", "5"]
    with started(command, clean_environment(TOY_FULL_DISK="7")) as launcher:
        _, errors = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 1
    sentences = {line for line in errors.splitlines() if line.startswith("error: ")}
    assert len(sentences) == 1 and "the disk is full while writing" in sentences.pop()
    assert "[rank" not in errors
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000005"]
