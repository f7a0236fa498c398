"""Signals that ask a run to stop, and the step after which all its processes do."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

# A terminal's Ctrl-C reaches a process directly and again through its launcher; only a later one is meant as another.
SECONDS_TO_ANOTHER_INTERRUPT = 2.0


class StopRequests:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C, of which any process of a run may get any; a later Ctrl-C ends it at once.

    Several processes must stop after the same step. Each starts an exchange of one number after every step, over gloo
    on the CPU, and reads it after the next one. So neither the GPU nor a faster process is waited for within a step,
    and all have stopped two steps after the signal.

    Args:
        world_size: number of processes; all of them must make this object at the same point.
    """

    def __init__(self, world_size: int) -> None:
        self._signal = 0
        self._at = 0.0
        self._group: Any = torch.distributed.new_group(backend="gloo") if world_size > 1 else None
        self._exchange: tuple[Any, Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block, and restores the handlers from before after it."""
        numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal and time.monotonic() > self._at + SECONDS_TO_ANOTHER_INTERRUPT:
            raise KeyboardInterrupt
        self._signal, self._at = number, time.monotonic()

    def agreed(self) -> str | None:
        """Called by every process after every step: the signal's name once all of them know of it, alike in all."""
        known = self._signal
        if self._group is not None:
            known = self.finish_exchange()
            number = torch.tensor(self._signal)
            work = torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
            self._exchange = (work, number)
        return signal.Signals(known).name if known else None

    def finish_exchange(self) -> int:
        """Waits for the exchange that was started last; the highest number of a signal in any process, or 0."""
        if self._exchange is None:
            return 0
        work, number = self._exchange
        work.wait()
        self._exchange = None
        return int(number)
