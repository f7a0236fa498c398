"""Options that every run has, and what is checked about them before it starts or goes on."""

import dataclasses
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ssl_equi.data.bad_records import OnBadRecord
from ssl_equi.errors import RunError
from ssl_equi.files import read_json_object
from ssl_equi.options import ActsWhen, Count, CountOrZero, Positive, Range, Seed, Threads, check_options
from ssl_equi.runtime.system import share_of_cores

Precision = Literal["auto", "no", "bf16"]

# Of a loader, where the options leave them open. On a host with 16 cores 8 threads decode 23,000 images a second at 256
# pixels, and 16 no more; 12 processes decode 32,000, three times what a compiled ResNet-18 trains on. Each takes 30 MB.
CPU_THREADS, MOST_THREADS, MOST_WORKERS, CORES_OF_THE_TRAINER = 2, 8, 16, 2

_NO_WORKERS = "processes decode instead, so leave out --loader-workers"

# Options that may differ between the first start of a run and its continuation: they don't change what is learnt. A run
# that ended at a bad record goes on as if it had skipped bad records from the start.
FREE_OPTIONS = (
    "out",
    "resume",
    "steps",
    "data_dir",
    "log_every",
    "save_every",
    "threads",
    "loader_threads",
    "cache_decoded",
    "loader_workers",
    "on_bad_record",
    "max_skipped",
    "tracker",
    "compile",
    "checkpoint_activations",
    "sharding",
    "collective_timeout",
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options that every recipe shares. Batch sizes and steps are global: they don't change with the processes."""

    out: Path | None = None
    """Run folder; runs/NAME when not given, or runs/NAME-2 and so on if that exists."""
    data_dir: str | Path | None = None
    """Folder with the data set's shards, or their http://, https:// or s3:// address; the user's cache folder when not
    given."""
    seed: Seed = 0
    """Seeds the weights, the order of the data and the probes."""
    steps: Count | None = None
    """Stop after this many steps, with the schedule left as it is (a short try of a long run)."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder; starts afresh if it has none. A run that a signal stopped
    leaves with status 75 and is waiting for this."""
    mixed_precision: Precision = "auto"
    """no or bf16; losses and their statistics stay in fp32. auto: what `accelerate launch --mixed_precision` was given,
    or else no."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient, over all parameters; not clipped when not given."""
    compile: bool = False
    """Compile encoder, momentum target and heads with torch.compile; of vision transformers each block by itself. On a
    GPU also the colour changes of augmented views."""
    checkpoint_activations: bool = False
    """Compute the encoder's activations again in the backward pass rather than keep them: larger models and batches fit
    into memory, for about a third more computation."""
    sharding: Literal["none", "full"] = "none"
    """none: every process holds all weights. full: the weights of vision transformers and their heads, gradients and
    the optimiser's state are shared out among the processes, for models that one GPU can't hold."""
    log_every: Count = 10
    """Steps between two lines of metrics.jsonl."""
    save_every: Count = 200
    """Steps between two checkpoints."""
    threads: Threads | None = None
    """CPU threads of torch in each process; the cores shared among the processes when not given."""
    loader_threads: Annotated[Threads | None, ActsWhen(lambda options: not options.loader_workers, _NO_WORKERS)] = None
    """Threads that decode images, in each process. When neither this nor loader_workers is given, a run on the CPU has
    2, and one on a GPU has processes."""
    loader_workers: Annotated[int, Range(minimum=0, maximum=256)] | None = None
    """Processes that decode images, for each process that trains, instead of threads; 0: threads. When not given, as
    many on a GPU as its share of the cores less two, and at most 16."""
    on_bad_record: OnBadRecord = "raise"
    """raise ends the run at a record that is cut, changed or does not decode; skip puts another one of its batch in its
    place, counts and logs it. Records that are judged, and whole shards, are never skipped."""
    max_skipped: Annotated[
        CountOrZero, ActsWhen(lambda options: options.on_bad_record == "skip", "add --on-bad-record skip")
    ] = 100
    """The most different bad records that each process skips before it ends the run after all."""
    collective_timeout: Annotated[float, Range(above=0, maximum=100_000)] = 5.0
    """Minutes that a process waits for the others before it ends the run; at least 30 until the first step is done.
    More than a checkpoint takes to be written."""
    tracker: Literal["tensorboard", "wandb", "trackio"] | None = None
    """tensorboard, wandb or trackio, besides metrics.jsonl (needs the extra `trackers`)."""

    @property
    def decodes_stored_images(self) -> bool:
        """Whether the CPU decodes images that are read by index: what processes of the loader are for."""
        return True

    def check(self) -> None:
        """Raises RunError for further options, of an extension of this class, that contradict each other."""


def check_run(config: RunConfig) -> None:
    """Raises RunError or UserError for options that no run can have."""
    check_options(config)
    if config.tracker is not None:
        try:
            version(config.tracker)
        except PackageNotFoundError as error:
            raise RunError(
                f"--tracker {config.tracker} needs a package that is not installed: "
                "run `uv sync --extra trackers`, or leave the option out"
            ) from error
    config.check()


def refuse_other_options(config_file: Path, mine: dict[str, Any], defaults: dict[str, Any]) -> None:
    """A run goes on with the options that it was begun with, but for those that don't change what is learnt.

    An option that the file doesn't name came with a later version, whose default leaves things as they were: such a
    run was made with that default.
    """
    cure = "delete this file to resume with the options of this command"
    theirs = flattened(read_json_object(config_file, RunError, cure))
    known = flattened(defaults) | theirs
    for option, value in flattened(mine).items():
        if option not in FREE_OPTIONS and value != known.get(option):
            raise RunError(
                f"{config_file} was made with {option} = {known.get(option)!r} and this command asks for "
                f"{value!r}: resume with the first options, or choose another --out"
            )


def default_threads() -> int:
    """Threads for torch in this process: its share of the usable cores under a launcher, else torch's own choice.

    Launchers set OMP_NUM_THREADS to 1 unless told otherwise, which leaves all cores but one idle on a CPU.
    """
    return share_of_cores() if "ACCELERATE_MIXED_PRECISION" in os.environ else torch.get_num_threads()


@dataclasses.dataclass(frozen=True)
class LoaderSize:
    """How many threads of a process that trains decode images, or how many processes in their place."""

    threads: int
    workers: int
    """0: threads"""


def loader_size(config: RunConfig, device: torch.device) -> LoaderSize:
    """What the options ask for, or what suits the device where they leave it open.

    Threads take the interpreter's lock from one another and from the loop that feeds a GPU, which processes don't. Two
    cores are left to the process that trains.
    """
    if device.type == "cpu":
        return LoaderSize(config.loader_threads or CPU_THREADS, config.loader_workers or 0)
    cores = share_of_cores() - CORES_OF_THE_TRAINER
    workers = config.loader_workers
    if workers is None:
        suited = config.loader_threads is None and config.decodes_stored_images and hasattr(os, "memfd_create")
        workers = min(cores, MOST_WORKERS) if suited and cores > 1 else 0
    return LoaderSize(config.loader_threads or max(CPU_THREADS, min(cores, MOST_THREADS)), workers)


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their names on the command line, such as objective.inv_weight."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
