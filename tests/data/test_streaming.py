import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.remote.transport import Patience
from ssl_equi.data.remote.views import RemoteRecords, RemoteShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from tests.data.faulty_server import PATIENT, FaultyServer, impatient

SHARD = "train-000001.tar"  # objects 5 to 9

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def server(shared_split: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Serves a split of 23 objects in shards of 5."""
    yield from _serve(shared_split, monkeypatch)


@pytest.fixture
def own_server(own_split: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Serves a split that the test may damage."""
    yield from _serve(own_split, monkeypatch)


def _serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FaultyServer(folder)
    yield server
    server.close()


def _loader(location: str | Path, **options) -> Loader:
    defaults = {"global_batch_size": 4, "seed": 1, "shuffle_buffer": 6, "patience": PATIENT}
    return streamed_loader(location, "train", **(defaults | options))


def _take(location: str | Path, count: int, start_step: int = 0, **options) -> list[Tensors]:
    """Copies of the tensors of `count` batches."""
    with _loader(location, **options) as loader:
        batches = itertools.islice(loader.batches(start_step), count)
        return [
            {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            for batch in batches
        ]


def _assert_equal(found: list[Tensors], expected: list[Tensors]) -> None:
    assert len(found) == len(expected)
    for found_batch, expected_batch in zip(found, expected):
        assert found_batch.keys() == expected_batch.keys()
        for name, tensor in expected_batch.items():
            assert torch.equal(found_batch[name], tensor), name


def _steps_with(loader: Loader, object_index: int, steps: int = 5) -> list[int]:
    return [step for step in range(steps) if object_index in loader.order.batch(step)[0]]


# What a batch holds.


@pytest.mark.parametrize("mode", ["exact", "resampled"])
def test_batch_holds_what_the_indexed_reader_gives(shared_split, mode):
    dataset = ShardDataset(shared_split, "train")
    for batch in _take(shared_split, 12, mode=mode, views=3):
        objects, views = batch["object_indices"].numpy(), batch["view_indices"].numpy()
        pixels = np.zeros((4, 3, *dataset.image_size, 3), dtype=np.uint8)
        dataset.read_views(objects, views, pixels)
        np.testing.assert_array_equal(batch["images"].numpy(), pixels)
        np.testing.assert_array_equal(batch["latents"].numpy(), dataset.latents[objects[:, None], views])
        np.testing.assert_array_equal(batch["quat_xyzw"].numpy(), dataset.quats_xyzw[objects[:, None], views])
        np.testing.assert_array_equal(batch["labels"].numpy(), dataset.labels[objects])


def test_an_object_has_the_views_of_the_indexed_loader_in_each_epoch(shared_split):
    def pairs(batches: list[Tensors]) -> dict[int, tuple[int, ...]]:
        return {
            number: tuple(views)
            for batch in batches
            for number, views in zip(batch["object_indices"].tolist(), batch["view_indices"].tolist())
        }

    with stored_loader(ShardDataset(shared_split, "train"), global_batch_size=1, seed=1) as loader:
        batches = itertools.islice(loader.batches(23), 23)
        indexed = pairs([{"object_indices": b.object_indices, "view_indices": b.view_indices} for b in batches])
    streamed = pairs(_take(shared_split, 5, start_step=5))
    assert streamed.items() <= indexed.items() and len(streamed) == 20


def test_only_drawn_views_are_decoded(shared_split, monkeypatch):
    import simplejpeg

    decoded = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *a, **o: decoded.append(1) or original(*a, **o))
    _take(shared_split, 5, prefetch=0, views=2)
    assert len(decoded) == 5 * 4 * 2


# Order.


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("objects_per_shard", [5, 23, 1], ids=["uneven", "one shard", "a shard an object"])
@pytest.mark.parametrize("keep", [False, True])
def test_every_object_once_an_epoch_over_all_ranks(
    tmp_path, records, write_train_split, world_size, objects_per_shard, keep
):
    write_train_split(tmp_path, records, objects_per_shard)
    dataset = ShardDataset(tmp_path, "train")
    seen: list[int] = []
    for rank in range(world_size):
        left_over = [3 // world_size] if keep and world_size < 4 else []
        sizes = [4 // world_size] * 5 + left_over
        batches = _take(tmp_path, len(sizes), rank=rank, world_size=world_size, keep_incomplete_batch=keep)
        assert [len(batch["labels"]) for batch in batches] == sizes
        seen += torch.cat([batch["object_indices"] for batch in batches]).tolist()
        for batch in batches:
            pixels = np.zeros(batch["images"].shape, dtype=np.uint8)
            dataset.read_views(batch["object_indices"].numpy(), batch["view_indices"].numpy(), pixels)
            np.testing.assert_array_equal(batch["images"].numpy(), pixels)
    assert len(seen) == len(set(seen)) == 20 + sum(left_over) * world_size


def test_batches_do_not_depend_on_threads_prefetch_or_where_the_shards_lie(server, shared_split):
    expected = _take(shared_split, 11)
    for threads, prefetch in ((1, 0), (4, 3)):
        _assert_equal(_take(shared_split, 11, threads=threads, fetch_threads=threads, prefetch=prefetch), expected)
    _assert_equal(_take(server.url, 11), expected)


@pytest.mark.parametrize("mode", ["exact", "resampled"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("start_step", [0, 1, 3, 4, 5, 8])
def test_resuming_at_any_step_continues_the_sequence(shared_split, start_step, keep, mode):
    options = {"mode": mode, "world_size": 2, "rank": 1, "keep_incomplete_batch": keep}
    whole = _take(shared_split, 12, **options)
    _assert_equal(_take(shared_split, 12 - start_step, start_step=start_step, **options), whole[start_step:])


def test_resuming_reads_no_more_than_the_buffer_again(tmp_path, random_records, write_train_split, monkeypatch):
    write_train_split(tmp_path, random_records(num_objects=120, num_views=2), 50)
    fetched: list[int] = []
    original = RemoteRecords.fetch

    def fetch(self, objects, views):
        fetched.extend(objects.tolist())
        return original(self, objects, views)

    monkeypatch.setattr(RemoteRecords, "fetch", fetch)
    _take(tmp_path, 9, start_step=21, prefetch=0, shuffle_buffer=10)  # to the end of the epoch, and little beyond
    with _loader(tmp_path, shuffle_buffer=10) as loader:
        rest = np.concatenate([loader.order.batch(step)[0] for step in range(21, 30)])
        ahead = loader.order.epoch_plan(1)
    assert set(rest.tolist()) <= set(fetched)
    assert len(fetched) <= len(rest) + int(ahead.needed[2 * 4 - 1])


def test_new_iterator_ends_the_earlier_one(shared_split):
    expected = _take(shared_split, 4)
    with _loader(shared_split) as loader:
        earlier = loader.batches()
        next(earlier)
        later = loader.batches(start_step=3)
        assert list(earlier) == []
        assert torch.equal(next(later).images, expected[3]["images"])
        never_started = loader.batches()
        assert torch.equal(next(loader.batches(1)).images, expected[1]["images"])
        assert list(never_started) == []


def test_no_more_is_kept_than_what_is_still_to_be_given_out(shared_split):
    with _loader(shared_split, prefetch=0) as loader:
        for _ in itertools.islice(loader.batches(), 23):
            arriving = loader.fetcher.read_ahead._reading.arriving
            waiting = [request for requests in arriving.values() for request, _ in requests]
            # What has been asked for: three steps further than this one, and the buffer, of two epochs at most.
            assert len(waiting) <= 3 * 4 + 2 * 6
            for request in set(waiting):
                assert sum(encoded is not None for encoded in request.result().rows) == waiting.count(request)


def test_wrong_arguments_are_refused(shared_split):
    for options, message in (
        ({"shuffle_buffer": 0}, "give at least 1 object"),
        ({"fetch_threads": 0}, "fetch_threads is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            _loader(shared_split, **options)
    with pytest.raises(DataError, match=r"location 'pipe:cat x' is refused"):
        _loader("pipe:cat x")


# Bad records.


def _damage_views(folder: Path, objects: range | list[int]) -> None:
    """Change a byte of every view of some objects."""
    index = folder / "train.index"
    offsets, numbers = np.load(index / "offsets.npy"), np.load(index / "shard_numbers.npy")
    for number in objects:
        with open(folder / f"train-{numbers[number]:06d}.tar", "r+b") as file:
            for offset in offsets[number]:
                file.seek(offset + 300)
                byte = file.read(1)
                file.seek(offset + 300)
                file.write(bytes([byte[0] ^ 255]))


def test_bad_record_raises_from_the_batch_it_concerns(own_server, own_split):
    _damage_views(own_split, [7])
    for location in (own_server.url, own_split):
        with _loader(location) as loader:
            (bad_step,) = _steps_with(loader, 7)
            batches = loader.batches()
            for _ in range(bad_step):
                next(batches)
            with pytest.raises(DataError, match=rf"'object_007\.v0\d\.jpg' .*{location}/{SHARD} does not match"):
                next(batches)


def test_a_record_that_is_bad_in_every_epoch_counts_once_towards_the_limit(own_split):
    _damage_views(own_split, [7])
    with _loader(own_split, on_bad_record="skip", max_skipped=1) as loader:
        list(itertools.islice(loader.batches(), 4 * loader.steps_per_epoch))
        assert loader.skipped == len(_steps_with(loader, 7, steps=4 * loader.steps_per_epoch)) >= 3


@pytest.mark.parametrize("on_bad_record", ["raise", "skip"])
@pytest.mark.parametrize("length", [None, 0, 5000])
def test_cut_or_missing_shard_is_never_skipped(own_server, own_split, on_bad_record, length):
    for location in (own_server.url, own_split):
        with _loader(location, on_bad_record=on_bad_record) as loader:
            if length is None:
                (own_split / SHARD).unlink(missing_ok=True)
            else:
                os.truncate(own_split / SHARD, length)
            with pytest.raises(DataError, match=rf"views of 'object_00\d.* are not to be had: .*/{SHARD}"):
                list(itertools.islice(loader.batches(), 5))


# Servers that fail, and threads that die.


@pytest.mark.parametrize("fault", ["stall", "drop", "drip", 404, 500, 503, "whole"])
def test_failing_server_ends_the_run_with_shard_and_keys(server, fault):
    server.fail(SHARD, fault)
    with (
        _loader(server.url, patience=impatient()) as loader,
        pytest.raises(DataError, match=rf"views of 'object_00\d'.* are not to be had: {server.url}/{SHARD} cannot"),
    ):
        list(itertools.islice(loader.batches(), 5))


@pytest.mark.parametrize("fault", ["stall", "drop", 500, 503])
def test_faults_that_pass_change_nothing(server, shared_split, fault):
    expected = _take(shared_split, 6)
    for number in range(5):
        server.fail(f"train-{number:06d}.tar", fault, times=1)
    _assert_equal(_take(server.url, 6, patience=impatient(retries=4)), expected)


def test_failed_server_is_not_asked_again_and_again_and_the_loader_can_go_on(server, shared_split):
    expected = _take(shared_split, 3)
    for number in range(5):
        server.fail(f"train-{number:06d}.tar", 503, times=1000)
    with _loader(server.url, fetch_threads=1, patience=impatient()) as loader:
        with pytest.raises(DataError, match="503"):
            next(loader.batches())
        assert sum(count for name, count in server.requests.items() if name.endswith(".tar")) == 2  # one and its retry
        server.faults.clear()
        for step, batch in enumerate(itertools.islice(loader.batches(), 3)):
            assert torch.equal(batch.images, expected[step]["images"])


def test_close_does_not_wait_for_a_stalling_server(server):
    server.fail(SHARD, "stall")
    loader = _loader(server.url, patience=Patience(timeout_seconds=2, retries=10_000))
    loader.batches()
    loader.fetcher.read_ahead.read_until(5)
    loader.close()  # or the test would run into its time limit


@pytest.mark.parametrize(("owner", "place"), [(RemoteRecords, "fetch"), (RemoteShards, "decode")])
@pytest.mark.parametrize("error", [MemoryError("no memory"), SystemExit("the thread ends")])
def test_a_thread_that_dies_ends_the_run_with_its_message(shared_split, monkeypatch, owner, place, error):
    calls = itertools.count()

    def die(self, *arguments):
        if next(calls) == 3:
            raise error
        return original(self, *arguments)

    original = getattr(owner, place)
    monkeypatch.setattr(owner, place, die)
    for on_bad_record in ("raise", "skip"):
        calls = itertools.count()
        with (
            _loader(shared_split, on_bad_record=on_bad_record) as loader,
            pytest.raises(type(error), match=str(error)),
        ):
            list(itertools.islice(loader.batches(), 5))
