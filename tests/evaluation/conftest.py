"""A data set held in memory, whose views show their latents."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from tests.fakes import ViewsInMemory, feature_cache


def make_fake_dataset(
    num_objects: int = 12, num_views: int = 6, num_classes: int = 3, seed: int = 0, split: str = "test"
) -> ViewsInMemory:
    generator = np.random.default_rng(seed)
    latents = generator.random((num_objects, num_views, 7))
    latents[..., :3] = (latents[..., :3] - 0.5) * np.pi
    labels = np.arange(num_objects) % num_classes
    images = generator.integers(0, 256, (num_objects, num_views, 8, 10, 3), dtype=np.uint8)
    # Pixels show class, hues and angles, so that a linear encoder of pixels has something to say about them.
    images[..., 0, 0, 0] = (labels * 100)[:, None]
    images[..., 0, 1, :2] = (latents[..., [3, 6]] * 255).astype(np.uint8)
    images[..., 0, 2, :] = ((latents[..., :3] / np.pi + 0.5) * 255).astype(np.uint8)

    return ViewsInMemory(
        images,
        split=split,
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        labels=labels.astype(np.int64),
        latents=latents.astype(np.float32),
        quats_xyzw=quat_xyzw_from_latents(torch.from_numpy(latents)).float().numpy(),
    )


@pytest.fixture
def fake_dataset() -> ViewsInMemory:
    return make_fake_dataset()


@pytest.fixture
def fake_test_dataset() -> ViewsInMemory:
    return make_fake_dataset(num_objects=9, seed=1)


def make_posed_cache(num_objects: int, seed: int, num_views: int = 8, num_classes: int = 4) -> FeatureCache:
    """Views of random latents with translations; the features are nothing yet (one column of zeros)."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(num_objects, num_views, 10, generator=generator)
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    latents[..., 4] *= torch.pi / 4
    latents[..., 5] *= 2 * torch.pi
    latents[..., 7:] -= 0.5
    labels = torch.arange(num_objects) % num_classes
    return feature_cache(torch.zeros(num_objects, num_views, 1), labels, latents, quat_xyzw_from_latents(latents))


@pytest.fixture
def posed_cache() -> Callable[..., FeatureCache]:
    return make_posed_cache
