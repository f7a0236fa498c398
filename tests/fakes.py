"""Small stand-ins that tests share: encoders, data and what a run offers."""

# ---------------------------------------------------------------- encoders

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ssl_equi.encoders.capsule_network import CapsuleNetwork


class PixelEncoder(nn.Module):
    """The features are the pixels: 12 of a 2 x 2 RGB image."""

    def __init__(self, num_features: int = 12) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.num_features]


class LinearEncoder(nn.Module):
    """One linear layer of the pixels."""

    def __init__(self, num_features: int = 16, pixels: int = 12) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(pixels, num_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


class BatchNormEncoder(nn.Module):
    """Two linear layers of the pixels with a batch norm between them."""

    def __init__(self, num_features: int = 16, pixels: int = 12) -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_features)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ConvolutionEncoder(nn.Module):
    """Convolutions with both kinds of batch norm, for images of 5 pixels and more, and one without scale at the end."""

    def __init__(self, num_features: int = 16) -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, bias=False),
            BatchNormAct2d(12, act_layer=nn.GELU),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, num_features),
            nn.BatchNorm1d(num_features, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class MapEncoder(nn.Module):
    """A map of 2 x 2 places for images of 8 x 8 pixels, with batch norm, and its mean."""

    def __init__(self, num_features: int = 8) -> None:
        super().__init__()
        self.num_features = num_features
        self.map = nn.Sequential(
            nn.Conv2d(3, num_features, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(num_features), nn.ReLU()
        )

    def forward_features(self, images: Tensor) -> Tensor:
        return self.map(images)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def capsule_network(pose_side: int, num_capsules: int = 5, votes: str = "free") -> CapsuleNetwork:
    """For images of 8 x 8 pixels; its routing depends on the image from the first step on."""
    network = CapsuleNetwork(MapEncoder(), 8, num_capsules, pose_side, votes)
    with torch.no_grad():
        network.head.routing.routing_weight.normal_()
    return network


def recorded_calls(module: nn.Module) -> list[tuple[int, ...]]:
    """Grows by the shape of the first input at every call of the module."""
    calls: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    return calls


# ---------------------------------------------------------------- objectives


def random_pairs(
    size: int, action_dim: int = 4, side: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Views [size, 2, 3, side, side] and actions [size, action_dim] of length 1, the same for the same size."""
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, side, side, generator=generator, dtype=dtype)
    actions = torch.randn(size, action_dim, generator=generator, dtype=dtype)
    return views, nn.functional.normalize(actions, dim=1)


# ---------------------------------------------------------------- data


# ---------------------------------------------------------------- runs
