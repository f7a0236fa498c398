"""What the launcher and the scheduler around a process say, in environment variables, and what a run makes of it."""

import os
from collections.abc import Mapping

from ssl_equi.run_config import Precision, RunError

# Settings of `accelerate launch` that a run would take without acting on them as asked: variable, values that change
# nothing, the setting, and what serves instead.
_UNSUPPORTED = (
    ("ACCELERATE_USE_FSDP", ("", "false"), "--use_fsdp", "give --multi_gpu instead"),
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

    `accelerate launch` says "no" where nobody asked for anything, so that does not contradict bf16 of the options.

    Raises:
        RunError: the launcher was given a precision that the options contradict, or one that runs don't have.
    """
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
    """Raises RunError for one of several tasks of a scheduler that have not found each other.

    Args:
        num_processes: of the run that this process belongs to.
    """
    if num_processes > 1:
        return
    for sizes, rank in _TASKS:
        size = next((name for name in sizes if environment.get(name, "").isdecimal()), None)
        if size is not None and rank in environment and int(environment[size]) > 1:
            raise RunError(
                f"this is one of {environment[size]} tasks ({size}={environment[size]}, {rank}={environment[rank]}) "
                "that no launcher has joined, so each would train the same: start one task on each node, and in it "
                f"`accelerate launch`, or unset {rank} if these are meant to be runs of their own"
            )
