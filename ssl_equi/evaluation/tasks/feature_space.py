"""What do the features hold fast and how many directions do they use? Nothing is trained.

`invariance` compares the views of one object with those of others; `collapse` counts the directions. Both look at the
evaluated split only.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.metrics import effective_rank
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.samples import (
    TaskSkipped,
    feature_matrix,
    require_finite,
    require_objects,
    require_varied,
    require_views,
)
from ssl_equi.evaluation.task import Ask, TaskResult, object_means, task

RANKME_EPSILON = 1e-7  # added to each share of a singular value, as Garrido et al. do
DEAD_SHARE = 0.01  # of the columns' average standard deviation: a column below it is called dead
FLOAT32_ROUNDING = 1e-6  # of the features' root mean square: below it there is no deviation, and a similarity is a tie
SHUFFLE_STREAM, SUBSET_STREAM, ISOTROPIC_STREAM = 3, 4, 5  # of the seeds
ROWS_AT_ONCE = 4096


@task("invariance")
def invariance(ask: Ask) -> TaskResult:
    """How much closer the views of one object are to each other than to those of other objects.

    - `within_between_ratio`: variance of views around their object's mean, divided by the variance of these means
      around the overall mean (both summed over the columns, so traces); 0: invariant to all that changes. Baseline:
      the same of views that were shuffled over the objects, about V - 1 for V views an object.
    - `cosine_same_object`: mean cosine of two views of one object, features centred by the overall mean. Baseline: of
      two views of different objects.
    - `hit_at_1_same_object`: share of views whose nearest other view (cosine of centred features) is of the same
      object; a tie with another object's view is no hit. The gallery are all views of at most
      `protocol.compared_objects` objects, drawn by `protocol.evaluation_seed`. Baseline: chance.
    """
    test = ask.test
    require_objects(test, "evaluated")
    require_views(test)
    require_varied(test, test)
    there, num_images = test.has_view, test.num_images
    features = test.features.double() * there[..., None]
    centred = (features - features.sum(dim=(0, 1)) / num_images) * there[..., None]
    ratio = _within_between_ratio(centred, there)
    order = np.random.default_rng([ask.seed, SHUFFLE_STREAM]).permutation(num_images)
    shuffled = torch.zeros_like(centred)
    shuffled[there] = centred[there][torch.from_numpy(order).to(centred.device)]
    same_object, other_objects = _mean_cosines(centred, there)
    chosen = _compared_objects(test.num_objects, ask.protocol)
    hits, compared = np.full(test.num_objects, np.nan), torch.from_numpy(chosen).to(centred.device)
    hits[chosen] = _nearest_is_same_object(centred[compared].float(), there[compared])
    own_views = there.sum(dim=1)[compared].cpu().numpy()
    return TaskResult(
        metrics={
            "within_between_ratio": ratio,
            "cosine_same_object": float(same_object.mean()),
            "hit_at_1_same_object": float(np.nanmean(hits)),
        },
        baselines={
            "within_between_ratio": Baseline(_within_between_ratio(shuffled, there), "shuffled objects"),
            "cosine_same_object": Baseline(other_objects, "other objects"),
            "hit_at_1_same_object": Baseline(float(own_views.mean() - 1) / int(own_views.sum() - 1), "chance"),
        },
        num_samples=num_images,
        object_scores={"cosine_same_object": same_object.cpu().numpy(), "hit_at_1_same_object": hits},
    )


@task("collapse")
def collapse(ask: Ask) -> TaskResult:
    """How many directions the features use: 1 or less if all views have the same features.

    - `rankme`: exp of the entropy of the singular values' shares (each plus 1e-7) of the uncentred matrix of features
      (Garrido et al., "RankMe", ICML 2023, equation 1); 0 if all features are 0.
    - `effective_rank`: exp of the entropy of the singular values' shares of the centred matrix of features (Roy and
      Vetterli, "The effective rank", EUSIPCO 2007); 0 without any variance.
    - `column_std_mean`, `column_std_min`: standard deviation of the columns of rows of length 1, times sqrt(D): 1 in
      all columns if the directions are isotropic.
    - `dead_dimensions`: share of the columns whose standard deviation is less than 1 % of the columns' average, or no
      more than rounding.

    Baselines: independent Gaussian features of the same number of rows and columns.
    """
    require_finite(ask.test)
    features = feature_matrix(ask.test)
    metrics, singular_values = _directions_used(features)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([ask.seed, ISOTROPIC_STREAM]).integers(2**62)))
    isotropic, _ = _directions_used(torch.randn(features.shape, generator=generator).to(features.device))
    return TaskResult(
        metrics=metrics,
        baselines={name: Baseline(value, "isotropic features") for name, value in isotropic.items()},
        num_samples=len(features),
        singular_values=singular_values,
    )


def rank_me(singular_values: np.ndarray) -> float:
    """RankMe of the singular values of a matrix of features: exp of their entropy; 0 if they all are 0."""
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total + RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _directions_used(features: Tensor) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of `collapse` of rows `[n, D]`, and the singular values, largest first."""
    num_rows, dim = features.shape
    gram, sums = _second_moments(features, of_length_one=False)
    squares = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)[: min(num_rows, dim)]
    singular_values = squares.sqrt().cpu().numpy()
    rounding = FLOAT32_ROUNDING**2 * float(gram.diagonal().mean()) / num_rows  # variance of a constant in float32
    covariance = gram / num_rows - torch.outer(sums, sums) / num_rows**2
    eigenvalues = torch.linalg.eigvalsh(covariance).cpu().numpy()
    std = covariance.diagonal().clamp(min=0).sqrt().cpu().numpy()
    dead = (std < DEAD_SHARE * std.mean()) | (std <= rounding**0.5)

    unit_gram, unit_sums = _second_moments(features, of_length_one=True)
    unit_variance = unit_gram.diagonal() / num_rows - (unit_sums / num_rows).square()
    unit_std = (dim * unit_variance.clamp(min=0)).sqrt().cpu().numpy()
    metrics = {
        "rankme": rank_me(singular_values),
        "effective_rank": effective_rank(np.sqrt(np.where(eigenvalues > rounding, eigenvalues, 0.0))),
        "column_std_mean": float(unit_std.mean()),
        "column_std_min": float(unit_std.min()),
        "dead_dimensions": float(dead.mean()),
    }
    return metrics, singular_values


def _second_moments(features: Tensor, of_length_one: bool) -> tuple[Tensor, Tensor]:
    """Sum of x x^T `[D, D]` and of x `[D]` over rows (of length 1, if asked for), in float64."""
    dim = features.shape[1]
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    sums = torch.zeros(dim, dtype=torch.float64, device=features.device)
    for rows in features.split(ROWS_AT_ONCE):
        rows = F.normalize(rows.double(), dim=1) if of_length_one else rows.double()
        gram += rows.T @ rows
        sums += rows.sum(dim=0)
    return gram, sums


def _within_between_ratio(centred: Tensor, there: Tensor) -> float:
    """Variance within objects over that between them, of features `[n_objects, V, D]` whose overall mean is 0.

    Here and below, `there [n_objects, V]` says where there are views, and features are zero elsewhere.
    """
    means = centred.sum(dim=1, keepdim=True) / there.sum(dim=1)[:, None, None]
    within = float(((centred - means).square().sum(dim=-1) * there).sum() / there.sum())
    between = float(means.square().sum(dim=-1).mean())
    if between <= FLOAT32_ROUNDING**2 * (within + between):
        raise TaskSkipped(
            f"the means of the {len(centred)} evaluated objects are all the same, so variance within objects can't be "
            "compared with that between them: use a part of the features that tells objects apart"
        )
    return within / between


def _mean_cosines(centred: Tensor, there: Tensor) -> tuple[Tensor, float]:
    """Mean cosine of two views of each object `[n_objects]`, and of two views of different objects."""
    own_views = there.sum(dim=1)
    unit = F.normalize(centred, dim=-1)
    of_views = unit.square().sum(dim=(1, 2))  # V, less any view that has no direction
    of_objects = unit.sum(dim=1)
    same_object = (of_objects.square().sum(dim=1) - of_views) / (own_views * (own_views - 1))
    all_objects = of_objects.sum(dim=0).square().sum()
    pairs_of_others = int(own_views.sum() ** 2 - own_views.square().sum())
    return same_object, float((all_objects - of_objects.square().sum()) / pairs_of_others)


def _compared_objects(num_objects: int, protocol: ProbeProtocol) -> np.ndarray:
    order = np.random.default_rng([protocol.evaluation_seed, SUBSET_STREAM]).permutation(num_objects)
    return np.sort(order[: protocol.compared_objects])


def _nearest_is_same_object(centred: Tensor, there: Tensor) -> np.ndarray:
    """Share `[n_objects]` of each object's views whose nearest other view is of the same object."""
    unit, objects = F.normalize(centred, dim=-1)[there], there.nonzero()[:, 0]
    hits = []
    for rows in torch.arange(len(unit), device=unit.device).split(ROWS_AT_ONCE // 4):
        similarities = unit[rows] @ unit.T
        similarities.scatter_(1, rows[:, None], -torch.inf)
        own = objects[rows][:, None] == objects
        nearest_own = similarities.masked_fill(~own, -torch.inf).amax(dim=1)
        nearest_other = similarities.masked_fill(own, -torch.inf).amax(dim=1)
        hits.append(nearest_own > nearest_other + FLOAT32_ROUNDING)
    return object_means(torch.cat(hits), objects, len(there))
