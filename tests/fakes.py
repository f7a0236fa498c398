"""Small stand-ins that tests share: encoders, data and what a run offers."""

# ---------------------------------------------------------------- encoders

import torch
from torch import Tensor, nn


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


class StridedEncoder(nn.Module):
    """Convolutions without any symmetry, for images of 17 to 20 pixels: strides on even sides, an unpooled grid."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(100, self.num_features),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


# ---------------------------------------------------------------- objectives


def random_pairs(size: int, action_dim: int = 4, side: int = 2) -> tuple[Tensor, Tensor]:
    """Views [size, 2, 3, side, side] and actions [size, action_dim], the same for the same size."""
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, side, side, generator=generator)
    return views, torch.randn(size, action_dim, generator=generator)


# ---------------------------------------------------------------- data


# ---------------------------------------------------------------- runs
