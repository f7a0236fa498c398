"""Which objects and views make up a batch, and the random words that say so."""

import hashlib
import itertools
import time

import numpy as np
import pytest

import ssl_equi.data.order as order_module
from ssl_equi.data.order import BatchOrder, epoch_permutation, epoch_views, random_words, views_of_objects, words_at

GOLDEN_PERMUTATION = [103, 98, 370, 291, 41, 632]
GOLDEN_VIEWS = [[6, 9], [16, 27], [6, 4]]
GOLDEN_SHA256 = "787bf5f12c7eb5eb64e7242efb5b2e73ffa4f25af4629a27751094e376f7b01a"


def test_permutation_holds_every_object_once_and_changes_with_epoch_and_seed():
    first = epoch_permutation(1000, seed=3, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    assert not np.array_equal(first, epoch_permutation(1000, seed=3, epoch=1))
    assert not np.array_equal(first, epoch_permutation(1000, seed=4, epoch=0))


def test_order_is_the_golden_one():
    # A changed hash means that checkpoints resume with other batches: never update it without a reason.
    permutation = epoch_permutation(1000, seed=7, epoch=2)
    views = epoch_views(1000, num_views=50, views=2, seed=7, epoch=2)
    assert permutation[:6].tolist() == GOLDEN_PERMUTATION
    assert views[:3].tolist() == GOLDEN_VIEWS
    digest = hashlib.sha256(permutation.astype("<i8").tobytes() + views.astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN_SHA256


@pytest.mark.parametrize("num_objects", [1, 999, 1000, 1001, 3999, 50_000])
def test_permutation_in_passes_is_the_sorted_one(num_objects, monkeypatch):
    monkeypatch.setattr(order_module, "_WORDS_AT_ONCE", 1000)
    for seed, epoch in ((0, 0), (7, 2), (2**63 - 1, 90)):
        expected = np.argsort(random_words(num_objects, seed, epoch, stream=0), kind="stable")
        found = epoch_permutation(num_objects, seed, epoch)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def test_equal_words_keep_the_order_of_the_objects(monkeypatch):
    class FewWords:
        def __init__(self) -> None:
            self.words = iter(np.random.default_rng(0).integers(0, 8, 5000, np.uint64) << np.uint64(61))

        def random_raw(self, count: int) -> np.ndarray:
            return np.array([next(self.words) for _ in range(count)])

    expected = np.argsort(FewWords().random_raw(5000), kind="stable")
    monkeypatch.setattr(order_module, "_WORDS_AT_ONCE", 1000)
    monkeypatch.setattr(order_module, "_philox", lambda *_: FewWords())
    np.testing.assert_array_equal(epoch_permutation(5000, seed=0, epoch=0), expected)


@pytest.mark.parametrize(("num_views", "views"), [(1, 1), (2, 1), (50, 2), (50, 3), (7, 7), (1000, 5)])
def test_views_of_some_objects_are_those_of_the_epoch(num_views, views):
    objects = np.random.default_rng(views).permutation(5000)[:300]
    for seed, epoch in ((0, 0), (7, 2), (2**63 - 1, 90)):
        found = views_of_objects(objects.astype(np.int32), num_views, views, seed, epoch)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, epoch_views(5000, num_views, views, seed, epoch)[objects])


def test_batches_are_slices_of_the_epoch():
    order = BatchOrder(num_objects=100, num_views=9, global_batch_size=8, views=2, seed=3)
    for step in range(30):
        objects, views = order.batch(step)
        assert objects.dtype == views.dtype == np.int64
        epoch, place = divmod(step, 12)
        expected = np.argsort(random_words(100, 3, epoch, stream=0), kind="stable")[8 * place : 8 * place + 8]
        np.testing.assert_array_equal(objects, expected)
        np.testing.assert_array_equal(views, epoch_views(100, 9, 2, 3, epoch)[expected])


def test_permutation_positions_are_uniform():
    positions = np.array([np.argsort(epoch_permutation(20, seed=0, epoch=epoch))[:1] for epoch in range(4000)])
    counts = np.bincount(positions[:, 0], minlength=20)
    assert _chi_square(counts) < 45.3  # 19 degrees of freedom, p = 0.0006


def test_view_pairs_are_uniform_over_ordered_distinct_pairs():
    views = epoch_views(100_000, num_views=7, views=2, seed=1, epoch=0)
    pairs = list(itertools.permutations(range(7), 2))
    counts = [int(((views[:, 0] == a) & (views[:, 1] == b)).sum()) for a, b in pairs]
    assert sum(counts) == 100_000
    assert _chi_square(np.array(counts)) < 75.0  # 41 degrees of freedom, p = 0.001


def test_all_views_of_an_object_come_in_every_order():
    views = epoch_views(24_000, num_views=4, views=4, seed=5, epoch=9)
    assert (np.sort(views, axis=1) == np.arange(4)).all()
    _, counts = np.unique(views, axis=0, return_counts=True)
    assert len(counts) == 24
    assert _chi_square(counts) < 49.8  # 23 degrees of freedom, p = 0.001


def test_view_draws_of_an_object_do_not_depend_on_the_number_of_objects():
    few = epoch_views(10, num_views=50, views=3, seed=2, epoch=4)
    many = epoch_views(1000, num_views=50, views=3, seed=2, epoch=4)
    np.testing.assert_array_equal(few, many[:10])


def test_epoch_visits_every_object_at_most_once_and_drops_the_remainder():
    order = BatchOrder(num_objects=103, num_views=5, global_batch_size=10, views=2, seed=0)
    assert order.steps_per_epoch == 10
    for epoch in range(3):
        steps = range(epoch * 10, epoch * 10 + 10)
        seen = np.concatenate([order.batch(step)[0] for step in steps])
        assert len(set(seen.tolist())) == 100
    exact = BatchOrder(num_objects=100, num_views=5, global_batch_size=10, views=2, seed=0)
    assert sorted(np.concatenate([exact.batch(step)[0] for step in range(10)])) == list(range(100))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_out_the_same_global_batches(world_size):
    reference = BatchOrder(num_objects=50, num_views=5, global_batch_size=8, views=3, seed=11)
    ranks = [
        BatchOrder(num_objects=50, num_views=5, global_batch_size=8, views=3, seed=11, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(15):
        objects, views = reference.batch(step)
        np.testing.assert_array_equal(np.concatenate([rank.batch(step)[0] for rank in ranks]), objects)
        np.testing.assert_array_equal(np.concatenate([rank.batch(step)[1] for rank in ranks]), views)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("left_over", [0, 1, 2, 5])
def test_what_is_left_over_is_shared_equally_as_one_more_batch(world_size, left_over):
    num_objects = 18 + left_over
    sizes = {"num_objects": num_objects, "num_views": 5, "global_batch_size": 6, "views": 2, "seed": 4}
    ranks = [
        BatchOrder(**sizes, rank=rank, world_size=world_size, keep_incomplete_batch=True) for rank in range(world_size)
    ]
    kept = {0: 0, 1: 0, 2: {1: 2, 2: 2, 3: 0}[world_size], 5: {1: 5, 2: 4, 3: 3}[world_size]}[left_over]
    steps = 4 if kept else 3
    assert {order.steps_per_epoch for order in ranks} == {steps}
    for epoch in range(3):
        permutation, views = epoch_permutation(num_objects, 4, epoch), epoch_views(num_objects, 5, 2, 4, epoch)
        for step in range(steps):
            batches = [order.batch(epoch * steps + step) for order in ranks]
            expected = permutation[6 * step : 6 * step + 6] if step < 3 else permutation[18 : 18 + kept]
            np.testing.assert_array_equal(np.concatenate([objects for objects, _ in batches]), expected)
            np.testing.assert_array_equal(np.concatenate([drawn for _, drawn in batches]), views[expected])
            assert {len(objects) for objects, _ in batches} == {len(expected) // world_size}


@pytest.mark.parametrize("global_batch_size", [6, 600, 2400])  # many, few and one step in what is drawn at once
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("keep_incomplete_batch", [False, True])
def test_batches_drawn_together_are_the_slices_of_permutation_and_views(global_batch_size, rank, keep_incomplete_batch):
    order = BatchOrder(
        num_objects=2500, num_views=5, global_batch_size=global_batch_size, views=2, seed=3, rank=rank, world_size=2,
        keep_incomplete_batch=keep_incomplete_batch,
    )  # fmt: skip
    for epoch in range(2):
        permutation, views = epoch_permutation(2500, 3, epoch), epoch_views(2500, 5, 2, 3, epoch)
        for step in reversed(range(order.steps_per_epoch)):
            global_batch = permutation[step * global_batch_size :][:global_batch_size]
            expected = np.split(global_batch, 2)[rank]
            objects, view_indices = order.batch(epoch * order.steps_per_epoch + step)
            np.testing.assert_array_equal(objects, expected)
            np.testing.assert_array_equal(view_indices, views[expected])
            objects[:], view_indices[:] = -1, -1  # a batch is the caller's own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch_size": 51}, "global batch size 51 does not fit a split of 50 objects"),
        ({"world_size": 3}, "global batch size 8 is not divisible by 3 processes"),
        ({"rank": 2, "world_size": 2}, "rank 2 is outside 0..1"),
        ({"views": 6}, "cannot draw 6 distinct views of objects that have 5"),
        ({"seed": -1}, "seed -1 is outside"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence_errors(change, message):
    sizes = {"num_objects": 50, "num_views": 5, "global_batch_size": 8, "views": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        BatchOrder(**(sizes | change))


def _chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", range(20))
def test_words_are_those_of_numpy(seed):
    generator = np.random.default_rng(seed)
    key, upper = ([int(word) for word in generator.integers(0, 2**64, count, np.uint64)] for count in (2, 3))
    stream = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([0, *upper], np.uint64)).random_raw(5000)
    positions = generator.integers(0, 5000, (70, 3))
    found = words_at(positions, tuple(key), tuple(upper))
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, stream[positions])


@pytest.mark.parametrize("word", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_words_at_the_edges_of_64_bits_are_those_of_numpy(word):
    key, counter = np.full(2, word, np.uint64), np.array([0, word, word, word], np.uint64)
    stream = np.random.Philox(key=key, counter=counter).random_raw(64)
    np.testing.assert_array_equal(words_at(np.arange(64), (word, word), (word, word, word)), stream)


def test_far_positions_are_those_of_numpy():
    blocks = np.array([10**7, 2**32 - 1, 2**32, 2**40, 2**61 - 2])
    for block in blocks.tolist():
        stream = np.random.Philox(key=np.array([5, 6], np.uint64), counter=np.array([block, 0, 7, 8], np.uint64))
        np.testing.assert_array_equal(words_at(4 * block + np.arange(4), (5, 6), (0, 7, 8)), stream.random_raw(4))


def test_no_positions_give_no_words():
    assert words_at(np.empty((0, 2), np.int64), (0, 0), (0, 0, 0)).shape == (0, 2)


def test_words_of_a_batch_cost_milliseconds():
    positions = np.random.default_rng(0).integers(0, 2 * 10**7, 2048)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        words_at(positions, (1, 2), (0, 0, 1))
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.02
