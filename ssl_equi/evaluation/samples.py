"""Views and pairs as samples: drawn for training, fixed for judging; and what makes a task impossible.

Pairs and views depend on a seed and on the split's shape only, so every encoder is judged on the same ones.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.view_counts import NO_VIEW, ViewsOfEach, shuffled_views
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import Samples
from ssl_equi.evaluation.metrics import r2_notes, varying_components
from ssl_equi.evaluation.protocol import ProbeProtocol

EVALUATION_STREAM = 0
TRAINING_STREAM = 1
ROUNDING = 1e-6  # of the features' root mean square: what varies less is float32 rounding of one constant

MOST_CLASSES = 20  # that samples are told apart by

SampleKind = Literal["views", "pairs"]  # single views, or pairs of views of one object
TargetsOf = Callable[[FeatureCache, Tensor], Tensor]  # of rows [n, k], k views a sample: [n, K]


class TaskSkipped(Exception):  # noqa: N818  (the suite goes on: it is a reason, not an error)
    """The task has no answer here; the message is one sentence with the thing, its value and what would help.

    The suite turns it into a note beside the results and goes on with the next task.
    """


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


def feature_matrix(cache: FeatureCache) -> Tensor:
    """Features of every view as rows, object by object: view v of object o is row `cache.first_rows[o] + v`."""
    return cache.rows(cache.features)


def evenly_spread(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of `count` rows or objects, int64, evenly spread from the first to the last."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64)


def sample_objects(cache: FeatureCache, rows: Tensor) -> Tensor:
    """The object `[n]` that each sample of rows `[n, k]` is of."""
    return cache.has_view.nonzero()[:, 0][rows[:, 0]]


def rows_of_classes(cache: FeatureCache, objects: Tensor) -> dict[str, np.ndarray]:
    """Samples of each class by a word for it, from the object `[n]` of each, where there are a few classes.

    Some classes have symmetric objects, whose views from several sides are the same.
    """
    labels = cache.labels.cpu()[objects].numpy()
    present = np.unique(labels)
    if not 1 < len(present) <= MOST_CLASSES or len(cache.class_names) <= present.max():
        return {}
    names = {label: re.sub(r"[^A-Za-z0-9]+", "_", cache.class_names[label]).strip("_") for label in present}
    taken = list(names.values())
    unique = {label: name if name and taken.count(name) == 1 else f"{name}_{label}" for label, name in names.items()}
    return {name: np.flatnonzero(labels == label) for label, name in unique.items()}


def require_finite(*caches: FeatureCache) -> None:
    """Raises TaskSkipped if a feature is NaN or infinite."""
    for cache in caches:
        finite = torch.isfinite(feature_matrix(cache)).all(dim=-1)
        if not bool(finite.all()):
            raise TaskSkipped(
                f"features of {int((~finite).sum())} of {finite.numel()} views are not finite: the encoder diverged, "
                "use an earlier checkpoint"
            )


def require_varied(train: FeatureCache, test: FeatureCache) -> None:
    """Raises TaskSkipped if the features are not finite, or the same in every training view."""
    require_finite(train, test)
    features = feature_matrix(train)
    spread = float((features.amax(dim=0) - features.amin(dim=0)).max())
    root_mean_square = float(features.norm()) / features.numel() ** 0.5
    if spread <= ROUNDING * root_mean_square:
        raise TaskSkipped(
            f"all {len(features)} training views have the same {features.shape[1]} features: this part is empty or has "
            "collapsed, and a head could only answer with a constant"
        )


def require_views(*caches: FeatureCache) -> None:
    """Raises TaskSkipped if an object has no two views to pair."""
    for cache in caches:
        if cache.fewest_views < 2:
            raise TaskSkipped(
                f"objects have {cache.fewest_views} view and a pair takes 2: use a data set of more views"
            )


def require_objects(cache: FeatureCache, split: str) -> None:
    """Raises TaskSkipped if there is one object only."""
    if cache.num_objects < 2:
        raise TaskSkipped(f"the {split} split has {cache.num_objects} object and 2 are needed: use more objects")


def require_varied_targets(targets: Tensor) -> None:
    """Raises TaskSkipped if no component of the evaluated targets `[n, K]` varies and R2 is all that is asked."""
    if not bool(varying_components(targets).any()):
        raise TaskSkipped(f"{r2_notes(targets)[0]}, so use data in which they vary")


def view_rows(cache: FeatureCache, view_indices: np.ndarray, objects: np.ndarray | None = None) -> Tensor:
    """Rows `[n, 1]`: one sample for each of the views `view_indices [n_objects, k]`, `NO_VIEW` aside.

    Args:
        objects: the objects `[m]` that samples are of; all if it isn't given.
    """
    objects = np.arange(cache.num_objects) if objects is None else objects
    views = view_indices[objects]
    rows = (cache.first_rows[objects, None] + views)[views != NO_VIEW]
    return torch.from_numpy(rows[:, None]).to(cache.features.device)


def pair_rows(cache: FeatureCache, pairs: ViewPairs) -> Tensor:
    """Rows `[n, 2]`: one sample for each pair."""
    views = np.stack([pairs.first_view, pairs.second_view], axis=1)
    return torch.from_numpy(cache.first_rows[pairs.object_indices, None] + views).to(cache.features.device)


def samples_of(cache: FeatureCache, rows: Tensor, targets_of: TargetsOf) -> Samples:
    return Samples(rows, targets_of(cache, rows))


def classes(cache: FeatureCache, rows: Tensor) -> Tensor:
    """The objects' classes `[n]` of views `[n, 1]`."""
    return cache.labels[sample_objects(cache, rows)]


def evaluated_pairs(num_objects: int, num_views: ViewsOfEach, protocol: ProbeProtocol) -> ViewPairs:
    """The fixed pairs that heads are judged on, equally many of each object, or all of the few that there are."""
    pairs_per_object = protocol.evaluation_pairs_per_object
    if num_objects * pairs_per_object < protocol.evaluation_least_pairs:
        allowed = protocol.evaluation_most_pairs // num_objects
        if np.max(num_views) * (np.max(num_views) - 1) <= allowed:
            return all_pairs(num_objects, num_views)
        pairs_per_object = max(pairs_per_object, allowed)
    return evaluation_pairs(num_objects, num_views, pairs_per_object, protocol.evaluation_seed)


def evaluated_rows(test: FeatureCache, of: SampleKind, protocol: ProbeProtocol) -> Tensor:
    """Rows of the fixed samples that heads are judged on: views `[n, 1]` or pairs `[n, 2]`."""
    if of == "pairs":
        return pair_rows(test, evaluated_pairs(test.num_objects, test.views_of_each, protocol))
    each = protocol.evaluation_views_per_object or test.num_views
    return view_rows(test, evaluation_views(test.num_objects, test.views_of_each, each, protocol.evaluation_seed))


def training_rows(train: FeatureCache, of: SampleKind, each: int, seed: int, epoch: int) -> Tensor:
    """Rows of an epoch's samples: so many views `[n, 1]` or pairs `[n, 2]` of each object."""
    drawn = (train.num_objects, train.views_of_each, each, seed, epoch)
    return pair_rows(train, training_pairs(*drawn)) if of == "pairs" else view_rows(train, training_views(*drawn))


def held_out_objects(num_objects: int, share: float, seed: int) -> np.ndarray:
    """Bool `[num_objects]`: which objects choose a strength; at least one, and at least one is left."""
    count = min(max(1, round(share * num_objects)), num_objects - 1)
    held_out = np.zeros(num_objects, dtype=bool)
    held_out[np.random.default_rng(seed).permutation(num_objects)[:count]] = True
    return held_out


def held_out_samples(train: FeatureCache, rows: Tensor, share: float, seed: int) -> Tensor:
    """Bool `[n]`: which of the samples `rows [n, k]` are of `held_out_objects`."""
    held_out = torch.from_numpy(held_out_objects(train.num_objects, share, seed)).to(rows.device)
    return held_out[sample_objects(train, rows)]
