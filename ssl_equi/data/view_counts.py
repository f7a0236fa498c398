"""Objects with different numbers of views: arrays [n, V, ...] stay rectangular, zero behind an object's own views.

V is the most views of an object. How many views each object has is one number where all have as many, and else an
array [n]; what is drawn is the same to the bit for V and for an array of nothing but V.
"""

from typing import TypeAlias

import numpy as np

ViewsOfEach: TypeAlias = int | np.ndarray  # of every object, or int [n] of each

NO_VIEW = -1  # in place of a view's index, where an object has fewer views than were asked for


def of_objects(num_views: ViewsOfEach, objects: np.ndarray) -> ViewsOfEach:
    """How many views some of the objects have."""
    return num_views if isinstance(num_views, int) else num_views[objects]


def is_view(views_of_each: np.ndarray, num_views: int) -> np.ndarray:
    """Which places of an array [n, V, ...] hold a view and no padding: bool [n, V]."""
    return np.arange(num_views) < views_of_each[:, None]


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Arrays [v, ...] of one type and different lengths as one array [n, V, ...], zero behind the shorter ones."""
    stacked = np.zeros((len(rows), max(len(row) for row in rows), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for own, row in zip(stacked, rows, strict=True):
        own[: len(row)] = row
    return stacked


def shuffled_views(
    num_objects: int, num_views: ViewsOfEach, generator: np.random.Generator, rounds: int = 1
) -> np.ndarray:
    """Each object's views in so many random orders, int64 [n, rounds, V], with `NO_VIEW` behind the fewer of some."""
    most = int(np.max(num_views))
    keys = generator.random((num_objects, rounds, most))
    if isinstance(num_views, int):
        return keys.argsort(axis=2)
    there = np.broadcast_to(is_view(num_views, most)[:, None], keys.shape)
    keys[~there] = np.inf
    return np.where(there, keys.argsort(axis=2), NO_VIEW)
