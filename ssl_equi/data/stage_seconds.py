"""How long the stages take that lead from a stored image to what an objective sees, and a clock for each thread."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class StageSeconds:
    """What making batches took in the threads of a loader: wall-clock seconds, added up over the threads.

    Two threads that decode side by side for a second have decoded for two. A thread that waits for a core or for the
    interpreter's lock takes longer; so on a busy machine this is more than processor time.
    """

    reading: float = 0.0
    """Reading the encoded bytes, from a disk or a server, and comparing checksums."""
    decoding: float = 0.0
    """From the encoded bytes to pixels of the right size."""

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        return StageSeconds(self.reading + other.reading, self.decoding + other.decoding)

    def __sub__(self, other: "StageSeconds") -> "StageSeconds":
        return StageSeconds(self.reading - other.reading, self.decoding - other.decoding)


class StageClock:
    """Tells the stages of the calling thread apart; a stage within another one stops that one's time meanwhile."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def during(self, stage: str) -> "_Stage":
        """In a `with` block: what this thread does is "reading", "decoding" or "other", such as waiting for another."""
        return _Stage(self._own(), stage)

    def add_reading(self, seconds: float) -> None:
        """Count what another thread spent on reading for this one."""
        self._own().seconds["reading"] += seconds

    @property
    def spent(self) -> StageSeconds:
        """Since this thread began; differences of it are what a piece of work took."""
        own = self._own()
        own.count()
        return StageSeconds(own.seconds["reading"], own.seconds["decoding"])

    def _own(self) -> "_ThreadClock":
        try:
            own: _ThreadClock = self._threads.clock
        except AttributeError:
            own = self._threads.clock = _ThreadClock()
        return own


class _ThreadClock:
    """The clock of one thread: a plain object, since attributes of a `threading.local` are slow."""

    __slots__ = ("seconds", "since", "stages")

    def __init__(self) -> None:
        self.stages = ["other"]  # the present one last
        self.since = time.perf_counter()
        self.seconds = {"reading": 0.0, "decoding": 0.0, "other": 0.0}

    def count(self) -> None:
        now = time.perf_counter()
        self.seconds[self.stages[-1]] += now - self.since
        self.since = now


class _Stage:
    """What `StageClock.during` gives; `contextlib.contextmanager` takes twice as long, for each view."""

    __slots__ = ("_clock", "_stage")

    def __init__(self, clock: _ThreadClock, stage: str) -> None:
        self._clock, self._stage = clock, stage

    def __enter__(self) -> None:
        self._clock.count()
        self._clock.stages.append(self._stage)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clock.count()
        self._clock.stages.pop()


CLOCK = StageClock()


class Stopwatch:
    """Adds up the wall-clock seconds spent in its `with` blocks, of one thread and not within one another."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started
