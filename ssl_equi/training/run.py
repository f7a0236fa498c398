"""One training run: from its options over its steps to its end, in one process or several.

The recipe keeps its loop in sight; what is dull and easy to get wrong lives here, once. Three decisions make a resumed
run identical to one that was never stopped:

- a batch is a function of (seed, step), so the position in the data is one integer;
- the random generators are seeded anew at every step from (seed, step, rank), so there is no generator state to lose;
- a checkpoint holds the objective, the optimiser and whatever else the recipe registers, and nothing is logged after
  it that the resumed run would not log again to the bit.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import nn

from ssl_equi.checkpoint import has_checksums, list_checkpoints
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.loading.processes import start_server
from ssl_equi.encoders.batch_norm import batch_counts, running_statistics_kept
from ssl_equi.encoders.compiling import compile_networks, try_compiler
from ssl_equi.encoders.recomputing import checkpoint_activations
from ssl_equi.errors import CheckpointError, RunError
from ssl_equi.files import write_atomically
from ssl_equi.objectives.base import Objective, ObjectiveOutput
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm
from ssl_equi.options import used_options
from ssl_equi.runtime.device_copies import Unread, together
from ssl_equi.training.config import RunConfig, check_run, default_threads, loader_size, refuse_other_options
from ssl_equi.training.devices import check_cuda_graph, on_device, prepare_for_device
from ssl_equi.training.folder import STOPPED_FILE, RunFolder, choose_folder
from ssl_equi.training.log import FiniteWatch, SpeedWindow, TrainingProgress, append_lines
from ssl_equi.training.processes import Processes, launched_precision, set_timeout, starting_timeout
from ssl_equi.training.sharding import gathered, shard
from ssl_equi.training.state import RunState, Stateful
from ssl_equi.training.stopping import EXIT_STOPPED, StoppedBySignal, StopRequests, leaving_at_once
from ssl_equi.training.trackers import FinalResults, Tracking

Kept = TypeVar("Kept")


class BatchLoader(Protocol):
    """The part of a loader that a run uses."""

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]: ...


class Run:
    """A run of one recipe in one or several processes: `prepare`, `resume`, `batches`, `ending`.

    Args:
        config: the recipe's configuration, which extends `RunConfig`.
        name: the recipe's name, used for the default run folder and in what is shown.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        check_run(config)
        self.name = name
        precision = launched_precision(config.mixed_precision)
        self.processes = Processes(config.collective_timeout)
        self.device = self.processes.device
        check_cuda_graph(config, self.device, self.processes.world_size)
        if config.threads is not None or self.device.type == "cpu":
            torch.set_num_threads(config.threads or default_threads())
        self.loader_size = loader_size(config, self.device)
        if self.loader_size.workers > 0:
            start_server()  # it imports what they need while this process goes on
        self.config = replace(
            config, mixed_precision=precision, loader_threads=self.loader_size.threads,
            loader_workers=self.loader_size.workers,
        )  # fmt: skip
        # Chosen again when the run starts: others may have started by then.
        choose = partial(choose_folder, config.out, name, config.resume)
        self.folder = self.processes.on_main_then_everywhere(choose)
        # Buffers are equal everywhere (statistics of the global batch, gathered keys), so nobody needs to send them. A
        # static graph gains nothing, as all weights are used, and needs outputs that DistributedDataParallel sees into.
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        # Autocast's copies of weights would outlive the block that they were gathered for.
        autocast = AutocastKwargs(cache_enabled=config.sharding == "none")
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=precision, log_with=config.tracker,
            project_dir=self.folder, kwargs_handlers=[parallel, autocast],
        )  # fmt: skip
        self._tracking = Tracking(self.accelerator, config.tracker)
        self._claim: RunFolder | None = None  # of the first process
        self._whole: nn.Module | None = None  # of the first process, where weights are shared out
        self.last_step = 0
        self._finite_watch = FiniteWatch()
        self._speed_window = SpeedWindow()
        self._records_skipped_here = 0  # by this process, since all processes last added theirs up

    # ---------------------------------------------------------------- starting

    def prepare(self, objective: nn.Module, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
        """Moves the objective to the device, synchronises batch norms, makes the optimiser, wraps for N processes.

        Args:
            objective: the bare objective; kept as `run.objective`.
            optimizer_of: makes the optimiser from the objective, once its parameters are where they will stay. It is
                found in `run.optimizer` afterwards.
        """
        sharded = self.config.sharding == "full"
        if sharded and self.processes.is_main:
            self._whole = copy.deepcopy(objective)
        counts = batch_counts(objective)
        self.objective = objective.to(self.device)
        prepare_for_device(self.objective, self.device)
        if self.processes.world_size > 1:
            # After the move: which kind of synchronised batch norm is used depends on the device.
            self.objective = convert_sync_batchnorm(self.objective)
        if self.config.checkpoint_activations:
            checkpoint_activations(self.objective.encoder)  # type: ignore[arg-type]
        if self.config.compile:
            try_compiler(self.device)
            compile_networks(self.objective)
        if sharded:
            shard(self.objective, self.device)
        # One may extend another. Collected once: a large encoder has thousands of modules.
        self._objectives = [module for module in self.objective.modules() if isinstance(module, Objective)]
        self.state = RunState(self.objective, optimizer_of(self.objective), sharded)
        self.optimizer = self.accelerator.prepare_optimizer(self.state.optimizer)
        if sharded:  # such a model needs Accelerate's autocast, but no further wrapping
            return self.accelerator.prepare_model(self.objective, device_placement=False, evaluation_mode=True)
        model = self.accelerator.prepare_model(self.objective)
        if self.processes.world_size == 1 and not (self.config.compile or self.config.cuda_graph):
            # On the CPU, where nothing but a checkpoint needs them: on a GPU adding 1 is a launch for each layer.
            for layer, count in counts.items():
                layer.num_batches_tracked = count
        return model

    def whole(self, objective: Kept) -> Kept:
        """What is exported and probed: the objective itself or, if its weights are shared out, a copy that has all.

        The copy is the first process's. From the beginning of `ending` it has the weights at the end, before then those
        at the start.
        """
        return objective if self._whole is None else cast(Kept, self._whole)

    def register(self, name: str, state: Stateful) -> None:
        """Saves and restores something else with every checkpoint (online probes, an averaged encoder)."""
        self.state.others[name] = state

    def resume(self) -> int:
        """Starts the run: takes its folder, and returns the step to go on with.

        Restores the newest checkpoint if `--resume` is given and there is one. Whatever else can refuse a run comes
        before: this is the first to write, and a run that it refuses leaves nothing behind.
        """
        on_main_then_everywhere, options = self.processes.on_main_then_everywhere, used_options(self.config)
        try:
            self.folder = on_main_then_everywhere(lambda: self._take_folder(options))
            checkpoints = list_checkpoints(self.folder / "checkpoints") if self.config.resume else []
            if checkpoints:
                self.state.restore(checkpoints[-1])
                if not has_checksums(checkpoints[-1]):
                    self.processes.say(
                        f"{checkpoints[-1]} is of an earlier version, without checksums: damage of its files can't be "
                        "ruled out"
                    )
                self.processes.say(f"resuming {self.folder} after step {self.state.steps_done}")
            on_main_then_everywhere(lambda: self._begin(options))
        except BaseException:
            if self._claim is not None:
                self._claim.withdraw()
            raise
        return self.state.steps_done

    def _take_folder(self, options: dict[str, Any]) -> Path:
        """Of the first process: locks the folder, and refuses options that the run wasn't begun with."""
        folder = choose_folder(self.config.out, self.name, self.config.resume)
        self._claim = RunFolder(folder)
        config_file = folder / "config.json"
        if self.config.resume and list_checkpoints(folder / "checkpoints") and config_file.is_file():
            refuse_other_options(config_file, options, used_options(type(self.config)()))
        return folder

    def _begin(self, options: dict[str, Any]) -> None:
        """Of the first process: starts the tracker, the last to refuse a run, and writes what the run is."""
        resume, steps_done = self.config.resume, self.state.steps_done
        self._tracking.start(self.folder, self.name, self.config.tags, options, steps_done, resume)
        cast(RunFolder, self._claim).begin(options, steps_done)

    # ---------------------------------------------------------------- the loop

    def batches(
        self, loader: BatchLoader, start_step: int, total_steps: int, then: str = "the end"
    ) -> Iterator[tuple[int, ViewBatch]]:
        """Yields (step, batch on the device) until the last step; does the housekeeping after each of them.

        The last step is that of the schedule (`total_steps`), or `--steps` if that comes first.

        The body of the recipe's loop runs between two batches. After it, this method stops on losses that are not
        finite, saves a checkpoint when one is due, and leaves with exit status `EXIT_STOPPED` after SIGTERM, SIGUSR1 or
        Ctrl-C.

        Args:
            then: what comes behind the last step, in words that follow the time that the steps take.
        """
        self.last_step = total_steps if self.config.steps is None else min(self.config.steps, total_steps)
        self._speed_window = SpeedWindow()
        stop = StopRequests(self.processes.world_size, starting_timeout(self.config.collective_timeout))
        with (
            stop.listening(),
            TrainingProgress(self.name, start_step, self.last_step, self.processes.is_main, then) as self._progress,
        ):
            if start_step < self.last_step:
                yield from self._steps(loader, start_step, stop)

    def _steps(self, loader: BatchLoader, start_step: int, stop: StopRequests) -> Iterator[tuple[int, ViewBatch]]:
        batches = on_device(loader.batches(start_step), self.device)
        for step, batch in enumerate(batches, start=start_step):
            self._seed_step(step)
            self._measure_what_is_logged(self.logs(step))
            self._speed_window.add(batch, self.processes.world_size)
            self._records_skipped_here += batch.records_skipped
            yield step, replace(batch, augmenting=self._speed_window.augmenting)
            self.state.steps_done = step + 1
            self._progress.advance(step + 1)
            if step == start_step and self.processes.world_size > 1:
                set_timeout(timedelta(minutes=self.config.collective_timeout), [None, stop.group])
            finished = step + 1 >= self.last_step
            stopping = stop.agreed(last_step=finished)
            if finished or stopping or (step + 1) % self.config.save_every == 0:
                self.save()
            if stopping:
                self._leave(stopping)
            if finished:
                return

    def _measure_what_is_logged(self, logs: bool) -> None:
        for objective in self._objectives:
            objective.measures_action_gain = objective.measures_monitors = logs

    def _seed_step(self, step: int) -> None:
        # Python's hash of a tuple of integers is stable across processes and well mixed.
        torch.manual_seed(hash((self.config.seed, step, self.processes.rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    def backward(self, output: ObjectiveOutput) -> None:
        """Backpropagates the loss, and clips the gradient if asked."""
        # What is computed again would enter the running statistics of batch norms twice.
        again = running_statistics_kept(self.objective) if self.config.checkpoint_activations else nullcontext()
        with again:
            self.accelerator.backward(output.loss)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)

    def watch(self, output: ObjectiveOutput) -> None:
        """Remembers which term of a step first was not finite; on a CPU it ends the run."""
        self._finite_watch.look(output, self.state.steps_done + 1)
        if self.device.type == "cpu":
            self._stop_if_not_finite(self._finite_watch.first_bad().read())

    def log(
        self, step: int, output: ObjectiveOutput, *, probes: Callable[[], Unread[dict[str, float]]] | None = None,
        **numbers: float,
    ) -> None:  # fmt: skip
        """Every `log_every` steps, writes a line of losses (equal to the bit in a resumed run) and one of speed.

        All numbers come from the device in one copy.
        """
        if not self.logs(step):
            return
        shown = {"loss": output.loss.detach().float(), **output.terms}
        if output.action_gain is not None:
            shown["action_gain"] = output.action_gain
        terms = self.accelerator.reduce(shown, reduction="mean")
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
        self._stop_if_not_finite(first_bad or next(reversed(not_finite), None))
        self.state.records_skipped += skipped
        speed = self._speed_window.speed(self.state.records_skipped)
        self._speed_window = SpeedWindow()
        if self.processes.is_main:
            lines = [{"event": "loss", "step": step + 1, **losses, **numbers}]
            if probe_metrics:
                lines.append({"event": "online_probe", "step": step + 1, **probe_metrics})
            lines.append({"event": "speed", "step": step + 1, **asdict(speed)})
            with _going_on_with_resume():
                append_lines(self.folder / "metrics.jsonl", lines)
            self._progress.advance(step + 1)  # the step is done, though its housekeeping is still to come
            self._progress.report(losses, speed)
        kinds = {"train": losses | numbers, "online_probe": probe_metrics, "speed": asdict(speed)}
        told = {f"{kind}/{name}": value for kind, values in kinds.items() for name, value in values.items()}
        self._tracking.log(told, step + 1)

    def logs(self, step: int) -> bool:
        """Whether a line of the log follows this step."""
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.last_step

    def _skipped_records(self) -> Unread[int]:
        """How many all processes skipped since the last call, which they make at the same steps."""
        if self.config.on_bad_record != "skip":
            return Unread((), lambda _: 0)
        skipped = torch.full((), self._records_skipped_here, device=self.device)
        self._records_skipped_here = 0
        return Unread((self.accelerator.reduce(skipped, reduction="sum"),), lambda values: int(values[0]))

    def save(self) -> None:
        """Saves a checkpoint of the steps done so far; never of losses or weights that are not finite."""
        self._stop_if_not_finite(self._finite_watch.first_bad().read())
        # A gradient may overflow though its loss did not.
        spoilt = self.state.first_weight_not_finite()
        self._stop_if_not_finite(None if spoilt is None else (self.state.steps_done, spoilt), kind="weight")
        self.state.records_skipped += self._skipped_records().read()
        trained = self.state.trained(keep=self.processes.is_main)

        def write() -> None:
            with _going_on_with_resume():
                self.state.write(self.folder / "checkpoints", trained, self.processes.world_size)

        self.processes.on_main_then_everywhere(write)

    def _stop_if_not_finite(self, bad: tuple[int, str] | None, kind: str = "term") -> None:
        """Raises RunError for the step and the name of what is not finite."""
        if bad is None:
            return
        saved = list_checkpoints(self.folder / "checkpoints")
        good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved yet"
        raise RunError(
            f"the {kind} {bad[1]!r} is not finite at step {bad[0]} of {self.folder}: {good}; "
            "lower the learning rate, or set --clip-norm, and go on with --resume"
        )

    # ---------------------------------------------------------------- its end

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around what the first process does alone after the last step, and its end for all of them.

        However long it takes, nobody waits for it: all processes meet once more and close their group before. A signal
        stops it; a resumed run does it again from its start.
        """
        self.accelerator.wait_for_everyone()
        if self.state.sharded:
            state = gathered(dict(self.objective.state_dict()), keep=self.processes.is_main)
            if self._whole is not None:
                self._whole.to(self.device).load_state_dict(state)
        self.processes.close_group()
        try:
            with leaving_at_once():
                yield
        except StoppedBySignal as stop:
            self._leave(stop.signal_name)
        self.close()

    def track(self, numbers: dict[str, float]) -> None:
        """Tells the tracker numbers that are known at the end."""
        self._tracking.log(numbers, self.state.steps_done)

    def track_results(self, results: Callable[[], FinalResults]) -> None:
        """Shows the tracker, if there is one, what is known at the end."""
        self._tracking.show(results, self.state.steps_done)

    def _leave(self, signal_name: str) -> NoReturn:
        """Ends a run that has been saved; `STOPPED_FILE` tells what a launcher makes an error of any status of."""
        if self.processes.is_main:
            stopped = {"signal": signal_name, "step": self.state.steps_done, "last_step": self.last_step}
            write_atomically(self.folder / STOPPED_FILE, json.dumps(stopped), CheckpointError)
        self.processes.say(
            f"{signal_name}: saved {self.folder} after step {self.state.steps_done} of {self.last_step}; "
            "run the same command with --resume to go on"
        )
        self.close()
        raise SystemExit(EXIT_STOPPED)

    def close(self) -> None:
        """Ends the tracker and the process group, and gives the folder free; safe to call twice."""
        self._tracking.end()
        if self._claim is not None:
            self._claim.release()
        self.processes.close_group()


@contextmanager
def _going_on_with_resume() -> Iterator[None]:
    """Adds to the cure of a failed write how a run goes on; what else writes has no --resume."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and --resume goes on from there") from error
