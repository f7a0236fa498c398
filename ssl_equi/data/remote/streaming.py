"""Batches streamed from shards, local or remote, read from front to back through a shuffle buffer.

For data that are too large or too slow to reach for random access. What is on a local disk, or fits there
(`ssl_equi.data.remote.download.download_split`), is better read by `ssl_equi.data.loading.threads.stored_loader`, which
mixes all objects and whose batches don't depend on the number of processes.
"""

import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np

from ssl_equi.data.derived import DerivedViews, resized
from ssl_equi.data.images import Fit
from ssl_equi.data.loading.loader import Fetched, Fetcher, Loader, PendingBatch, bad_records_of
from ssl_equi.data.loading.ring import RingFetcher
from ssl_equi.data.loading.threads import ring_fetcher
from ssl_equi.data.order import BatchOptions, check_enough_views, sizes_of
from ssl_equi.data.remote.streaming_order import StreamedOrder, StreamingMode
from ssl_equi.data.remote.transport import Patience
from ssl_equi.data.remote.views import RemoteImages, RemoteShards, RemoteViews, runs_of_neighbours
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.errors import DataError, LostShardError

_Draw = tuple[int, ...]  # an object and its views


def streamed_loader(
    location: str | Path,
    split: str,
    *,
    fit: Fit | None = None,
    image_size: int | None = None,
    threads: int = 2,
    fetch_threads: int = 8,
    prefetch: int = 3,
    shuffle_buffer: int = 1000,
    mode: StreamingMode = "exact",
    patience: Patience | None = None,
    pin_memory: bool | None = None,
    **options: Unpack[BatchOptions],
) -> Loader:
    """Batches of the split at a local folder, or an http://, https:// or s3:// address, of manifest, index and shards.

    They hold the same pixels as `stored_loader`'s for the same object and view. A batch is a function of (seed, step,
    rank, world size, global batch size, shuffle buffer, mode); `batches(step)` continues a run exactly, and reads at
    most `shuffle_buffer` objects a second time. All ranks have equally many batches, also with fewer shards than ranks.
    With other sizes it is another order, so change them between epochs.

    Args:
        fit: for ordinary images: how they are brought to one size; None for rendered objects.
        image_size: side in pixels that the views of rendered objects are resized to; None keeps their stored size.
        fetch_threads: that fetch, each of which mostly waits for its answer.
        prefetch: batches that are decoded ahead; twice as many are fetched ahead.
        shuffle_buffer: the most objects that wait, encoded, to be given out; objects mix only within it.
        mode: exact: in an epoch every object is in one batch of one rank, but for those left over at its end, with the
            views that `stored_loader` draws. resampled: runs of objects as long as a shard, drawn with replacement.

    Raises DataError as `RemoteShards`, ValueError for sizes that do not fit; `batches` raises DataError, with shard and
    key, for what can't be read.
    """
    bad_records = bad_records_of(options)
    if threads < 1 or fetch_threads < 1 or prefetch < 0:
        raise ValueError(
            f"threads is {threads}, fetch_threads is {fetch_threads} and prefetch {prefetch}: give at least 1 thread "
            f"of each kind and prefetch >= 0"
        )
    remote = RemoteShards(location, split, patience) if fit is None else RemoteImages(location, split, fit, patience)
    check_enough_views(remote, options)
    order = StreamedOrder(
        shard_counts=remote.records.shard_counts, num_views=remote.views_of_each, shuffle_buffer=shuffle_buffer,
        mode=mode, **sizes_of(options),
    )  # fmt: skip
    read_ahead = ReadAhead(remote, order, fetch_threads)
    views = resized(read_ahead, image_size if fit is None else None)
    decoding = ring_fetcher(views, order, bad_records, threads, 0, prefetch, pin_memory)
    fetcher = StreamedFetcher(read_ahead, decoding, batches_ahead=prefetch + 2)
    return Loader(views, order, fetcher, prefetch=prefetch, bad_records=bad_records)


class StreamedFetcher(Fetcher):
    """Asks for what a batch needs `batches_ahead` before it is decoded."""

    def __init__(self, read_ahead: "ReadAhead", decoding: RingFetcher, batches_ahead: int) -> None:
        self.read_ahead, self.decoding = read_ahead, decoding
        self._batches_ahead = batches_ahead

    def begin(self, step: int) -> None:
        """Read ahead anew."""
        self.read_ahead.begin(step)

    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Ask for what the next batches need, and decode this one."""
        self.read_ahead.read_until(step + self._batches_ahead)
        return self.decoding.start(step, objects, views)

    def finish(self, pending: PendingBatch) -> Fetched:
        """Wait for the decoded views."""
        return self.decoding.finish(pending)

    def stop(self, for_good: bool = False) -> None:
        """Let nobody wait for the server."""
        self.read_ahead.stop(for_good)

    def close(self) -> None:
        """End the threads."""
        self.decoding.close()
        self.read_ahead.close()


@dataclass(frozen=True)
class _Request:
    """What one request brought."""

    rows: list[list[bytes] | DataError | None]  # None once it was given out
    seconds_per_row: float


@dataclass
class _Reading:
    """What one iterator reads ahead."""

    first_step: int
    next_step: int  # the first step for which nothing has been asked yet
    # Of each draw: the requests that bring it, and its row in them.
    arriving: dict[_Draw, list[tuple[Future[_Request], int]]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: Exception | None = None  # why the shards can't be read any more
    stopped: bool = False


class ReadAhead(DerivedViews):
    """The views of a remote split that the coming batches need, fetched in threads; each draw is given out once."""

    def __init__(self, remote: RemoteViews, order: StreamedOrder, threads: int) -> None:
        super().__init__(remote)
        self._remote, self._order = remote, order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._reading = _Reading(0, 0, stopped=True)

    def begin(self, step: int) -> None:
        """Start anew at a step; the earlier reading must have been stopped."""
        self._reading = _Reading(step, step)

    def stop(self, for_good: bool) -> None:
        """Let nobody wait any longer: requests that have not begun are cancelled, others fail if it is for good."""
        if for_good:
            self._remote.records.remote.close()
        reading = self._reading
        with reading.lock:
            reading.stopped = True
            for requests in reading.arriving.values():
                for request, _ in requests:
                    request.cancel()

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown(cancel_futures=True)

    def read_until(self, end_step: int) -> None:
        """Ask for all that the steps before `end_step` need."""
        reading = self._reading
        while reading.next_step < end_step and not reading.stopped:
            objects, views = self._newly_needed(reading)
            for run in runs_of_neighbours(self._remote.records.shards_of(objects)):
                request = self._pool.submit(self._fetch, reading, objects[run], views[run])
                with reading.lock:
                    for row, draw in enumerate(_draws(objects[run], views[run])):
                        reading.arriving[draw].append((request, row))
            reading.next_step += 1

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        """Decode views that were asked for, once they have been fetched."""
        for row, draw in enumerate(_draws(object_indices, view_indices)):
            with CLOCK.during("other"):  # waiting; what the threads that fetch spent is added when it is there
                encoded = self._take(draw)
            if isinstance(encoded, DataError):
                raise encoded
            sizes = self._remote.decode(draw[0], view_indices[row], encoded, out[row])
            if sizes_out is not None:
                sizes_out[row] = sizes

    def _newly_needed(self, reading: _Reading) -> tuple[np.ndarray, np.ndarray]:
        """Objects and views that the next step needs and that nobody asked for before, in the order of the shards."""
        order = self._order
        epoch, step_in_epoch = divmod(reading.next_step, order.steps_per_epoch)
        plan = order.epoch_plan(epoch)
        first = step_in_epoch * order.local_batch_size
        end = min(first + order.local_batch_size, order.objects_per_epoch)
        asked_for_before = 0 if first == 0 or reading.first_step == reading.next_step else int(plan.needed[first - 1])
        places = np.arange(asked_for_before, int(plan.needed[end - 1]))
        if reading.first_step == reading.next_step:  # what earlier steps gave out isn't read again
            places = np.setdiff1d(places, plan.given_out[:first], assume_unique=True)
        return plan.objects[places], plan.views[places]

    def _fetch(self, reading: _Reading, objects: np.ndarray, views: np.ndarray) -> _Request:
        if reading.failure is not None:  # do not try the server again and again while the run ends
            raise reading.failure
        began = time.perf_counter()
        try:
            rows = self._remote.records.fetch(objects, views)
            return _Request(list(rows), (time.perf_counter() - began) / len(rows))
        except Exception as error:
            reading.failure = error
            raise

    def _take(self, draw: _Draw) -> list[bytes] | DataError:
        """The encoded views of a draw, which are given out once."""
        reading = self._reading
        with reading.lock:
            if reading.stopped:
                raise RuntimeError("this iterator has ended")
            request, row = reading.arriving[draw].pop()
            if not reading.arriving[draw]:
                del reading.arriving[draw]
        try:
            fetched = request.result()
        except DataError as error:
            raise LostShardError(str(error)) from error
        CLOCK.add_reading(fetched.seconds_per_row)
        encoded = fetched.rows[row]
        assert encoded is not None, "a draw is given out once"
        fetched.rows[row] = None  # the buffer keeps no bytes that were given out
        return encoded


def _draws(object_indices: np.ndarray, view_indices: np.ndarray) -> list[_Draw]:
    return [tuple(row) for row in np.column_stack([object_indices, view_indices]).tolist()]
