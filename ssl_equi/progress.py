"""What a training run shows while it runs: one live line on a terminal, plain lines elsewhere."""

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_SECONDS = 20.0


class TrainingProgress:
    """Shows step, loss, speed, the share of time spent waiting for data, and the time left.

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

    def report(self, loss: float, images_per_second: float, waiting_share: float, records_skipped: int = 0) -> None:
        """Shows the latest figures.

        Args:
            waiting_share: fraction of the time spent waiting for data.
            records_skipped: bad records that were replaced so far; shown if there are any.
        """
        if not self.enabled:
            return
        numbers = f"loss {loss:.3f} · {images_per_second:,.0f} img/s · {waiting_share:.0%} wait"
        if records_skipped:
            numbers += f" · {records_skipped} skipped"
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
