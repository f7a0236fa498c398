"""Progress of long work: one live line on a terminal, a plain line every 20 seconds in a log file."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE_EVERY_SECONDS = 20.0
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


class LiveProgress:
    """Shows how far work is that comes in pieces, one after another; silent unless it is enabled.

    On a terminal there is one live line, which goes away at the end: label, bar, count, numbers, time left. What is
    printed meanwhile stands above it. Anywhere else a line is printed, at most every 20 seconds.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self.console = enabled, Console()
        self.bar: Progress | None = None
        self._label: str | None = None
        self._last_line_at = time.perf_counter()

    def __enter__(self) -> "LiveProgress":
        if self.enabled and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
                TextColumn("{task.fields[count]}"), TextColumn("{task.fields[numbers]}"), _TimeLeft(),
                console=self.console, transient=True,
            )  # fmt: skip
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, label: str, done: int = 0, total: int | None = None, count: str = "", timed: bool = False) -> None:
        """Shows a piece of work: on a terminal its bar, elsewhere a line if one is due.

        Args:
            label: of the piece; another one begins another piece.
            done, total: how far it is; without a total the bar only moves.
            count: the same in words.
            timed: whether what is left of it takes as long as what was done, so that a time can be told.
        """
        self.move(label, done, total, count, timed=timed)
        self.line(f"{label} {count}".rstrip())

    def move(
        self, label: str, done: int, total: int | None, count: str, numbers: str | None = None, timed: bool = True
    ) -> None:
        """Moves the bar on a terminal; `numbers` stay if none are given."""
        if self.bar is None:
            return
        if label != self._label:  # the time left is that of this piece
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            fields: dict[str, Any] = {"count": count, "numbers": numbers or "", "timed": timed}
            self._label, self._task = label, self.bar.add_task(label, total=total, completed=done, **fields)
            return
        more: dict[str, Any] = {} if numbers is None else {"numbers": numbers}
        self.bar.update(self._task, completed=done, total=total, count=count, **more)

    def line(self, text: str, at_once: bool = False) -> None:
        """Prints a line where there is no terminal, unless the last one was printed less than 20 seconds ago."""
        now = time.perf_counter()
        if not self.enabled or self.bar is not None:
            return
        if at_once or now - self._last_line_at >= PLAIN_LINE_EVERY_SECONDS:
            self._last_line_at = now
            print(text, flush=True)


class _TimeLeft(ProgressColumn):
    """The time left of pieces of work that pass evenly."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._evenly = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        return self._evenly.render(task) if task.fields["timed"] else Text()


def rough_duration(seconds: float) -> str:
    """A time of two seconds or more as one would say it, in whole units of which there are at least two."""
    unit, size = next((unit for unit in _UNITS if seconds >= 2 * unit[1]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
