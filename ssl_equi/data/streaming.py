"""Batches streamed from shards, local or remote, read from front to back through a shuffle buffer.

For data that are too large or too slow to reach for random access. What is on a local disk, or fits there
(`ssl_equi.data.remote_download.download_split`), is better read by `ssl_equi.data.loader.ViewLoader`, which mixes all
objects and whose batches don't depend on the number of processes.
"""

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from ssl_equi.data.bad_records import BadRecords, OnBadRecord
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import check_request
from ssl_equi.data.fit import Fit
from ssl_equi.data.loader import OrderedLoader
from ssl_equi.data.remote_files import Patience
from ssl_equi.data.remote_shards import RemoteCollection, RemoteImages, RemoteShards, runs_of_neighbours
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.data.streaming_order import StreamedOrder, StreamingMode
from ssl_equi.errors import DataError, LostShardError

_Draw = tuple[int, ...]  # an object and its views


class StreamedLoader:
    """Endless batches of `views` distinct views of each of `global_batch_size` objects, over all ranks.

    Yields the `ViewBatch` of `ViewLoader`, with the same pixels for the same object and view; only the views that are
    drawn are decoded.

    What it guarantees:

    - A batch is a function of (seed, step, rank, world size, global batch size, shuffle buffer, mode), whatever the
      threads, and however long the server took. `batches(step)` continues a run exactly; to fill the buffer again, at
      most `shuffle_buffer` objects are read a second time.
    - mode="exact": in an epoch, every object is in exactly one batch of one rank, but for those left over at its
      end, which are others in each epoch (with keep_incomplete_batch fewer than there are ranks, or one). The views
      that an object has in an epoch are those that `ViewLoader` draws with the same seed.
    - All ranks have equally many batches, however uneven the shards, and also with fewer shards than ranks, which then
      share them.

    What it doesn't:

    - Objects mix only within the shuffle buffer, not over the whole split. The shards come in a new order each epoch.
    - With another world size, batch size or shuffle buffer it is another order: change them between epochs, or some
      objects come twice and others not at all in the present one.
    - mode="resampled": runs of consecutive objects, as long as a shard, are drawn with replacement, so in an epoch some
      objects come more than once and others not at all. An epoch is as long as in the other mode.

    Never pass it to `Accelerator.prepare`: it already gives each rank its own objects. `batches` keeps the promise of
    `ViewLoader.batches` about how long a batch's images stay valid. Use it as a context manager, or call `close`.

    Args:
        location: local folder, or http://, https:// or s3:// address, of manifest, index and shards.
        split: name of the split.
        fit: for ordinary images, which have one view each: how they are brought to one size; None for rendered objects.
        image_size: side in pixels that the views of rendered objects are resized to; None keeps their stored size.
        global_batch_size: objects in a batch over all ranks.
        views: distinct views of each object.
        seed: of order and views.
        rank: this process.
        world_size: number of processes.
        threads: threads that decode.
        fetch_threads: threads that fetch, each of which mostly waits for its answer.
        prefetch: batches that are decoded ahead; twice as many are fetched ahead.
        shuffle_buffer: the most objects that wait, encoded, to be given out.
        mode: "exact" or "resampled".
        keep_incomplete_batch: end an epoch with a smaller batch, as in `ViewLoader`.
        on_bad_record: "raise" for a view that is cut, changed, misnamed or does not decode; "skip" replaces its object
            by the next good one of the same rank's batch, logs it and counts it in `skipped`. A shard that is missing,
            of another size or out of reach always raises: going on would leave a hole in the data.
        max_skipped: the most different objects that this loader replaces before it raises.
        patience: how long a server is waited for.
        pin_memory: as in `ViewLoader`.

    Raises:
        ValueError: sizes that do not fit.
        DataError: as `RemoteShards`; from `batches`, with shard and key, what can't be read.
    """

    def __init__(
        self,
        location: str | Path,
        split: str,
        *,
        fit: Fit | None = None,
        image_size: int | None = None,
        global_batch_size: int,
        views: int = 2,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        fetch_threads: int = 8,
        prefetch: int = 3,
        shuffle_buffer: int = 1000,
        mode: StreamingMode = "exact",
        keep_incomplete_batch: bool = False,
        on_bad_record: OnBadRecord = "raise",
        max_skipped: int = 100,
        patience: Patience | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        bad_records = BadRecords(on_bad_record, max_skipped, rank)
        if fetch_threads < 1:
            raise ValueError(f"fetch_threads is {fetch_threads}: give at least 1")
        self.dataset: RemoteCollection
        if fit is None:
            self.dataset = RemoteShards(location, split, patience, image_size)
        else:
            self.dataset = RemoteImages(location, split, fit, patience)
        self.order = StreamedOrder(
            shard_counts=self.dataset.records.shard_counts,
            num_views=self.dataset.num_views,
            global_batch_size=global_batch_size,
            views=views,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle_buffer=shuffle_buffer,
            mode=mode,
            keep_incomplete_batch=keep_incomplete_batch,
        )
        self._batches_ahead = 2 * prefetch + 2
        self._read_ahead = _ReadAhead(self.dataset, self.order, fetch_threads)
        self._loader = OrderedLoader(
            self._read_ahead, self.order, threads=threads, prefetch=prefetch, pin_memory=pin_memory,
            bad_records=bad_records,
        )  # fmt: skip

    def __enter__(self) -> "StreamedLoader":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch, the same number on every rank."""
        return self.order.steps_per_epoch

    @property
    def skipped(self) -> int:
        """Bad records that were replaced in the batches given out so far."""
        return self._loader.skipped

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Yield the batches of global steps start_step, start_step + 1, ... without end.

        An earlier iterator of this loader ends when a new one begins. A bad record raises from the batch it concerns; a
        server that fails raises as soon as it is given up.
        """
        self._read_ahead.stop()
        batches = self._loader.batches(start_step)
        return self._iterate(start_step, batches, self._read_ahead.begin(start_step))

    def close(self) -> None:
        """Stop reading and end the threads."""
        self.dataset.records.remote.close()
        self._read_ahead.stop()
        self._loader.close()
        self._read_ahead.close()

    def _iterate(self, start_step: int, batches: Iterator[ViewBatch], reading: "_Reading") -> Iterator[ViewBatch]:
        step = start_step
        while True:
            self._read_ahead.read_until(reading, step + self._batches_ahead)
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
            step += 1


@dataclasses.dataclass(frozen=True)
class _Fetched:
    """What one request brought."""

    rows: list[list[bytes] | DataError | None]  # None once it was given out
    seconds_per_row: float


@dataclasses.dataclass
class _Reading:
    """What one iterator reads ahead."""

    first_step: int
    next_step: int  # the first step for which nothing has been asked yet
    arriving: dict[_Draw, list[tuple[Future, int]]]  # of each draw: the requests that bring it, and its row in them
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    failure: Exception | None = None  # why the shards can't be read any more
    stopped: bool = False


class _ReadAhead:
    """Fetches, in threads, what the coming batches need; `ssl_equi.data.collection.DecodedViews` of just that."""

    def __init__(self, dataset: RemoteCollection, order: StreamedOrder, threads: int) -> None:
        self.image_size = dataset.image_size
        self.fills_image = dataset.fills_image
        self.labels = dataset.labels
        self.latents = dataset.latents
        self.quats_xyzw = dataset.quats_xyzw
        self._dataset, self._order = dataset, order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._reading = _Reading(0, 0, {}, stopped=True)

    def begin(self, step: int) -> _Reading:
        """Start anew at a step; the earlier reading must have been stopped."""
        self._reading = _Reading(step, step, defaultdict(list))
        return self._reading

    def stop(self) -> None:
        """Let nobody wait any longer: requests that have not begun are cancelled."""
        reading = self._reading
        with reading.lock:
            reading.stopped = True
            for requests in reading.arriving.values():
                for request, _ in requests:
                    request.cancel()

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown(cancel_futures=True)

    def read_until(self, reading: _Reading, end_step: int) -> None:
        """Ask for all that the steps before `end_step` need."""
        while reading.next_step < end_step and not reading.stopped:
            objects, views = self._newly_needed(reading)
            for run in runs_of_neighbours(self._dataset.records.shards_of(objects)):
                self._request(reading, objects[run], views[run])
            reading.next_step += 1

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Decode views that were asked for; see `ViewCollection.read_views`. Waits until they have been fetched.

        What was spent on reading is what the threads that fetch spent on these views, not the waiting for them.
        """
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=len(self.labels), num_views=self.latents.shape[1], image_size=self.image_size,
        )  # fmt: skip
        reading = decoding = 0.0
        for row, draw in enumerate(_draws(object_indices, view_indices)):
            encoded, seconds = self._take(draw)
            reading += seconds
            if isinstance(encoded, DataError):
                raise encoded
            began = time.perf_counter()
            content_sizes = self._dataset.decode(draw[0], view_indices[row], encoded, out[row])
            if content_sizes_out is not None:
                content_sizes_out[row] = content_sizes
            decoding += time.perf_counter() - began
        return StageSeconds(reading, decoding)

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

    def _request(self, reading: _Reading, objects: np.ndarray, views: np.ndarray) -> None:
        request = self._pool.submit(self._fetch, reading, objects, views)
        with reading.lock:
            for row, draw in enumerate(_draws(objects, views)):
                reading.arriving[draw].append((request, row))

    def _fetch(self, reading: _Reading, objects: np.ndarray, views: np.ndarray) -> "_Fetched":
        if reading.failure is not None:  # do not try the server again and again while the run ends
            raise reading.failure
        began = time.perf_counter()
        try:
            rows = self._dataset.records.fetch(objects, views)
            return _Fetched(list(rows), (time.perf_counter() - began) / len(rows))
        except Exception as error:
            reading.failure = error
            raise

    def _take(self, draw: _Draw) -> tuple[list[bytes] | DataError, float]:
        """The encoded views of a draw, which are given out once, and its share of the seconds that fetching took."""
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
        encoded = fetched.rows[row]
        assert encoded is not None, "a draw is given out once"
        fetched.rows[row] = None  # the buffer keeps no bytes that were given out
        return encoded, fetched.seconds_per_row


def _draws(object_indices: np.ndarray, view_indices: np.ndarray) -> list[_Draw]:
    return [tuple(row) for row in np.column_stack([object_indices, view_indices]).tolist()]
