"""What a run writes and shows: lines of metrics, terms that are not finite, speed and progress."""

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ssl_equi.checkpoint import describe_os_error
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.stage_seconds import StageSeconds, Stopwatch
from ssl_equi.errors import CheckpointError
from ssl_equi.files import write_atomically
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.runtime.device_copies import Unread
from ssl_equi.runtime.progress import LiveProgress, rough_duration


@dataclass(frozen=True)
class Speed:
    """One line of speed in metrics.jsonl, about the steps since the line before.

    Images and skipped records are those of all processes, times those of the first one.
    """

    images_per_second: float
    """Stored images that went into training, per second of wall-clock time."""
    waiting_share: float
    """The part of the time in which the trainer stood still because no batch was ready."""
    window_seconds: float
    """Wall-clock time since the line before."""
    read_thread_seconds: float
    """Reading (or fetching) and checking of the images' bytes: wall-clock time added up over the loader's threads."""
    decode_thread_seconds: float
    """Decoding and fitting of the images, added up likewise."""
    augment_seconds: float
    """Making views of a batch, in the trainer's own thread; of work on a GPU only what it takes to launch it."""
    records_skipped: int
    """How often a bad record was replaced since the run began."""

    @property
    def work_shares(self) -> dict[str, float]:
        """How the work on the data divides into read, decode and augment; empty if nothing was measured."""
        seconds = {
            "read": self.read_thread_seconds, "decode": self.decode_thread_seconds, "augment": self.augment_seconds,
        }  # fmt: skip
        total = sum(seconds.values())
        return {stage: value / total for stage, value in seconds.items()} if total > 0 else {}


class SpeedWindow:
    """Measures from when it is made on; one for each line of speed."""

    def __init__(self) -> None:
        self.augmenting = Stopwatch()
        self._started = time.perf_counter()
        self._images = 0
        self._seconds_waited = 0.0
        self._stages = StageSeconds()

    def add(self, batch: ViewBatch, world_size: int) -> None:
        """Counts a batch that is about to be trained on."""
        self._images += batch.images.shape[0] * batch.images.shape[1] * world_size
        self._seconds_waited += batch.seconds_waited
        self._stages += batch.stage_seconds

    def speed(self, records_skipped: int) -> Speed:
        """The figures up to now."""
        seconds = time.perf_counter() - self._started
        return Speed(
            images_per_second=self._images / seconds,
            waiting_share=self._seconds_waited / seconds,
            window_seconds=seconds,
            read_thread_seconds=self._stages.reading,
            decode_thread_seconds=self._stages.decoding,
            augment_seconds=self.augmenting.seconds,
            records_skipped=records_skipped,
        )


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines to metrics.jsonl, each with an `event` and the `step` after which it was written."""
    try:
        with open(path, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise CheckpointError(describe_os_error(error, path)) from error


def cut_after(path: Path, step: int) -> None:
    """Drops lines of steps that will be done again, and the half line of a process that was killed."""
    if path.is_file():
        kept = [line + b"\n" for line in path.read_bytes().split(b"\n") if _is_up_to(line, step)]
        write_atomically(path, b"".join(kept).decode(), CheckpointError)


def _is_up_to(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and was written after this step or an earlier one."""
    try:
        written_after = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(written_after, int | float) and written_after <= step


# ---------------------------------------------------------------- what is not finite


MOST_STEPS_UNREAD = 1000


class FiniteWatch:
    """Keeps the terms of each step on the device until somebody reads which of them first was not finite."""

    def __init__(self) -> None:
        self._unread: list[tuple[int, list[str], Tensor]] = []

    def look(self, output: ObjectiveOutput, step: int) -> None:
        """Takes note of one step's terms, in one operation; nothing is copied from the device."""
        if len(self._unread) == MOST_STEPS_UNREAD:
            # What went wrong since then still has its step and name, and the steps before it need no more room.
            found = self.first_bad().read()
            if found is not None:
                self._unread = [(found[0], [found[1]], torch.full((1,), math.nan, device=output.loss.device))]
        values = torch.stack([output.loss.detach().float(), *(term.float() for term in output.terms.values())])
        self._unread.append((step, ["loss", *output.terms], values))

    def first_bad(self) -> Unread[tuple[int, str] | None]:
        """Since the last call, the step and the term that went wrong first; None if all is well.

        A term comes before the loss, their sum.
        """
        noted, self._unread = self._unread, []
        if not noted:
            return Unread((), lambda _: None)

        def earliest(values: list[list[float]]) -> tuple[int, str] | None:
            each = iter(values[0])
            for step, names, _ in noted:
                bad = [name for name in names if not math.isfinite(next(each))]
                if bad:
                    return step, next((name for name in bad if name != "loss"), "loss")
            return None

        return Unread((torch.cat([values for *_, values in noted]),), earliest)


# ---------------------------------------------------------------- progress

LEAST_SHARE_TO_EXPLAIN = 0.05  # below it nobody asks what the trainer waits for
# Of the line on a terminal: the shortest bar, the time left (1:23:45), and the columns between its five parts.
BAR_COLUMNS, TIME_COLUMNS, SPACES_BETWEEN = 10, 7, 4
# A time is told of so much measured work, and not of less that is left.
LEAST_STEPS, LEAST_SECONDS = 3, 5.0


class TrainingProgress:
    """Shows step, loss, speed, the share of time spent waiting for data, and the time left.

    Where there is room, it also shows how the work on the data divides: reading and decoding by the loader's threads,
    augmenting by the trainer. In 80 columns it names what the loader mostly does while the trainer waits for it.
    Silent on every process but the first. On a terminal it draws one live bar; in a log file it writes a line every
    20 seconds. Once some steps have been measured, a line says how long the training takes.

    Args:
        then: what comes behind the training, in words.
    """

    def __init__(self, label: str, first_step: int, total_steps: int, enabled: bool, then: str = "the end") -> None:
        self.label, self.total_steps, self.then = label, total_steps, then
        self.live = LiveProgress(enabled)
        self.step = first_step
        self.started_at, self.first_step = time.perf_counter(), first_step
        self._measured_from: tuple[int, float] | None = None  # the end of the first step, which is slower than others
        self._said_how_long = self._reported = False

    def __enter__(self) -> "TrainingProgress":
        self.live.__enter__()
        self.live.move(self.label, self.step, self.total_steps, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, traceback)

    @property
    def _count(self) -> str:
        return f"{self.step}/{self.total_steps}"

    def advance(self, steps_done: int) -> None:
        """Moves the bar; costs nothing visible per step."""
        self.step = steps_done
        self.live.move(self.label, steps_done, self.total_steps, self._count)
        if not self._said_how_long and self.live.enabled:
            self._say_how_long(time.perf_counter())

    def _say_how_long(self, now: float) -> None:
        if self._measured_from is None:
            self._measured_from = self.step, now
            return
        steps, seconds = self.step - self._measured_from[0], now - self._measured_from[1]
        if steps < LEAST_STEPS or seconds < LEAST_SECONDS:
            return
        self._said_how_long = True
        seconds_left = seconds / steps * (self.total_steps - self.step)
        if seconds_left >= LEAST_SECONDS:
            print(f"about {rough_duration(seconds_left)} of training, then {self.then}", flush=True)

    def report(self, losses: Mapping[str, float], speed: Speed) -> None:
        """Shows the latest figures, of the loss and its terms the total: as many of them as there is room for."""
        choices = _numbers(losses, speed)
        # Room on the terminal's line beside label, bar, steps and time.
        steps = 2 * len(str(self.total_steps)) + 1
        columns = self.live.console.width - len(self.label) - BAR_COLUMNS - steps - TIME_COLUMNS - SPACES_BETWEEN
        fitting = next((choice for choice in choices if len(choice) <= columns), choices[-1])
        self.live.move(self.label, self.step, self.total_steps, self._count, fitting)
        seconds_a_step = (time.perf_counter() - self.started_at) / max(self.step - self.first_step, 1)
        minutes_left = seconds_a_step * (self.total_steps - self.step) / 60
        self.live.line(
            f"{self.label} {self._count} · {choices[0]} · {minutes_left:.1f} min left",
            at_once=not self._reported or self.step >= self.total_steps,
        )
        self._reported = True


def _numbers(losses: Mapping[str, float], speed: Speed) -> list[str]:
    """What can be told in one line, from the most to the least."""
    loss_text, wait = f"loss {losses['loss']:z.3f}", f"{speed.waiting_share:.0%} wait"
    gain = [f"action gain {losses['action_gain']:z.1%}"] if "action_gain" in losses else []
    images = f"{speed.images_per_second:,.0f} img/s"
    skipped = [f"{speed.records_skipped} skipped"] if speed.records_skipped else []
    shares = speed.work_shares
    choices = []
    if shares:
        work = ", ".join(f"{share:.0%} {stage}" for stage, share in shares.items())
        choices.append([loss_text, *gain, images, wait, f"data work: {work}", *skipped])
        if speed.waiting_share >= LEAST_SHARE_TO_EXPLAIN:  # for the loader, that is: the trainer augments by itself
            slower = "decode" if shares["decode"] >= shares["read"] else "read"
            choices += [[loss_text, *also, images, f"{wait} to {slower}", *skipped] for also in (gain, [])]
    if gain:
        choices += [[loss_text, *gain, images, wait, *skipped], [loss_text, *gain, images, *skipped]]
    choices += [[loss_text, images, wait, *skipped], [loss_text, wait, *skipped], [loss_text, *skipped]]
    return [" · ".join(parts) for parts in choices]
