"""One training run: processes, seeds, resume, atomic checkpoints, logging, preemption.

The recipe keeps its loop in sight; what is dull and easy to get wrong lives here, once. This is the only file that
knows Accelerate. Three decisions make a resumed run identical to one that was never stopped:

- a batch is a function of (seed, step), so the position in the data is one integer;
- the random generators are seeded anew at every step from (seed, step, rank), so there is no generator state to lose;
- a checkpoint holds the objective, the optimiser and whatever else the recipe registers, and nothing is logged after
  it that the resumed run would not log again to the bit.
"""

import copy
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, broadcast_object_list
from torch import nn

from ssl_equi.checkpoint import (
    describe_os_error,
    has_checksums,
    list_checkpoints,
    load_module_strictly,
    read_state,
    write_checkpoint,
    write_text_atomically,
)
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.decoding_processes import start_server
from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.encoders.compiling import compile_networks, try_compiler
from ssl_equi.encoders.recomputing import checkpoint_activations
from ssl_equi.errors import CheckpointError, RunError, UserError
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm
from ssl_equi.options import used_options
from ssl_equi.runtime.device_copies import Unread, together
from ssl_equi.runtime.system import software_versions
from ssl_equi.training import processes as launcher
from ssl_equi.training.config import RunConfig, check_run, default_threads, flattened, loader_size, refuse_other_options
from ssl_equi.training.devices import on_device, prepare_for_device
from ssl_equi.training.finite_watch import FiniteWatch
from ssl_equi.training.folder import RunFolder, choose_folder
from ssl_equi.training.log import MetricsLog, SpeedWindow, TrainingProgress
from ssl_equi.training.optimisation import load_optimizer_state
from ssl_equi.training.processes import set_timeout, starting_timeout
from ssl_equi.training.sharding import gathered, shard, shared_out
from ssl_equi.training.stopping import EXIT_STOPPED, StoppedBySignal, StopRequests, leaving_at_once
from ssl_equi.training.tracking import Tracking

Result = TypeVar("Result")
Objective = TypeVar("Objective")

KEPT_CHECKPOINTS = 2
STOPPED_FILE = "stopped.json"
"""In the run folder from when a signal stopped the run until it goes on."""


@contextmanager
def _going_on_with_resume() -> Iterator[None]:
    """Adds to the cure of a failed write how a run goes on; what else writes has no --resume."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and --resume goes on from there") from error


class Stateful(Protocol):
    """Anything that is saved with a checkpoint besides the objective and the optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class BatchLoader(Protocol):
    """The part of a loader that a run uses."""

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]: ...


class Run:
    """A run of one recipe in one or several processes.

    Args:
        config: the recipe's configuration, which extends `RunConfig`.
        name: the recipe's name, used for the default run folder and in what is shown.

    Raises:
        RunError: the options contradict each other or the folder.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        check_run(config)
        launcher.end_with_the_launcher()
        launcher.refuse_unsupported_settings()
        precision = launcher.launched_precision(config.mixed_precision)
        self.name = name
        cuda = torch.cuda.is_available()
        launcher.join_slurm_tasks()
        # Without cpu=True, several processes on a machine without GPU would each believe to be alone.
        processes = PartialState(cpu=not cuda, timeout=starting_timeout(config.collective_timeout))
        launcher.refuse_lonely_tasks(processes.num_processes)
        self.device = processes.device
        if config.threads is not None or self.device.type == "cpu":
            torch.set_num_threads(config.threads or default_threads())
        self.loader_size = loader_size(config, self.device)
        if self.loader_size.workers > 0:
            start_server()  # it imports what they need while this process goes on
        self.config = replace(
            config, mixed_precision=precision, loader_threads=self.loader_size.threads,
            loader_workers=self.loader_size.workers,
        )  # fmt: skip
        self.rank, self.world_size = processes.process_index, processes.num_processes
        self.is_main = processes.is_main_process
        # Chosen again when the run starts: others may have started by then.
        self._set_folder(self.on_main_then_everywhere(self._choose_folder))
        # Buffers are equal everywhere (statistics of the global batch, gathered keys), so nobody needs to send them. A
        # static graph gains nothing, as all weights are used, and needs outputs that DistributedDataParallel sees into.
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        # Autocast's copies of weights would outlive the block that they were gathered for.
        autocast = AutocastKwargs(cache_enabled=config.sharding == "none")
        self.accelerator = Accelerator(
            cpu=not cuda, mixed_precision=precision, log_with=config.tracker, project_dir=self.folder,
            kwargs_handlers=[parallel, autocast],
        )  # fmt: skip
        self.tracking = Tracking(self.accelerator, config.tracker)
        self._claim: RunFolder | None = None  # of the first process
        self._sharded = config.sharding == "full"
        self._whole: nn.Module | None = None  # of the first process, where weights are shared out
        self.states: dict[str, Any] = {}
        self.step_done = self.last_step = 0
        self._finite_watch = FiniteWatch()
        self._speed_window = SpeedWindow()
        self._records_skipped_here = 0  # by this process, since all processes last added theirs up
        self.records_skipped = 0
        """How often a bad record was replaced, in all processes, up to the last checkpoint or line of speed."""

    # ---------------------------------------------------------------- starting

    def prepare(self, objective: nn.Module, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
        """Moves the objective to the device, synchronises batch norms, makes the optimiser, wraps for N processes.

        Args:
            objective: the bare objective; kept as `run.objective`.
            optimizer_of: makes the optimiser from the objective, once its parameters are where they will stay. It is
                found in `run.optimizer` afterwards.
        """
        if self._sharded and self.is_main:
            self._whole = copy.deepcopy(objective)
        self.objective = objective.to(self.device)
        prepare_for_device(self.objective, self.device)
        if self.world_size > 1:
            # After the move: which kind of synchronised batch norm is used depends on the device.
            self.objective = convert_sync_batchnorm(self.objective)
        if self.config.checkpoint_activations:
            checkpoint_activations(self.objective.encoder)  # type: ignore[arg-type]
        if self.config.compile:
            try_compiler(self.device)
            compile_networks(self.objective)
        if self._sharded:
            shard(self.objective, self.device)
        self.bare_optimizer = optimizer_of(self.objective)
        self.optimizer = self.accelerator.prepare_optimizer(self.bare_optimizer)
        if self._sharded:  # such a model needs Accelerate's autocast, but no further wrapping
            return self.accelerator.prepare_model(self.objective, device_placement=False, evaluation_mode=True)
        return self.accelerator.prepare_model(self.objective)

    def whole(self, objective: Objective) -> Objective:
        """What is exported and probed: the objective itself or, if its weights are shared out, a copy that has all.

        The copy is the first process's. From the beginning of `ending` it has the weights at the end, before then those
        at the start.
        """
        return objective if self._whole is None else cast(Objective, self._whole)

    def register(self, name: str, state: Stateful) -> None:
        """Saves and restores something else with every checkpoint (online probes, an averaged encoder)."""
        self.states[name] = state

    def resume(self) -> int:
        """Starts the run: takes its folder, and returns the step to go on with.

        Restores the newest checkpoint if `--resume` is given and there is one. Whatever else can refuse a run comes
        before: this is the first to write, and a run that it refuses leaves nothing behind.

        Raises:
            RunError, CheckpointError: the folder is another run's, the checkpoint is damaged or of another
                architecture, or the tracker doesn't start.
        """
        self._set_folder(self.on_main_then_everywhere(self._claim_folder))
        try:
            self.on_main_then_everywhere(self._refuse_other_options)
            self.on_main_then_everywhere(self._start_tracking)
            self._restore_newest()
            self.on_main_then_everywhere(self._describe_run)
        except BaseException:
            if self._claim is not None:
                self._claim.withdraw()
            raise
        return self.step_done

    def _restore_newest(self) -> None:
        checkpoints = list_checkpoints(self.folder / "checkpoints") if self.config.resume else []
        if checkpoints:
            newest = checkpoints[-1]
            self._restore(newest)
            if not has_checksums(newest):
                self.say(
                    f"{newest} is of an earlier version, without checksums: damage of its files can't be ruled out"
                )
            self.say(f"resuming {self.folder} after step {self.step_done}")

    def _restore(self, checkpoint: Path) -> None:
        """Puts everything that `save` wrote back; raises CheckpointError if anything of it is missing or spoilt."""
        others = "delete this folder and resume from the one before"
        saved = {name: read_state(checkpoint, name) for name in ("run", "objective", "optimizer", *self.states)}
        try:
            if self._sharded:
                self._share_out(saved)
            load_module_strictly(self.objective, saved["objective"], checkpoint / "objective.safetensors")
            self.step_done = int(saved["run"]["step"])
            self.records_skipped = int(saved["run"].get("records_skipped", 0))
            load_optimizer_state(self.bare_optimizer, saved["optimizer"])
            for name, state in self.states.items():
                state.load_state_dict(saved[name])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(
                f"checkpoint {checkpoint} doesn't hold what this run saves ({type(error).__name__}: {error}): {others}"
            ) from error
        if checkpoint.name != f"step-{self.step_done:08d}":
            raise CheckpointError(f"checkpoint {checkpoint} was saved after step {self.step_done}: {others}")
        spoilt = self._first_weight_not_finite()
        if spoilt is not None:
            raise CheckpointError(f"the weight {spoilt!r} in checkpoint {checkpoint} is not finite: {others}")

    def _share_out(self, saved: dict[str, Any]) -> None:
        """Leaves this process's share of weights and moments in states that were saved whole."""
        weights = self.objective.state_dict()
        saved["objective"] = {name: shared_out(value, weights.get(name)) for name, value in saved["objective"].items()}
        parameters = [parameter for group in self.bare_optimizer.param_groups for parameter in group["params"]]
        for number, moments in saved["optimizer"]["state"].items():
            moments |= {name: shared_out(value, parameters[number]) for name, value in moments.items()}

    # ---------------------------------------------------------------- the loop

    def batches(self, loader: BatchLoader, start_step: int, total_steps: int) -> Iterator[tuple[int, ViewBatch]]:
        """Yields (step, batch on the device) until the last step; does the housekeeping after each of them.

        The last step is that of the schedule (`total_steps`), or `--steps` if that comes first.

        The body of the recipe's loop runs between two batches. After it, this method stops on losses that are not
        finite, saves a checkpoint when one is due, and leaves with exit status `EXIT_STOPPED` after SIGTERM, SIGUSR1 or
        Ctrl-C.
        """
        self.last_step = total_steps if self.config.steps is None else min(self.config.steps, total_steps)
        self._speed_window = SpeedWindow()
        stop = StopRequests(self.world_size, starting_timeout(self.config.collective_timeout))
        with (
            stop.listening(),
            TrainingProgress(self.name, start_step, self.last_step, self.is_main) as self.progress,
        ):
            if start_step < self.last_step:
                yield from self._steps(loader, start_step, stop)

    def _steps(self, loader: BatchLoader, start_step: int, stop: StopRequests) -> Iterator[tuple[int, ViewBatch]]:
        batches = on_device(loader.batches(start_step), self.device)
        for step, batch in enumerate(batches, start=start_step):
            self._seed_step(step)
            self._speed_window.add(batch, self.world_size)
            self._records_skipped_here += batch.records_skipped
            yield step, replace(batch, augmenting=self._speed_window.augmenting)
            self.step_done = step + 1
            self.progress.advance(self.step_done)
            if step == start_step and self.world_size > 1:
                set_timeout(timedelta(minutes=self.config.collective_timeout), [None, stop.group])
            finished = self.step_done >= self.last_step
            stopping = stop.agreed(last_step=finished)
            if finished or stopping or self.step_done % self.config.save_every == 0:
                self._raise_if_not_finite()
                self._raise_if_weights_not_finite()
                self.save()
            if stopping:
                self._leave(stopping)
            if finished:
                return

    def _leave(self, signal_name: str) -> NoReturn:
        """Ends a run that has been saved; `STOPPED_FILE` tells what a launcher makes an error of any status of."""
        if self.is_main:
            stopped = {"signal": signal_name, "step": self.step_done, "last_step": self.last_step}
            write_text_atomically(self.folder / STOPPED_FILE, json.dumps(stopped))
        self.say(
            f"{signal_name}: saved {self.folder} after step {self.step_done} of {self.last_step}; "
            "run the same command with --resume to go on"
        )
        self.close()
        raise SystemExit(EXIT_STOPPED)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around what the first process does alone after the last step, and its end for all of them.

        However long it takes, nobody waits for it: all processes meet once more and close their group before. A signal
        stops it; a resumed run does it again from its start.
        """
        self.accelerator.wait_for_everyone()
        if self._sharded:
            state = gathered(dict(self.objective.state_dict()), keep=self.is_main)
            if self._whole is not None:
                self._whole.to(self.device).load_state_dict(state)
        self._close_process_group()
        try:
            with leaving_at_once():
                yield
        except StoppedBySignal as stop:
            self._leave(stop.signal_name)
        self.close()

    def backward(self, output: ObjectiveOutput) -> None:
        """Backpropagates the loss, clips the gradient if asked, and remembers which term first was not finite."""
        self._finite_watch.look(output, self.step_done + 1)
        if self.device.type == "cpu":
            self._raise_if_not_finite()
        # What is computed again would enter the running statistics of batch norms twice.
        again = running_statistics_kept(self.objective) if self.config.checkpoint_activations else nullcontext()
        with again:
            self.accelerator.backward(output.loss)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)

    def log(
        self, step: int, output: ObjectiveOutput, *, probes: Callable[[], Unread[dict[str, float]]] | None = None,
        **numbers: float,
    ) -> None:  # fmt: skip
        """Every `log_every` steps, writes a line of losses (equal to the bit in a resumed run) and one of speed.

        All numbers come from the device in one copy.
        """
        if (step + 1) % self.config.log_every != 0 and step + 1 != self.last_step:
            return
        terms = self.accelerator.reduce({"loss": output.loss.detach().float(), **output.terms}, reduction="mean")
        first_bad, losses, skipped, probe_metrics = together(
            [
                self._finite_watch.first_bad(),
                Unread([*terms.values()], lambda values: dict(zip(terms, values, strict=True))),
                self._skipped_records(),
                probes() if probes is not None else Unread((), lambda _: {}),
            ]
        ).read()
        # Where all terms of this process are finite, a mean that is not tells of another process.
        not_finite = [(step + 1, name) for name, value in losses.items() if not math.isfinite(value)]
        self._raise_for_numbers(first_bad or next(reversed(not_finite), None))
        self.records_skipped += skipped
        speed = self._speed_window.speed(self.records_skipped)
        self._speed_window = SpeedWindow()
        if self.is_main:
            lines = [{"event": "loss", "step": step + 1, **losses, **numbers}]
            if probe_metrics:
                lines.append({"event": "online_probe", "step": step + 1, **probe_metrics})
            lines.append({"event": "speed", "step": step + 1, **asdict(speed)})
            with _going_on_with_resume():
                self.metrics_log.append(lines)
            self.progress.advance(step + 1)  # the step is done, though its housekeeping is still to come
            self.progress.report(losses["loss"], speed)
        self.tracking.log({**losses, **numbers, **probe_metrics, **asdict(speed)}, step + 1)

    def save(self) -> Path:
        """Writes the checkpoint of the steps done so far, atomically, and deletes all but the newest few."""
        folder = self.folder / "checkpoints" / f"step-{self.step_done:08d}"
        self.records_skipped += self._skipped_records().read()
        trained = {"objective": dict(self.objective.state_dict()), "optimizer": self.bare_optimizer.state_dict()}
        if self._sharded:
            trained = gathered(trained, keep=self.is_main)
        self.on_main_then_everywhere(lambda: self._write_checkpoint(folder, trained))
        return folder

    def _write_checkpoint(self, folder: Path, trained: dict[str, Any]) -> None:
        states = {name: state.state_dict() for name, state in self.states.items()} | trained
        states["run"] = {
            "step": self.step_done, "world_size": self.world_size, "records_skipped": self.records_skipped,
        }  # fmt: skip
        with _going_on_with_resume():
            write_checkpoint(folder, states)
        for old in list_checkpoints(folder.parent)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Ends the tracker and the process group, and gives the folder free; safe to call twice."""
        self.tracking.end()
        if self._claim is not None:
            self._claim.release()
        self._close_process_group()

    def _close_process_group(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def say(self, message: str) -> None:
        """Prints on the first process only."""
        if self.is_main:
            print(message, flush=True)

    # ---------------------------------------------------------------- housekeeping

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

    def _choose_folder(self) -> Path:
        return choose_folder(self.config.out, self.name, self.config.resume)

    def _claim_folder(self) -> Path:
        folder = self._choose_folder()
        self._claim = RunFolder(folder)
        return folder

    def _set_folder(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_log = MetricsLog(folder / "metrics.jsonl")

    def _refuse_other_options(self) -> None:
        config_file = self.folder / "config.json"
        if self.config.resume and list_checkpoints(self.folder / "checkpoints") and config_file.is_file():
            refuse_other_options(config_file, used_options(self.config), used_options(type(self.config)()))

    def _start_tracking(self) -> None:
        self.accelerator.project_configuration.logging_dir = str(self.folder)
        # TensorBoard takes nothing but numbers and text.
        options = {name: str(value) for name, value in flattened(used_options(self.config)).items()}
        self.tracking.start(self.name, options)

    def _describe_run(self) -> None:
        """Writes what the run is, and drops lines of the log that will be written again."""
        try:
            if self._claim is not None:
                self._claim.clear_leftovers()
                (self.folder / STOPPED_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(describe_os_error(error, self.folder)) from error
        self.metrics_log.cut_after(self.step_done)
        write_text_atomically(self.folder / "config.json", json.dumps(used_options(self.config), indent=1))
        process = {"process": f"process {os.getpid()} on {platform.node()}"}
        write_text_atomically(self.folder / "versions.json", json.dumps(software_versions() | process, indent=1))

    def _seed_step(self, step: int) -> None:
        # Python's hash of a tuple of integers is stable across processes and well mixed.
        torch.manual_seed(hash((self.config.seed, step, self.rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    def _skipped_records(self) -> Unread[int]:
        """How many all processes skipped since the last call, which they make at the same steps."""
        if self.config.on_bad_record != "skip":
            return Unread((), lambda _: 0)
        skipped = torch.full((), self._records_skipped_here, device=self.device)
        self._records_skipped_here = 0
        return Unread((self.accelerator.reduce(skipped, reduction="sum"),), lambda values: int(values[0]))

    def _raise_if_not_finite(self) -> None:
        self._raise_for_numbers(self._finite_watch.first_bad().read())

    def _raise_for_numbers(self, bad: tuple[int, str] | None) -> None:
        if bad is not None:
            step, term = bad
            self._stop_for_numbers(f"the term {term!r}", step)

    def _raise_if_weights_not_finite(self) -> None:
        """A gradient may overflow though its loss did not: such weights are never saved over good ones."""
        spoilt = self._first_weight_not_finite()
        if spoilt is not None:
            self._stop_for_numbers(f"the weight {spoilt!r}", self.step_done)

    def _first_weight_not_finite(self) -> str | None:
        """Name of a parameter; None if all are finite. The device is waited for once."""
        finite = torch.stack([weight.isfinite().all() for weight in self.objective.parameters()])
        if finite.all():
            return None
        names = [name for name, _ in self.objective.named_parameters()]
        return names[int(finite.int().argmin())]

    def _stop_for_numbers(self, what: str, step: int) -> NoReturn:
        saved = list_checkpoints(self.folder / "checkpoints")
        good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved yet"
        raise RunError(
            f"{what} is not finite at step {step} of {self.folder}: {good}; "
            "lower the learning rate, or set --clip-norm, and go on with --resume"
        )
