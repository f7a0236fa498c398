"""What the loader promises of an epoch, counted, for several world sizes and ways of decoding."""

import itertools

import numpy as np
import pytest
import torch

from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.order import BatchOrder
from tests.data.numbered_objects import NumberedObjects

CASES = [
    *itertools.product([{"threads": 1}, {"threads": 2}, {"threads": 4}], [80, 83]),
    *itertools.product([{"workers": 2}, {"workers": 4}], [83]),
]
SEED, BATCH_SIZE = 7, 8


def _keys(loader: ViewLoader, start_step: int, count: int) -> list[np.ndarray]:
    """Object and two views of each row of `count` batches, [b, 3]; the pixels must bear them."""
    keys = []
    for batch in itertools.islice(loader.batches(start_step), count):
        key = torch.column_stack([batch.object_indices, batch.view_indices])
        assert torch.equal(batch.images[:, :, 0, 0, 0].long(), key[:, :1].expand(-1, 2))
        assert torch.equal(batch.images[:, :, 0, 0, 1].long(), key[:, 1:])
        keys.append(key.numpy())
    return keys


def _expected(num_objects: int, steps: int) -> np.ndarray:
    """The keys of the first steps over all ranks, [steps, G, 3]: a function of the seed."""
    order = BatchOrder(num_objects=num_objects, num_views=5, global_batch_size=BATCH_SIZE, views=2, seed=SEED)
    return np.stack([np.column_stack(order.batch(step)) for step in range(steps)])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("decoding", "num_objects"), CASES, ids=str)
def test_epoch_over_all_ranks_is_the_data_set_but_for_the_remainder(world_size, decoding, num_objects) -> None:
    steps = num_objects // BATCH_SIZE
    of_ranks = []
    for rank in range(world_size):
        with ViewLoader(
            NumberedObjects(num_objects), global_batch_size=BATCH_SIZE, seed=SEED, rank=rank, world_size=world_size,
            prefetch=2, **decoding,
        ) as loader:  # fmt: skip
            of_ranks.append(np.stack(_keys(loader, 0, 3 * steps)))
            for resumed_at in (1, steps - 1, steps, 2 * steps + 3):  # within an epoch, at its ends
                np.testing.assert_array_equal(_keys(loader, resumed_at, 4), of_ranks[-1][resumed_at:][:4])
    seen = np.concatenate(of_ranks, axis=1)
    np.testing.assert_array_equal(seen, _expected(num_objects, 3 * steps))
    dropped = []
    for objects in seen[..., 0].reshape(3, -1):
        assert len(np.unique(objects)) == len(objects) == steps * BATCH_SIZE
        dropped.append(frozenset(range(num_objects)) - frozenset(objects.tolist()))
        assert len(dropped[-1]) == num_objects % BATCH_SIZE
    assert len(set(dropped)) == (1 if num_objects % BATCH_SIZE == 0 else 3)
    assert not np.array_equal(seen[:steps], seen[steps : 2 * steps])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("decoding", [{"threads": 1}, {"threads": 4}, {"workers": 2}], ids=str)
def test_an_epoch_may_end_with_a_smaller_batch(world_size, decoding) -> None:
    """After it, and after resuming before or behind it, the buffers of whole batches are used as ever."""
    sizes, steps = {"num_objects": 83, "global_batch_size": BATCH_SIZE, "seed": SEED}, 11
    for rank in range(world_size):
        process = {"rank": rank, "world_size": world_size, "keep_incomplete_batch": True}
        order = BatchOrder(num_views=5, views=2, **sizes, **process)
        expected = [np.column_stack(order.batch(step)) for step in range(3 * steps)]
        assert [len(batch) for batch in expected[:steps]] == [8 // world_size] * 10 + [3 // world_size]
        with ViewLoader(
            NumberedObjects(83), global_batch_size=BATCH_SIZE, seed=SEED, prefetch=2, **process, **decoding
        ) as loader:
            assert loader.steps_per_epoch == steps
            for start in (0, 5, steps - 1, steps, 2 * steps - 1):
                for found, wanted in zip(_keys(loader, start, 12), expected[start : start + 12], strict=True):
                    np.testing.assert_array_equal(found, wanted)
