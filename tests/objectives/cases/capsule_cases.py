"""EquiCaps and CapsIE."""

import torch
from torch import Tensor, nn
from two_process_cases import Tensors, random_pairs, train_steps

from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig


class MapEncoder(nn.Module):
    """A map of 2 x 2 positions with batch norm, and its mean."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.map(images)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))


def make_network(pose_side: int, votes: str = "free") -> CapsuleNetwork:
    network = CapsuleNetwork(MapEncoder(), 8, 5, pose_side, votes)
    with torch.no_grad():  # routing that depends on the image from the first step on
        network.head.routing.routing_weight.normal_()
    return network


def equicaps_step(dtype: torch.dtype, pose_side: int = 3, votes: str = "free", **options: object) -> Tensors:
    action_dim = {3: 4, 4: 7}[pose_side]
    return train_steps(
        lambda: EquiCaps(make_network(pose_side, votes), EquiCapsConfig(**options)),
        dtype,
        lambda dtype: random_pairs(dtype, action_dim),
    )


CASES = {
    "equicaps_rotation": lambda dtype: equicaps_step(dtype),
    "equicaps_pose": lambda dtype: equicaps_step(dtype, pose_side=4, variance_target="published"),
    "equicaps_matrix_votes": lambda dtype: equicaps_step(dtype, votes="matrix", separate_batch_norm=True),
    "capsie": lambda dtype: train_steps(lambda: CapsIE(make_network(4), CapsIEConfig()), dtype),
}
