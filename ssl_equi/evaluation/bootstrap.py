"""Bootstrap over objects: these are the independent units, so whole objects are drawn, with replacement.

A statistic maps how often each object was drawn to the value of a metric, so that nothing is predicted again. It is
also what an evaluation keeps of a metric in `arrays.npz`, by `KIND.METRIC/TASK/PART`, so that two encoders can be
compared on the same draws: what makes an object hard is then no part of the difference.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.metrics import varying_components

COVERAGE = 0.95  # of the percentile interval
SEED = 0
RESAMPLES_AT_ONCE = 50
PAIRED_RESAMPLES = 1000
CENTRAL_SHARE = 0.1  # of the values, in which a median is looked for first


class ObjectStatistic(ABC):
    """A metric as a function of objects."""

    kind: ClassVar[str]
    """Of its array."""

    @property
    @abstractmethod
    def num_objects(self) -> int: ...

    @abstractmethod
    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        """Values `[B]` of objects that were drawn so often, `[B, num_objects]`; NaN where the metric is undefined."""

    def value(self) -> float:
        """The metric itself: of every object once."""
        with np.errstate(all="ignore"):
            return float(self.of_counts(np.ones((1, self.num_objects), dtype=np.int64))[0])

    @abstractmethod
    def as_array(self) -> np.ndarray:
        """What `statistic_of_array` makes the statistic from."""

    @abstractmethod
    def asked(self) -> np.ndarray:
        """What depends on the questions alone, not on the answers: equal for two encoders that were asked the same."""


@dataclass(frozen=True, eq=False)
class MeanStatistic(ObjectStatistic):
    """Mean of the objects' scores `[num_objects]`; objects without a score (NaN) count for nothing."""

    kind = "object_scores"
    scores: np.ndarray

    @property
    def num_objects(self) -> int:
        return len(self.scores)

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        known = np.isfinite(self.scores)
        return np.asarray(counts[:, known] @ self.scores[known] / counts[:, known].sum(axis=1))

    def as_array(self) -> np.ndarray:
        return self.scores

    def asked(self) -> np.ndarray:
        return np.isfinite(self.scores)


@dataclass(frozen=True, eq=False)
class MedianStatistic(ObjectStatistic):
    """Median of samples' values `[n]`, ascending, which are of the objects `[n]`."""

    kind = "object_values"
    values: np.ndarray
    objects: np.ndarray
    count: int

    @property
    def num_objects(self) -> int:
        return self.count

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        # Of half a million values, those near the median of all decide nearly always, and in a tenth of the time.
        margin = int(len(self.values) * CENTRAL_SHARE / 2)
        middle = len(self.values) // 2
        found = self._of_central_values(counts, middle - margin, middle + margin)
        found = self._of_central_values(counts, 0, len(self.values)) if found is None else found
        assert found is not None
        return found

    def _of_central_values(self, counts: np.ndarray, start: int, stop: int) -> np.ndarray | None:
        """Medians, if all of them are among the values from `start` to `stop`; None otherwise."""
        half = counts @ self.asked() / 2
        below = counts @ np.bincount(self.objects[:start], minlength=self.count)
        totals = counts.astype(np.int32)[:, self.objects[start:stop]].cumsum(axis=1, dtype=np.int32) + below[:, None]
        whole = start == 0 and stop == len(self.values)
        if not whole and (stop <= start or (below >= half).any() or (totals[:, -1] <= half).any()):
            return None
        # As numpy's median: of an even number of values, halfway between the two in the middle.
        places = [[row.searchsorted(at, "left"), row.searchsorted(at, "right")] for row, at in zip(totals, half)]
        return np.asarray(self.values[np.minimum(start + np.array(places), len(self.values) - 1)].mean(axis=1))

    def as_array(self) -> np.ndarray:
        """A row for each object's values, filled up with NaN; float32, since there may be half a million."""
        by_object = np.argsort(self.objects, kind="stable")
        samples = self.asked()
        rows = np.full((self.count, samples.max(initial=0)), np.nan, dtype=np.float32)
        rows[np.arange(rows.shape[1]) < samples[:, None]] = self.values[by_object]
        return rows

    def asked(self) -> np.ndarray:
        return np.bincount(self.objects, minlength=self.count)


@dataclass(frozen=True, eq=False)
class R2Statistic(ObjectStatistic):
    """`r2_uniform` of K components, from sums over each object's samples, all `[num_objects, K]` but `samples`.

    Attributes:
        samples: numbers of samples `[num_objects, 1]`.
        residuals: of squared differences between answers and targets.
        sums, squares: of the targets, less their mean, and of their squares.
    """

    kind = "object_moments"
    samples: np.ndarray
    residuals: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @property
    def num_objects(self) -> int:
        return len(self.samples)

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        total = counts @ self.squares - np.square(counts @ self.sums) / (counts @ self.samples)
        return np.asarray((1 - counts @ self.residuals / total).mean(axis=1))

    def as_array(self) -> np.ndarray:
        return np.hstack([self.samples, self.residuals, self.sums, self.squares])

    def asked(self) -> np.ndarray:
        return np.hstack([self.samples, self.squares])


@dataclass(frozen=True, eq=False)
class RatioStatistic(ObjectStatistic):
    """By which share one mean over the objects is above another: of two scores `[num_objects]` of each."""

    kind = "object_ratios"
    changed: np.ndarray
    plain: np.ndarray

    @property
    def num_objects(self) -> int:
        return len(self.plain)

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts @ self.changed / (counts @ self.plain) - 1)

    def as_array(self) -> np.ndarray:
        return np.stack([self.changed, self.plain], axis=1)

    def asked(self) -> np.ndarray:
        return np.ones(self.num_objects)


# ---------------------------------------------------------------- from answers, and from what was kept of them


def median_statistic(values: np.ndarray, objects: np.ndarray, num_objects: int | None = None) -> ObjectStatistic:
    """Median of samples' values `[n]`, which are of the objects `[n]`.

    Args:
        num_objects: that can be drawn; None: those that have samples.
    """
    if num_objects is None:
        present, objects = np.unique(objects, return_inverse=True)
        num_objects = len(present)
    order = np.argsort(values)
    return MedianStatistic(values[order], objects[order], num_objects)


def r2_uniform_statistic(
    predictions: Tensor, targets: Tensor, objects: np.ndarray, num_objects: int
) -> ObjectStatistic:
    """`r2_uniform` of samples `[n, K]`, which are of the objects `[n]`, over the components that vary."""
    varying = varying_components(targets)
    true = targets.double()[:, varying].cpu().numpy()
    squared_residuals = np.square(predictions.double()[:, varying].cpu().numpy() - true)
    true = true - true.mean(axis=0)  # which R2 does not depend on, and its rounding does
    samples = np.bincount(objects, minlength=num_objects)[:, None]
    sums = (_sums(values, objects, num_objects) for values in (squared_residuals, true, true**2))
    return R2Statistic(samples, *sums)


def _sums(values: np.ndarray, objects: np.ndarray, num_objects: int) -> np.ndarray:
    """Sums over each object's samples: `[n, K]` -> `[num_objects, K]`."""
    columns = [np.bincount(objects, weights=column, minlength=num_objects) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((num_objects, 0))


def statistic_of_array(kind: str, array: np.ndarray) -> ObjectStatistic | None:
    """What `as_array` was made of; None for an array of its rank and type that it can't have been."""
    if kind == MeanStatistic.kind:
        return MeanStatistic(array) if len(array) else None
    if kind == MedianStatistic.kind:
        there = ~np.isnan(array)
        return median_statistic(array[there], there.nonzero()[0], len(array)) if there.any() else None
    if kind == RatioStatistic.kind:
        return RatioStatistic(*array.T) if array.shape[1:] == (2,) and len(array) else None
    fits = kind == R2Statistic.kind and len(array) > 0 and array.shape[1] % 3 == 1
    return R2Statistic(array[:, :1], *np.split(array[:, 1:], 3, axis=1)) if fits else None


def stored_statistic(arrays: Mapping[str, np.ndarray], task: str, part: str, metric: str) -> ObjectStatistic | None:
    """The statistic of a metric among the arrays of `arrays.npz`; None where there is none."""
    for kind in (MeanStatistic.kind, MedianStatistic.kind, R2Statistic.kind, RatioStatistic.kind):
        array = arrays.get(f"{kind}.{metric}/{task}/{part}")
        if array is not None:
            return statistic_of_array(kind, array)
    return None


# ---------------------------------------------------------------- intervals


def bootstrap_interval(statistic: ObjectStatistic, resamples: int) -> tuple[float, float] | None:
    """The percentile interval of a metric; None for less than two objects, without resamples, or where undefined."""
    if statistic.num_objects < 2 or resamples < 1:
        return None
    return _percentiles(resampled_values(statistic, resamples))


def paired_interval(
    first: ObjectStatistic, second: ObjectStatistic, resamples: int = PAIRED_RESAMPLES
) -> tuple[float, float] | None:
    """The percentile interval of a metric's difference, first - second, if both are drawn the same objects.

    None as in `bootstrap_interval`, and for statistics of other questions or other objects.
    """
    if type(first) is not type(second) or first.num_objects < 2 or resamples < 1:
        return None
    asked, others = first.asked(), second.asked()
    # Targets may have been computed on another device, and sums of their squares may be as small as rounding.
    if asked.shape != others.shape or not np.allclose(asked, others, rtol=1e-4, atol=1e-6 * asked.max(initial=0)):
        return None
    with np.errstate(invalid="ignore"):
        return _percentiles(resampled_values(first, resamples) - resampled_values(second, resamples))


# All runs of a row are compared with the best one, whose values need to be found once.
@lru_cache(maxsize=2)
def resampled_values(statistic: ObjectStatistic, resamples: int) -> np.ndarray:
    """Values `[resamples]` of a metric. The draws depend on the numbers of objects and of resamples alone."""
    generator = np.random.default_rng(SEED)
    values = []
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, resamples - first), statistic.num_objects)
        drawn = generator.integers(0, statistic.num_objects, size)
        counts = np.stack([np.bincount(row, minlength=statistic.num_objects) for row in drawn])
        with np.errstate(all="ignore"):
            values.append(statistic.of_counts(counts))
    return np.concatenate(values)


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    found = values[np.isfinite(values)]
    if not len(found):
        return None
    low, high = np.percentile(found, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return float(low), float(high)
