import numpy as np
import pytest

from ssl_equi.data.order import epoch_views
from ssl_equi.data.remote.streaming_order import StreamedOrder

SHARD_COUNTS = {
    "uneven": (5, 1, 9, 3, 5),
    "one shard": (23,),
    "a shard an object": (1,) * 23,
    "an empty shard": (10, 0, 13),
}


def _order(**options) -> StreamedOrder:
    defaults = {
        "shard_counts": (5, 1, 9, 3, 5), "num_views": 6, "global_batch_size": 4, "views": 2, "seed": 1,
        "shuffle_buffer": 4,
    }  # fmt: skip
    return StreamedOrder(**(defaults | options))


def _epoch(order: StreamedOrder, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [order.batch(step) for step in steps]
    return np.concatenate([objects for objects, _ in batches]), np.concatenate([views for _, views in batches])


@pytest.mark.parametrize("counts", SHARD_COUNTS.values(), ids=SHARD_COUNTS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("shuffle_buffer", [1, 4, 1000])
def test_every_object_once_an_epoch_over_all_ranks(counts, world_size, shuffle_buffer):
    for epoch in (0, 1, 7):
        ranks = [
            _order(shard_counts=counts, rank=rank, world_size=world_size, shuffle_buffer=shuffle_buffer)
            for rank in range(world_size)
        ]
        objects = [_epoch(order, epoch)[0] for order in ranks]
        assert [len(found) for found in objects] == [20 // world_size] * world_size  # equally many batches
        together = np.concatenate(objects)
        assert len(np.unique(together)) == 20 == len(together)


@pytest.mark.parametrize("mode", ["exact", "resampled"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("left_over", [0, 1, 2, 5])
def test_what_is_left_over_is_shared_equally_as_one_more_batch(mode, world_size, left_over):
    kept = {0: 0, 1: 0, 2: {1: 2, 2: 2, 3: 0}[world_size], 5: {1: 5, 2: 4, 3: 3}[world_size]}[left_over]
    ranks = [
        _order(
            shard_counts=(5, 1, 9, 3, left_over), global_batch_size=6, rank=rank, world_size=world_size, mode=mode,
            keep_incomplete_batch=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for epoch in (0, 1, 7):
        for order in ranks:
            steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            sizes = [len(order.batch(step)[0]) for step in steps]
            assert sizes == [6 // world_size] * 3 + [kept // world_size] * (kept > 0)
        together = np.concatenate([_epoch(order, epoch)[0] for order in ranks])
        assert len(together) == 18 + kept
        assert mode == "resampled" or len(np.unique(together)) == len(together)


def test_batch_is_a_function_of_its_arguments():
    first, again = _order(), _order()
    for step in (13, 0, 4, 5, 13, 27, 0):  # in any order, over epochs
        for found, expected in zip(first.batch(step), again.batch(step)):
            np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(_epoch(_order())[0], _epoch(_order(seed=2))[0])
    assert not np.array_equal(_epoch(_order(), 0)[0], _epoch(_order(), 1)[0])


def test_golden_order():
    # What a run of a given seed sees must not change from one release to the next.
    exact, resampled = _epoch(_order())[0].tolist(), _epoch(_order(mode="resampled"))[0].tolist()
    assert exact == [15, 16, 5, 7, 17, 6, 8, 10, 9, 12, 11, 14, 13, 0, 3, 2, 1, 4, 18, 19]
    assert resampled == [20, 21, 0, 14, 22, 1, 15, 17, 16, 22, 18, 1, 0, 2, 3, 2, 3, 4, 5, 6]


def test_views_are_those_of_the_indexed_loader():
    objects, views = _epoch(_order(world_size=2, rank=1), 3)
    np.testing.assert_array_equal(views, epoch_views(23, 6, 2, seed=1, epoch=3)[objects])


def test_ranks_read_contiguous_pieces_of_the_shards():
    counts = (50, 60, 40, 70, 80)
    for rank in range(2):
        order = _order(shard_counts=counts, global_batch_size=10, world_size=2, rank=rank)
        objects = order.epoch_plan(0).objects
        pieces = 1 + np.count_nonzero(np.diff(objects) != 1)
        assert pieces <= 2 + 3  # three whole shards, parts of two more, one of them turned around


@pytest.mark.parametrize("shuffle_buffer", [1, 7, 64])
def test_buffer_holds_no_more_than_it_may_and_mixes(shuffle_buffer):
    plan = _order(shard_counts=(400, 300), shuffle_buffer=shuffle_buffer).epoch_plan(0)
    waiting = plan.needed - np.arange(len(plan.needed))  # read, but not given out before
    assert waiting.max() <= shuffle_buffer
    moves = np.abs(plan.given_out - np.arange(len(plan.given_out)))
    assert moves.max() <= shuffle_buffer
    if shuffle_buffer == 1:
        assert moves.max() == 0
    else:
        assert moves.mean() > shuffle_buffer / 8
    np.testing.assert_array_equal(plan.needed, [plan.given_out[: i + 1].max() + 1 for i in range(len(plan.needed))])


def test_every_object_is_equally_likely_to_be_left_out():
    counts = np.zeros(23)
    for epoch in range(2000):
        counts[_epoch(_order(), epoch)[0]] += 1
    expected = 2000 * 20 / 23
    deviation = np.sqrt(2000 * (20 / 23) * (3 / 23))
    assert np.abs(counts - expected).max() < 4.5 * deviation


def test_resampling_draws_objects_equally_often_and_some_more_than_once():
    counts = np.zeros(23)
    most_in_an_epoch = 0
    for epoch in range(1000):
        for rank in range(2):
            objects = _epoch(_order(mode="resampled", world_size=2, rank=rank), epoch)[0]
            assert len(objects) == 10
            in_this_epoch = np.bincount(objects, minlength=23)
            most_in_an_epoch = max(most_in_an_epoch, in_this_epoch.max())
            counts += in_this_epoch
    assert most_in_an_epoch > 1
    expected = 1000 * 20 / 23
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_resampled_ranks_and_repeats_get_draws_of_their_own():
    first, second = (_epoch(_order(mode="resampled", world_size=2, rank=rank)) for rank in range(2))
    assert not np.array_equal(first[0], second[0])
    order = _order(shard_counts=(3, 3), mode="resampled", global_batch_size=6, num_views=50)
    repeats = [_epoch(order, epoch) for epoch in range(40)]
    repeated = next((objects, views) for objects, views in repeats if len(set(objects.tolist())) == 3)
    assert len(np.unique(repeated[1], axis=0)) > 3  # an object that comes twice has other views


def test_views_of_an_object_are_distinct():
    for mode in ("exact", "resampled"):
        views = _epoch(_order(mode=mode, views=6))[1]
        assert (np.sort(views, axis=1) == np.arange(6)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 24}, "does not fit a split of 23 objects"),
        ({"world_size": 3}, "not divisible by 3"),
        ({"views": 7}, "cannot draw 7 distinct views"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"mode": "random"}, "give 'exact' or 'resampled'"),
        ({"world_size": 2, "rank": 2}, r"rank 2 is outside 0\.\.1"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _order(**options)
