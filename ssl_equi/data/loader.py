"""Batches for a trainer, decoded ahead by threads of the same process into a ring of reused buffers.

Threads suffice because reading and decoding release the interpreter lock, and they avoid what a worker process pays to
hand a batch over. The loader already gives each rank its own slice: never pass it to `Accelerator.prepare`, which
would split the batches a second time.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.bad_records import BadRecords, OnBadRecord, problems_of_rows
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import DecodedViews, ViewCollection
from ssl_equi.data.errors import DataError
from ssl_equi.data.order import BatchOrder, Order
from ssl_equi.data.stage_seconds import StageSeconds

_CHUNKS_PER_THREAD = 2  # smaller pieces than threads, so that one slow piece does not hold up a batch


@dataclass
class _Slot:
    """One reused image buffer, and the copies to a GPU that must end before it is overwritten."""

    images: Tensor  # uint8 [b, V, H, W, 3]
    pixels: np.ndarray  # the same memory
    copies_done: torch.cuda.Event | None = None


@dataclass
class _PendingBatch:
    """A batch that is being decoded."""

    step: int
    object_indices: np.ndarray
    view_indices: np.ndarray
    content_sizes: np.ndarray | None  # int64 [b, V, 2]; None if every picture fills its image
    slot: _Slot
    problems: list[DataError | None]  # of each row, if bad records are skipped
    chunks: list[Future] = field(default_factory=list)


class OrderedLoader:
    """Endless batches of the objects and views that `order` names, read from `dataset`.

    `prefetch` batches are decoded ahead; the ring holds `prefetch + 2` buffers, pinned if `pin_memory` (by default
    where CUDA is available). With `bad_records`, a record that can't be read is treated as those say; without, it
    raises. Use it as a context manager, or call `close`. Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        dataset: DecodedViews,
        order: Order,
        *,
        threads: int = 2,
        prefetch: int = 3,
        pin_memory: bool | None = None,
        bad_records: BadRecords | None = None,
    ) -> None:
        if threads < 1 or prefetch < 0:
            raise ValueError(f"threads is {threads} and prefetch {prefetch}: give at least 1 thread and prefetch >= 0")
        self.dataset = dataset
        self.order = order
        self._bad_records = BadRecords("raise", max_skipped=0, rank=0) if bad_records is None else bad_records
        self._prefetch = prefetch
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._chunk_size = -(-self.order.local_batch_size // (threads * _CHUNKS_PER_THREAD))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._pending: deque[_PendingBatch] = deque()
        self._ring: list[_Slot] = []
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
        the previous one, and clone what must live longer. A copy to a GPU is safe if it was issued on the current
        stream before then. An earlier iterator of this loader ends when a new one begins. Raises the reader's
        DataError from the batch it concerns.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: give a step of at least 0")
        if self._closed:
            raise ValueError("this loader was closed: make a new one")
        self._drain()
        self._iteration += 1
        if not self._ring:
            self._ring = [self._new_slot() for _ in range(self._prefetch + 2)]
        return self._iterate(start_step, self._iteration)

    def close(self) -> None:
        """Stop decoding and end the threads."""
        self._closed = True
        self._iteration += 1
        self._drain()
        self._pool.shutdown()
        self._ring = []

    def _iterate(self, start_step: int, iteration: int) -> Iterator[ViewBatch]:
        next_step = start_step
        while iteration == self._iteration:
            started = time.perf_counter()
            # The batch given out before the last is no longer the consumer's: its buffer is the one that is due.
            while len(self._pending) <= self._prefetch:
                slot = self._ring[next_step % len(self._ring)]
                self._mark_copies(slot)
                self._pending.append(self._start_batch(next_step, slot))
                next_step += 1
            pending = self._pending.popleft()
            try:
                stage_seconds = sum((chunk.result() for chunk in pending.chunks), StageSeconds())
            except BaseException:
                wait(pending.chunks)
                self._drain()
                raise
            batch = self._finish_batch(pending, time.perf_counter() - started, stage_seconds)
            try:
                batch = self._bad_records.replaced(batch, pending.problems, pending.step)
            except DataError:
                self._drain()
                raise
            yield batch

    def _start_batch(self, step: int, slot: _Slot) -> _PendingBatch:
        object_indices, view_indices = self.order.batch(step)
        content_sizes = None if self.dataset.fills_image else np.zeros((*view_indices.shape, 2), dtype=np.int64)
        pending = _PendingBatch(
            step, object_indices, view_indices, content_sizes, slot, problems=[None] * len(object_indices)
        )
        for first in range(0, len(object_indices), self._chunk_size):
            rows = slice(first, first + self._chunk_size)
            pending.chunks.append(self._pool.submit(self._decode_rows, pending, rows))
        return pending

    def _decode_rows(self, pending: _PendingBatch, rows: slice) -> StageSeconds:
        if pending.slot.copies_done is not None:
            pending.slot.copies_done.synchronize()
        if not self._bad_records.are_skipped:
            return self._read_rows(pending, rows)
        spent: list[StageSeconds] = []
        found = problems_of_rows(
            lambda row: spent.append(self._read_rows(pending, slice(row, row + 1))),
            range(*rows.indices(len(pending.object_indices))),
        )
        for row, problem in found.items():
            pending.problems[row] = problem
        return sum(spent, StageSeconds())

    def _read_rows(self, pending: _PendingBatch, rows: slice) -> StageSeconds:
        return self.dataset.read_views(
            pending.object_indices[rows],
            pending.view_indices[rows],
            pending.slot.pixels[rows],
            None if pending.content_sizes is None else pending.content_sizes[rows],
        )

    def _finish_batch(self, pending: _PendingBatch, seconds_waited: float, stage_seconds: StageSeconds) -> ViewBatch:
        objects, views = pending.object_indices, pending.view_indices
        quats_xyzw = self.dataset.quats_xyzw
        return ViewBatch(
            images=pending.slot.images,
            latents=torch.from_numpy(self.dataset.latents[objects[:, None], views]),
            quat_xyzw=None if quats_xyzw is None else torch.from_numpy(quats_xyzw[objects[:, None], views]),
            labels=torch.from_numpy(self.dataset.labels[objects]),
            object_indices=torch.from_numpy(objects.copy()),
            view_indices=torch.from_numpy(views),
            seconds_waited=seconds_waited,
            stage_seconds=stage_seconds,
            content_sizes=None if pending.content_sizes is None else torch.from_numpy(pending.content_sizes),
        )

    def _new_slot(self) -> _Slot:
        shape = (self.order.local_batch_size, self.order.views, *self.dataset.image_size, 3)
        images = torch.zeros(shape, dtype=torch.uint8)  # zeros touch every page now, not while training
        if self._pin_memory:
            images = images.pin_memory()
        return _Slot(images, images.numpy())

    def _mark_copies(self, slot: _Slot) -> None:
        """Let the decoding threads wait for the copies that the consumer has queued on its stream so far."""
        if self._pin_memory:
            slot.copies_done = torch.cuda.Event(blocking=True)
            slot.copies_done.record()

    def _drain(self) -> None:
        """Cancel what has not begun and wait for what has, so that no thread writes into the ring any more."""
        chunks = [chunk for pending in self._pending for chunk in pending.chunks]
        self._pending.clear()
        for chunk in chunks:
            chunk.cancel()
        wait(chunks)


class ViewLoader(OrderedLoader):
    """Endless batches of `views` distinct views of each of `global_batch_size` objects, over all ranks.

    A batch is a pure function of (seed, global step): the world size and the number of threads may change on resume.
    `threads`, `prefetch` and `pin_memory` are those of OrderedLoader. Raises ValueError for sizes that do not fit.

    on_bad_record="skip" replaces an object with a view that is cut, changed or does not decode by the next good one of
    the same rank's batch, logs it and counts it in `skipped`, and raises DataError once more than `max_skipped`
    different objects were bad. A shard that is gone always raises: going on would leave a hole in the data.
    """

    def __init__(
        self,
        dataset: ViewCollection,
        *,
        global_batch_size: int,
        views: int = 2,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        prefetch: int = 3,
        pin_memory: bool | None = None,
        on_bad_record: OnBadRecord = "raise",
        max_skipped: int = 100,
    ) -> None:
        order = BatchOrder(
            num_objects=dataset.num_objects,
            num_views=dataset.num_views,
            global_batch_size=global_batch_size,
            views=views,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        super().__init__(
            dataset, order, threads=threads, prefetch=prefetch, pin_memory=pin_memory,
            bad_records=BadRecords(on_bad_record, max_skipped, rank),
        )  # fmt: skip
