"""JPEGs that a GPU decodes: threads read and check the bytes, and the device decodes a batch at once.

nvJPEG's pixels are not those of the CPU: they differ by rounding, and beside edges of colour by more where colours are
stored at half the resolution, because nvJPEG enlarges them without smoothing. It also turns damaged data into wrong
pixels without a word; so only bytes whose CRC-32C is known are given to it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.data.bad_records import problems_of_rows
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ResizedViews
from ssl_equi.data.images import JPEG_START, Canvas, decode_image
from ssl_equi.data.loading.loader import Fetched, Fetcher, Loader, PendingBatch, bad_records_of
from ssl_equi.data.order import BatchOptions, BatchOrder
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.stage_seconds import CLOCK, StageSeconds
from ssl_equi.errors import DataError

_COLORSPACES = ("YCBCR", "GRAY")
_SUBSAMPLINGS = ("444", "422", "420", "440", "411", "GRAY")  # of colour, which nvJPEG knows
_CHUNKS_PER_THREAD = 2
_RESIZED_AT_ONCE = 256  # views, as floating point numbers

DeviceDecoder = Callable[[list[Tensor]], list[Tensor]]  # encoded uint8 [n] on the CPU -> uint8 [3, h, w] on the device


@dataclass(frozen=True)
class EncodedViews:
    """Views as JPEG files, each of which can be decoded here or elsewhere."""

    collection: ViewCollection
    """The same views, decoded on the CPU."""
    stored_size: tuple[int, int] | None
    """Height and width of every file, if there is only one size, which is then resized to the collection's."""
    read: Callable[[int, int], bytes]
    """The bytes of a view of an object, which match their CRC-32C; DataError naming it if they don't."""
    decode: Callable[[bytes, int, int, np.ndarray], tuple[int, int]]
    """Decode them strictly on the CPU into uint8 [H, W, 3]; height and width of the picture, or DataError."""


def encoded_views(collection: ViewCollection) -> EncodedViews:
    """The encoded views of shards; DataError for other data, whose bytes have no checksum or are no JPEGs."""
    shards = collection.stored if isinstance(collection, ResizedViews) else collection
    if isinstance(shards, ShardDataset):
        resized_by = collection.fit if isinstance(collection, ResizedViews) else None

        def decode_object(data: bytes, index: int, view: int, out: np.ndarray) -> tuple[int, int]:
            stored = out if resized_by is None else np.empty((*shards.image_size, 3), dtype=np.uint8)
            shards.decode_encoded(data, index, view, stored)
            return shards.image_size if resized_by is None else resized_by.place(stored, out)

        return EncodedViews(collection, shards.image_size, shards.read_encoded, decode_object)
    if isinstance(collection, SingleViews) and isinstance(collection.fit, Canvas):
        store, fit = collection.store, collection.fit
        if isinstance(store, ImageShards) and store.has_checksums:

            def decode_image_of(data: bytes, index: int, view: int, out: np.ndarray) -> tuple[int, int]:
                return fit.place(decode_image(data, store.name_of(index)), out)

            return EncodedViews(collection, None, lambda index, view: store.read_encoded(index), decode_image_of)
    raise DataError(
        f"split {collection.split!r} in {collection.folder} can't be decoded by the GPU, which needs shards with "
        f"checksums: convert the images with datasets/image_folder.py or imagenet.py, or leave --decode-on out"
    )


def nvjpeg_decoder(device: torch.device) -> DeviceDecoder:
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


def gpu_loader(
    encoded: EncodedViews,
    *,
    device: torch.device,
    decode: DeviceDecoder,
    threads: int = 2,
    prefetch: int = 3,
    **options: Unpack[BatchOptions],
) -> Loader:
    """Batches decoded on `device` by `decode`, such as `nvjpeg_decoder`, where their images lie.

    Objects, views and all but the pixels are those of `stored_loader` with the same seed. Threads read the bytes of
    `prefetch` batches ahead, and decode what the device can't: other formats than JPEG, CMYK, and unusual subsampling.

    Raises ValueError for sizes that do not fit.
    """
    if threads < 1 or prefetch < 0:
        raise ValueError(f"threads is {threads} and prefetch {prefetch}: give at least 1 thread and prefetch >= 0")
    order, bad_records = BatchOrder.of(encoded.collection, options), bad_records_of(options)
    chunk_size = -(-order.local_batch_size // (threads * _CHUNKS_PER_THREAD))
    fetcher = GpuFetcher(encoded, device, decode, threads, chunk_size, bad_records.are_skipped)
    return Loader(encoded.collection, order, fetcher, prefetch=prefetch, bad_records=bad_records)


@dataclass(frozen=True)
class _ReadView:
    """A view that was read: its bytes for the device, or its pixels [H, W, 3] where the CPU has to decode it."""

    encoded: bytes
    pixels: np.ndarray | None = None
    content_size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _ReadRows:
    """Views of some rows, one object after the other, with what is wrong with bad ones, and what it took to read."""

    views: list[_ReadView]
    problems: dict[int, DataError]
    seconds: StageSeconds


class GpuFetcher(Fetcher):
    """Reads encoded views in threads and lets a device decode whole batches of them."""

    def __init__(
        self,
        views: EncodedViews,
        device: torch.device,
        decode: DeviceDecoder,
        threads: int,
        chunk_size: int,
        report_bad_records: bool,
    ) -> None:
        self._views, self._device, self._decode = views, device, decode
        self._chunk_size, self._report_bad_records = chunk_size, report_bad_records
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._being_decoded: list[Tensor] = []
        self._no_picture = np.zeros((*views.collection.image_size, 3), dtype=np.uint8)

    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Queue the reading of the bytes."""
        pending = PendingBatch(step, objects, views)
        for first in range(0, len(objects), self._chunk_size):
            rows = range(first, min(first + self._chunk_size, len(objects)))
            pending.chunks.append(self._pool.submit(self._read_rows, objects, views, rows))
        return pending

    def finish(self, pending: PendingBatch) -> Fetched:
        """Wait for the bytes and let the device decode them."""
        chunks: list[_ReadRows] = [chunk.result() for chunk in pending.chunks]
        read = [view for chunk in chunks for view in chunk.views]
        problems = {row: problem for chunk in chunks for row, problem in chunk.problems.items()}
        try:
            images, sizes = self._on_device(read)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it says nothing about which of them is bad
            refused = self._refused_by_the_cpu(read, pending)
            if not refused:
                raise DataError(
                    f"the GPU can't decode a batch that the CPU can ({error}): leave --decode-on out"
                ) from error
            if not self._report_bad_records:
                raise next(iter(refused.values())) from error
            for place, problem in refused.items():
                read[place] = _ReadView(b"", self._no_picture)
                problems[place // pending.views.shape[1]] = problem
            images, sizes = self._on_device(read)
        return Fetched(
            images=images.unflatten(0, pending.views.shape),
            content_sizes=None if self._views.collection.fills_image else sizes.reshape(*pending.views.shape, 2),
            problems=problems,
            seconds=sum((chunk.seconds for chunk in chunks), StageSeconds()),
        )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _read_rows(self, objects: np.ndarray, views: np.ndarray, rows: range) -> _ReadRows:
        began, read = CLOCK.spent, {row: [_ReadView(b"", self._no_picture)] * views.shape[1] for row in rows}

        def read_row(row: int) -> None:
            read[row] = [self._read_view(int(objects[row]), view) for view in views[row].tolist()]

        with CLOCK.during("reading"):
            problems = problems_of_rows(read_row, rows, self._report_bad_records)
        return _ReadRows([view for row in rows for view in read[row]], problems, CLOCK.spent - began)

    def _read_view(self, object_index: int, view: int) -> _ReadView:
        data = self._views.read(object_index, view)
        if is_for_device(data, self._views.stored_size):
            return _ReadView(data)
        pixels = np.zeros_like(self._no_picture)
        with CLOCK.during("decoding"):
            return _ReadView(data, pixels, self._views.decode(data, object_index, view, pixels))

    def _on_device(self, read: list[_ReadView]) -> tuple[Tensor, np.ndarray]:
        """Images [n, H, W, 3] on the device and the pictures' sizes int64 [n, 2] of what was read."""
        if self._stream is None:
            return self._decoded(read)
        # nvJPEG writes on a stream of its own, which doesn't wait for work that is queued on memory it gets: so the
        # memory is that of a stream on which nothing but decoding happens, and nothing is left when decoding begins.
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            images, sizes = self._decoded(read)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)
        images.record_stream(consumer)
        return images, sizes

    def _decoded(self, read: list[_ReadView]) -> tuple[Tensor, np.ndarray]:
        for_device = [place for place, view in enumerate(read) if view.pixels is None]
        # Kept until the next batch: the copies to the device may still be under way.
        self._being_decoded = [
            torch.frombuffer(bytearray(read[place].encoded), dtype=torch.uint8) for place in for_device
        ]
        decoded = self._decode(self._being_decoded) if for_device else []
        height, width = self._views.collection.image_size
        if self._views.stored_size not in (None, (height, width)):
            decoded = [
                image
                for first in range(0, len(decoded), _RESIZED_AT_ONCE)
                for image in resize_images(torch.stack(decoded[first : first + _RESIZED_AT_ONCE]), (height, width))
            ]
        images = torch.zeros(len(read), height, width, 3, dtype=torch.uint8, device=self._device)
        sizes = np.empty((len(read), 2), dtype=np.int64)
        if decoded and len(decoded) == len(read) and all(image.shape[1:] == (height, width) for image in decoded):
            images.copy_(torch.stack(decoded).permute(0, 2, 3, 1))
            sizes[:] = height, width
        else:
            for place, image in zip(for_device, decoded, strict=True):
                sizes[place] = place_on_canvas(image, images[place])
        for place, view in enumerate(read):
            if view.pixels is not None:
                images[place] = torch.from_numpy(view.pixels).to(self._device)
                sizes[place] = view.content_size
        return images, sizes

    def _refused_by_the_cpu(self, read: list[_ReadView], pending: PendingBatch) -> dict[int, DataError]:
        """Errors, which name them, of the views that the CPU can't decode either, by place in the batch."""
        places = np.column_stack([np.repeat(pending.objects, pending.views.shape[1]), pending.views.ravel()]).tolist()
        pixels = np.zeros_like(self._no_picture)

        def decode(place: int) -> None:
            object_index, view = places[place]
            self._views.decode(read[place].encoded, object_index, view, pixels)

        return problems_of_rows(decode, [place for place, view in enumerate(read) if view.pixels is None])


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
    """`ssl_equi.data.images.Canvas.place` on a device, of uint8 [3, h, w] into zeros [H, W, 3].

    A picture that has to shrink differs from Pillow's by rounding.
    """
    height, width = image.shape[1:]
    longer, side = max(height, width), max(out.shape[:2])  # of rendered views, which fill it, the sides may differ
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
