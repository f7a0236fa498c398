"""Metrics of the probes. Every name carries its definition, because papers call two different numbers "R2".

`r2_uniform` divides each component's residual by that component's own variance and averages (scikit-learn's default,
seq-JEPA's choice). `r2_pooled` uses ONE scalar mean over all samples and components (the choice of SIE, Garrido et al.,
ICML 2023, and EquiCaps): components whose means differ add to its total variance, so a constant predictor already
scores above zero (0.229 on relative quaternions of poses drawn from the Euler box).

Components of the targets that do not vary have no R2; both definitions leave them out (`varying_components`).

All functions take tensors on any device, compute in float64 and return Python floats (or arrays where said).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.geometry.rotations import geodesic_distance, quat_normalize

# Targets and features are float32: a standard deviation below this share of the largest component is rounding.
ROUNDING = 1e-6


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose highest logit is the label's. `logits [N, C]`, `labels [N]` int64."""
    _check_rows(logits, labels)
    return float((logits.argmax(dim=1) == labels).double().mean())


def per_class_recall(logits: Tensor, labels: Tensor) -> Tensor:
    """Recall of each class, `[C]` float64 on the CPU; NaN where a class has no sample. Shapes as in `top1`."""
    _check_rows(logits, labels)
    num_classes = logits.shape[1]
    correct = (logits.argmax(dim=1) == labels).double()
    hits = torch.bincount(labels, weights=correct, minlength=num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    return (hits / counts).cpu()


def balanced_top1(logits: Tensor, labels: Tensor) -> float:
    """Mean of the per-class recalls over the classes that are present in `labels`."""
    return float(per_class_recall(logits, labels).nanmean())


def exceeds_rounding(variance: Tensor, mean_square: Tensor) -> Tensor:
    """Bool `[K]`: which of K components vary, from their variances and mean squares `[K]`.

    The scale is that of the largest component, because components of one target are computed from each other: beside
    components of order 1, values of 1e-25 are rounding, however much they differ among themselves.
    """
    return variance > ROUNDING**2 * mean_square.max()


def varying_components(targets: Tensor) -> Tensor:
    """Bool `[K]`: which components of the targets `[N, K]` vary by more than rounding."""
    targets = targets.double()
    return exceeds_rounding(targets.var(dim=0, correction=0), targets.square().mean(dim=0))


def r2_uniform(predictions: Tensor, targets: Tensor) -> float:
    """Coefficient of determination per component that varies (own mean), then the plain average. Both `[N, K]`.

    Raises:
        ValueError: all components of the targets are constant, so R2 is undefined.
    """
    predictions, targets = _varying(predictions, targets)
    residual = (targets - predictions).square().sum(dim=0)
    total = (targets - targets.mean(dim=0)).square().sum(dim=0)
    return float((1 - residual / total).mean())


def r2_pooled(predictions: Tensor, targets: Tensor) -> float:
    """One coefficient of determination around ONE scalar mean over samples and varying components. Both `[N, K]`.

    Raises:
        ValueError: all components of the targets are constant, so R2 is undefined.
    """
    predictions, targets = _varying(predictions, targets)
    residual = (targets - predictions).square().sum()
    total = (targets - targets.mean()).square().sum()
    return float(1 - residual / total)


def r2_metrics(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Both definitions under the names of the records; empty if no component of the targets `[N, K]` varies."""
    if not bool(varying_components(targets).any()):
        return {}
    return {"r2_uniform": r2_uniform(predictions, targets), "r2_pooled": r2_pooled(predictions, targets)}


def r2_notes(targets: Tensor) -> tuple[str, ...]:
    """A sentence on the components of the targets `[N, K]` that R2 leaves out; empty if all of them vary."""
    varying = varying_components(targets)
    count, constant = len(varying), int((~varying).sum())
    if constant == count:
        return (f"none of the {count} target components varies over the {len(targets)} evaluated samples: no R2",)
    if constant:
        return (
            f"{constant} of {count} target components do not vary over the {len(targets)} evaluated samples: R2 is "
            f"that of the other {count - constant}",
        )
    return ()


def angle_errors_deg(predicted_quat_xyzw: Tensor, true_quat_xyzw: Tensor) -> Tensor:
    """Geodesic angle in degrees, in [0, 180], between two rotations each: `[N, 4]`, `[N, 4]` -> `[N]` float64, CPU.

    Predictions are normalised first; `q` and `-q` are the same rotation.
    """
    predictions, targets = _as_float64(predicted_quat_xyzw, true_quat_xyzw)
    angle_rad = geodesic_distance(quat_normalize(predictions), quat_normalize(targets))
    return torch.rad2deg(angle_rad).cpu()


def direction_errors_deg(predictions: Tensor, targets: Tensor) -> Tensor:
    """Angle in degrees, in [0, 180], between two directions each: `[N, K]`, `[N, K]` of any lengths -> `[N]`, CPU.

    A direction of length 0 is 90 degrees from all others.
    """
    first, second = (F.normalize(vectors, dim=1) for vectors in _as_float64(predictions, targets))
    # Unlike the arc cosine, exact for directions that are nearly the same or opposite.
    angle_rad = 2 * torch.atan2((first - second).norm(dim=1), (first + second).norm(dim=1))
    return torch.rad2deg(angle_rad).cpu()


def summarise_angles(errors_deg: Tensor) -> dict[str, float]:
    """Median, mean and 90th percentile of angles in degrees (`[N]`, CPU), under the names of the records."""
    median, p90 = np.percentile(errors_deg.numpy(), [50, 90])  # torch.quantile has limits of size in some versions
    return {
        "angle_deg_median": float(median),
        "angle_deg_mean": float(errors_deg.mean()),
        "angle_deg_p90": float(p90),
    }


def distance_median(predictions: Tensor, targets: Tensor) -> float:
    """Median Euclidean distance between predicted and true vectors, in their own units. Both `[N, K]`."""
    predictions, targets = _as_float64(predictions, targets)
    return float(np.median((targets - predictions).norm(dim=1).cpu().numpy()))


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007); 0 if all of them are 0."""
    total = float(singular_values.sum())
    if total <= 0:
        return 0.0
    shares = singular_values[singular_values > 0].astype(np.float64) / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _check_rows(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"metrics need logits [N, C] and labels [N] with N > 0, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}: pass one row of logits for each label"
        )


def _as_float64(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if predictions.shape != targets.shape or targets.ndim != 2 or len(targets) == 0:
        raise ValueError(
            f"metrics need predictions and targets of one shape [N, K] with N > 0, got {tuple(predictions.shape)} "
            f"and {tuple(targets.shape)}: pass one row of predictions for each target"
        )
    return predictions.double(), targets.double()


def _varying(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, only the components of which the targets vary."""
    predictions, targets = _as_float64(predictions, targets)
    varying = varying_components(targets)
    if not bool(varying.any()):
        raise ValueError("R2 is undefined because all target components are constant: evaluate on more varied samples")
    # Columns that are picked lie otherwise in memory, which changes the order of sums and so their rounding.
    return (predictions, targets) if bool(varying.all()) else (predictions[:, varying], targets[:, varying])
