"""Seeded pairs of distinct views of one object: fixed ones for evaluation, new ones each epoch for head training.

Pairs depend on a seed and on the split's shape only, so every encoder is judged on the same pairs.
"""

from dataclasses import dataclass

import numpy as np

from ssl_equi.data.view_counts import ViewsOfEach, shuffled_views

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


def evaluation_pairs(num_objects: int, num_views: ViewsOfEach, pairs_per_object: int, seed: int) -> ViewPairs:
    """The fixed pairs of a split: a pure function of its arguments, object by object."""
    return _sample_pairs(num_objects, num_views, pairs_per_object, np.random.default_rng([seed, EVALUATION_STREAM]))


def all_pairs(num_objects: int, num_views: ViewsOfEach) -> ViewPairs:
    """Every ordered pair of distinct views of each object, object by object."""
    first, second = np.nonzero(~np.eye(int(np.max(num_views)), dtype=bool))
    objects, own_views = np.arange(num_objects)[:, None], np.broadcast_to(num_views, num_objects)[:, None]
    objects, first, second = np.broadcast_arrays(objects, first, second)
    has_both = np.maximum(first, second) < own_views
    return ViewPairs(objects[has_both], first[has_both], second[has_both])


def training_pairs(num_objects: int, num_views: ViewsOfEach, pairs_per_object: int, seed: int, epoch: int) -> ViewPairs:
    """The pairs of one epoch of head training, object by object (the trainer shuffles)."""
    generator = np.random.default_rng([seed, TRAINING_STREAM, epoch])
    return _sample_pairs(num_objects, num_views, pairs_per_object, generator)


def training_views(
    num_objects: int, num_views: ViewsOfEach, views_per_object: int, seed: int, epoch: int
) -> np.ndarray:
    """Distinct view indices of each object for one epoch, int64 `[num_objects, views_per_object]`.

    An object with fewer views than that has them all, and `NO_VIEW` behind them.
    """
    generator = np.random.default_rng([seed, TRAINING_STREAM, epoch])
    return shuffled_views(num_objects, num_views, generator)[:, 0, :views_per_object]


def evaluation_views(num_objects: int, num_views: ViewsOfEach, views_per_object: int, seed: int) -> np.ndarray:
    """The fixed distinct view indices of a split, as `training_views` has them."""
    generator = np.random.default_rng([seed, EVALUATION_STREAM])
    return shuffled_views(num_objects, num_views, generator)[:, 0, :views_per_object]


def _sample_pairs(
    num_objects: int, num_views: ViewsOfEach, pairs_per_object: int, generator: np.random.Generator
) -> ViewPairs:
    """Pair up shuffled views: no view of an object returns before all its others were used (an odd one sits out)."""
    fewest = int(np.min(num_views))
    if fewest < 2:
        raise ValueError(f"a pair needs two distinct views, but objects have {fewest}: build the split with more views")
    rounds = -(-pairs_per_object // (fewest // 2))
    shuffled = shuffled_views(num_objects, num_views, generator, rounds)
    objects = np.arange(num_objects)[:, None]
    # Pair p of an object with v views is the (p mod v // 2)-th pair of its round p / (v // 2).
    round_of_pair, pair = np.divmod(np.arange(pairs_per_object), np.broadcast_to(num_views, num_objects)[:, None] // 2)
    first, second = (shuffled[objects, round_of_pair, 2 * pair + which].reshape(-1) for which in (0, 1))
    return ViewPairs(np.repeat(np.arange(num_objects), pairs_per_object), first, second)
