"""What a probe's number has to beat: the best answer that looks at no image.

For classification that is chance; for regressions the best constant on the evaluated samples themselves, which is the
strongest constant there is (so `r2_uniform` of it is exactly zero, while `r2_pooled` may be well above).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.evaluation.metrics import (
    angle_errors_deg,
    distance_median,
    r2_metrics,
    summarise_angles,
)
from ssl_equi.geometry.rotations import mean_quaternion


@dataclass(frozen=True)
class Baseline:
    """Value of a metric without an image, and what answers there ("majority class", "constant", ...)."""

    value: float
    name: str


def classification_baselines(train_labels: Tensor, test_labels: Tensor) -> dict[str, Baseline]:
    """Always answering the training split's largest class, by the metrics of the classification task."""
    majority = int(torch.bincount(train_labels).argmax())
    share = float((test_labels == majority).double().mean())
    num_present = len(test_labels.unique())
    return {
        "top1": Baseline(share, "majority class"),
        "balanced_top1": Baseline(1 / num_present, "1 / classes"),
    }


def constant_baselines(targets: Tensor) -> dict[str, Baseline]:
    """The per-component mean of the targets `[N, K]` as the answer to every sample; the metrics of `r2_metrics`."""
    found = r2_metrics(_mean_answer(targets), targets)
    return {name: Baseline(value, "constant") for name, value in found.items()}


def constant_translation_baselines(targets: Tensor) -> dict[str, Baseline]:
    """The mean displacement of the targets `[N, 3]` as the answer to every sample, judged by its distance too."""
    distance = distance_median(_mean_answer(targets), targets)
    return constant_baselines(targets) | {"distance_median": Baseline(distance, "constant")}


def constant_rotation_baselines(targets_xyzw: Tensor) -> tuple[dict[str, Baseline], Tensor]:
    """Constants for quaternion targets `[N, 4]`: the component mean for R2, the mean rotation for angles.

    Returns:
        The baselines, and the constant rotation's angle errors in degrees `[N]`.
    """
    constant_xyzw = mean_quaternion(targets_xyzw).expand_as(targets_xyzw)
    errors_deg = angle_errors_deg(constant_xyzw, targets_xyzw)
    angles = {name: Baseline(value, "constant") for name, value in summarise_angles(errors_deg).items()}
    return constant_baselines(targets_xyzw) | angles, errors_deg


def _mean_answer(targets: Tensor) -> Tensor:
    return targets.double().mean(dim=0).expand_as(targets)
