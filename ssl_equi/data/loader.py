"""Batches for a trainer, decoded ahead into a ring of reused buffers, by threads of the same process or by others.

Threads mostly suffice, because reading and decoding release the interpreter lock. Worker processes share the ring, so
that handing over a batch costs them nothing either; they help where the training itself keeps the interpreter busy, or
many threads wait for its lock. The loader already gives each rank its own slice: never pass it to
`Accelerator.prepare`, which would split the batches a second time.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch

from ssl_equi.data.bad_records import BadRecords, OnBadRecord
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import DecodedViews, ViewCollection
from ssl_equi.data.decoding import BatchBuffer, BufferShape, DecodedRows, Decoder, ThreadDecoder
from ssl_equi.data.decoding_processes import ProcessDecoder
from ssl_equi.data.order import BatchOrder, Order
from ssl_equi.data.stage_seconds import StageSeconds

_CHUNKS_PER_LANE = 2  # of what is decoded ahead, so that one slow piece does not hold up the others
_MOST_CHUNKS_OF_FEW_LANES = 4  # of a batch, so that it is ready soon; each costs the trainer's process 50 us


@dataclass
class _Slot:
    """A place in the ring, and the copies to a GPU that must end before its buffer is overwritten."""

    number: int
    buffer: BatchBuffer
    copies_done: torch.cuda.Event | None = None


@dataclass
class _PendingBatch:
    """A batch that is being decoded."""

    step: int
    slot: _Slot
    size: int  # objects, fewer than the buffer has room for if the batch is incomplete
    chunks: list[Future[DecodedRows]] = field(default_factory=list)


class OrderedLoader:
    """Endless batches of the objects and views that `order` names, read from `dataset`.

    `prefetch` batches are decoded ahead; the ring holds `prefetch + 2` buffers, pinned if `pin_memory` (by default
    where CUDA is available). They are decoded by `threads` threads or, if `workers` is above 0, by so many processes,
    which open the data set anew. With `bad_records`, a record that can't be read is treated as those say; without, it
    raises. Use it as a context manager, or call `close`.

    A script that gives workers a data set of a class of its own must start its work below
    `if __name__ == "__main__":`, as all that start processes do.

    Raises ValueError for sizes that do not fit; UserError if the data set can't be sent to worker processes, or they
    can't share memory with this one.
    """

    def __init__(
        self,
        dataset: DecodedViews,
        order: Order,
        *,
        threads: int = 2,
        workers: int = 0,
        prefetch: int = 3,
        pin_memory: bool | None = None,
        bad_records: BadRecords | None = None,
    ) -> None:
        if threads < 1 or workers < 0 or prefetch < 0:
            raise ValueError(
                f"threads is {threads}, workers {workers} and prefetch {prefetch}: give at least 1 thread, workers >= "
                f"0 and prefetch >= 0"
            )
        self.dataset = dataset
        self.order = order
        self._bad_records = BadRecords("raise", max_skipped=0, rank=0) if bad_records is None else bad_records
        self._prefetch = prefetch
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._decoder = self._new_decoder(threads, workers)
        self._ring = [_Slot(number, buffer) for number, buffer in enumerate(self._decoder.buffers)]
        chunks_ahead = self._decoder.lanes * _CHUNKS_PER_LANE
        chunks = max(-(-chunks_ahead // (prefetch + 1)), min(chunks_ahead, _MOST_CHUNKS_OF_FEW_LANES))
        self._chunk_size = -(-self.order.local_batch_size // chunks)
        self._pool = ThreadPoolExecutor(self._decoder.lanes, thread_name_prefix="decode")
        self._pending: deque[_PendingBatch] = deque()
        self._iteration = 0
        self._closed = False

    def _new_decoder(self, threads: int, workers: int) -> Decoder:
        shape = BufferShape(
            self.order.local_batch_size, self.order.views, self.dataset.image_size, self.dataset.fills_image
        )
        buffer_count, report_bad_records = self._prefetch + 2, self._bad_records.are_skipped
        if workers > 0:
            return ProcessDecoder(
                self.dataset, shape, workers=workers, buffer_count=buffer_count, pin_memory=self._pin_memory,
                report_bad_records=report_bad_records,
            )  # fmt: skip
        return ThreadDecoder(
            self.dataset, shape, threads=threads, buffer_count=buffer_count, pin_memory=self._pin_memory,
            report_bad_records=report_bad_records,
        )  # fmt: skip

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
        begins. Raises the reader's DataError from the batch it concerns, and UserError as soon as a worker process
        has ended.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: give a step of at least 0")
        if self._closed:
            raise ValueError("this loader was closed: make a new one")
        self._drain()
        self._iteration += 1
        return self._iterate(start_step, self._iteration)

    def close(self) -> None:
        """Stop decoding and end the threads and worker processes."""
        self._closed = True
        self._iteration += 1
        self._drain()
        self._pool.shutdown()
        self._ring = []
        self._decoder.close()

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
                wait(pending.chunks)  # wakes once, where waiting for one chunk after the other interrupts the threads
                self._decoder.check()
                decoded = [chunk.result() for chunk in pending.chunks]
                problems = {row: problem for chunk in decoded for row, problem in chunk.problems.items()}
                stage_seconds = sum((chunk.seconds for chunk in decoded), StageSeconds())
                batch = self._finish_batch(pending, time.perf_counter() - started, stage_seconds)
                rows = range(pending.size)
                batch = self._bad_records.replaced(batch, [problems.get(row) for row in rows], pending.step)
            except BaseException:
                wait(pending.chunks)
                self._drain()
                raise
            yield batch

    def _start_batch(self, step: int, slot: _Slot) -> _PendingBatch:
        objects, views = self.order.batch(step)
        pending = _PendingBatch(step, slot, len(objects))
        slot.buffer.object_indices[: pending.size], slot.buffer.view_indices[: pending.size] = objects, views
        for first in range(0, pending.size, self._chunk_size):
            rows = range(first, min(first + self._chunk_size, pending.size))
            pending.chunks.append(self._pool.submit(self._decode_rows, slot, rows))
        return pending

    def _decode_rows(self, slot: _Slot, rows: range) -> DecodedRows:
        if slot.copies_done is not None:
            slot.copies_done.synchronize()
        return self._decoder.decode(slot.number, rows)

    def _finish_batch(self, pending: _PendingBatch, seconds_waited: float, stage_seconds: StageSeconds) -> ViewBatch:
        buffer, rows = pending.slot.buffer, slice(pending.size)
        objects, views = buffer.object_indices[rows], buffer.view_indices[rows]
        content_sizes = None if buffer.content_sizes is None else buffer.content_sizes[rows]
        quats_xyzw = self.dataset.quats_xyzw
        return ViewBatch(
            images=buffer.images[rows],
            latents=torch.from_numpy(self.dataset.latents[objects[:, None], views]),
            quat_xyzw=None if quats_xyzw is None else torch.from_numpy(quats_xyzw[objects[:, None], views]),
            labels=torch.from_numpy(self.dataset.labels[objects]),
            object_indices=torch.from_numpy(objects.copy()),
            view_indices=torch.from_numpy(views.copy()),
            seconds_waited=seconds_waited,
            content_sizes=None if content_sizes is None else torch.from_numpy(content_sizes.copy()),
            stage_seconds=stage_seconds,
        )

    def _mark_copies(self, slot: _Slot) -> None:
        """Let the decoding threads wait for what the consumer has queued so far on the stream of its copies."""
        if self._pin_memory:
            slot.copies_done = torch.cuda.Event(blocking=True)
            slot.copies_done.record()

    def _drain(self) -> None:
        """Cancel what has not begun and wait for what has, so that nobody writes into the ring any more."""
        chunks = [chunk for pending in self._pending for chunk in pending.chunks]
        self._pending.clear()
        for chunk in chunks:
            chunk.cancel()
        wait(chunks)


class ViewLoader(OrderedLoader):
    """Endless batches of `views` distinct views of each of `global_batch_size` objects, over all ranks.

    A batch is a pure function of (seed, global step): the world size and the number of threads or workers may change
    on resume. `threads`, `workers`, `prefetch`, `pin_memory` and the errors are those of OrderedLoader.

    The objects left over at the end of an epoch are dropped or, with keep_incomplete_batch, make a smaller batch. It
    holds a multiple of the world size, and at least 2 objects, or there is none: how many objects an epoch has, and
    perhaps how many steps, then depends on the world size, too.

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
        keep_incomplete_batch: bool = False,
        threads: int = 2,
        workers: int = 0,
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
            keep_incomplete_batch=keep_incomplete_batch,
        )
        super().__init__(
            dataset, order, threads=threads, workers=workers, prefetch=prefetch, pin_memory=pin_memory,
            bad_records=BadRecords(on_bad_record, max_skipped, rank),
        )  # fmt: skip
