import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.reader import ShardDataset
from ssl_equi.errors import DataError
from tests.data.image_sets import flip


@pytest.fixture(scope="module")
def dataset(shared_split):
    return ShardDataset(shared_split, "train")


def _take(dataset: ShardDataset, count: int, start_step: int = 0, **options) -> list[dict[str, torch.Tensor]]:
    """Copies of the tensors of `count` batches."""
    with ViewLoader(dataset, **({"global_batch_size": 8, "seed": 1} | options)) as loader:
        batches = itertools.islice(loader.batches(start_step), count)
        return [
            {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            for batch in batches
        ]


def _assert_equal(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(found) == len(expected)
    for found_batch, expected_batch in zip(found, expected):
        for name, tensor in expected_batch.items():
            assert torch.equal(found_batch[name], tensor), name


def test_batch_holds_what_the_reader_gives(dataset):
    batch = _take(dataset, 1, views=3)[0]
    objects, views = batch["object_indices"].numpy(), batch["view_indices"].numpy()
    pixels = np.zeros((8, 3, *dataset.image_size, 3), dtype=np.uint8)
    dataset.read_views(objects, views, pixels)
    np.testing.assert_array_equal(batch["images"].numpy(), pixels)
    np.testing.assert_array_equal(batch["latents"].numpy(), dataset.latents[objects[:, None], views])
    np.testing.assert_array_equal(batch["quat_xyzw"].numpy(), dataset.quats_xyzw[objects[:, None], views])
    np.testing.assert_array_equal(batch["labels"].numpy(), dataset.labels[objects])
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "images": torch.uint8,
        "latents": torch.float32,
        "quat_xyzw": torch.float32,
        "labels": torch.int64,
        "object_indices": torch.int64,
        "view_indices": torch.int64,
    }


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_do_not_depend_on_threads_or_prefetch(dataset, threads, prefetch):
    _assert_equal(_take(dataset, 7, threads=threads, prefetch=prefetch), _take(dataset, 7))


@pytest.mark.parametrize("world_size", [2, 4])
def test_batches_of_the_ranks_join_to_the_global_ones(dataset, world_size):
    ranks = [_take(dataset, 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [
        {name: torch.cat([rank_batch[name] for rank_batch in rank_batches]) for name in rank_batches[0]}
        for rank_batches in zip(*ranks)
    ]
    _assert_equal(joined, _take(dataset, 5))


@pytest.mark.parametrize("start_step", [0, 1, 2, 3, 5])
def test_resuming_at_any_step_continues_the_sequence(dataset, start_step):
    whole = _take(dataset, 8)
    resumed = _take(dataset, 8 - start_step, start_step=start_step, threads=1)
    _assert_equal(resumed, whole[start_step:])


def test_epoch_visits_objects_once(dataset):
    with ViewLoader(dataset, global_batch_size=4, seed=0) as loader:
        assert loader.steps_per_epoch == 5
        batches = itertools.islice(loader.batches(), 5)
        seen = torch.cat([batch.object_indices for batch in batches]).tolist()
    assert len(seen) == len(set(seen)) == 20


def test_images_stay_valid_until_the_second_next_batch_is_asked_for(dataset):
    for prefetch in (0, 1, 3):
        with ViewLoader(dataset, global_batch_size=8, seed=2, prefetch=prefetch) as loader:
            batches = loader.batches()
            previous = next(batches)
            previous_pixels = previous.images.clone()
            for _ in range(2 * prefetch + 6):
                present = next(batches)
                present_pixels = present.images.clone()
                for pending in loader._pending:
                    wait(pending.chunks)  # all that is decoded ahead has been written
                assert torch.equal(previous.images, previous_pixels)
                previous, previous_pixels = present, present_pixels


def test_ring_reuses_its_buffers(dataset):
    with ViewLoader(dataset, global_batch_size=8, seed=2, prefetch=2) as loader:
        addresses = [batch.images.data_ptr() for batch in itertools.islice(loader.batches(), 12)]
    assert addresses == addresses[:4] * 3
    assert len(set(addresses)) == 4


def test_buffer_is_not_overwritten_before_the_copies_from_it_are_done(dataset, monkeypatch):
    copies_done = threading.Event()

    class PendingCopies:
        """Stands in for a CUDA event, which needs a GPU."""

        def synchronize(self) -> None:
            copies_done.wait(60)

    def mark_copies(self, slot) -> None:
        slot.copies_done = PendingCopies() if slot is self._ring[0] and marked else None
        marked.append(slot)

    marked: list = []
    monkeypatch.setattr(ViewLoader, "_mark_copies", mark_copies)
    with ViewLoader(dataset, global_batch_size=8, seed=1, prefetch=0, threads=3) as loader:
        batches = loader.batches()
        first, _ = next(batches), next(batches)
        pixels = first.images.clone()
        with ThreadPoolExecutor(1) as consumer:
            third = consumer.submit(next, batches)  # takes the first batch's buffer again
            assert not wait([third], timeout=0.2).done
            assert torch.equal(first.images, pixels)
            copies_done.set()
            assert torch.equal(third.result().images, _take(dataset, 1, start_step=2)[0]["images"])


def test_new_iterator_ends_the_earlier_one(dataset):
    with ViewLoader(dataset, global_batch_size=8, seed=1) as loader:
        earlier = loader.batches()
        next(earlier)
        later = loader.batches(start_step=3)
        assert torch.equal(next(later).images, _take(dataset, 1, start_step=3)[0]["images"])
        assert list(earlier) == []


def test_damaged_image_raises_in_the_consumer_and_the_loader_can_still_be_closed(own_split):
    dataset = ShardDataset(own_split, "train")
    shard = own_split / "train-000002.tar"
    os.truncate(shard, 2048)
    with (
        ViewLoader(dataset, global_batch_size=23, seed=0) as loader,
        pytest.raises(DataError, match=r"train-000002\.tar is cut"),
    ):
        next(loader.batches())


def test_error_comes_with_the_batch_it_concerns(own_split):
    dataset = ShardDataset(own_split, "train")
    os.truncate(own_split / "train-000004.tar", 0)  # holds objects 20, 21, 22
    with ViewLoader(dataset, global_batch_size=2, seed=0) as loader:
        order = [loader.order.batch(step)[0] for step in range(11)]
        first_bad = next(step for step, objects in enumerate(order) if objects.max() >= 20)
        batches = loader.batches()
        for _ in range(first_bad):
            next(batches)
        with pytest.raises(DataError, match=r"train-000004\.tar"):
            next(batches)


def test_close_ends_the_threads_and_refuses_new_iterators(dataset):
    before = threading.active_count()
    loader = ViewLoader(dataset, global_batch_size=8, seed=0, threads=3)
    batches = loader.batches()
    next(batches)
    assert threading.active_count() > before
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(batches) == []
    with pytest.raises(ValueError, match="was closed"):
        loader.batches()


def test_waiting_time_is_measured(dataset, monkeypatch):
    original = ShardDataset.read_views

    def slow_read(self, *arguments):
        threading.Event().wait(0.05)
        return original(self, *arguments)

    monkeypatch.setattr(ShardDataset, "read_views", slow_read)
    with ViewLoader(dataset, global_batch_size=8, seed=0, threads=1, prefetch=0) as loader:
        assert next(loader.batches()).seconds_waited >= 0.05


def test_wrong_sizes_are_refused(dataset):
    with pytest.raises(ValueError, match="does not fit a split of 23 objects"):
        ViewLoader(dataset, global_batch_size=24, seed=0)
    with pytest.raises(ValueError, match="not divisible by 3"):
        ViewLoader(dataset, global_batch_size=8, seed=0, world_size=3)
    with pytest.raises(ValueError, match="at least 1 thread"):
        ViewLoader(dataset, global_batch_size=8, seed=0, threads=0)
    with (
        ViewLoader(dataset, global_batch_size=8, seed=0) as loader,
        pytest.raises(ValueError, match="start_step is -1"),
    ):
        loader.batches(start_step=-1)


def _damage_object(folder: Path, number: int) -> None:
    """Change one byte of each view of an object."""
    dataset = ShardDataset(folder, "train")
    shard = folder / dataset.manifest.shards[int(dataset._index.shard_numbers[number])].name
    for offset in dataset._index.offsets[number].tolist():
        flip(shard, offset + 300)


def test_bad_record_is_replaced_by_the_next_good_one_counted_and_logged(own_split, caplog):
    expected = _take(ShardDataset(own_split, "train"), 1)[0]
    _damage_object(own_split, int(expected["object_indices"][2]))
    _damage_object(own_split, int(expected["object_indices"][7]))
    damaged = ShardDataset(own_split, "train")
    with pytest.raises(DataError, match="does not match"):
        _take(damaged, 1)
    with ViewLoader(damaged, global_batch_size=8, seed=1, on_bad_record="skip", max_skipped=2) as loader:
        batch = next(loader.batches())
        for name, tensor in expected.items():
            assert torch.equal(getattr(batch, name), tensor[[0, 1, 3, 3, 4, 5, 6, 0]]), name
        assert loader.skipped == 2
    assert "skipped a record (2 so far on rank 0): image 'object_" in caplog.messages[1]
    with (
        ViewLoader(damaged, global_batch_size=8, seed=1, on_bad_record="skip", max_skipped=1) as loader,
        pytest.raises(DataError, match="2 bad records were skipped on rank 0, more than max_skipped = 1"),
    ):
        next(loader.batches())


def test_a_bad_record_of_an_incomplete_batch_is_replaced_by_one_of_the_same_batch(own_split):
    options = {"start_step": 2, "keep_incomplete_batch": True}
    expected = _take(ShardDataset(own_split, "train"), 1, **options)[0]
    assert len(expected["images"]) == 23 - 2 * 8
    _damage_object(own_split, int(expected["object_indices"][6]))
    found = _take(ShardDataset(own_split, "train"), 1, on_bad_record="skip", **options)[0]
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor[[0, 1, 2, 3, 4, 5, 0]]), name


def test_lost_shard_is_not_skipped(own_split):
    dataset = ShardDataset(own_split, "train")
    (own_split / "train-000001.tar").unlink()
    with pytest.raises(DataError, match="cannot be opened any more"):
        _take(dataset, 3, on_bad_record="skip")
