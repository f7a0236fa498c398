"""Stored views decoded by threads of the same process, or by worker processes that share its buffers.

Threads mostly suffice, because reading and decoding release the interpreter lock. Worker processes help where the
training itself keeps the interpreter busy, or many threads wait for its lock.
"""

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading.loader import Loader, bad_records_of
from ssl_equi.data.loading.processes import ProcessDecoder
from ssl_equi.data.loading.ring import BatchBuffer, BufferShape, DecodedRows, RingFetcher, decode_rows
from ssl_equi.data.order import BatchOptions, BatchOrder, Order


def stored_loader(
    collection: ViewCollection,
    *,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 3,
    pin_memory: bool | None = None,
    **options: Unpack[BatchOptions],
) -> Loader:
    """Batches of stored views, decoded by `threads` threads or, if `workers` is above 0, by so many processes.

    The ring holds `prefetch + 2` buffers, pinned if `pin_memory` (by default where CUDA is available). A script that
    gives workers a data set of a class of its own must start its work below `if __name__ == "__main__":`, as all that
    start processes do.

    Raises UserError if the data set can't be sent to worker processes, or they can't share memory with this one.
    """
    if threads < 1 or workers < 0 or prefetch < 0:
        raise ValueError(
            f"threads is {threads}, workers {workers} and prefetch {prefetch}: give at least 1 thread, workers >= 0 "
            f"and prefetch >= 0"
        )
    order, bad_records = BatchOrder.of(collection, options), bad_records_of(options)
    fetcher = ring_fetcher(collection, order, bad_records, threads, workers, prefetch, pin_memory)
    return Loader(collection, order, fetcher, prefetch=prefetch, bad_records=bad_records)


def ring_fetcher(
    collection: ViewCollection,
    order: Order,
    bad_records: BadRecords,
    threads: int,
    workers: int,
    prefetch: int,
    pin_memory: bool | None,
) -> RingFetcher:
    """Decodes the batches of an order, in threads or in worker processes."""
    pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
    shape = BufferShape(order.local_batch_size, order.views, collection.image_size, collection.fills_image)
    buffer_count = prefetch + 2  # the trainer may hold the present batch and the previous one
    make_decoder: type[ProcessDecoder] | type[ThreadDecoder] = ProcessDecoder if workers > 0 else ThreadDecoder
    decoder = make_decoder(
        collection, shape, lanes=workers or threads, buffer_count=buffer_count, pin_memory=pin_memory,
        report_bad_records=bad_records.are_skipped,
    )  # fmt: skip
    return RingFetcher(decoder, prefetch=prefetch, pin_memory=pin_memory)


class ThreadDecoder:
    """A `Decoder` for `lanes` threads of this process, with `buffer_count` buffers in its memory.

    `pin_memory` pins them for copies to a GPU; `report_bad_records` returns the errors of bad records.
    """

    def __init__(
        self,
        collection: ViewCollection,
        shape: BufferShape,
        *,
        lanes: int,
        buffer_count: int,
        pin_memory: bool,
        report_bad_records: bool,
    ) -> None:
        self.lanes = lanes
        self.buffers: Sequence[BatchBuffer] = [_new_buffer(shape, pin_memory) for _ in range(buffer_count)]
        self._collection, self._report_bad_records = collection, report_bad_records

    def decode(self, buffer_number: int, rows: range) -> DecodedRows:
        """See `Decoder`."""
        return decode_rows(self._collection, self.buffers[buffer_number], rows, self._report_bad_records)

    def check(self) -> None:
        """Threads don't die alone."""

    def close(self) -> None:
        """Let go of the buffers."""
        self.buffers = ()


def _new_buffer(shape: BufferShape, pin_memory: bool) -> BatchBuffer:
    drawn = (shape.batch_size, shape.views)
    images = torch.zeros((*drawn, *shape.image_size, 3), dtype=torch.uint8)  # touches every page now, not in training
    return BatchBuffer(
        object_indices=np.zeros(shape.batch_size, dtype=np.int64),
        view_indices=np.zeros(drawn, dtype=np.int64),
        images=images.pin_memory() if pin_memory else images,
        content_sizes=None if shape.fills_image else np.zeros((*drawn, 2), dtype=np.int64),
    )
