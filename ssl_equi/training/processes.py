"""Processes of a run: how they were launched, and what happens when one is lost."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ssl_equi.errors import LostProcessError, RunError, UserError
from ssl_equi.training.config import Precision

Result = TypeVar("Result")

# Settings of `accelerate launch` that a run would take without acting on them as asked: variable, values that change
# nothing, the setting, and what serves instead.
_UNSUPPORTED = (
    ("ACCELERATE_USE_FSDP", ("", "false"), "--use_fsdp", "give --multi_gpu instead, and the recipe --sharding full"),
    ("ACCELERATE_USE_DEEPSPEED", ("", "false"), "--use_deepspeed", "give --multi_gpu instead"),
    ("ACCELERATE_USE_MEGATRON_LM", ("", "false"), "--use_megatron_lm", "give --multi_gpu instead"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("", "false"), "--use_parallelism_config", "give --multi_gpu instead"),
    ("ACCELERATE_DYNAMO_BACKEND", ("", "no"), "--dynamo_backend", "give the recipe --compile instead"),
    (
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("", "1"), "--gradient_accumulation_steps",
        "a step takes its whole batch at once, so choose another --batch-size instead",
    ),
)  # fmt: skip
# Tasks that a scheduler or MPI started: the variables that may hold their number, in this order, and this one's rank.
_TASKS = (
    (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    (("PMI_SIZE",), "PMI_RANK"),
    (("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_RANK"),
)
# Of a launcher's processes; a run that is started by hand must outlive the shell that it was started from.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
_PARENT_AT_IMPORT = os.getppid()
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Processes:
    """The processes of a run, joined by whatever launched them, and this one among them.

    Args:
        collective_timeout: minutes that a process waits for the others.
    """

    def __init__(self, collective_timeout: float) -> None:
        end_with_the_launcher()
        refuse_unsupported_settings()
        join_slurm_tasks()
        # Without cpu=True, several processes on a machine without GPU would each believe to be alone.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=starting_timeout(collective_timeout))
        refuse_lonely_tasks(state.num_processes)
        self.device = state.device
        self.rank, self.world_size = state.process_index, state.num_processes
        self.is_main = state.is_main_process

    def say(self, message: str) -> None:
        """Prints on the first process only."""
        if self.is_main:
            print(message, flush=True)

    def on_main_then_everywhere(self, action: Callable[[], Result]) -> Result:
        """What looks at the disk is done once, by the first process; all get its result, or its error."""
        outcome: list[Any] = [None]
        defect: Exception | None = None
        if self.is_main:
            try:
                outcome = [action()]
            except UserError as error:
                outcome = [error]
            except Exception as error:
                defect = error
                outcome = [RunError(f"the first process has failed ({type(error).__name__}): its traceback says where")]
        if self.world_size > 1:
            broadcast_object_list(outcome)
        try:
            if isinstance(outcome[0], UserError):
                raise defect or outcome[0]
            return outcome[0]
        finally:
            # An error whose traceback leads back to it would keep the run alive, and with it the lock of its folder.
            del outcome, defect

    def close_group(self) -> None:
        """From here on no process hears of another; safe to call twice."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def end_with_the_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """On Linux, lets the end of this process's launcher reach it as SIGTERM; RunError if that has ended already.

    Without it a launcher that is killed, or that gets a signal that it doesn't pass on, leaves processes that train on
    and that nobody can stop.
    """
    if sys.platform != "linux" or not any(name in environment for name in _LAUNCHED):
        return
    # The signal comes when the thread ends that started this process: launchers start theirs from the main thread.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # A launcher that has ended before sends none.
    ended = os.getppid() != _PARENT_AT_IMPORT
    if os.getppid() == 1:  # a launcher, as in a container, or what adopts processes that have lost theirs
        command = Path("/proc/1/cmdline").read_bytes()
        ended |= b"accelerate" not in command and b"torch" not in command
    if ended:
        raise RunError("the launcher of this process has ended: start the run again")


def join_slurm_tasks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets the tasks of a SLURM step (`srun`) find each other as the processes of one run, where no launcher has.

    Their variables are put into those that launchers set. MASTER_ADDR and MASTER_PORT may be given; if not, they are
    the step's first node and a port that follows from the numbers of job and step. A step of one task, and the script
    around the steps, are left alone.
    """
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    size, rank, local_rank, job, step = (environment.get(name, "") for name in names)
    numbers = all(number.isdecimal() for number in (size, rank, local_rank, job, step))
    if "RANK" in environment or not numbers or int(size) == 1:
        return
    address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not address:
        return
    # Below the ports that systems hand out by themselves.
    port = environment.get("MASTER_PORT") or str(20_000 + (int(job) * 16 + int(step)) % 10_000)
    environment.update(RANK=rank, LOCAL_RANK=local_rank, WORLD_SIZE=size, MASTER_ADDR=address, MASTER_PORT=port)


def first_host(hosts: str) -> str:
    """node03 of SLURM's `node[03-07,09],other1`; nothing of nothing."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


def refuse_unsupported_settings(environment: Mapping[str, str] = os.environ) -> None:
    """Raises RunError for a setting of `accelerate launch` that a run can't follow."""
    for variable, harmless, setting, cure in _UNSUPPORTED:
        value = environment.get(variable, "")
        if value.lower() not in harmless:
            raise RunError(
                f"the launcher was given {setting} ({variable}={value}), which runs don't support: leave it out of the "
                f"launcher's options and its configuration file, and {cure}"
            )


def launched_precision(asked: Precision, environment: Mapping[str, str] = os.environ) -> Precision:
    """no or bf16: what the options ask for, or what the launcher was given where they leave it to that.

    Raises RunError if the launcher was given a precision that the options contradict, or one that runs don't have.
    """
    # `accelerate launch` says "no" where nobody asked for anything, so that does not contradict bf16 of the options.
    given = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    if given not in ("no", "bf16") or (given == "bf16" and asked == "no"):
        told = "" if asked == "auto" else f" and the run --mixed-precision {asked}"
        raise RunError(
            f"the launcher was given --mixed_precision {given}{told}: give the launcher --mixed_precision no, or bf16, "
            "and leave --mixed-precision out"
        )
    if asked == "auto":
        return "bf16" if given == "bf16" else "no"
    return asked


def refuse_lonely_tasks(num_processes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raises RunError for one of several tasks of a scheduler that have not found each other in their run."""
    if num_processes > 1:
        return
    for sizes, rank in _TASKS:
        size = next((name for name in sizes if environment.get(name, "").isdecimal()), None)
        if size is not None and rank in environment and int(environment[size]) > 1:
            raise RunError(
                f"this is one of {environment[size]} tasks ({size}={environment[size]}, {rank}={environment[rank]}) "
                "that no launcher has joined, so each would train the same: start them with SLURM's `srun`, or start "
                f"one task on each node, and in it `accelerate launch`, or unset {rank} if these are meant to be runs "
                "of their own"
            )


# Until the first step is done one process may still fetch or render the data that the others wait for.
STARTING_TIMEOUT = timedelta(minutes=30)
_WORDS_OF_GLOO = ("gloo/", "pair closure", "closed by peer")


def starting_timeout(collective_timeout: float) -> timedelta:
    """How long to wait until the first step is done, where it is `collective_timeout` minutes afterwards."""
    return max(STARTING_TIMEOUT, timedelta(minutes=collective_timeout))


def set_timeout(timeout: timedelta, groups: list[Any]) -> None:
    """Changes how long operations of the groups (None: of all processes) that are yet to start wait for the others."""
    # The second is how earlier versions of torch call it.
    names = ((torch.distributed, "set_timeout"), (torch.distributed.distributed_c10d, "_set_pg_timeout"))
    setters = [getattr(module, name) for module, name in names if hasattr(module, name)]
    for group in groups if setters else []:
        setters[0](timeout, group)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raises LostProcessError in the place of the error with which another process's end was noticed."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        # gloo puts the line of its source that noticed before its sentence, and advice behind it.
        detail = re.sub(r"^\[\S*\] ", "", str(error).split("\n")[0]).split(". ")[0]
        raise LostProcessError(
            f"another process of this run has ended or does not answer ({detail}): see what it says itself, and go on "
            "with --resume, or with a higher --collective-timeout if it was only slow"
        ) from error


def _is_lost_process(error: RuntimeError) -> bool:
    if isinstance(error, UserError) or not torch.distributed.is_available():
        return False
    # gloo has no type of error of its own.
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in _WORDS_OF_GLOO)
