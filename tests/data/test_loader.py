import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from ssl_equi.data.loading.ring import RingFetcher
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError


@pytest.fixture(scope="module")
def dataset(shared_split):
    return ShardDataset(shared_split, "train")


def _take(dataset: ShardDataset, count: int, start_step: int = 0, **options) -> list[dict[str, torch.Tensor]]:
    """Copies of the tensors of `count` batches."""
    with stored_loader(dataset, **({"global_batch_size": 8, "seed": 1} | options)) as loader:
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


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_do_not_depend_on_threads_or_prefetch(dataset, threads, prefetch):
    _assert_equal(_take(dataset, 7, threads=threads, prefetch=prefetch), _take(dataset, 7))


def test_images_stay_valid_until_the_second_next_batch_is_asked_for(dataset):
    for prefetch in (0, 1, 3):
        with stored_loader(dataset, global_batch_size=8, seed=2, prefetch=prefetch) as loader:
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
    with stored_loader(dataset, global_batch_size=8, seed=2, prefetch=2) as loader:
        addresses = [batch.images.data_ptr() for batch in itertools.islice(loader.batches(), 12)]
    assert addresses == addresses[:4] * 3
    assert len(set(addresses)) == 4


def test_buffer_is_not_overwritten_before_the_copies_from_it_are_done(dataset, monkeypatch):
    copies_done = threading.Event()

    class PendingCopies:
        """Stands in for a CUDA event, which needs a GPU."""

        def synchronize(self) -> None:
            copies_done.wait(60)

    def mark_copies(self, buffer_number) -> None:
        self._copies_done[buffer_number] = PendingCopies() if buffer_number == 0 and marked else None
        marked.append(buffer_number)

    marked: list = []
    monkeypatch.setattr(RingFetcher, "_mark_copies", mark_copies)
    with stored_loader(dataset, global_batch_size=8, seed=1, prefetch=0, threads=3) as loader:
        batches = loader.batches()
        first, _ = next(batches), next(batches)
        pixels = first.images.clone()
        with ThreadPoolExecutor(1) as consumer:
            third = consumer.submit(next, batches)  # takes the first batch's buffer again
            assert not wait([third], timeout=0.2).done
            assert torch.equal(first.images, pixels)
            copies_done.set()
            assert torch.equal(third.result().images, _take(dataset, 1, start_step=2)[0]["images"])


def test_error_comes_with_the_batch_it_concerns(own_split):
    dataset = ShardDataset(own_split, "train")
    os.truncate(own_split / "train-000004.tar", 0)  # holds objects 20, 21, 22
    with stored_loader(dataset, global_batch_size=2, seed=0) as loader:
        order = [loader.order.batch(step)[0] for step in range(11)]
        first_bad = next(step for step, objects in enumerate(order) if objects.max() >= 20)
        batches = loader.batches()
        for _ in range(first_bad):
            next(batches)
        with pytest.raises(DataError, match=r"train-000004\.tar"):
            next(batches)


def test_waiting_time_is_measured(dataset, monkeypatch):
    original = ShardDataset.read_views

    def slow_read(self, *arguments):
        threading.Event().wait(0.05)
        return original(self, *arguments)

    monkeypatch.setattr(ShardDataset, "read_views", slow_read)
    with stored_loader(dataset, global_batch_size=8, seed=0, threads=1, prefetch=0) as loader:
        assert next(loader.batches()).seconds_waited >= 0.05
