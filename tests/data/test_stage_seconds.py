"""What a batch cost is measured where it is spent, in every reader."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data import image_shards, resizing
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.fit import Canvas
from ssl_equi.data.image_shards import ImageShards
from ssl_equi.data.loader import OrderedLoader, ViewLoader
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.remote_records import RemoteRecords
from ssl_equi.data.shard_files import ShardFiles
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.stage_seconds import StageSeconds, Stopwatch
from ssl_equi.data.streaming import StreamedLoader
from ssl_equi.training.log import SpeedWindow


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


def _indexed(folder: Path, pictures: Path) -> OrderedLoader:
    return ViewLoader(ShardDataset(folder, "train"), global_batch_size=8, seed=0, threads=2)


def _ordinary(folder: Path, pictures: Path) -> OrderedLoader:
    views = SingleViews(ImageShards(pictures, "train"), Canvas(32))
    return ViewLoader(views, global_batch_size=8, views=1, seed=0, threads=2)


def _streamed(folder: Path, pictures: Path) -> StreamedLoader:
    return StreamedLoader(folder, "train", global_batch_size=8, seed=0, threads=2, shuffle_buffer=8)


@pytest.mark.parametrize(
    ("make_loader", "reads", "decodes", "views", "reads_per_view"),
    [
        (_indexed, (ShardFiles, "read"), (resizing, "decode_view"), 16, True),
        (_ordinary, (ShardFiles, "read"), (image_shards, "decode_image"), 8, True),
        (_streamed, (RemoteRecords, "fetch"), (resizing, "decode_view"), 16, False),
    ],
)
def test_a_batch_says_how_long_its_reading_and_its_decoding_took(
    shared_split: Path,
    picture_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    make_loader: Callable[[Path, Path], OrderedLoader],
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
    clock.slow_down(monkeypatch, resizing, "decode_view", 1)
    dataset = ShardDataset(own_split, "train")
    with ViewLoader(dataset, global_batch_size=8, seed=0, on_bad_record="skip") as loader:
        assert next(loader.batches()).stage_seconds.decoding == 16


def test_measuring_costs_less_than_half_a_percent_of_decoding(shared_split: Path) -> None:
    """Two readings of the clock a view, against views of 24 x 32 pixels: those of a data set are larger."""
    dataset = ShardDataset(shared_split, "train")
    objects, views = np.arange(20), np.tile(np.arange(6), (20, 1))
    out = np.zeros((20, 6, *dataset.image_size, 3), np.uint8)
    decoding = min(dataset.read_views(objects, views, out).decoding for _ in range(5)) / views.size
    clock = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            time.perf_counter()
            time.perf_counter()
        clock.append((time.perf_counter() - began) / 1000)
    assert min(clock) < 0.02 * decoding, "of these tiny images; 256 x 256 pixels take 20 times as long"


def _batch(**changes) -> ViewBatch:
    zeros = torch.zeros(4, dtype=torch.int64)
    fields = {
        "images": torch.zeros(4, 2, 3, 3, 3, dtype=torch.uint8), "latents": torch.zeros(4, 2, 0), "quat_xyzw": None,
        "labels": zeros, "object_indices": zeros, "view_indices": torch.zeros(4, 2, dtype=torch.int64),
    }  # fmt: skip
    return ViewBatch(**(fields | changes))


def test_a_window_adds_up_its_batches_and_the_making_of_views(clock: Clock) -> None:
    class Maker:
        def __call__(self, batch: ViewBatch, step: int) -> int:
            with batch.augmenting:
                clock.now += 1
                if step < 0:
                    raise ValueError("no such step")
                return step + 1

    window = SpeedWindow()
    for step in range(3):
        batch = _batch(stage_seconds=StageSeconds(0.5, 1.5), seconds_waited=0.001, augmenting=window.augmenting)
        window.add(batch, world_size=2)
        assert Maker()(batch.to("cpu"), step) == step + 1
    with pytest.raises(ValueError, match="no such step"):
        Maker()(batch, -1)
    clock.now += 1
    speed = window.speed(records_skipped=7)
    assert (speed.read_thread_seconds, speed.decode_thread_seconds, speed.records_skipped) == (1.5, 4.5, 7)
    assert (speed.augment_seconds, speed.window_seconds) == (4, 5)
    assert speed.images_per_second == pytest.approx(3 * 4 * 2 * 2 / speed.window_seconds)
    assert speed.waiting_share == pytest.approx(0.003 / speed.window_seconds)
    assert sum(speed.work_shares.values()) == pytest.approx(1)


def test_a_batch_has_a_stopwatch_of_its_own_until_a_window_gives_it_another(clock: Clock) -> None:
    first, second = _batch(), _batch()
    with first.augmenting:
        clock.now += 1
    assert first.augmenting.seconds == 1 and second.augmenting.seconds == 0
    assert isinstance(second.augmenting, Stopwatch)
