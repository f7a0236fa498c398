"""Do the features of an object move linearly with its known rotation? Asked of pairs of views of any rotation.

A linear map z2 = A z1 for one fixed rotation can't be fitted, as no two pairs of random poses share a rotation. The map
is therefore made linear in the rotation as well: with R the matrix of the relative rotation,

    z2 = (A_0 z1 + b_0) + sum over i, j of R_ij (A_ij z1 + b_ij),

ten linear maps, found by one ridge regression. That holds exactly for features that are made of vectors which turn with
the object (orders 0 and 1 of the representations of SO(3)) and for any constants beside them; features that turn by
higher orders are only approached.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import Samples, fit_ridge, predict
from ssl_equi.evaluation.metrics import varying_components
from ssl_equi.evaluation.samples import (
    TaskSkipped,
    evaluated_rows,
    feature_matrix,
    held_out_samples,
    require_objects,
    require_varied,
    require_views,
    sample_objects,
    training_rows,
)
from ssl_equi.evaluation.task import POSE, Ask, TaskResult, task
from ssl_equi.evaluation.tasks.pose import rotations
from ssl_equi.geometry.rotations import quat_to_matrix

SAME_FEATURES = 1e-10  # squared difference of two views, as a share of the variance, below which nothing moves


@task("feature_action", needs=POSE)
def feature_action(ask: Ask) -> TaskResult:
    """Predict the second view's features from the first's and the rotation between them, by a map linear in both.

    More features than `protocol.feature_action_components` are reduced to so many principal components of the training
    features first, and so are those that are predicted; `details` holds the share of the evaluated features' variance
    that is kept. The ridge strength is chosen on held-out training objects.

    With E(answer) the sum over evaluated pairs and columns of the squared error of z2:

    - `r2_action`: 1 - E(map) / E(mean of the evaluated z2), so that columns weigh by their variance. Baseline: the same
      of a map z2 = A z1 + b that doesn't know the rotation, fitted alike.
    - `skill_over_first_view`: 1 - E(map) / E(z1): more than 0 if the map is better than to leave the features as they
      are. Baseline: 0, which z1 itself reaches.
    - `skill_over_object_mean`: 1 - E(map) / E(mean of the object's views but the second). Baseline: 0, which the mean
      reaches; unlike the map, it has seen V - 1 views of the object.
    """
    train, test, protocol = ask.train, ask.test, ask.protocol
    require_views(train, test)
    require_objects(train, "training")
    require_varied(train, test)
    components = fit_components(feature_matrix(train), protocol.feature_action_components)
    train_features, test_features = components.apply(feature_matrix(train)), components.apply(feature_matrix(test))
    train_rows = training_rows(train, "pairs", protocol.feature_action_pairs_per_object, ask.seed, epoch=0)
    test_rows = evaluated_rows(test, "pairs", protocol)
    first, second = test_features[test_rows[:, 0]], test_features[test_rows[:, 1]]
    spread = _squared_error(second.mean(dim=0), second)
    of_first_view = _squared_error(first, second)
    of_object_mean = _squared_error(_mean_of_other_views(test_features, test_rows, test), second)
    if not bool(varying_components(second).any()) or min(of_first_view, of_object_mean) <= SAME_FEATURES * spread:
        raise TaskSkipped(
            f"the views of each of the {test.num_objects} evaluated objects have the same features, so no rotation "
            "moves them: use a part of the features that is not invariant"
        )

    choosing = held_out_samples(train, train_rows, protocol.ridge_held_out_share, ask.seed)
    ridge = replace(protocol, ridge_strengths=protocol.feature_action_ridge_strengths)
    targets = train_features[train_rows[:, 1]]

    def answers(train_inputs: Tensor, test_inputs: Tensor) -> tuple[Tensor, float]:
        rows = torch.arange(len(train_inputs), device=train_inputs.device)[:, None]
        head, strength = fit_ridge(train_inputs, Samples(rows, targets), choosing, ridge)
        return predict(head, test_inputs, torch.arange(len(test_inputs), device=test_inputs.device)[:, None]), strength

    turned, strength = answers(
        turned_features(train_features[train_rows[:, 0]], quat_to_matrix(rotations(train, train_rows))),
        turned_features(first, quat_to_matrix(rotations(test, test_rows))),
    )
    unturned, _ = answers(train_features[train_rows[:, 0]], first)
    of_map = _squared_error(turned, second)
    without_rotation = 1 - _squared_error(unturned, second) / spread
    return TaskResult(
        metrics={
            "r2_action": 1 - of_map / spread,
            "skill_over_first_view": 1 - of_map / of_first_view,
            "skill_over_object_mean": 1 - of_map / of_object_mean,
        },
        baselines={
            "r2_action": Baseline(without_rotation, "linear map without the rotation"),
            "skill_over_first_view": Baseline(0.0, "first view"),
            "skill_over_object_mean": Baseline(0.0, "object mean"),
        },
        num_samples=len(test_rows),
        details={
            "ridge_strength": strength,
            "components": train_features.shape[1],
            "variance_kept": components.share_of_variance(feature_matrix(test)),
        },
    )


@dataclass(frozen=True)
class Components:
    """Principal components: `mean [D]` and orthonormal `directions [D, K]`."""

    mean: Tensor
    directions: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Coordinates `[n, K]` float32 of rows `[n, D]`."""
        return (features - self.mean) @ self.directions

    def share_of_variance(self, features: Tensor) -> float:
        """Of the variance of rows `[n, D]`, the share that their coordinates hold."""
        total = (features - features.mean(dim=0)).square().sum()
        kept = self.apply(features)
        return float((kept - kept.mean(dim=0)).square().sum() / total) if total > 0 else 0.0


def fit_components(features: Tensor, most: int) -> Components:
    """The `most` principal components of rows `[n, D]`; if D is not more, all columns as they are, less their mean."""
    mean = features.double().mean(dim=0)
    dim = features.shape[1]
    if dim <= most:
        return Components(mean.float(), torch.eye(dim, device=features.device))
    covariance = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for rows in features.split(4096):
        centred = rows.double() - mean
        covariance += centred.T @ centred
    return Components(mean.float(), torch.linalg.eigh(covariance)[1][:, -most:].float())


def turned_features(features: Tensor, matrices: Tensor) -> Tensor:
    """Inputs `[n, 10 (D + 1)]` of the map: 1 and the 9 entries of R, each times (z1, 1), from `[n, D]`, `[n, 3, 3]`."""
    one = torch.ones_like(features[:, :1])
    with_constant = torch.cat([features, one], dim=1)
    basis = torch.cat([one, matrices.flatten(1)], dim=1)
    return (basis[:, :, None] * with_constant[:, None]).flatten(1)


def _mean_of_other_views(features: Tensor, pairs: Tensor, cache: FeatureCache) -> Tensor:
    """Mean of the rows `features [N, D]` of all views of a pair's object except its second: `[n, D]`."""
    there, objects = cache.has_view, sample_objects(cache, pairs)
    by_object = features.new_zeros(*there.shape, features.shape[1])
    by_object[there] = features
    sums, counts = by_object.sum(dim=1), there.sum(dim=1)
    return (sums[objects] - features[pairs[:, 1]]) / (counts[objects] - 1)[:, None]


def _squared_error(answers: Tensor, targets: Tensor) -> float:
    return float((answers.double() - targets.double()).square().sum())
