"""All views of a small split, decoded once and kept on a device, which takes batches of them out of its own memory.

Nothing is decoded while a run trains, and nothing but indices copied: the fastest way for sets that fit on a GPU beside
a model, such as 20,000 images of 64 pixels in 250 MB.
"""

from typing import Unpack

import numpy as np
import torch

from ssl_equi.data.cache import MIB, DecodedViews, bytes_of_all_views
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.loading.loader import Fetched, Fetcher, Loader, PendingBatch, bad_records_of
from ssl_equi.data.order import BatchOptions, BatchOrder
from ssl_equi.errors import DataError
from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.runtime.system import free_memory


class DecodedOnDevice(DecodedViews):
    """The views of `stored`, decoded once into memory of a device: `pixels`, uint8 [n, H, W, 3].

    A view that can't be read raises then or, with `keep_bad_views`, is noted and raises when it is read.

    Raises DataError if the device has too little memory.
    """

    def __init__(
        self,
        stored: ViewCollection,
        device: torch.device | str,
        *,
        keep_bad_views: bool = False,
        show_progress: bool = False,
    ) -> None:
        super().__init__(stored)
        device, size = torch.device(device), bytes_of_all_views(stored)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        needed = f"the decoded views of split {stored.split!r} need {size / MIB:,.1f} MiB of the memory of {device}"
        if free is not None and size > free:
            raise DataError(f"{needed} and {free / MIB:,.1f} MiB are free: give --cache-in disk")
        if show_progress:
            print(
                f"decoding {stored.num_images:,} views once into the memory of {device}: {size / MIB:,.1f} MiB",
                flush=True,
            )
        self.pixels = torch.empty(stored.num_images, *stored.image_size, 3, dtype=torch.uint8, device=device)
        self._decode_into(self.pixels, keep_bad_views, show_progress)

    def _pixels_of(self, object_index: int, view: int, place: int) -> np.ndarray:
        return self.pixels[place].numpy(force=True)

    def fetched(self, objects: np.ndarray, views: np.ndarray) -> Fetched:
        """The images [b, V, H, W, 3] of views [b, V] of objects [b], on the device, and which of them are bad."""
        (places,) = copy_together([torch.from_numpy(self.places(objects, views))], self.pixels.device)
        problems: dict[int, DataError] = {}
        if self._bad_views:
            for row, column in np.ndindex(views.shape):
                problem = self._bad_views.get((int(objects[row]), int(views[row, column])))
                if problem is not None:
                    problems.setdefault(row, DataError(problem))
        return Fetched(
            images=self.pixels.index_select(0, places.flatten()).unflatten(0, views.shape),
            content_sizes=None if self._content_sizes is None else self._content_sizes[objects[:, None], views],
            problems=problems,
        )


def device_loader(kept: DecodedOnDevice, **options: Unpack[BatchOptions]) -> Loader:
    """Batches of views that lie on a device, where their images are, in memory of their own.

    Batches are those of `stored_loader` with the same seed, to the bit. Raises ValueError for sizes that do not fit.
    """
    bad_records = bad_records_of(options)
    fetcher = DeviceFetcher(kept, bad_records.are_skipped)
    return Loader(kept, BatchOrder.of(kept, options), fetcher, prefetch=0, bad_records=bad_records)


class DeviceFetcher(Fetcher):
    """Takes a batch out of the device's memory when it is asked for, on the stream that is current then."""

    def __init__(self, kept: DecodedOnDevice, report_bad_records: bool) -> None:
        self._kept, self._report_bad_records = kept, report_bad_records

    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Nothing is to be done ahead."""
        return PendingBatch(step, objects, views)

    def finish(self, pending: PendingBatch) -> Fetched:
        """Queues the copy."""
        fetched = self._kept.fetched(pending.objects, pending.views)
        if fetched.problems and not self._report_bad_records:
            raise next(iter(fetched.problems.values()))
        return fetched
