"""The loader: endless batches in a given order, a few ahead of the trainer, whatever brings their images.

It already gives each rank its own slice: never pass it to `Accelerator.prepare`, which would split the batches a second
time.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.order import BatchOptions, Order
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError


@dataclass
class PendingBatch:
    """A batch whose images are on their way."""

    step: int
    objects: np.ndarray  # int64 [b]
    views: np.ndarray  # int64 [b, V]
    chunks: list[Future[Any]] = field(default_factory=list)  # what threads do for it
    buffer_number: int = 0  # of the ring that it is decoded into, if it is
    latents: np.ndarray | None = None  # float64 [b, V, L] of views that no split has


@dataclass(frozen=True)
class Fetched:
    """The images of a batch, and what became known with them."""

    images: Tensor  # uint8 [b, V, H, W, 3]
    content_sizes: np.ndarray | None = None  # int64 [b, V, 2] where pictures don't fill their images
    problems: dict[int, DataError] = field(default_factory=dict)  # of rows whose record is bad
    seconds: StageSeconds = StageSeconds()  # noqa: RUF009 - frozen


class Fetcher(ABC):
    """Brings the images of batches, several at a time: decoded by threads, rendered, ..."""

    @abstractmethod
    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Queue reading, decoding or rendering; returns at once. Batches are finished in the order they are started."""

    @abstractmethod
    def finish(self, pending: PendingBatch) -> Fetched:
        """Wait for the images. Raises DataError for a bad record that isn't to be reported, and whatever ends a run."""

    def begin(self, step: int) -> None:  # noqa: B027 - most have nothing to do
        """Batches are started from this step on; nothing is under way."""

    def stop(self, for_good: bool = False) -> None:  # noqa: B027
        """No batch that was started will be finished: let no thread wait for what it still needs."""

    def close(self) -> None:  # noqa: B027
        """End threads and processes and give memory back; nothing is under way."""


class Loader:
    """Endless batches of the objects and views that `order` names; `prefetch` of them are under way ahead.

    A batch is a pure function of (seed, global step): the numbers of processes, threads and workers may change on
    resume. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        collection: ViewCollection,
        order: Order,
        fetcher: Fetcher,
        *,
        prefetch: int,
        bad_records: BadRecords,
    ) -> None:
        self.collection, self.order, self.fetcher = collection, order, fetcher
        self._prefetch, self._bad_records = prefetch, bad_records
        self._pending: deque[PendingBatch] = deque()
        self._iteration = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch; the epoch of a step is step // steps_per_epoch."""
        return self.order.steps_per_epoch

    @property
    def skipped(self) -> int:
        """Bad records that were replaced in the batches given out so far."""
        return self._bad_records.skipped

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Yield the batches of global steps start_step, start_step + 1, ... without end.

        The `images` of a batch stay valid until the second next batch is asked for: keep at most the present and
        the previous one, and clone what must live longer. A copy to a GPU is safe if it was issued before then, on
        the stream that is current when batches are asked for. An earlier iterator of this loader ends when a new one
        begins.

        Raises:
            DataError: from the batch that a bad record concerns.
            UserError: as soon as a worker process has ended, or a server is given up.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: give a step of at least 0")
        if self._closed:
            raise ValueError("this loader was closed: make a new one")
        self._drain()
        self._iteration += 1
        self.fetcher.begin(start_step)
        return self._iterate(start_step, self._iteration)

    def close(self) -> None:
        """Stop what is under way and end the threads and worker processes."""
        self._closed = True
        self._iteration += 1
        self._drain(for_good=True)
        self.fetcher.close()

    def _iterate(self, start_step: int, iteration: int) -> Iterator[ViewBatch]:
        next_step = start_step
        while iteration == self._iteration:
            started = time.perf_counter()
            while len(self._pending) <= self._prefetch:
                self._pending.append(self.fetcher.start(next_step, *self.order.batch(next_step)))
                next_step += 1
            pending = self._pending.popleft()
            try:
                fetched = self.fetcher.finish(pending)
                batch = self._batch(pending, fetched, time.perf_counter() - started)
                problems = [fetched.problems.get(row) for row in range(len(pending.objects))]
                batch = self._bad_records.replaced(batch, problems, pending.step)
            except BaseException:
                self._pending.appendleft(pending)  # some of its rows may still be on their way
                self._drain()
                raise
            yield batch

    def _batch(self, pending: PendingBatch, fetched: Fetched, seconds_waited: float) -> ViewBatch:
        objects, views = pending.objects, pending.views
        quats_xyzw = self.collection.quats_xyzw
        if pending.latents is not None:
            latents = pending.latents.astype(np.float32)
            assert self.collection.schema is not None
            quats = self.collection.schema.quats_xyzw(torch.from_numpy(pending.latents))
            quats_xyzw = None if quats is None else quats.numpy().astype(np.float32)
        else:
            latents = self.collection.latents[objects[:, None], views]
            quats_xyzw = None if quats_xyzw is None else quats_xyzw[objects[:, None], views]
        return ViewBatch(
            images=fetched.images,
            latents=torch.from_numpy(latents),
            quat_xyzw=None if quats_xyzw is None else torch.from_numpy(quats_xyzw),
            labels=torch.from_numpy(self.collection.labels[objects]),
            object_indices=torch.from_numpy(objects),
            view_indices=torch.from_numpy(views),
            seconds_waited=seconds_waited,
            content_sizes=None if fetched.content_sizes is None else torch.from_numpy(fetched.content_sizes),
            stage_seconds=fetched.seconds,
        )

    def _drain(self, for_good: bool = False) -> None:
        """Cancel what has not begun and wait for what has, so that nobody writes into a buffer any more."""
        self.fetcher.stop(for_good)
        chunks = [chunk for pending in self._pending for chunk in pending.chunks]
        self._pending.clear()
        for chunk in chunks:
            chunk.cancel()
        wait(chunks)


def bad_records_of(options: BatchOptions) -> BadRecords:
    """What the options say of bad records."""
    return BadRecords(options.get("on_bad_record", "raise"), options.get("max_skipped", 100), options.get("rank", 0))
