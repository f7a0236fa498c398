"""How fast a run goes, and what its images cost before the encoder sees them."""

import time
from dataclasses import dataclass

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.stage_seconds import StageSeconds, Stopwatch


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
