"""An encoder whose features are capsules: any timm backbone, and a capsule head on its last feature map.

This is the architecture of EquiCaps (Konstantinou et al. 2025, arXiv:2506.09895; there a ResNet-18 on images of 256
pixels) and of CapsIE (Everett et al., arXiv:2405.14386). timm makes it by these names:

    name                        backbone            images  parameters  features
    capsule_network             any, by its name    any
    capsule_resnet18            resnet18            256     18.6 M      320
    capsule_strided_cnn_pooled  strided_cnn_pooled  64      2.2 M       320
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import ssl_equi.encoders.strided_cnn  # noqa: F401  (a backbone, registered with timm)
from ssl_equi.encoders.capsules.layers import CapsuleHead, Capsules, Votes, VotesInit
from ssl_equi.encoders.feature_maps import as_feature_map, feature_map_size
from ssl_equi.encoders.timm_interface import build_backbone, register_encoders, untrained_cfg

__all__ = ["CapsuleNetwork"]


class CapsuleNetwork(nn.Module):
    """Images [N, 3, S, S] to capsules [N, K + K * d * d]: K activations, then the poses row by row.

    Args:
        backbone: encoder with timm's `forward_features` and `forward_head`, made without classifier. One without a
            feature map, or with a layer behind it, is refused.
        image_size: S, in pixels; the head fits images of this size only.
        num_capsules, pose_side, votes, routing_std, votes_init: of `CapsuleHead`.

    Attributes:
        parts: columns of the features by name: all, inv (the activations), equi (the poses).
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        num_capsules: int = 32,
        pose_side: int = 3,
        votes: Votes = "free",
        routing_std: float = 0.0,
        votes_init: VotesInit = "scale_preserving",
    ) -> None:
        super().__init__()
        channels, height, width = feature_map_size(backbone, image_size)
        _freeze_behind_the_map(backbone, image_size)
        self.image_size, self.num_classes = image_size, 0
        self.num_capsules, self.pose_side, self.votes = num_capsules, pose_side, votes
        self.backbone = backbone
        self.head = CapsuleHead(channels, (height, width), num_capsules, pose_side, votes, routing_std, votes_init)
        self.num_features = num_capsules * (1 + pose_side * pose_side)
        self.parts = {
            "all": slice(0, self.num_features),
            "inv": slice(0, num_capsules),
            "equi": slice(num_capsules, self.num_features),
        }

    def feature_map(self, images: Tensor) -> Tensor:
        """What the backbone's `forward_features` returns, in its own layout."""
        if images.ndim != 4 or images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, but this capsule network was built for "
                f"[N, 3, {self.image_size}, {self.image_size}]: resize them, or build it with their size"
            )
        return self.backbone.forward_features(images)  # type: ignore[operator]

    def compile_parts(self) -> None:
        """Compiles backbone and head in place; the backbone by the methods that are called here, not as a whole."""
        self.backbone.forward_features = torch.compile(self.backbone.forward_features)  # type: ignore[arg-type,assignment]
        self.head.compile()

    def features_and_capsules(self, images: Tensor) -> tuple[Tensor, Capsules]:
        """The backbone's features [N, D], and activations [N, K] and poses [N, K, d, d], from one pass."""
        output = self.feature_map(images)
        return self.backbone.forward_head(output), self.head(as_feature_map(self.backbone, output))  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        activations, poses = self.head(as_feature_map(self.backbone, self.feature_map(images)))
        return torch.cat([activations, poses.flatten(1)], dim=1)


def _freeze_behind_the_map(backbone: nn.Module, image_size: int) -> None:
    """Takes weights that no gradient of the map reaches out of the training: scales of a norm before the pooling."""
    # Several processes would wait for their gradients. A whole layer there would stay random in the features that are
    # probed and exported, so it is refused.
    weights = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
    was_training = backbone.training
    backbone.eval()  # leaves the statistics of batch norms alone
    with torch.enable_grad():
        images = next(iter(weights.values())).new_zeros(1, 3, image_size, image_size)
        output = backbone.forward_features(images)  # type: ignore[operator]
        gradients = torch.autograd.grad(output.sum(), list(weights.values()), allow_unused=True)
    backbone.train(was_training)
    behind = {name: weights[name] for name, gradient in zip(weights, gradients, strict=True) if gradient is None}
    layers = [name for name, weight in behind.items() if weight.ndim > 1]
    if layers:
        raise ValueError(
            f"the backbone has a layer behind its feature map ({layers[0]}), which capsules would never train: choose "
            "one that only pools there, such as strided_cnn_pooled or resnet18"
        )
    for weight in behind.values():
        weight.requires_grad_(False)


def _make(
    backbone: str = "resnet18",
    img_size: int | tuple[int, int] = 256,
    num_capsules: int = 32,
    pose_side: int = 3,
    votes: Votes = "free",
    routing_std: float = 0.0,
    votes_init: VotesInit = "scale_preserving",
    num_classes: int = 0,
    in_chans: int = 3,
    backbone_arguments: Mapping[str, Any] | None = None,
) -> CapsuleNetwork:
    """What timm calls: the network with a freshly initialised backbone of this name."""
    made, side = build_backbone(backbone, img_size, num_classes, in_chans, backbone_arguments)
    return CapsuleNetwork(made, side, num_capsules, pose_side, votes, routing_std, votes_init)


register_encoders(
    __name__, _make, {"capsule_network": {}, "capsule_resnet18": {}}, untrained_cfg(256, fixed_input_size=True)
)
register_encoders(
    __name__,
    _make,
    {"capsule_strided_cnn_pooled": {"backbone": "strided_cnn_pooled"}},
    untrained_cfg(64, fixed_input_size=True),
)
