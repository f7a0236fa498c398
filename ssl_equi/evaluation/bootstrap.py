"""Bootstrap intervals over objects: objects are the independent units, so whole objects are drawn, with replacement.

A statistic maps how often each object was drawn to the value of a metric, so that nothing is predicted again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.metrics import varying_components

COVERAGE = 0.95  # of the percentile interval
SEED = 0
RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class ObjectStatistic:
    """A metric as a function of objects: counts `[B, num_objects]` -> values `[B]`, NaN where it is undefined."""

    num_objects: int
    of_counts: Callable[[np.ndarray], np.ndarray]


def bootstrap_interval(statistic: ObjectStatistic, resamples: int) -> tuple[float, float] | None:
    """The percentile interval of a metric; None for less than two objects, without resamples, or where undefined."""
    if statistic.num_objects < 2 or resamples < 1:
        return None
    generator = np.random.default_rng(SEED)
    values = []
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, resamples - first), statistic.num_objects)
        drawn = generator.integers(0, statistic.num_objects, size)
        counts = np.stack([np.bincount(row, minlength=statistic.num_objects) for row in drawn])
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(statistic.of_counts(counts))
    found = np.concatenate(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.percentile(found, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return float(low), float(high)


def mean_statistic(scores: np.ndarray) -> ObjectStatistic:
    """Mean of the objects' scores `[n_objects]`; objects without a score (NaN) count for nothing."""
    known = np.isfinite(scores)
    return ObjectStatistic(len(scores), lambda counts: counts[:, known] @ scores[known] / counts[:, known].sum(axis=1))


def median_statistic(values: np.ndarray, objects: np.ndarray, num_objects: int) -> ObjectStatistic:
    """Median of samples' values `[n]`, which are of the objects `[n]`."""
    order = np.argsort(values)
    ordered, of_object = values[order], objects[order]

    def median(counts: np.ndarray) -> np.ndarray:
        totals = counts.astype(np.int32)[:, of_object].cumsum(axis=1, dtype=np.int32)
        # As numpy's median: of an even number of values, halfway between the two in the middle.
        middle = [[row.searchsorted(row[-1] / 2, "left"), row.searchsorted(row[-1] / 2, "right")] for row in totals]
        return np.asarray(ordered[np.minimum(middle, len(ordered) - 1)].mean(axis=1))

    return ObjectStatistic(num_objects, median)


def r2_uniform_statistic(
    predictions: Tensor, targets: Tensor, objects: np.ndarray, num_objects: int
) -> ObjectStatistic:
    """`r2_uniform` of samples `[n, K]`, which are of the objects `[n]`, over the components that vary."""
    varying = varying_components(targets)
    true = targets.double()[:, varying].cpu().numpy()
    squared_residuals = np.square(predictions.double()[:, varying].cpu().numpy() - true)
    true = true - true.mean(axis=0)  # which R2 does not depend on, and its rounding does
    count = np.bincount(objects, minlength=num_objects)[:, None]
    residual, sums, squares = (_sums(values, objects, num_objects) for values in (squared_residuals, true, true**2))

    def r2(counts: np.ndarray) -> np.ndarray:
        total = counts @ squares - np.square(counts @ sums) / (counts @ count)
        return np.asarray((1 - counts @ residual / total).mean(axis=1))

    return ObjectStatistic(num_objects, r2)


def _sums(values: np.ndarray, objects: np.ndarray, num_objects: int) -> np.ndarray:
    """Sums over each object's samples: `[n, K]` -> `[num_objects, K]`."""
    columns = [np.bincount(objects, weights=column, minlength=num_objects) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((num_objects, 0))
