"""A ring of batch buffers that several processes share, in anonymous memory that ends with the last of them.

It has no name in a file system, so nothing is left behind however the processes end, and the size of /dev/shm, which
containers keep small, does not matter.
"""

import math
import mmap
import os
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from ssl_equi.data.loading.ring import BatchBuffer, BufferShape
from ssl_equi.errors import UserError
from ssl_equi.runtime.system import anonymous_memory


class SharedRing:
    """`count` buffers; a process that gets the ring as an argument when it is started sees the same memory.

    Raises UserError where there is no such memory, or not enough.
    """

    def __init__(self, shape: BufferShape, count: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise UserError("worker processes of the loader need Linux: decode in threads, with 0 workers")
        self._shape, self._count = shape, count
        size = count * _buffer_bytes(shape)
        try:
            self._descriptor = anonymous_memory("ssl_equi_batches", size)
        except OSError as error:
            raise UserError(
                f"{count} batches of {size // count:,} bytes do not fit into shared memory ({error.strerror}): choose "
                f"a smaller batch or a shorter prefetch"
            ) from error
        self._map()

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (self._shape, self._count, DupFd(self._descriptor))

    def _map(self) -> None:
        size = self._count * _buffer_bytes(self._shape)
        memory = mmap.mmap(self._descriptor, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        starts = [number * _buffer_bytes(self._shape) for number in range(self._count)]
        self.buffers: Sequence[BatchBuffer] = [_buffer_at(memory, start, self._shape) for start in starts]

    def pin(self) -> None:
        """Lock the buffers for copies to a GPU; UserError if CUDA refuses."""
        for number, buffer in enumerate(self.buffers):
            code = int(torch.cuda.cudart().cudaHostRegister(buffer.images.data_ptr(), buffer.images.nbytes, 0))
            if code != 0:
                self.unpin(number)
                raise UserError(
                    f"CUDA cannot pin the shared buffers of the loader (cudaHostRegister: error {code}): raise the "
                    f"limit of locked memory (ulimit -l), or decode in threads, with 0 workers"
                )

    def unpin(self, count: int | None = None) -> None:
        """Undo `pin` for the first `count` buffers, once the copies from them are done."""
        torch.cuda.synchronize()
        for buffer in self.buffers[:count]:
            torch.cuda.cudart().cudaHostUnregister(buffer.images.data_ptr())

    def close(self) -> None:
        """Let go of the memory, which goes when the last tensor on it and the last process are gone."""
        if self.buffers:
            self.buffers = ()
            os.close(self._descriptor)


def _attached(shape: BufferShape, count: int, descriptor: Any) -> SharedRing:
    ring = SharedRing.__new__(SharedRing)
    ring._shape, ring._count, ring._descriptor = shape, count, descriptor.detach()
    ring._map()
    return ring


def _array_layout(shape: BufferShape) -> dict[str, tuple[tuple[int, ...], type]]:
    drawn = (shape.batch_size, shape.views)
    layout: dict[str, tuple[tuple[int, ...], type]] = {
        "object_indices": (drawn[:1], np.int64),
        "view_indices": (drawn, np.int64),
        "images": ((*drawn, *shape.image_size, 3), np.uint8),
    }
    return layout if shape.fills_image else layout | {"content_sizes": ((*drawn, 2), np.int64)}


def _array_bytes(shape: tuple[int, ...], dtype: type) -> int:
    """In whole pages, so that an array can be pinned by itself."""
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE


def _buffer_bytes(shape: BufferShape) -> int:
    return sum(_array_bytes(*array) for array in _array_layout(shape).values())


def _buffer_at(memory: mmap.mmap, start: int, shape: BufferShape) -> BatchBuffer:
    arrays = {}
    for name, (array_shape, dtype) in _array_layout(shape).items():
        arrays[name] = np.ndarray(array_shape, dtype, buffer=memory, offset=start)
        start += _array_bytes(array_shape, dtype)
    return BatchBuffer(
        object_indices=arrays["object_indices"],
        view_indices=arrays["view_indices"],
        images=torch.from_numpy(arrays["images"]),
        content_sizes=arrays.get("content_sizes"),
    )
