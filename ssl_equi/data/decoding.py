"""Decoding the rows of a batch into its buffer: what threads of this process and worker processes do alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.bad_records import problems_of_rows
from ssl_equi.data.collection import DecodedViews
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError


@dataclass(frozen=True)
class DecodedRows:
    """What came of decoding some rows of a buffer."""

    problems: dict[int, DataError]
    """Of rows whose record is bad, where such rows don't raise."""
    seconds: StageSeconds
    """What it took the thread or process that did it."""


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


class ThreadDecoder:
    """A `Decoder` for `threads` threads of this process, with `buffer_count` buffers in its memory.

    `pin_memory` pins them for copies to a GPU; `report_bad_records` returns the errors of bad records.
    """

    def __init__(
        self,
        dataset: DecodedViews,
        shape: BufferShape,
        *,
        threads: int,
        buffer_count: int,
        pin_memory: bool,
        report_bad_records: bool,
    ) -> None:
        self.lanes = threads
        self.buffers: Sequence[BatchBuffer] = [_new_buffer(shape, pin_memory) for _ in range(buffer_count)]
        self._dataset, self._report_bad_records = dataset, report_bad_records

    def decode(self, buffer_number: int, rows: range) -> DecodedRows:
        """See `Decoder`."""
        return decode_rows(self._dataset, self.buffers[buffer_number], rows, self._report_bad_records)

    def check(self) -> None:
        """Threads don't die alone."""

    def close(self) -> None:
        """Let go of the buffers."""
        self.buffers = ()


def decode_rows(dataset: DecodedViews, buffer: BatchBuffer, rows: range, report_bad_records: bool) -> DecodedRows:
    """Decode some rows of a buffer; the errors of bad records are raised, or returned if they are to be reported.

    A shard that is gone always raises LostShardError.
    """
    if not report_bad_records:
        return DecodedRows({}, _read_rows(dataset, buffer, slice(rows.start, rows.stop)))
    spent: list[StageSeconds] = []
    problems = problems_of_rows(lambda row: spent.append(_read_rows(dataset, buffer, slice(row, row + 1))), rows)
    return DecodedRows(problems, sum(spent, StageSeconds()))


def _read_rows(dataset: DecodedViews, buffer: BatchBuffer, rows: slice) -> StageSeconds:
    return dataset.read_views(
        buffer.object_indices[rows],
        buffer.view_indices[rows],
        buffer.images.numpy()[rows],
        None if buffer.content_sizes is None else buffer.content_sizes[rows],
    )


def _new_buffer(shape: BufferShape, pin_memory: bool) -> BatchBuffer:
    drawn = (shape.batch_size, shape.views)
    images = torch.zeros((*drawn, *shape.image_size, 3), dtype=torch.uint8)  # touches every page now, not in training
    return BatchBuffer(
        object_indices=np.zeros(shape.batch_size, dtype=np.int64),
        view_indices=np.zeros(drawn, dtype=np.int64),
        images=images.pin_memory() if pin_memory else images,
        content_sizes=None if shape.fills_image else np.zeros((*drawn, 2), dtype=np.int64),
    )
