"""Metrics of the probes: what each name means, which values are better and how they are shown; and their formulas.

Every name carries its definition, because papers call two different numbers "R2". `r2_uniform` divides each component's
residual by that component's own variance and averages (scikit-learn's default, seq-JEPA's choice). `r2_pooled` uses ONE
scalar mean over all samples and components (the choice of SIE, Garrido et al., ICML 2023, and EquiCaps): components
whose means differ add to its total variance, so a constant predictor already scores above zero (0.229 on relative
quaternions of poses drawn from the Euler box).

Components of the targets that do not vary have no R2; both definitions leave them out (`varying_components`). The
formulas take tensors on any device, compute in float64 and return Python floats.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.geometry.rotations import geodesic_distance, quat_normalize
from ssl_equi.latents.schema import KINDS

ANGLE, ANGLE_MEDIAN = "angle_deg", "angle_deg_median"  # the first begins the names of all angles

# Targets and features are float32: a standard deviation below this share of the largest component is rounding.
ROUNDING = 1e-6


# ---------------------------------------------------------------- what metrics mean


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: as records have it, or what longer names begin with, such as `top1` of `top1_fog`.
        meaning: one sentence; empty if nothing is known of it.
        lower_is_better: whether a smaller value is the better one.
        unit: "°" for degrees, which are shown with one decimal; other numbers have three.
        by_class: whether `NAME_of_CLASS` is the same of one class's samples.
    """

    name: str
    meaning: str = ""
    lower_is_better: bool = False
    unit: str = ""
    by_class: bool = False


def _lower(name: str, meaning: str, unit: str = "", by_class: bool = False) -> Metric:
    return Metric(name, f"{meaning}; lower is better", lower_is_better=True, unit=unit, by_class=by_class)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # Classes.
        Metric("top1", "share of views whose class is right", by_class=True),
        Metric("balanced_top1", "mean of the recalls of the classes"),
        # Regressions.
        Metric("r2_uniform", "R² of each component around its own mean, averaged"),
        Metric("r2_pooled", "R² around one mean over all components, as in SIE; a constant scores above 0"),
        Metric("r2_of", "R² of one component"),
        _lower(ANGLE, "angle between prediction and truth", "°"),
        _lower(ANGLE_MEDIAN, "median angle between predicted and true rotation, direction or angle", "°", True),
        _lower("angle_deg_mean", "mean angle between predicted and true rotation, direction or angle", "°"),
        _lower("angle_deg_p90", "angle that 90 % of the errors of rotations, directions or angles stay below", "°"),
        _lower(
            "distance_median",
            "median distance between predicted and true displacement or value, in the data's own unit; in the world "
            "units of translations, the diagonal of an object's bounding box is 1 in 3DIEBench-T and 1.3 in the "
            "embedded set",
            by_class=True,
        ),
        _lower("distance_mean", "mean distance between predicted and true displacement or value"),
        # Distributions over rotations.
        Metric("log_likelihood", "mean log density of the true rotation in nats; uniform: -2.29", by_class=True),
        Metric("recall_at", "share of samples whose most likely rotation is within N degrees of the true one"),
        Metric("mass_within", "mean probability of the rotations within N degrees of the true one"),
        _lower("angle_deg_spread", "mean angle to the true rotation, over the distribution", "°"),
        _lower("drop_of", "how much the metric is below that of the judged split"),
        # Features alone.
        _lower("within_between_ratio", "variance of an object's views over that of the objects' means; 0: invariant"),
        Metric("cosine_same_object", "mean cosine of two views of one object, features centred"),
        Metric("hit_at_1_same_object", "share of views whose nearest other view is of the same object"),
        Metric("rankme", "exp of the entropy of the singular values' shares of the features, not centred (RankMe)"),
        Metric("effective_rank", "exp of the entropy of the singular values' shares of the centred features"),
        Metric("column_std_mean", "mean standard deviation of the columns of features of length 1; 1: isotropic"),
        Metric("column_std_min", "smallest standard deviation of the columns of features of length 1; 1: isotropic"),
        _lower("dead_dimensions", "share of the columns that hardly vary"),
        Metric("r2_action", "R² of the second view's features, from the first view's and the rotation between them"),
        Metric("skill_over_first_view", "share of the first view's squared error that knowing the rotation saves"),
        Metric("skill_over_object_mean", "share of the squared error of the object's mean that the rotation saves"),
        # Augmentations.
        _lower(
            "gamma_f",
            "how much an augmentation changes the distances between images, relative to how far it moves them; 0: all "
            "move alike; baseline: each image moved as another one was",
        ),
        _lower(
            "wahba_error",
            "distance that the best rotation leaves between features before and after an augmentation; baseline: "
            "features of other images",
        ),
        _lower(
            "least_squares_error",
            "distance that the best linear map, fitted to other images, leaves between features before and after an "
            "augmentation; baseline: features of other images",
        ),
        # Predictors. The last one is also that of augmentations.
        Metric(
            "action_gain",
            "by which share the prediction error, 1 - cosine, grows with the actions of other objects; 0: not used",
        ),
        Metric("mrr", "mean of 1 / rank of the view that a prediction means, among the views of its object"),
        Metric("hit_at", "share of predictions whose view is among the K nearest ones"),
        _lower("retrieval_error", "1 - (q · q')² of the pose that a prediction means and of the view nearest to it"),
        _lower("identity_error", "how far the action of no change moves an embedding; 1: as far as another view is"),
        _lower("inverse_error", "how far an action and its inverse in a row move an embedding; 1: as another view"),
        _lower("sign_flip_error", "how far the other sign of a quaternion, the same rotation, moves a prediction"),
        _lower(
            "composition_error",
            "distance of two actions in a row from their composition, as a predictor or the rotations of two "
            "augmentations take them; baseline: another view, or rotations to features of other images",
        ),
        _lower(
            "pose_error",
            "squared distance between poses whose turned columns have norm 1; 0: they follow the action; baseline: "
            "actions between views of other objects",
        ),
        # Symmetries of images.
        _lower("invariance_error", "how far a symmetry of the image moves the features; 1: as far as another image is"),
        _lower("equivariance_error", "the same from where the encoder's own action moves them"),
        _lower("spatial_error", "the same from where a map's cells would be if they moved like pixels"),
        Metric("consistency", "share of the transformed images whose predicted class stays the same"),
    )
}  # fmt: skip


def metric_of(name: str) -> Metric:
    """What is known of a metric by its name, or by the longest name that it begins with.

    A name that nothing is known of is a plain number of which more is better.
    """
    known = METRICS | _metrics_of_kinds()
    words = name.split("_")
    beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((replace(known[each], name=name) for each in beginnings if each in known), Metric(name))


def _metrics_of_kinds() -> dict[str, Metric]:
    """Of kinds of latents that the table does not know, such as a user's own: errors if they are medians of some."""
    found: dict[str, Metric] = {}
    for kind in (kind for kind in KINDS.values() if kind.metric not in METRICS):
        error = kind.metric.removesuffix("_median")
        if error != kind.metric:
            found[error] = _lower(error, f"error of a latent of the kind {kind.kind}")
        found[kind.metric] = replace(found.get(error, Metric(error)), name=kind.metric, by_class=True)
    return found


def meaning_of(name: str) -> str:
    """A sentence on a metric; its name if nothing is known of it."""
    return metric_of(name).meaning or name


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return metric_of(name).lower_is_better


def format_value(name: str, value: float | None) -> str:
    """A metric's value: degrees with one decimal and their sign, all else with three decimals; a dash for None."""
    if value is None:
        return "-"
    unit = metric_of(name).unit
    return f"{fixed(value, 1)}{unit}" if unit else fixed(value, 3)


def fixed(value: float, decimals: int) -> str:
    """A number with this many decimals; what rounds to zero has no sign."""
    return f"{value:z.{decimals}f}"


def name_of_class_metric(metric: str, class_name: str) -> str:
    """The metric of one class's samples."""
    return f"{metric}_of_{class_name}"


def class_of_metric(name: str) -> tuple[str, str] | None:
    """Metric and class of a name that `name_of_class_metric` made; None for all others."""
    for metric in (METRICS | _metrics_of_kinds()).values():
        if metric.by_class and name.startswith(f"{metric.name}_of_"):
            return metric.name, name.removeprefix(f"{metric.name}_of_")
    return None


@dataclass(frozen=True)
class NoMerit:
    """Tasks, by patterns of their names, in which neither high nor low is better: of one part, or of all."""

    tasks: tuple[str, ...]
    part: str | None
    why: str


_NOT_MEANT = "part {part} is not meant to know this, so neither high nor low is better"
NO_MERIT = (
    NoMerit(("leakage_*",), None, "what an aggregate leaks is not a merit"),
    NoMerit(("collapse",), None, "directions in use warn of a collapse, and more of them are no merit"),
    NoMerit(("relative_*", "absolute_*", "translation_object", "translation_base", "colour"), "inv", _NOT_MEANT),
    NoMerit(("classification",), "equi", _NOT_MEANT),
)


def why_no_merit(task: str, part: str) -> str:
    """A sentence if a task's numbers say nothing for or against a part; empty if they do."""
    for each in NO_MERIT:
        if each.part in (None, part) and any(fnmatchcase(task, pattern) for pattern in each.tasks):
            return each.why.format(part=part)
    return ""


# ---------------------------------------------------------------- formulas


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose highest logit is the label's. `logits [N, C]`, `labels [N]` int64."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def per_class_recall(logits: Tensor, labels: Tensor) -> Tensor:
    """Recall of each class, `[C]` float64 on the CPU; NaN where a class has no sample. Shapes as in `top1`."""
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

    Raises ValueError if no component of the targets varies, as the next one does.
    """
    predictions, targets = _varying(predictions, targets)
    residual = (targets - predictions).square().sum(dim=0)
    total = (targets - targets.mean(dim=0)).square().sum(dim=0)
    return float((1 - residual / total).mean())


def r2_pooled(predictions: Tensor, targets: Tensor) -> float:
    """One coefficient of determination around ONE scalar mean over samples and varying components. Both `[N, K]`."""
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
    predictions, targets = (quat_normalize(quats.double()) for quats in (predicted_quat_xyzw, true_quat_xyzw))
    angle_rad = geodesic_distance(predictions, targets)
    return torch.rad2deg(angle_rad).cpu()


def direction_errors_deg(predictions: Tensor, targets: Tensor) -> Tensor:
    """Angle in degrees, in [0, 180], between two directions each: `[N, K]`, `[N, K]` of any lengths -> `[N]`, CPU.

    A direction of length 0 is 90 degrees from all others.
    """
    first, second = (F.normalize(vectors.double(), dim=1) for vectors in (predictions, targets))
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
    return float(np.median((targets.double() - predictions.double()).norm(dim=1).cpu().numpy()))


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares of CENTRED features (Roy and Vetterli, 2007); 0 without any.

    Of features that are not centred it would be another number (their mean is a direction, too); there is `rankme`.
    """
    total = float(singular_values.sum())
    if total <= 0:
        return 0.0
    shares = singular_values[singular_values > 0].astype(np.float64) / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _varying(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, only the components of which the targets vary."""
    assert predictions.shape == targets.shape, "shapes that broadcast would give other numbers"
    varying = varying_components(targets)
    if not bool(varying.any()):
        raise ValueError("R2 is undefined because all target components are constant: evaluate on more varied samples")
    predictions, targets = predictions.double(), targets.double()
    # Columns that are picked lie otherwise in memory, which changes the order of sums and so their rounding.
    return (predictions, targets) if bool(varying.all()) else (predictions[:, varying], targets[:, varying])
