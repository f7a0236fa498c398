"""How long the stages took that lead from a stored image to what an objective sees."""

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
