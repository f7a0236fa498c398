"""What a batch cost is measured where it is spent, in every reader."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.data.images import Canvas
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.remote import views as remote_views
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.remote.views import RemoteRecords
from ssl_equi.data.shards import image_shards, reader
from ssl_equi.data.shards.files import ShardFiles
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.stage_seconds import CLOCK, StageSeconds


class Clock(threading.local):
    """A clock of each thread, which stands still but for what is said to take time."""

    now = 0.0

    def slow_down(self, patch: pytest.MonkeyPatch, owner: object, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def slow(*arguments):
            self.now += seconds
            return original(*arguments)

        patch.setattr(owner, name, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def _indexed(folder: Path, pictures: Path) -> Loader:
    return stored_loader(ShardDataset(folder, "train"), global_batch_size=8, seed=0, threads=2)


def _ordinary(folder: Path, pictures: Path) -> Loader:
    views = SingleViews(ImageShards(pictures, "train"), Canvas(32))
    return stored_loader(views, global_batch_size=8, views=1, seed=0, threads=2)


def _streamed(folder: Path, pictures: Path) -> Loader:
    return streamed_loader(folder, "train", global_batch_size=8, seed=0, threads=2, shuffle_buffer=8)


@pytest.mark.parametrize(
    ("make_loader", "reads", "decodes", "views", "reads_per_view"),
    [
        (_indexed, (ShardFiles, "read"), (reader, "decode_view"), 16, True),
        (_ordinary, (ShardFiles, "read"), (image_shards, "decode_image"), 8, True),
        (_streamed, (RemoteRecords, "fetch"), (remote_views, "decode_view"), 16, False),
    ],
)
def test_a_batch_says_how_long_its_reading_and_its_decoding_took(
    shared_split: Path,
    picture_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    make_loader: Callable[[Path, Path], Loader],
    reads: tuple[object, str],
    decodes: tuple[object, str],
    views: int,
    reads_per_view: bool,
) -> None:
    """Seconds of the threads: two that work side by side have both worked."""
    clock.slow_down(monkeypatch, *reads, 1)
    clock.slow_down(monkeypatch, *decodes, 2)
    with make_loader(shared_split, picture_shards) as loader:
        spent = next(loader.batches()).stage_seconds
    assert spent.decoding == 2 * views
    if reads_per_view:
        assert spent.reading == views
    else:  # a request is shared by the views that it brings; several are needed for objects of several shards
        assert 1 / 16 <= spent.reading < views


def test_rows_that_are_read_one_by_one_add_up(own_split: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    clock.slow_down(monkeypatch, reader, "decode_view", 1)
    dataset = ShardDataset(own_split, "train")
    with stored_loader(dataset, global_batch_size=8, seed=0, on_bad_record="skip") as loader:
        assert next(loader.batches()).stage_seconds.decoding == 16


def test_measuring_costs_little_of_decoding(shared_split: Path) -> None:
    """One stage within another a view, against views of 24 x 32 pixels: those of a data set are larger."""
    dataset = ShardDataset(shared_split, "train")
    objects, views = np.arange(20), np.tile(np.arange(6), (20, 1))
    decoding, clock = [], []
    for _ in range(5):
        began = CLOCK.spent
        dataset.images(objects, views)
        decoding.append((CLOCK.spent - began).decoding / views.size)
        began_to_measure = time.perf_counter()
        for _ in range(1000):
            with CLOCK.during("reading"):
                pass
        clock.append((time.perf_counter() - began_to_measure) / 1000)
    assert min(clock) < 0.1 * min(decoding), "of these tiny images; 256 x 256 pixels take 20 times as long"


def test_a_stage_within_another_stops_its_time_in_each_thread(clock: Clock) -> None:
    def stages(_: int) -> StageSeconds:
        began = CLOCK.spent
        with CLOCK.during("decoding"):
            clock.now += 1
            with CLOCK.during("reading"):
                clock.now += 2
            with CLOCK.during("other"):
                clock.now += 20
        CLOCK.add_reading(1)
        return CLOCK.spent - began

    with ThreadPoolExecutor(2) as pool:
        for spent in pool.map(stages, range(2)):
            assert (spent.decoding, spent.reading) == (1, 3)
