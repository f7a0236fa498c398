"""What a run makes of the launcher's and the scheduler's environment variables."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssl_equi.errors import RunError
from ssl_equi.training.config import Precision
from ssl_equi.training.folder import RunFolder
from ssl_equi.training.processes import launched_precision, refuse_lonely_tasks, refuse_unsupported_settings


@pytest.mark.parametrize(
    ("given", "asked", "used"),
    [
        (None, "auto", "no"),
        ("no", "auto", "no"),
        ("bf16", "auto", "bf16"),
        # The launcher says "no" where nobody asked it for anything.
        ("no", "bf16", "bf16"),
        ("bf16", "bf16", "bf16"),
        (None, "no", "no"),
        ("fp16", "auto", None),
        ("fp8", "bf16", None),
        ("bf16", "no", None),
    ],
)
def test_the_precision_is_the_launchers_unless_the_options_name_one(
    given: str | None, asked: Precision, used: str | None
) -> None:
    """None: it can't be followed."""
    environment = {} if given is None else {"ACCELERATE_MIXED_PRECISION": given}
    if used is not None:
        assert launched_precision(asked, environment) == used
        return
    with pytest.raises(RunError, match=f"launcher was given --mixed_precision {given}.*: give the launcher"):
        launched_precision(asked, environment)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_USE_FSDP", "true", "--use_fsdp"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend"),
    ],
)
def test_settings_that_a_run_does_not_follow_are_refused(variable: str, value: str, named: str) -> None:
    with pytest.raises(RunError, match=f"{named} .*leave it out"):
        refuse_unsupported_settings({variable: value})
    refuse_unsupported_settings({variable: {"true": "false", "4": "1", "INDUCTOR": "NO"}[value]})


SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "processes", "refused"),
    [
        (SLURM, 1, True),
        (SLURM, 4, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, 1, False),
        ({"SLURM_NTASKS": "4"}, 1, False),
        (SLURM | {"SLURM_NTASKS": "1"}, 1, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, 1, True),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, 1, True),
        ({}, 1, False),
    ],
)
def test_tasks_that_nobody_joined_are_refused(environment: dict[str, str], processes: int, refused: bool) -> None:
    if not refused:
        refuse_lonely_tasks(processes, environment)
        return
    with pytest.raises(RunError, match=r"this is one of \d tasks .*each would train the same: start them with"):
        refuse_lonely_tasks(processes, environment)


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    code = (
        "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(99)"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=r"in use by another run \(another process\)"):
            RunFolder(folder)
        holder.kill()
    RunFolder(folder).release()


def test_a_withdrawn_folder_leaves_what_others_put_beside_it(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "runs" / "a"), RunFolder(tmp_path / "runs" / "b")
    first.withdraw()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]
    second.withdraw()
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"], "the second run did not make the outer folder"
