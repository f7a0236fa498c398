"""Seeded pairs of distinct views of one object: fixed ones for evaluation, new ones each epoch for head training.

Pairs depend on a seed and on the split's shape only, so every encoder is judged on the same pairs.
"""

from dataclasses import dataclass

import numpy as np

EVALUATION_STREAM = 0
TRAINING_STREAM = 1


@dataclass(frozen=True)
class ViewPairs:
    """Pairs of views: object and the two view indices, int64 `[n]` each, `first_view != second_view`."""

    object_indices: np.ndarray
    first_view: np.ndarray
    second_view: np.ndarray

    def __len__(self) -> int:
        return len(self.object_indices)


def evaluation_pairs(num_objects: int, num_views: int, pairs_per_object: int, seed: int) -> ViewPairs:
    """The fixed pairs of a split: a pure function of its arguments, object by object."""
    return _sample_pairs(num_objects, num_views, pairs_per_object, np.random.default_rng([seed, EVALUATION_STREAM]))


def all_pairs(num_objects: int, num_views: int) -> ViewPairs:
    """Every ordered pair of distinct views of each object, object by object."""
    first, second = np.nonzero(~np.eye(num_views, dtype=bool))
    objects = np.repeat(np.arange(num_objects), len(first))
    return ViewPairs(objects, np.tile(first, num_objects), np.tile(second, num_objects))


def training_pairs(num_objects: int, num_views: int, pairs_per_object: int, seed: int, epoch: int) -> ViewPairs:
    """The pairs of one epoch of head training, object by object (the trainer shuffles)."""
    generator = np.random.default_rng([seed, TRAINING_STREAM, epoch])
    return _sample_pairs(num_objects, num_views, pairs_per_object, generator)


def training_views(num_objects: int, num_views: int, views_per_object: int, seed: int, epoch: int) -> np.ndarray:
    """Distinct view indices of each object for one epoch, int64 `[num_objects, views_per_object]`."""
    generator = np.random.default_rng([seed, TRAINING_STREAM, epoch])
    return generator.random((num_objects, num_views)).argsort(axis=1)[:, :views_per_object]


def evaluation_views(num_objects: int, num_views: int, views_per_object: int, seed: int) -> np.ndarray:
    """The fixed distinct view indices of a split, int64 `[num_objects, views_per_object]`."""
    generator = np.random.default_rng([seed, EVALUATION_STREAM])
    return generator.random((num_objects, num_views)).argsort(axis=1)[:, :views_per_object]


def _sample_pairs(num_objects: int, num_views: int, pairs_per_object: int, generator: np.random.Generator) -> ViewPairs:
    """Pair up shuffled views: no view of an object returns before all its others were used (an odd one sits out)."""
    if num_views < 2:
        raise ValueError(
            f"a pair needs two distinct views, but objects have {num_views}: build the split with more views"
        )
    pairs_per_round = num_views // 2
    rounds = -(-pairs_per_object // pairs_per_round)
    shuffled = generator.random((num_objects, rounds, num_views)).argsort(axis=2)
    pairs = shuffled[:, :, : 2 * pairs_per_round].reshape(num_objects, rounds * pairs_per_round, 2)
    pairs = pairs[:, :pairs_per_object]
    object_indices = np.repeat(np.arange(num_objects), pairs_per_object)
    return ViewPairs(object_indices, pairs[:, :, 0].reshape(-1), pairs[:, :, 1].reshape(-1))
