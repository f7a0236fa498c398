"""Signals that ask a run to stop, the step after which all its processes do, and the status that they leave with."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor

# A terminal's Ctrl-C reaches a process directly and again through its launcher; only a later one is meant as another.
SECONDS_TO_ANOTHER_INTERRUPT = 2.0
EXIT_STOPPED = 75
"""Exit status of a run that a signal stopped before its end: "try again" among the statuses of BSD's sysexits."""

Handler = Callable[[int, FrameType | None], None]


class StoppedBySignal(SystemExit):
    """Ends the process with status `EXIT_STOPPED`."""

    def __init__(self, number: int) -> None:
        super().__init__(EXIT_STOPPED)
        self.signal_name = signal.Signals(number).name


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Handles SIGTERM, SIGUSR1 and Ctrl-C within the block, and restores the handlers from before after it."""
    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


def leaving_at_once() -> AbstractContextManager[None]:
    """Within the block a signal raises StoppedBySignal: for the parts of a run that are done again from their start."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise StoppedBySignal(number)

    return _handling(leave)


def run_to_the_end(action: Callable[[], None]) -> None:
    """Calls `action`, all that a process does. A signal that comes outside of the training steps ends it at once."""
    try:
        with leaving_at_once():
            action()
    except StoppedBySignal as stop:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"{stop.signal_name}: left outside of the training steps; "
                "run the same command with --resume to go on",
                flush=True,
            )  # fmt: skip
        raise


class StopRequests:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C, of which any process of a run may get any; a later Ctrl-C ends it at once.

    Several processes must stop after the same step. Each starts an exchange of one number after every step, over gloo
    on the CPU, and reads it after the next one. So neither the GPU nor a faster process is waited for within a step,
    and all have stopped two steps after the signal.

    Args:
        world_size: number of processes; all of them must make this object at the same point.
        timeout: how long a process waits for the others; None leaves it to torch.
    """

    def __init__(self, world_size: int, timeout: timedelta | None = None) -> None:
        self._signal = 0
        self._at = 0.0
        self.group: Any = None
        """The gloo group of the exchange; None for one process."""
        if world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self._exchange: tuple[Any, Tensor] | None = None

    def listening(self) -> AbstractContextManager[None]:
        """Notes the signals within the block, and restores the handlers from before after it."""
        return _handling(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal and time.monotonic() > self._at + SECONDS_TO_ANOTHER_INTERRUPT:
            raise KeyboardInterrupt
        # The first is the one that is named: a launcher that dies of it sends another.
        self._signal, self._at = self._signal or number, time.monotonic()

    def agreed(self, last_step: bool = False) -> str | None:
        """Called by every process after every step: the signal's name once all of them know of it, alike in all.

        Args:
            last_step: no other step follows, so the exchange that was just started is waited for, too.
        """
        if self.group is None:
            return _name(self._signal)
        known = self._finish_exchange()
        number = torch.tensor(self._signal)
        work = torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self.group, async_op=True)
        self._exchange = (work, number)
        last = self._finish_exchange() if known or last_step else 0
        return _name(known or last)

    def _finish_exchange(self) -> int:
        """Waits for the exchange that was started last; the highest number of a signal in any process, or 0."""
        if self._exchange is None:
            return 0
        work, number = self._exchange
        work.wait()
        self._exchange = None
        return int(number)


def _name(number: int) -> str | None:
    return signal.Signals(number).name if number else None
