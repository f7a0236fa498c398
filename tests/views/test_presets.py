"""The named augmentations have the papers' values and make views."""

import pytest
import torch

from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.presets import PRESETS, SMALL_VIEW_PRESETS, small_view_pipeline, tenth_of_side, view_pipelines
from ssl_equi.views.transforms import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
)

FLIP = HorizontalFlip(probability=0.5)
GREY = Grayscale(probability=0.2)
MEDIUM = ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8)
BYOL = ColorJitter(0.4, 0.4, 0.2, 0.1, probability=0.8)


@pytest.mark.parametrize(
    ("pipelines", "size", "source"),
    [
        *((view_pipelines(name, 32), 32, preset.source) for name, preset in PRESETS.items()),
        *(((small_view_pipeline(name, 16),), 16, preset.source) for name, preset in SMALL_VIEW_PRESETS.items()),
    ],
    ids=[*PRESETS, *SMALL_VIEW_PRESETS],
)
def test_every_preset_makes_views_and_names_its_source(
    pipelines: tuple[ViewPipeline, ...], size: int, source: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 40, 50, generator=generator)
    for pipeline in pipelines:
        views = pipeline.apply(images, pipeline.draw(4, source_sizes=(40, 50), generator=generator))
        assert views.shape == (4, 3, size, size)
        assert 0 <= views.min() <= views.max() <= 1
    assert source


def test_values_of_the_symmetric_papers():
    expected = {
        "crop_flip": (RandomResizedCrop(224, (0.08, 1.0)), FLIP),
        "simclr_cifar": (RandomResizedCrop(224, (0.2, 1.0)), FLIP, MEDIUM, GREY),
        "simclr_imagenet": (
            RandomResizedCrop(224, (0.08, 1.0)), FLIP, ColorJitter(0.8, 0.8, 0.8, 0.2, probability=0.8), GREY,
            GaussianBlur(23, (0.1, 2.0), probability=0.5),
        ),
        "mocov2": (RandomResizedCrop(224, (0.2, 1.0)), FLIP, MEDIUM, GREY, GaussianBlur(23, probability=0.5)),
        "care_cifar": (RandomResizedCrop(224, (0.08, 1.0)), FLIP, MEDIUM, GREY, GaussianBlur(3, probability=0.5)),
        "care_imagenet100": (RandomResizedCrop(224, (0.2, 1.0)), FLIP, MEDIUM, GREY, GaussianBlur(5, probability=0.5)),
    }  # fmt: skip
    for name, transforms in expected.items():
        first, second = view_pipelines(name, 224)
        assert first == second and first.transforms == transforms


@pytest.mark.parametrize(
    ("name", "scale", "size", "kernel"), [("byol_imagenet", 0.08, 224, 23), ("seq_jepa", 0.2, 64, 7)]
)
def test_values_of_the_asymmetric_papers(name: str, scale: float, size: int, kernel: int):
    first, second = view_pipelines(name, size)
    crop = RandomResizedCrop(size, (scale, 1.0), interpolation="bicubic")
    assert first.transforms == (crop, FLIP, BYOL, GREY, GaussianBlur(kernel, probability=1.0))
    blur, solarise = GaussianBlur(kernel, probability=0.1), Solarize(probability=0.2)
    assert second.transforms == (crop, FLIP, BYOL, GREY, blur, solarise)


def test_values_of_essls_small_views():
    assert small_view_pipeline("cifar", 16).transforms == (RandomResizedCrop(16, (0.2, 1.0)), FLIP, MEDIUM, GREY)
    blur = GaussianBlur(9, probability=0.1)
    for name, scale in (("imagenet", (0.05, 0.14)), ("imagenet_wide", (0.08, 1.0))):
        assert small_view_pipeline(name, 96).transforms == (RandomResizedCrop(96, scale), FLIP, BYOL, GREY, blur)


def test_kernel_sizes_are_odd_and_near_a_tenth():
    assert [tenth_of_side(size) for size in (16, 32, 64, 96, 128, 224, 256)] == [3, 3, 7, 9, 13, 23, 25]


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="there are no views named 'simclr': use crop_flip, simclr_cifar"):
        view_pipelines("simclr", 32)
    with pytest.raises(ValueError, match="there is no small view named 'stl': use cifar, imagenet, imagenet_wide"):
        small_view_pipeline("stl", 32)
