"""What a task is and what it answers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.bootstrap import ObjectStatistic
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import ProbeProtocol


@dataclass(frozen=True)
class TaskResult:
    """What one head (or one measure) achieved on one part.

    Attributes:
        metrics: value by metric name.
        baselines: the best answer without an image, by metric name.
        num_samples: evaluated views or pairs.
        angle_errors_deg: tasks of rotations and other angles only, error of each pair or view `[num_samples]`.
        constant_angle_errors_deg: the same for the constant answer.
        per_class_recall: classification tasks only, `[C]`, NaN for a class without test objects.
        object_scores: of metrics that are means over samples, the mean of each evaluated object `[n_objects]`, NaN for
            an object without samples; objects are the independent units of a standard error.
        statistics: of metrics that are no such means, how they follow from the evaluated objects, for an interval.
        singular_values: collapse task only, of the matrix of features, largest first.
        retrieval_ranks: retrieval only, rank of the view that each query means, from 1.
        notes: sentences on metrics that are missing.
        split: evaluated split, where it isn't the one that the suite judges.
        num_objects: evaluated objects, where they aren't all of that split.
        details: numbers beside the metrics that are no scores: strengths that training objects chose, and the like.
    """

    metrics: dict[str, float]
    baselines: dict[str, Baseline]
    num_samples: int
    angle_errors_deg: np.ndarray | None = None
    constant_angle_errors_deg: np.ndarray | None = None
    per_class_recall: np.ndarray | None = None
    object_scores: dict[str, np.ndarray] | None = None
    statistics: dict[str, ObjectStatistic] | None = None
    singular_values: np.ndarray | None = None
    details: dict[str, float] | None = None
    retrieval_ranks: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    split: str | None = None
    num_objects: int | None = None


Task = Callable[[FeatureCache, FeatureCache, int, ProbeProtocol, int], TaskResult]
"""Of the training features, the evaluated ones, the number of classes, the protocol and the seed.

Raises TaskSkipped where these data or features can't be asked.
"""


def without_undefined(result: TaskResult) -> TaskResult:
    """The result without metrics that are NaN or infinite, or whose baseline is; a note names each of them."""
    undefined = {
        metric: f"{metric} is {value} and its baseline {result.baselines[metric].value}, so it is left out"
        for metric, value in result.metrics.items()
        if not (math.isfinite(value) and math.isfinite(result.baselines[metric].value))
    }
    if not undefined:
        return result
    metrics = {metric: value for metric, value in result.metrics.items() if metric not in undefined}
    return replace(result, metrics=metrics, notes=(*result.notes, *undefined.values()))


def object_means(scores: Tensor, object_indices: Tensor, num_objects: int) -> np.ndarray:
    """Mean score `[num_objects]` float64 of each object's samples, from `[n]` and `[n]`; NaN without samples."""
    objects = object_indices.cpu().numpy()
    sums = np.bincount(objects, weights=scores.double().cpu().numpy(), minlength=num_objects)
    counts = np.bincount(objects, minlength=num_objects)
    return np.divide(sums, counts, out=np.full(num_objects, np.nan), where=counts > 0)
