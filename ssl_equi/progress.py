"""What a training run shows while it runs: one live line on a terminal, plain lines elsewhere."""

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_equi.speed import Speed

PLAIN_LINE_EVERY_SECONDS = 20.0
LEAST_SHARE_TO_EXPLAIN = 0.05  # below it nobody asks what the trainer waits for
# Of the line on a terminal: the shortest bar, the time left (1:23:45), and the columns between its five parts.
BAR_COLUMNS, TIME_COLUMNS, SPACES_BETWEEN = 10, 7, 4


class TrainingProgress:
    """Shows step, loss, speed, the share of time spent waiting for data, and the time left.

    Where there is room, it also shows how the work on the data divides: reading and decoding by the loader's threads,
    augmenting by the trainer. In 80 columns it names what the loader mostly does while the trainer waits for it.
    Silent on every process but the first. On a terminal it draws one live bar; in a log file it writes a line every
    20 seconds.
    """

    def __init__(self, label: str, first_step: int, total_steps: int, enabled: bool) -> None:
        self.label, self.total_steps, self.enabled = label, total_steps, enabled
        self.step = first_step
        self.console = Console()
        self.bar: Progress | None = None
        self.last_line_at = -math.inf
        self.started_at, self.first_step = time.perf_counter(), first_step

    def __enter__(self) -> "TrainingProgress":
        if self.enabled and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total_steps, completed=self.step, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, steps_done: int) -> None:
        """Moves the bar; costs nothing visible per step."""
        self.step = steps_done
        if self.bar is not None:
            self.bar.update(self.task, completed=steps_done)

    def report(self, loss: float, speed: Speed) -> None:
        """Shows the latest figures: as many of them as there is room for."""
        if not self.enabled:
            return
        choices = _numbers(loss, speed)
        numbers = choices[0] if self.bar is None else _longest_that_fits(choices, self._columns_left())
        if self.bar is not None:
            self.bar.update(self.task, numbers=numbers)
            return
        now = time.perf_counter()
        if now - self.last_line_at < PLAIN_LINE_EVERY_SECONDS and self.step < self.total_steps:
            return
        self.last_line_at = now
        seconds_a_step = (now - self.started_at) / max(self.step - self.first_step, 1)
        minutes_left = seconds_a_step * (self.total_steps - self.step) / 60
        print(
            f"{self.label} {self.step}/{self.total_steps} · {numbers} · {minutes_left:.1f} min left",
            file=sys.stdout,
            flush=True,
        )

    def _columns_left(self) -> int:
        """Room on the terminal's line beside label, bar, steps and time."""
        steps = 2 * len(str(self.total_steps)) + 1
        return self.console.width - len(self.label) - BAR_COLUMNS - steps - TIME_COLUMNS - SPACES_BETWEEN


def _numbers(loss: float, speed: Speed) -> list[str]:
    """What can be told in one line, from the most to the least."""
    loss_text, wait = f"loss {loss:z.3f}", f"{speed.waiting_share:.0%} wait"
    images = f"{speed.images_per_second:,.0f} img/s"
    skipped = [f"{speed.records_skipped} skipped"] if speed.records_skipped else []
    shares = speed.work_shares
    choices = []
    if shares:
        work = ", ".join(f"{share:.0%} {stage}" for stage, share in shares.items())
        choices.append([loss_text, images, wait, f"data work: {work}", *skipped])
        if speed.waiting_share >= LEAST_SHARE_TO_EXPLAIN:  # for the loader, that is: the trainer augments by itself
            slower = "decode" if shares["decode"] >= shares["read"] else "read"
            choices.append([loss_text, images, f"{wait} to {slower}", *skipped])
    choices += [[loss_text, images, wait, *skipped], [loss_text, wait, *skipped], [loss_text, *skipped]]
    return [" · ".join(parts) for parts in choices]


def _longest_that_fits(choices: list[str], columns: int) -> str:
    return next((choice for choice in choices if len(choice) <= columns), choices[-1])
