"""JPEGs that a GPU decodes: threads read and check the bytes, and the device decodes a batch at once.

nvJPEG's pixels are not those of the CPU: they differ by rounding, and beside edges of colour by more where colours are
stored at half the resolution, because nvJPEG enlarges them without smoothing. It also turns damaged data into wrong
pixels without a word; so only bytes whose CRC-32C is known are given to it.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.decode import JPEG_START, decode_image
from ssl_equi.data.fit import Canvas
from ssl_equi.data.image_shards import ImageShards
from ssl_equi.data.order import BatchOrder
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError

_COLORSPACES = ("YCBCR", "GRAY")
_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "GRAY")  # of colour, which nvJPEG knows
_CHUNKS_PER_THREAD = 2
_RESIZED_AT_ONCE = 256  # views, as floating point numbers

Decoder = Callable[[list[Tensor]], list[Tensor]]  # encoded uint8 [n] on the CPU -> uint8 [3, h, w] on the device


class EncodedViews(Protocol):
    """Views as JPEG files, each of which can be decoded here or elsewhere."""

    @property
    def collection(self) -> ViewCollection:
        """The same views, decoded on the CPU."""

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """Height and width of every file, if there is only one size, which is then resized to the collection's."""

    def read(self, object_index: int, view_index: int) -> bytes:
        """The bytes of a view, which match their CRC-32C; DataError naming it if they don't."""

    def decode(self, data: bytes, object_index: int, view_index: int, out: np.ndarray) -> tuple[int, int]:
        """Decode them strictly on the CPU into `out` uint8 [H, W, 3]; height and width of the picture, or DataError."""


class _EncodedShards:
    """The views of rendered objects."""

    def __init__(self, shards: ShardDataset) -> None:
        self.collection: ViewCollection = shards
        self.stored_size: tuple[int, int] | None = shards.stored_size
        self.read = shards.read_encoded
        self._shards = shards

    def decode(self, data: bytes, object_index: int, view_index: int, out: np.ndarray) -> tuple[int, int]:
        self._shards.decode_encoded(data, object_index, view_index, out)
        return self._shards.image_size


class _EncodedImages:
    """Ordinary images in shards with checksums, on canvases."""

    def __init__(self, views: SingleViews, store: ImageShards) -> None:
        self.collection: ViewCollection = views
        self.stored_size: tuple[int, int] | None = None
        self._store, self._fit = store, views.fit

    def read(self, object_index: int, view_index: int) -> bytes:
        return self._store.read_encoded(object_index)

    def decode(self, data: bytes, object_index: int, view_index: int, out: np.ndarray) -> tuple[int, int]:
        return self._fit.place(decode_image(data, self._store.name_of(object_index)), out)


def encoded_views(collection: ViewCollection) -> EncodedViews:
    """The encoded views of shards; DataError for other data, whose bytes have no checksum or are no JPEGs."""
    if isinstance(collection, ShardDataset):
        return _EncodedShards(collection)
    if isinstance(collection, SingleViews) and isinstance(collection.fit, Canvas):
        store = collection.store
        if isinstance(store, ImageShards) and store.has_checksums:
            return _EncodedImages(collection, store)
    raise DataError(
        f"split {collection.split!r} in {collection.folder} can't be decoded by the GPU, which needs shards with "
        f"checksums: convert the images with datasets/image_folder.py or imagenet.py, or leave --decode-on out"
    )


def nvjpeg_decoder(device: torch.device) -> Decoder:
    """torchvision's batched decoder on a CUDA device; DataError where torchvision has none any more."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise DataError(
            f"--decode-on cuda needs torchvision.io.decode_jpeg ({error}): install torchvision 0.29 or older"
        ) from error

    def decode(encoded: list[Tensor]) -> list[Tensor]:
        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)

    return decode


@dataclasses.dataclass(frozen=True)
class _ReadView:
    """A view that was read: its bytes for the device, or its pixels [H, W, 3] where the CPU has to decode it."""

    encoded: bytes
    pixels: np.ndarray | None = None
    content_size: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class _PendingBatch:
    """A batch whose bytes are being read."""

    object_indices: np.ndarray
    view_indices: np.ndarray
    chunks: list[Future[tuple[list[_ReadView], float]]]


class DeviceDecodedLoader:
    """Endless batches like `ViewLoader`'s, decoded on the device that `decode` decodes on, where their images lie.

    Objects, views and all but the pixels are those of `ViewLoader` with the same seed. Bytes of `prefetch` batches are
    read ahead by threads, which also decode what the device can't: other formats than JPEG, CMYK, and unusual
    subsampling. Use it as a context manager, or call `close`.

    Args:
        views: what is read.
        global_batch_size: objects in a batch over all ranks.
        views_per_object: distinct views of each object.
        seed: of order and views.
        device: of the images.
        decode: decodes a batch on that device, such as `nvjpeg_decoder`.
        rank: this process.
        world_size: number of processes.
        keep_incomplete_batch: end an epoch with a smaller batch, as in `ViewLoader`.
        threads: that read.
        prefetch: batches that are read ahead.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        views: EncodedViews,
        *,
        global_batch_size: int,
        views_per_object: int = 2,
        seed: int,
        device: torch.device,
        decode: Decoder,
        rank: int = 0,
        world_size: int = 1,
        keep_incomplete_batch: bool = False,
        threads: int = 2,
        prefetch: int = 3,
    ) -> None:
        if threads < 1 or prefetch < 0:
            raise ValueError(f"threads is {threads} and prefetch {prefetch}: give at least 1 thread and prefetch >= 0")
        collection = views.collection
        self.views = views
        self.order = BatchOrder(
            num_objects=collection.num_objects, num_views=collection.num_views, global_batch_size=global_batch_size,
            views=views_per_object, seed=seed, rank=rank, world_size=world_size,
            keep_incomplete_batch=keep_incomplete_batch,
        )  # fmt: skip
        self._device, self._decode, self._prefetch = device, decode, prefetch
        self._chunk_size = -(-self.order.local_batch_size // (threads * _CHUNKS_PER_THREAD))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._being_decoded: list[Tensor] = []

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

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Yield the batches of global steps start_step, start_step + 1, ... without end.

        Raises DataError from the batch it concerns: a view that can't be read, or that neither decoder takes.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: give a step of at least 0")
        return self._iterate(start_step)

    def _iterate(self, step: int) -> Iterator[ViewBatch]:
        pending: deque[_PendingBatch] = deque()
        while True:
            started = time.perf_counter()
            while len(pending) <= self._prefetch:
                pending.append(self._start_batch(step))
                step += 1
            yield self._finish_batch(pending.popleft(), started)

    def _start_batch(self, step: int) -> _PendingBatch:
        objects, views = self.order.batch(step)
        starts = range(0, len(objects), self._chunk_size)
        rows = [slice(first, first + self._chunk_size) for first in starts]
        return _PendingBatch(objects, views, [self._pool.submit(self._read, objects[r], views[r]) for r in rows])

    def _read(self, objects: np.ndarray, views: np.ndarray) -> tuple[list[_ReadView], float]:
        """Views, and the seconds that it took to read them (and to decode those that the device can't)."""
        began = time.perf_counter()
        read = [
            self._read_view(object_index, view)
            for object_index, row in zip(objects.tolist(), views.tolist(), strict=True)
            for view in row
        ]
        return read, time.perf_counter() - began

    def _read_view(self, object_index: int, view: int) -> _ReadView:
        data = self.views.read(object_index, view)
        collection = self.views.collection
        if is_for_device(data, self.views.stored_size):
            return _ReadView(data)
        pixels = np.zeros((*collection.image_size, 3), dtype=np.uint8)
        return _ReadView(data, pixels, self.views.decode(data, object_index, view, pixels))

    def _finish_batch(self, pending: _PendingBatch, started: float) -> ViewBatch:
        objects, views, collection = pending.object_indices, pending.view_indices, self.views.collection
        chunks = [chunk.result() for chunk in pending.chunks]
        read = [view for views_of_chunk, _ in chunks for view in views_of_chunk]
        images, sizes = self._on_device(read, objects, views)
        quats_xyzw = collection.quats_xyzw
        return ViewBatch(
            images=images,
            latents=torch.from_numpy(collection.latents[objects[:, None], views]),
            quat_xyzw=None if quats_xyzw is None else torch.from_numpy(quats_xyzw[objects[:, None], views]),
            labels=torch.from_numpy(collection.labels[objects]),
            object_indices=torch.from_numpy(objects),
            view_indices=torch.from_numpy(views),
            seconds_waited=time.perf_counter() - started,
            stage_seconds=StageSeconds(reading=sum(seconds for _, seconds in chunks)),
            content_sizes=None if collection.fills_image else sizes,
        )

    def _on_device(self, read: Sequence[_ReadView], objects: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images [b, k, H, W, 3] on the device and the pictures' sizes [b, k, 2] of what was read."""
        if self._stream is None:
            return self._decoded(read, objects, views)
        # nvJPEG writes on a stream of its own, which doesn't wait for work that is queued on memory it gets: so the
        # memory is that of a stream on which nothing but decoding happens, and nothing is left when decoding begins.
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            images, sizes = self._decoded(read, objects, views)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)
        images.record_stream(consumer)
        return images, sizes

    def _decoded(self, read: Sequence[_ReadView], objects: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        for_device = [place for place, view in enumerate(read) if view.pixels is None]
        # Kept until the next batch: the copies to the device may still be under way.
        self._being_decoded = [
            torch.frombuffer(bytearray(read[place].encoded), dtype=torch.uint8) for place in for_device
        ]
        try:
            decoded = self._decode(self._being_decoded) if for_device else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._explained(error, read, objects, views) from error
        height, width = self.views.collection.image_size
        if self.views.stored_size not in (None, (height, width)):
            decoded = [
                image
                for first in range(0, len(decoded), _RESIZED_AT_ONCE)
                for image in resize_images(torch.stack(decoded[first : first + _RESIZED_AT_ONCE]), (height, width))
            ]
        images = torch.zeros(len(read), height, width, 3, dtype=torch.uint8, device=self._device)
        sizes = torch.empty(len(read), 2, dtype=torch.int64)
        if decoded and len(decoded) == len(read) and all(image.shape[1:] == (height, width) for image in decoded):
            images.copy_(torch.stack(decoded).permute(0, 2, 3, 1))
            sizes[:] = torch.tensor([height, width])
        else:
            for place, image in zip(for_device, decoded, strict=True):
                sizes[place] = torch.tensor(place_on_canvas(image, images[place]))
        for place, view in enumerate(read):
            if view.pixels is not None:
                images[place] = torch.from_numpy(view.pixels).to(self._device)
                sizes[place] = torch.tensor(view.content_size)
        return images.unflatten(0, views.shape), sizes.unflatten(0, views.shape)

    def _explained(
        self, error: RuntimeError, read: Sequence[_ReadView], objects: np.ndarray, views: np.ndarray
    ) -> DataError:
        """The error of the image that the CPU can't decode either, which names it; else one that names the way out."""
        pixels = np.zeros((*self.views.collection.image_size, 3), dtype=np.uint8)
        places = np.column_stack([np.repeat(objects, views.shape[1]), views.ravel()]).tolist()
        for view, (object_index, view_index) in zip(read, places, strict=True):
            try:
                self.views.decode(view.encoded, object_index, view_index, pixels)
            except DataError as named:
                return named
        return DataError(f"the GPU can't decode a batch that the CPU can ({error}): leave --decode-on out")


def is_for_device(data: bytes, image_size: tuple[int, int] | None) -> bool:
    """True for a JPEG that nvJPEG decodes as the CPU does; of `image_size`, if there is only one in the split.

    All others are the CPU's, which also finds the words for what is wrong with them.
    """
    if not data.startswith(JPEG_START):
        return False
    try:
        height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    usual = colorspace.upper() in _COLORSPACES and subsampling.upper() in _SUBSAMPLINGS
    return usual and image_size in (None, (height, width))


def place_on_canvas(image: Tensor, out: Tensor) -> tuple[int, int]:
    """`ssl_equi.data.fit.Canvas.place` on a device, of uint8 [3, h, w] into zeros [H, W, 3].

    A picture that has to shrink differs from Pillow's by rounding.
    """
    height, width = image.shape[1:]
    longer, side = max(height, width), out.shape[0]
    if longer > side:
        height, width = (max(1, round(length * side / longer)) for length in (height, width))
        image = resize_images(image[None], (height, width))[0]
    out[:height, :width] = image.permute(1, 2, 0)
    return height, width


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, 3, h, w] -> [N, 3, *size], bilinear with anti-aliasing; Pillow's pixels but for rounding."""
    if images.shape[2:] == size:
        return images
    resized = images.float()
    # One axis after the other: both at once, PyTorch 2.15 gets wrong on a CPU where the new width is 1.
    for side in ((size[0], resized.shape[3]), size):
        resized = F.interpolate(resized.contiguous(), size=side, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
