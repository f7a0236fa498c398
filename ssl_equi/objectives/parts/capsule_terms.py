"""Terms on capsules: activations (probabilities) and poses (matrices), of both views.

Everything is finite, with finite gradients, for one-hot activations and zero poses. Call the terms with autocast off on
values of at least float32 (`batch.full_precision`).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_equi.encoders.capsules.layers import Capsules
from ssl_equi.objectives.parts.batch import batch_mean, batch_std
from ssl_equi.runtime.device_copies import constant

if TYPE_CHECKING:  # it imports timm, which takes seconds
    from ssl_equi.encoders.capsules.network import CapsuleNetwork

TURNED_COLUMNS = 3  # of a pose that is multiplied with a rotation or a rigid motion
SMALLEST_PROBABILITY = 1e-6  # under a logarithm
SMALLEST_NORM = 1e-3  # of a pose that is scaled to length 1; shorter ones stay shorter


def capsules_of_both_views(
    network: "CapsuleNetwork", views: Tensor, separate_batch_norm: bool
) -> tuple[Tensor, Capsules]:
    """The backbone's features [B, 2, D] and the capsules, activations [B, 2, K] and poses [B, 2, K, d, d], of views
    [B, 2, 3, H, W]; `batch.on_both_views` for a network with three outputs."""
    if separate_batch_norm:
        of_each_view = [network.features_and_capsules(view) for view in views.unbind(dim=1)]
        outputs = zip(*((features, *capsules) for features, capsules in of_each_view), strict=True)
        features, activations, poses = (torch.stack(output, dim=1) for output in outputs)
    else:
        features, capsules = network.features_and_capsules(views.flatten(0, 1))
        features, activations, poses = (each.unflatten(0, views.shape[:2]) for each in (features, *capsules))
    return features, Capsules(activations, poses)


def cross_entropy(targets: Tensor, predictions: Tensor) -> Tensor:
    """Mean over the batch of -sum_j t_j log p_j, for probabilities [..., K] each: []."""
    return -(targets * predictions.clamp(min=SMALLEST_PROBABILITY).log()).sum(dim=-1).mean()


def missing_entropy(activations: Tensor) -> Tensor:
    """log K - H(mean over the global batch) of this process's share of probabilities [B, K]: 0 if all capsules are used
    equally, log K if only one."""
    mean = batch_mean(activations)
    return math.log(activations.shape[1]) - cross_entropy(mean, mean)


def unit_poses(poses: Tensor, columns: int | None = None) -> Tensor:
    """Poses [..., d, d], or some of their columns, scaled so that the first `columns` have Frobenius norm 1."""
    # A rigid motion from the right turns the first three columns of a 4 x 4 pose and keeps their norm. Not so that of
    # the whole matrix: scaled by it, poses whose last column outweighs the others follow any action unknowingly.
    measured = poses if columns is None else poses[..., :columns]
    norm = torch.linalg.vector_norm(measured, dim=(-2, -1), keepdim=True)
    return poses / norm.clamp(min=SMALLEST_NORM)


def reachable_stds(activations: Tensor, poses: Tensor, columns: int | None = None) -> Tensor:
    """The largest standard deviation that every column of [activations, unit poses] can have at once: [K + K d d].

    Activations [..., K] that sum to 1 reach it one-hot with every capsule used equally; entries of poses [..., K, d, d]
    of norm 1 reach it with mean zero and equal shares of the norm. `columns` is as in `unit_poses`; further columns are
    held to the same.
    """
    # The target 1 of the released code is out of reach for either: its hinge never closes.
    num_capsules, side = poses.shape[-3:-1]
    of_activations = (largest_activation_std(num_capsules),) * num_capsules
    of_poses = (largest_pose_std(side, columns),) * (num_capsules * side * side)
    return constant(of_activations + of_poses, poses.device, poses.dtype)


def largest_pose_std(side: int, columns: int | None = None) -> float:
    """Of an entry of matrices with `side` rows whose first `columns` (None: all) have norm 1 and mean zero."""
    return 1 / math.sqrt(side * (side if columns is None else columns))


def largest_activation_std(num_capsules: int) -> float:
    """Of a column of K activations that are one-hot and equally often 1."""
    return math.sqrt(num_capsules - 1) / num_capsules


def capsule_monitors(activations: Tensor, pose_columns: Tensor, pose_std: float) -> dict[str, Tensor]:
    """Whether capsules collapse, from shares of activations [B, 2, K] and of poses [B, 2, E] as they are compared.

    `std_inv` and `std_equi` are mean standard deviations as shares of the largest possible (for poses, of `pose_std`):
    0 for constants. `entropy` is the mean entropy of an image's activations as a share of log K: 0 if one capsule
    answers alone.
    """
    num_capsules = activations.shape[-1]
    return {
        "std_inv": batch_std(activations).mean() / largest_activation_std(num_capsules),
        "std_equi": batch_std(pose_columns).mean() / pose_std,
        "entropy": cross_entropy(activations, activations) / math.log(num_capsules),
    }
