"""Transforms in a row: draw all parameters first, then apply them, as often as wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ssl_equi.views.parameters import CropParameters, TransformParameters, ViewParameters, concatenate
from ssl_equi.views.transforms import Crop, Transform, perform

CPU_BLOCK_BYTES = 2**20
"""How much of a batch goes through all transforms together on the CPU: what its caches hold."""
GPU_BLOCK_BYTES = 2**29
"""How large the views are, at most, that pipelines which are alike make together on a GPU."""


@dataclass(frozen=True)
class ViewPipeline:
    """Transforms that are applied one after another, each at most once; a crop comes first.

    Parameters are drawn on the CPU, so that every device gives the same views, and `apply` makes the same view again
    from them: equal to the bit for the same batch, and to 1e-6 for an image alone or in another batch.
    """

    transforms: tuple[Transform[Any], ...]
    """in the order in which they are applied"""

    def __post_init__(self) -> None:
        names = [transform.name for transform in self.transforms]
        assert names and len(set(names)) == len(names) and "crop" not in names[1:], names

    @property
    def output_size(self) -> int | None:
        """Side of the views in pixels; None without a crop, which leaves the images' size."""
        first = self.transforms[0]
        return first.size if isinstance(first, Crop) else None

    def view_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width in pixels of what these images become."""
        return (self.output_size, self.output_size) if self.output_size else (images.shape[2], images.shape[3])

    def draw(
        self,
        count: int,
        *,
        source_sizes: tuple[int, int] | Tensor,
        generator: Generator,
        shared_by: int = 1,
    ) -> ViewParameters:
        """Draws the parameters of `count` views, on the CPU.

        Args:
            count: N, number of images.
            source_sizes: (height, width) of all images, or int [N, 2] with one row per image, in pixels.
            generator: on the CPU.
            shared_by: number of consecutive images that share one draw. Where their sizes differ, they share the crop
                relative to the source, rounded to whole pixels.
        """
        sizes = torch.as_tensor(source_sizes, device="cpu").expand(count, 2).long()
        drawn: dict[str, TransformParameters] = {}
        for transform in self.transforms:
            # Of images that share a draw, the first one's size is drawn for.
            parameters = transform.draw(count // shared_by, sizes[::shared_by], generator)
            if shared_by > 1:
                parameters = parameters.rows(torch.arange(count) // shared_by)
                if isinstance(parameters, CropParameters):
                    parameters = _fit_to_sources(parameters, sizes)
            drawn[transform.name] = parameters
        return ViewParameters(**drawn)  # type: ignore[arg-type]

    def apply(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """Makes the views that this pipeline's parameters describe.

        Args:
            images: [N, 3, H, W], float32 in [0, 1] or uint8. They may be larger than the sizes given to `draw`, padded
                at the right and at the bottom: the crop takes nothing from outside of what those sizes say.
            parameters: on any device, best on the CPU, where they were drawn.

        Returns:
            float32 [N, 3, S, S] with S = `output_size`, on the device of the images. Nothing flows back through them.
        """
        assert len(images) == len(parameters), "one row of parameters per image"
        parameters = parameters.to("cpu")
        if images.device.type != "cpu":
            return self._apply_to_block(images, parameters)
        # A block goes through all transforms before the next one, while it is in the CPU's caches.
        height, width = self.view_size(images)
        rows_of_a_block = max(1, CPU_BLOCK_BYTES // (3 * 4 * height * width))
        views = torch.empty(len(images), 3, height, width)
        for start in range(0, len(images), rows_of_a_block):
            rows = slice(start, start + rows_of_a_block)
            views[rows] = self._apply_to_block(images[rows], parameters.rows(rows))
        return views

    def _apply_to_block(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        steps = [
            transform.operations(getattr(parameters, transform.name), images.device) for transform in self.transforms
        ]
        return perform([operation for step in steps for operation in step], images)


def apply_each(pipelines: Sequence[ViewPipeline], images: Tensor, parameters: Sequence[ViewParameters]) -> list[Tensor]:
    """A view of every image by each pipeline with its parameters; arguments as in `ViewPipeline.apply`.

    On a GPU, pipelines that differ only in what they draw and in what they leave out make their views together: that
    takes as many launches as one of them alone.
    """
    if images.device.type == "cpu":
        return [pipeline.apply(images, drawn) for pipeline, drawn in zip(pipelines, parameters, strict=True)]
    views: dict[int, Tensor] = {}
    for longest, *others in _alike(pipelines):
        pipeline, numbers = pipelines[longest], [longest, *others]
        drawn = [_with_none_applied(parameters[number], parameters[longest]) for number in numbers]
        height, width = pipeline.view_size(images)
        at_once = max(1, GPU_BLOCK_BYTES // (3 * 4 * height * width * len(images)))
        for block in (slice(start, start + at_once) for start in range(0, len(numbers), at_once)):
            count = len(numbers[block])
            # One pipeline's rows after the other's, as `concatenate` has them.
            made = pipeline.apply(images.repeat(count, 1, 1, 1), concatenate(drawn[block]))
            views |= zip(numbers[block], made.split(len(images)))
    return [views[number] for number in range(len(pipelines))]


def _alike(pipelines: Sequence[ViewPipeline]) -> list[list[int]]:
    """Numbers of pipelines in groups: the first of each can do what the others do."""
    groups: list[list[int]] = []
    # The longest first, so that every other one finds those that can do more than it does.
    for number in sorted(range(len(pipelines)), key=lambda number: -len(pipelines[number].transforms)):
        group = next((group for group in groups if _can_do(pipelines[group[0]], pipelines[number])), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _can_do(longer: ViewPipeline, pipeline: ViewPipeline) -> bool:
    """Whether a pipeline has all transforms of another, in the same order, and gives the same size."""
    remaining = iter(longer.transforms)
    has_all = all(any(transform.changes_like(own) for own in remaining) for transform in pipeline.transforms)
    return has_all and longer.output_size == pipeline.output_size


def _with_none_applied(parameters: ViewParameters, longer: ViewParameters) -> ViewParameters:
    """The parameters, with those of transforms that only `longer` has, which are applied to no image."""
    missing = {
        name: replace(value, applied=torch.zeros_like(value.applied))
        for name, value in vars(longer).items()
        if value is not None and getattr(parameters, name) is None
    }
    return replace(parameters, **missing)


def _fit_to_sources(crop: CropParameters, sizes: Tensor) -> CropParameters:
    """The same share of every source: crops drawn for sources of one size, carried over to sources of others."""
    source_height, source_width = sizes.float().unbind(dim=1)
    down, right = source_height / crop.source_height, source_width / crop.source_width
    height, width = (crop.height * down).round().clamp(min=1), (crop.width * right).round().clamp(min=1)
    return replace(
        crop,
        top=torch.minimum((crop.top * down).round(), source_height - height),
        left=torch.minimum((crop.left * right).round(), source_width - width),
        height=height,
        width=width,
        source_height=source_height,
        source_width=source_width,
    )
