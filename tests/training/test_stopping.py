"""Stopping on a signal: two processes, one of which gets it, stop after the same step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_equi.training.stopping import EXIT_STOPPED, SECONDS_TO_ANOTHER_INTERRUPT, StopRequests, run_to_the_end

ROOT = Path(__file__).parents[2]
SIGNAL_AT = 20
LOOP = f"""
import os, signal, sys, time
import torch
from ssl_equi.training.stopping import StopRequests

rank = int(sys.argv[1])
store = torch.distributed.FileStore(sys.argv[2], 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
stop = StopRequests(2)
with stop.listening():
    for step in range(1, 1000):
        if step == {SIGNAL_AT} and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(.002 * (1 - rank))
        name = stop.agreed()
        if name:
            break
print(name, step)
"""


def test_both_processes_stop_after_the_same_step_soon_after_the_signal(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, str(rank), str(tmp_path / "store")], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate() for process in processes]
    assert [output for output, _ in outputs] == [f"SIGTERM {SIGNAL_AT + 1}\n"] * 2, outputs


def test_one_process_stops_after_the_step_of_the_signal() -> None:
    stop = StopRequests(1)
    with stop.listening():
        assert stop.agreed() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() == "SIGUSR1"


def test_a_signal_outside_of_the_steps_ends_the_process_with_the_same_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run_to_the_end(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == EXIT_STOPPED == 75
    said = capsys.readouterr().out
    assert said == "SIGTERM: left outside of the training steps; run the same command with --resume to go on\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_a_later_second_interrupt_ends_a_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher passes on the interrupt of a terminal that its processes have got already."""
    now = time.monotonic()
    stop = StopRequests(1)
    with stop.listening():
        monkeypatch.setattr(time, "monotonic", lambda: now)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() == "SIGINT"
        monkeypatch.setattr(time, "monotonic", lambda: now + SECONDS_TO_ANOTHER_INTERRUPT + 1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
