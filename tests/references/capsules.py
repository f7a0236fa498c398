"""Losses of EquiCaps and CapsIE, with their capsule network on a feature map."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.references.equivariant import hypernetwork
from tests.references.formulas import covariances, entropy, hinge, mean_squared_error, weighted
from tests.references.networks import Batch, Calls, Network, called


def capsules(network: Network, images: Tensor, side: int) -> Tensor:
    """Images -> [N, K, 1 + d d], an activation and a pose for each of K capsules: primary capsules at all places of the
    map, and one layer of self-routing (Hahn, Pyeon and Kim, NeurIPS 2019) from all of them."""
    feature_map = F.conv2d(images, network["backbone.conv.weight"], stride=2)
    feature_map = network.batch_norm("backbone.norm", feature_map)
    primary = F.conv2d(feature_map, network["head.primary.conv.weight"], padding=1)
    primary = network.batch_norm("head.primary.norm", primary).flatten(2)  # [N, K + K d d, X] at X places
    count = primary.shape[1] // (1 + side * side)
    activations = torch.sigmoid(primary[:, :count])  # [N, K, X]
    poses = primary[:, count:].unflatten(1, (count, side * side))  # [N, K, d d, X]
    logits = torch.einsum("nkpx,kxpj->nkxj", poses, network["head.routing.routing_weight"])
    chosen = (logits + network["head.routing.routing_bias"]).softmax(dim=-1)
    votes = torch.einsum("nkpx,jvpkx->nkxjv", poses, network["head.routing.vote_weight"])
    sent = activations.unsqueeze(-1) * chosen  # [N, K, X, J]
    received = sent.sum((1, 2))  # [N, J]
    new_activations = received / activations.sum((1, 2)).unsqueeze(1)
    new_poses = torch.einsum("nkxj,nkxjv->njv", sent, votes) / received.unsqueeze(-1)
    return torch.cat([new_activations.unsqueeze(-1), new_poses], dim=-1)


def matrices_of_actions(actions: Tensor) -> Tensor:
    """Quaternions x, y, z, w [B, 4] -> rotations [B, 3, 3]; with a translation [B, 7] -> rigid motions [B, 4, 4]."""
    x, y, z, w = actions[:, :4].unbind(1)
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    if actions.shape[1] == 7:
        rows = [[*row, actions[:, 4 + number]] for number, row in enumerate(rows)]
        rows.append([torch.zeros_like(x)] * 3 + [torch.ones_like(x)])
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def missing_entropy(activations: Tensor) -> Tensor:
    """[B, K] -> log K - entropy of the batch's mean."""
    return math.log(activations.shape[1]) - entropy(activations.mean(0))


def capsule_monitors(activations: Tensor, poses: Tensor, largest_pose_deviation: float) -> dict[str, Tensor]:
    """Spread of activations [B, 2, K] and poses [B, 2, E] as shares of the largest possible, and the entropy."""
    count = activations.shape[-1]
    return {
        "std_inv": activations.std(0).mean() / (math.sqrt(count - 1) / count),
        "std_equi": poses.std(0).mean() / largest_pose_deviation,
        "entropy": entropy(activations).mean() / math.log(count),
    }


def equicaps(
    network: Network,
    batch: Batch,
    calls: Calls,
    pose_side: int,
    unit_columns: int,
    hinge_share: float | None,
    weights: dict[str, float],
) -> dict[str, Tensor]:
    """Konstantinou et al., 2025.

    Args:
        unit_columns: how many of a pose's columns together get Frobenius norm 1.
        hinge_share: up to which share of the largest standard deviation that they can have activations and poses are
            pushed; None: up to a standard deviation of 1, as released.
    """
    assert batch.actions is not None
    found = called(lambda x: capsules(network.part("network"), x, pose_side), batch.views, calls)
    activations, poses = found[..., 0], found[..., 1:].unflatten(-1, (pose_side, pose_side))  # [B, 2, K], [..., d, d]
    moved = torch.einsum("bkij,bjl->bkil", poses[:, 0], matrices_of_actions(batch.actions))
    compared = torch.stack([moved, poses[:, 1]], dim=1)
    compared = compared / compared[..., :unit_columns].square().sum((-2, -1), keepdim=True).sqrt()
    together = torch.cat([activations, compared.flatten(2)], dim=-1)

    count = activations.shape[-1]
    largest_pose_deviation = 1 / math.sqrt(pose_side * unit_columns)
    goals = torch.ones(together.shape[-1], dtype=together.dtype)
    if hinge_share is not None:
        goals[:count] = hinge_share * math.sqrt(count - 1) / count
        goals[count:] = hinge_share * largest_pose_deviation
    terms = {
        "invariance": -(activations[:, 1] * activations[:, 0].log()).sum(-1).mean(),
        "equivariance": mean_squared_error(compared[:, 0], compared[:, 1]),
        "missing_entropy": missing_entropy(activations[:, 0]) + missing_entropy(activations[:, 1]),
        "variance": (hinge(together[:, 0] / goals) + hinge(together[:, 1] / goals)) / 2,
        "covariance": covariances(together[:, 0]) + covariances(together[:, 1]),
    }
    monitors = capsule_monitors(activations, compared.flatten(2), largest_pose_deviation)
    return {"loss": weighted(weights, terms), **terms, **monitors}


def capsie(
    network: Network,
    batch: Batch,
    calls: Calls,
    pose_side: int,
    prediction_temperature: float,
    target_temperatures: tuple[float, float],
    schedule_length: float,
    weights: dict[str, float],
) -> dict[str, Tensor]:
    """Everett et al., 2024. The target's temperature goes from the first to the second of `target_temperatures` on a
    straight line over `schedule_length` trainings."""
    assert batch.actions is not None
    found = called(lambda x: capsules(network.part("network"), x, pose_side), batch.views, calls)
    activations, poses = found[..., 0], found[..., 1:].flatten(2)  # [B, 2, K], [B, 2, K d d]
    prediction = hypernetwork(network["predictor.matrices"], poses[:, 0], batch.actions)
    first, last = target_temperatures
    target_temperature = first + (last - first) * batch.progress / schedule_length
    softened = (activations / prediction_temperature).softmax(-1)
    targets = (activations.detach() / target_temperature).softmax(-1)
    crossed = [-(targets[:, 1 - view] * softened[:, view].log()).sum(-1).mean() for view in (0, 1)]
    terms = {
        "invariance": sum(crossed) / 2,
        "equivariance": mean_squared_error(prediction, poses[:, 1]),
        "missing_entropy": missing_entropy(softened[:, 0]) + missing_entropy(softened[:, 1]),
        "variance": (hinge(poses[:, 0]) + hinge(poses[:, 1])) / 2,
        "variance_prediction": hinge(prediction),
        "covariance": covariances(poses[:, 0]) + covariances(poses[:, 1]),
    }
    return {"loss": weighted(weights, terms), **terms, **capsule_monitors(activations, poses, 1.0)}
