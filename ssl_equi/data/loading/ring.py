"""Decoding batches into a ring of reused buffers, which threads of this process or other processes fill."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.bad_records import problems_of_rows
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading.loader import Fetched, Fetcher, PendingBatch
from ssl_equi.data.stage_seconds import CLOCK, StageSeconds
from ssl_equi.errors import DataError

_CHUNKS_PER_LANE = 2  # of what is decoded ahead, so that one slow piece does not hold up the others
_MOST_CHUNKS_OF_FEW_LANES = 4  # of a batch, so that it is ready soon; each costs the trainer's process 50 us


@dataclass(frozen=True)
class BufferShape:
    """Sizes of the buffer of a batch."""

    batch_size: int
    """Objects b of one rank."""
    views: int
    """Views V of an object."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    fills_image: bool
    """False: each picture's own size is needed too."""


@dataclass(frozen=True)
class BatchBuffer:
    """Memory of one batch: what shall be decoded, and room for what comes of it."""

    object_indices: np.ndarray  # int64 [b]
    view_indices: np.ndarray  # int64 [b, V]
    images: Tensor  # uint8 [b, V, H, W, 3]
    content_sizes: np.ndarray | None  # int64 [b, V, 2]; None if every picture fills its image


@dataclass(frozen=True)
class DecodedRows:
    """What came of decoding some rows of a buffer: what is wrong with bad ones, and what it took who did it."""

    problems: dict[int, DataError]
    seconds: StageSeconds


class Decoder(Protocol):
    """Decodes parts of the batches in its buffers, several at a time."""

    @property
    def buffers(self) -> Sequence[BatchBuffer]:
        """The ring of buffers."""

    @property
    def lanes(self) -> int:
        """How many threads may call `decode` at a time."""

    def decode(self, buffer_number: int, rows: range) -> DecodedRows:
        """Decode some rows of a buffer, whose indices are there.

        Raises DataError for a bad record, or returns it where bad records are to be reported; UserError if a worker
        process has ended.
        """

    def check(self) -> None:
        """Raise UserError if nothing more can be decoded."""

    def close(self) -> None:
        """Give back processes and memory; nobody may be decoding."""


class RingFetcher(Fetcher):
    """Batches decoded by the lanes of a decoder into its buffers, two of which the trainer may hold."""

    def __init__(self, decoder: Decoder, *, prefetch: int, pin_memory: bool) -> None:
        self.decoder = decoder
        self._pin_memory = pin_memory
        self._copies_done: list[torch.cuda.Event | None] = [None] * len(decoder.buffers)
        batch_size = len(decoder.buffers[0].object_indices)
        chunks_ahead = decoder.lanes * _CHUNKS_PER_LANE
        chunks = max(-(-chunks_ahead // (prefetch + 1)), min(chunks_ahead, _MOST_CHUNKS_OF_FEW_LANES))
        self._chunk_size = -(-batch_size // chunks)
        self._pool = ThreadPoolExecutor(decoder.lanes, thread_name_prefix="decode")

    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Queue the pieces of a batch; the buffer is that of the batch given out before the last, which is free now."""
        pending = PendingBatch(step, objects, views, buffer_number=step % len(self.decoder.buffers))
        self._mark_copies(pending.buffer_number)
        buffer, size = self.decoder.buffers[pending.buffer_number], len(objects)
        buffer.object_indices[:size], buffer.view_indices[:size] = objects, views
        for first in range(0, size, self._chunk_size):
            rows = range(first, min(first + self._chunk_size, size))
            pending.chunks.append(self._pool.submit(self._decode, pending.buffer_number, rows))
        return pending

    def finish(self, pending: PendingBatch) -> Fetched:
        """Wait for all pieces."""
        wait(pending.chunks)  # wakes once, where waiting for one chunk after the other interrupts the threads
        self.decoder.check()
        decoded: list[DecodedRows] = [chunk.result() for chunk in pending.chunks]
        buffer, rows = self.decoder.buffers[pending.buffer_number], slice(len(pending.objects))
        return Fetched(
            images=buffer.images[rows],
            content_sizes=None if buffer.content_sizes is None else buffer.content_sizes[rows].copy(),
            problems={row: problem for chunk in decoded for row, problem in chunk.problems.items()},
            seconds=sum((chunk.seconds for chunk in decoded), StageSeconds()),
        )

    def close(self) -> None:
        """End the threads, then the decoder."""
        self._pool.shutdown()
        self.decoder.close()

    def _mark_copies(self, buffer_number: int) -> None:
        """Let the decoding threads wait for what the consumer has queued so far on the stream of its copies."""
        if self._pin_memory:
            event = torch.cuda.Event(blocking=True)
            event.record()
            self._copies_done[buffer_number] = event

    def _decode(self, buffer_number: int, rows: range) -> DecodedRows:
        copies_done = self._copies_done[buffer_number]
        if copies_done is not None:
            copies_done.synchronize()
        return self.decoder.decode(buffer_number, rows)


def decode_rows(collection: ViewCollection, buffer: BatchBuffer, rows: range, report_bad_records: bool) -> DecodedRows:
    """Decode some rows of a buffer; the errors of bad records are raised, or returned if they are to be reported.

    A shard that is gone always raises LostShardError.
    """

    def read(first: int, end: int) -> None:
        part = slice(first, end)
        sizes_out = None if buffer.content_sizes is None else buffer.content_sizes[part]
        collection.read_views(
            buffer.object_indices[part], buffer.view_indices[part], buffer.images.numpy()[part], sizes_out
        )

    began, problems = CLOCK.spent, {}
    if report_bad_records:
        problems = problems_of_rows(lambda row: read(row, row + 1), rows)
    else:
        read(rows.start, rows.stop)
    return DecodedRows(problems, CLOCK.spent - began)
