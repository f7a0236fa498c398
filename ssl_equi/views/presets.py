"""The augmentations of the papers, by name."""

from dataclasses import dataclass

from ssl_equi.views.operations import Interpolation
from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.transforms import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    Transform,
)


@dataclass(frozen=True)
class ViewRecipe:
    """The usual augmentations of one view at any size; a probability of 0 leaves one out."""

    scale: tuple[float, float]
    """least and greatest share of the image's area that the crop takes"""
    interpolation: Interpolation = "bilinear"
    """bilinear or bicubic"""
    flip_probability: float = 0.5
    """horizontal flip"""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """brightness, contrast, saturation, hue"""
    jitter_probability: float = 0.8
    """jitter"""
    grayscale_probability: float = 0.2
    """removal of the colour"""
    blur_probability: float = 0.0
    """blur with a standard deviation of 0.1 to 2 pixels"""
    blur_kernel_size: int | None = None
    """pixels; None: a tenth of the view's side"""
    solarize_probability: float = 0.0
    """solarisation from 0.5 upwards"""

    def pipeline(self, image_size: int, *, compiled: bool = False) -> ViewPipeline:
        """The pipeline for square views of this side in pixels; `compiled` as in `ColorJitter`."""
        transforms: list[Transform] = [
            RandomResizedCrop(image_size, scale=self.scale, interpolation=self.interpolation)
        ]
        if self.flip_probability:
            transforms.append(HorizontalFlip(probability=self.flip_probability))
        if self.jitter_probability:
            transforms.append(ColorJitter(*self.jitter, probability=self.jitter_probability, compiled=compiled))
        if self.grayscale_probability:
            transforms.append(Grayscale(probability=self.grayscale_probability))
        if self.blur_probability:
            kernel_size = self.blur_kernel_size or tenth_of_side(image_size)
            transforms.append(GaussianBlur(kernel_size, probability=self.blur_probability))
        if self.solarize_probability:
            transforms.append(Solarize(probability=self.solarize_probability))
        return ViewPipeline(tuple(transforms))


@dataclass(frozen=True)
class Preset:
    """The augmentations of both views of a paper, or of its additional, smaller view."""

    source: str
    """where the values are from"""
    first: ViewRecipe
    """of view 1, or of the small view"""
    second: ViewRecipe | None = None
    """of view 2; None: as view 1"""


BYOL_JITTER = (0.4, 0.4, 0.2, 0.1)

PRESETS: dict[str, Preset] = {
    "crop_flip": Preset(
        source="crop and flip alone: geometry changes, colours stay",
        first=ViewRecipe(scale=(0.08, 1.0), jitter_probability=0, grayscale_probability=0),
    ),
    "simclr_cifar": Preset(
        source="E-SSL (Dangovski et al., arXiv:2111.00899), released code for CIFAR-10: SimCLR's without blur",
        first=ViewRecipe(scale=(0.2, 1.0)),
    ),
    "simclr_imagenet": Preset(
        source="SimCLR (Chen et al., arXiv:2002.05709), appendix A, strength 1",
        first=ViewRecipe(scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
    ),
    "mocov2": Preset(
        source="MoCo v2 (Chen et al., arXiv:2003.04297), released code",
        first=ViewRecipe(scale=(0.2, 1.0), blur_probability=0.5),
    ),
    "byol_imagenet": Preset(
        source="BYOL (Grill et al., arXiv:2006.07733), appendix B; E-SSL's code for ImageNet takes the same",
        first=ViewRecipe(scale=(0.08, 1.0), interpolation="bicubic", jitter=BYOL_JITTER, blur_probability=1.0),
        second=ViewRecipe(
            scale=(0.08, 1.0),
            interpolation="bicubic",
            jitter=BYOL_JITTER,
            blur_probability=0.1,
            solarize_probability=0.2,
        ),
    ),
    "care_cifar": Preset(
        source="CARE (Gupta et al., arXiv:2306.13924), released code for CIFAR and STL at 32 pixels",
        first=ViewRecipe(scale=(0.08, 1.0), blur_probability=0.5, blur_kernel_size=3),
    ),
    "care_imagenet100": Preset(
        source="CARE (Gupta et al., arXiv:2306.13924), released code for ImageNet-100 at 224 pixels",
        first=ViewRecipe(scale=(0.2, 1.0), blur_probability=0.5, blur_kernel_size=5),
    ),
    "seq_jepa": Preset(
        source="seq-JEPA (Ghaemi et al., arXiv:2505.03176), augmented CIFAR-100 and Tiny ImageNet; "
        "view 1 is observed, view 2 is the target",
        first=ViewRecipe(scale=(0.2, 1.0), interpolation="bicubic", jitter=BYOL_JITTER, blur_probability=1.0),
        second=ViewRecipe(
            scale=(0.2, 1.0),
            interpolation="bicubic",
            jitter=BYOL_JITTER,
            blur_probability=0.1,
            solarize_probability=0.2,
        ),
    ),
}

SMALL_VIEW_PRESETS: dict[str, Preset] = {
    "cifar": Preset(
        source="E-SSL (arXiv:2111.00899), released code for CIFAR-10, at 16 pixels",
        first=ViewRecipe(scale=(0.2, 1.0)),
    ),
    "imagenet": Preset(
        source="E-SSL (arXiv:2111.00899), released code for ImageNet, at 96 pixels",
        first=ViewRecipe(scale=(0.05, 0.14), jitter=BYOL_JITTER, blur_probability=0.1),
    ),
    "imagenet_wide": Preset(
        source="E-SSL (arXiv:2111.00899), released code for ImageNet with the wide crop, at 96 pixels",
        first=ViewRecipe(scale=(0.08, 1.0), jitter=BYOL_JITTER, blur_probability=0.1),
    ),
}


def view_pipelines(name: str, image_size: int, *, compiled: bool = False) -> tuple[ViewPipeline, ViewPipeline]:
    """The pipelines of view 1 and view 2.

    Args:
        name: one of `PRESETS`; ValueError for another.
        image_size: side of the views in pixels.
        compiled: whether a GPU changes the colours by compiled code.
    """
    if name not in PRESETS:
        raise ValueError(f"there are no views named {name!r}: use {', '.join(PRESETS)}")
    preset = PRESETS[name]
    first, second = preset.first, preset.second or preset.first
    return first.pipeline(image_size, compiled=compiled), second.pipeline(image_size, compiled=compiled)


def transforms_of_views(name: str, image_size: int) -> set[str]:
    """Names of the transforms, fields of `ViewParameters`, that either view of a preset has."""
    return {transform.name for pipeline in view_pipelines(name, image_size) for transform in pipeline.transforms}


def small_view_pipeline(name: str, size: int, *, compiled: bool = False) -> ViewPipeline:
    """The pipeline of E-SSL's separate view, whose transformation is predicted.

    Args:
        name: one of `SMALL_VIEW_PRESETS`; ValueError for another.
        size: side of the view in pixels; E-SSL takes 16 for CIFAR and 96 for ImageNet.
        compiled: whether a GPU changes the colours by compiled code.
    """
    if name not in SMALL_VIEW_PRESETS:
        raise ValueError(f"there is no small view named {name!r}: use {', '.join(SMALL_VIEW_PRESETS)}")
    return SMALL_VIEW_PRESETS[name].first.pipeline(size, compiled=compiled)


def tenth_of_side(image_size: int) -> int:
    """The odd number nearest to a tenth of the side, at least 3: 3 for 32 pixels, 7 for 64, 23 for 224."""
    return max(3, 2 * (image_size // 20) + 1)
