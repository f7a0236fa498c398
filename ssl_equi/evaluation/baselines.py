"""Baselines of probes: the best answers that look at no image.

For classification that is chance; for regressions the best constant on the evaluated samples themselves, which is the
strongest constant there is (so `r2_uniform` of it is exactly zero, while `r2_pooled` may be well above).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.evaluation.metrics import angle_errors_deg, r2_metrics, summarise_angles
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


def constants(values: Mapping[str, float]) -> dict[str, Baseline]:
    """Values of metrics that the best constant answer reaches."""
    return {name: Baseline(value, "constant") for name, value in values.items()}


def constant_baselines(
    targets: Tensor, metrics: Callable[[Tensor, Tensor], dict[str, float]] = r2_metrics
) -> dict[str, Baseline]:
    """The per-component mean of the targets `[N, K]` as the answer to every sample, by these metrics."""
    return constants(metrics(targets.double().mean(dim=0).expand_as(targets), targets))


def constant_rotation_baselines(targets_xyzw: Tensor) -> tuple[dict[str, Baseline], Tensor]:
    """Constants for quaternion targets `[N, 4]`: the component mean for R2, the mean rotation for angles.

    Returns:
        The baselines, and the constant rotation's angle errors in degrees `[N]`.
    """
    constant_xyzw = mean_quaternion(targets_xyzw).expand_as(targets_xyzw)
    errors_deg = angle_errors_deg(constant_xyzw, targets_xyzw)
    return constant_baselines(targets_xyzw) | constants(summarise_angles(errors_deg)), errors_deg
