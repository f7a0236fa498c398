"""recipes/sie.py killed and stopped as a cluster does it: resumed, it writes the lines of a run that never stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import sie
from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.probing.protocol import PROBE_PROTOCOLS
from ssl_equi.training.stopping import EXIT_STOPPED
from tests.fakes import SmallConfig, event_lines, process_of_its_own
from tests.launched import PATIENCE_SECONDS, clean_environment, seconds_now, started
from tests.recipes.conftest import QUICK

EPOCHS = 14
TOTAL_STEPS = 3 * EPOCHS
SAVE_EVERY = 7


@pytest.fixture(scope="module")
def long_run(small_config: SmallConfig) -> Callable[..., Any]:
    """The configuration of `started`, with changes."""

    def configure(**changes: Any) -> Any:
        return small_config(sie, **({"epochs": EPOCHS, "save_every": SAVE_EVERY} | changes))

    return configure


@pytest.fixture(scope="module")
def whole(long_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Lines of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch, process_of_its_own():
        patch.setitem(PROBE_PROTOCOLS, "embedded", lambda: QUICK)
        sie.main(long_run(out=folder))
    assert len(event_lines(folder)) == TOTAL_STEPS
    assert len(event_lines(folder, "online_probe")) > 5
    return lambda event: event_lines(folder, event)


def command_of(folder: Path, options: list[str]) -> list[str]:
    lengths = ["--epochs", str(EPOCHS), "--save-every", str(SAVE_EVERY)]
    return [sys.executable, "recipes/sie.py", "--out", str(folder), *options, *lengths]


def freeze_after(process: subprocess.Popen[str], count_lines: Callable[[], int], lines: int) -> int:
    """Halts the process once it has logged so many losses and is not just at a checkpoint; returns their number.

    A halted process can be looked at in peace: what it has written does not change before the kill.
    """
    deadline = time.monotonic() + seconds_now(PATIENCE_SECONDS)
    while time.monotonic() < deadline and process.poll() is None:
        if count_lines() >= lines:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            if count_lines() % SAVE_EVERY != 0:
                return count_lines()
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    process.kill()
    pytest.fail(f"the run ended or hung before {lines} lines: {process.communicate()}")


@pytest.mark.slow  # by default tests/training/test_run.py kills and resumes a smaller run
@pytest.mark.usefixtures("quick_probes")
def test_killed_at_two_places_the_resumed_run_logs_the_same_to_the_byte(
    long_run: Callable[..., Any], whole: Callable[[str], list[str]], small_options: list[str], tmp_path: Path
) -> None:
    """The same run is killed, resumed, killed again later, and resumed to its end."""
    run = tmp_path / "killed"
    for options, lines in (([], 3), (["--resume"], 3 * SAVE_EVERY + 2)):
        with started(command_of(run, [*small_options, *options]), clean_environment()) as process:
            logged = freeze_after(process, lambda: len(event_lines(run)), lines)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert lines <= logged < TOTAL_STEPS
        assert event_lines(run) == whole("loss")[:logged]
    saved = list_checkpoints(run / "checkpoints")
    assert saved and saved[-1].name != f"step-{logged:08d}"
    sie.main(long_run(out=run, resume=True))
    assert event_lines(run) == whole("loss")
    assert event_lines(run, "online_probe") == whole("online_probe")
    assert (run / "report.html").is_file()


@pytest.mark.slow  # by default tests/training/test_signals.py stops a smaller run
@pytest.mark.usefixtures("quick_probes")
def test_sigterm_saves_says_how_to_go_on_and_leaves_with_a_status_of_its_own(
    long_run: Callable[..., Any], whole: Callable[[str], list[str]], small_options: list[str], tmp_path: Path
) -> None:
    """With `--steps`, as in a trial of a long run; the resumed run has no such limit."""
    run = tmp_path / "stopped"
    command = command_of(run, [*small_options, "--steps", str(TOTAL_STEPS - 2)])
    with started(command, clean_environment()) as process:
        logged = freeze_after(process, lambda: len(event_lines(run)), 2)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=seconds_now(PATIENCE_SECONDS))
    assert process.returncode == EXIT_STOPPED, errors
    newest = list_checkpoints(run / "checkpoints")[-1]
    step = int(newest.name.removeprefix("step-"))
    assert logged <= step <= logged + 1, "it stopped at the end of the step in which the signal came"
    message = (
        f"SIGTERM: saved {run} after step {step} of {TOTAL_STEPS - 2}; run the same command with --resume to go on"
    )
    assert message in output.splitlines()
    assert "Traceback" not in errors
    assert json.loads((run / "stopped.json").read_text()) == {
        "signal": "SIGTERM", "step": step, "last_step": TOTAL_STEPS - 2,
    }  # fmt: skip
    assert not (run / "results.json").exists()
    sie.main(long_run(out=run, resume=True, steps=step + 4))
    assert event_lines(run) == whole("loss")[: step + 4]
    assert not (run / "stopped.json").exists()
    sie.main(long_run(out=run, resume=True))
    assert event_lines(run) == whole("loss")
    assert event_lines(run, "online_probe") == whole("online_probe")
    results = [json.loads((run / name).read_text()) for name in ("results-earlier-1.json", "results.json")]
    assert [result["run"]["steps"] for result in results] == [step + 4, TOTAL_STEPS]
    assert len(results[0]["records"]) == len(results[1]["records"]), "numbers of two encoders are in one file"
