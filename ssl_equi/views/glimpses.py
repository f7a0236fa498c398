"""Sequences of glimpses of an image: predictive learning across saccades (seq-JEPA, section 2.2).

A gaze jumps from pixel to pixel of one image, drawn to what is salient and not returning to the surroundings of earlier
fixations (inhibition of return). The views are the glimpses there, squares of pixels copied as they are, and the action
from one to another is the difference of their positions. A fixation is a pixel (row, column), row 0 at the top. As for
other views, whatever is random is a function of (seed, step) for the whole global batch.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.encoders.catalogue import has_fixed_input_size
from ssl_equi.errors import UserError
from ssl_equi.options import ActsWhen, CountOrZero, ImageSide, check_options
from ssl_equi.runtime.device_copies import constant, copy_together
from ssl_equi.views.makers import AugmentationDraws, Processes, ViewSequence, first_images, normalise
from ssl_equi.views.options import DrawsConfig
from ssl_equi.views.presets import view_pipelines
from ssl_equi.views.saliency import SaliencyMaps, computed_saliency

InhibitionShape = Literal["circle", "square", "none"]
ACTION_SIZE = 2  # (row, column)
# How the released code of seq-JEPA normalises STL-10, in units of [0, 1].
STL10_MEAN_RGB, STL10_STD_RGB = (0.4467, 0.4398, 0.4066), (0.2241, 0.2215, 0.2239)


@dataclass(frozen=True)
class SaccadeOptions:
    """Where the gaze goes, and what it sees there. Defaults are the paper's for STL-10, but for the saliency."""

    saliency: Literal["spectral_residual", "centre_surround", "uniform", "file"] = "spectral_residual"
    """What draws the gaze: maps computed from the pixels once, nothing in particular (uniform), or the maps of a file.
    Paper: DeepGaze IIE's maps; its ablation is uniform without inhibition."""
    saliency_file: Annotated[
        Path | None, ActsWhen(lambda options: options.saliency == "file", "choose --saccades.saliency file")
    ] = None
    """Maps of the training images, an array as datasets/images.md says."""
    glimpse_size: ImageSide = 32
    """Side of a glimpse in pixels. Paper: 32 of 96."""
    inhibition: InhibitionShape = "circle"
    """Around earlier fixations: circle (paper), square (released code) or none (ablation)."""
    inhibition_radius_px: Annotated[
        CountOrZero, ActsWhen(lambda options: options.inhibition != "none", "choose an inhibition other than none")
    ] = 16
    """Pixels. Paper: 16."""
    augmentation: Literal["none", "crop_flip"] = "none"
    """Of the image before the gaze wanders over it, and of its saliency alike. Paper: none. Images whose sizes differ
    need crop_flip."""
    transposed: bool = False
    """Takes glimpses where row and column are swapped, as the released code does; for replication only."""


@dataclass(frozen=True)
class GlimpseSequence(ViewSequence):
    """Glimpses of each of B images, in order; see `ViewSequence` for the rest.

    Attributes:
        fixations: int64 [B, V, 2], (row, column) of the pixel that each glimpse is centred on.
        positions: float32 [B, V, 2], the same in units of the image's height and width.
    """

    fixations: Tensor
    positions: Tensor


class Glimpses:
    """Makes a sequence of `length` glimpses of each object's first image.

    Args:
        config: options of the recipe, or of an evaluation.
        data: for the normalisation of the pixels, and the images unless `collection` is given.
        processes: the run.
        options: where the gaze goes.
        length: glimpses of each image, the one to predict included.
        collection: where the batches come from; `data.train` when None. A saliency file must be of this collection.

    Raises:
        UserError: options that no gaze can follow on these images.
        DataError: the saliency can't be computed, or the file isn't of these images.
    """

    stored_views = 1

    def __init__(
        self,
        config: DrawsConfig,
        data: DataSource,
        processes: Processes,
        options: SaccadeOptions,
        *,
        length: int,
        collection: ViewCollection | None = None,
    ) -> None:
        self.options, self.data, self.length = options, data, length
        collection = data.train if collection is None else collection
        check_saccades(options, collection, config.image_size)
        self.pipeline = view_pipelines("crop_flip", config.image_size)[0]
        self.draws = AugmentationDraws(config, processes)
        self.maps: SaliencyMaps | None = None  # a uniform gaze needs none
        if options.saliency_file is not None:
            self.maps = SaliencyMaps(options.saliency_file, collection)
        elif options.saliency == "spectral_residual" or options.saliency == "centre_surround":
            self.maps = computed_saliency(collection, options.saliency)

    def __call__(self, batch: ViewBatch, step: int) -> GlimpseSequence:
        """The glimpses of one step; random parameters depend on (seed, step) only."""
        with batch.augmenting:
            images, sizes = first_images(batch)
            if self.maps is None:
                saliency = torch.ones(len(images), *images.shape[2:], device=images.device)
            else:
                saliency = self.maps.read(batch.object_indices, batch.view_indices[:, 0])
            # This process's rows [B, length] of the global batch's uniform numbers.
            shape = (len(images) * self.draws.world_size, self.length)
            generator = self.draws.generator(step, "fixations")
            uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)[self.draws.rows(len(images))]
            saliency, uniforms = copy_together([saliency, uniforms], images.device)
            if self.options.augmentation == "crop_flip":
                parameters = self.draws.parameters(self.pipeline, sizes, step, "saccades' image")
                images = self.pipeline.apply(images, parameters)
                # Interpolation is of images in [0, 1] with three channels; the draw needs proportions only.
                scaled = saliency / saliency.amax(dim=(1, 2), keepdim=True)
                coloured = scaled.unsqueeze(1).expand(-1, 3, -1, -1)
                saliency = self.pipeline.apply(coloured, parameters)[:, 0].clamp(min=0)
            else:
                images = images.float() / 255
            options = self.options
            fixations = draw_fixations(saliency, uniforms, options.inhibition, options.inhibition_radius_px)
            positions = fixation_positions(fixations, *images.shape[2:])
            return GlimpseSequence(
                images=extract_glimpses(
                    normalise(images, self.data), fixations, options.glimpse_size, transposed=options.transposed
                ),
                action_between=lambda first, second: positions[:, second] - positions[:, first],
                fixations=fixations,
                positions=positions,
            )

    def describe(self) -> dict[str, Any]:
        return describe_saccades(self.options, self.length - 1)


def check_saccades(options: SaccadeOptions, collection: ViewCollection, cropped_size: int) -> None:
    """Raises UserError unless a gaze can follow the options on images of this collection."""
    check_options(options)
    if (options.saliency == "file") != (options.saliency_file is not None):
        raise UserError(
            f"--saccades.saliency is {options.saliency} and --saccades.saliency-file is {options.saliency_file}: give "
            "file and a file, or neither"
        )
    if options.augmentation == "none" and not collection.fills_image:
        raise UserError(
            f"the images of split {collection.split!r} of {collection.folder} have different sizes: choose "
            "--saccades.augmentation crop_flip, which crops them to one"
        )
    height, width = collection.image_size if options.augmentation == "none" else (cropped_size, cropped_size)
    # From a corner, the farthest pixel is the opposite corner; from the centre only half as far.
    farthest = math.hypot(height // 2, width // 2) if options.inhibition == "circle" else max(height, width) // 2
    if options.inhibition != "none" and options.inhibition_radius_px >= farthest:
        raise UserError(
            f"--saccades.inhibition-radius-px is {options.inhibition_radius_px}, which leaves nothing of an image of "
            f"{height} x {width} pixels after a look at its middle: give less than {math.ceil(farthest)}"
        )


def check_glimpse_encoder(encoder: str, image_size: int, options: SaccadeOptions) -> None:
    """Raises UserError for an encoder of fixed input size, unless glimpses are as large as the images.

    Training shows it glimpses, and the final probes show it whole images.
    """
    if options.glimpse_size != image_size and has_fixed_input_size(encoder):
        raise UserError(
            f"--encoder {encoder} takes images of one size, and glimpses have {options.glimpse_size} pixels where "
            f"whole images have {image_size}: choose a convolutional encoder, such as resnet18_small_images"
        )


def describe_saccades(options: SaccadeOptions, observed_views: int) -> dict[str, Any]:
    """How glimpses were taken, for an exported sequence model: what JSON can hold."""
    file = None if options.saliency_file is None else str(options.saliency_file)
    return {
        "source": "saccades",
        "observed_views": observed_views,
        "glimpses": asdict(options) | {"saliency_file": file},
    }


def described_saccades(sequences: dict[str, Any], saliency_file: Path | None = None) -> SaccadeOptions:
    """The options that `describe_saccades` described, to look at other images the same way, without augmentation.

    Args:
        saliency_file: the maps of those images, for a model whose gaze followed a file.

    Raises:
        UserError: they describe no glimpses.
    """
    if sequences.get("source") != "saccades":
        raise UserError(
            f"the sequences of this model are {sequences.get('source')}, not saccades: give one that was trained on "
            "glimpses"
        )
    return SaccadeOptions(**sequences["glimpses"] | {"saliency_file": saliency_file, "augmentation": "none"})


def draw_fixations(
    saliency: Tensor, uniforms: Tensor, inhibition: InhibitionShape = "circle", radius_px: int = 16
) -> Tensor:
    """Draws fixations one after another, each from the saliency that earlier ones left.

    Each takes its own uniform number through the inverse of the cumulative distribution over the pixels in reading
    order, so the same numbers give the same fixations in any batch and on any device: the weights are rounded to whole
    numbers, whose sums are exact in float64.

    A pixel without saliency keeps one unit of that rounding, less than a billionth of the largest value. So where no
    saliency is left, the fixation is drawn uniformly from the pixels that are not inhibited, and a map of zeros is a
    uniform one. Where no pixel is left at all, inhibition is lifted for this fixation.

    Args:
        saliency: [N, H, W], finite and not negative; sums do not matter.
        uniforms: [N, K], numbers in [0, 1), best float64.
        inhibition: which pixels an earlier fixation takes out: those within the radius (circle, seq-JEPA's paper),
            within it both up or down and left or right (square, its released code), or none.
        radius_px: 0 inhibits the fixated pixel only.

    Returns:
        int64 [N, K, 2], (row, column), on the device of the saliency.
    """
    height, width = saliency.shape[1:]
    # Whole numbers from 1, in proportion to the saliency, that sum to less than 2^53.
    largest = saliency.amax(dim=(1, 2), keepdim=True).double()
    share = torch.where(largest > 0, saliency / largest, 0)
    everywhere = torch.round(share * 2.0 ** (51 - math.ceil(math.log2(height * width)))) + 1
    left = everywhere.clone()
    rows = torch.arange(height, device=saliency.device).view(1, height, 1)
    columns = torch.arange(width, device=saliency.device).view(1, 1, width)
    fixations = []
    for uniform in uniforms.to(device=saliency.device, dtype=torch.float64).split(1, dim=1):
        fixation = _draw_pixel(left, everywhere, uniform)
        fixations.append(fixation)
        if inhibition == "none":
            continue
        row, column = fixation.view(-1, 2, 1, 1).unbind(dim=1)
        reach_squared = radius_px**2 - (rows - row).square()
        if inhibition == "square":
            reach_squared = torch.where((rows - row).abs() <= radius_px, radius_px**2, -1)
        left.masked_fill_((columns - column).square() <= reach_squared, 0)
    return torch.stack(fixations, dim=1)


def _draw_pixel(left: Tensor, everywhere: Tensor, uniform: Tensor) -> Tensor:
    """(row, column) int64 [N, 2] of the pixels in which the shares `uniform` [N, 1] of the weights' sums fall.

    Args:
        left: weights [N, H, W] of whole numbers; a pixel of weight 0 is never drawn.
        everywhere: weights that stand in where nothing is left.
    """
    rows_left = left.sum(dim=2)
    nothing_left = rows_left.sum(dim=1, keepdim=True) == 0
    by_row = torch.where(nothing_left, everywhere.sum(dim=2), rows_left).cumsum(dim=1)
    total = by_row[:, -1:]
    # A whole number below the sum: each pixel takes those from the sum of the weights before it to below that with it.
    share = torch.minimum(torch.floor(uniform * total), total - 1)
    row = torch.searchsorted(by_row, share, right=True)
    share = share - torch.where(row > 0, by_row.gather(1, (row - 1).clamp(min=0)), 0)
    images = torch.arange(len(left), device=left.device)
    by_column = torch.where(nothing_left, everywhere[images, row[:, 0]], left[images, row[:, 0]]).cumsum(dim=1)
    return torch.cat([row, torch.searchsorted(by_column, share, right=True)], dim=1)


def extract_glimpses(images: Tensor, fixations: Tensor, size: int, *, transposed: bool = False) -> Tensor:
    """The squares of `size` pixels around the fixations: pixels copied, zeros outside of the image.

    An odd square has its fixation in the middle; of an even one, whose middle lies between four pixels, the fixation is
    the lower right of the four. Gradients flow back to the images.

    Args:
        images: [N, C, H, W].
        fixations: integers [N, K, 2], (row, column) of pixels on the image.
        size: side in pixels, 1 or more.
        transposed: takes (row, column) for (column, row), as seq-JEPA's released code does: a glimpse then shows
            another place than the one that was drawn, zeros where that place lies off the image.

    Returns:
        [N, K, C, size, size] of the images' type.
    """
    rows, columns = fixations.unbind(dim=2)
    height, width = images.shape[2:]
    beyond = 0
    if transposed:
        rows, columns = columns, rows
        beyond = abs(height - width)
    before, after = size // 2, size - 1 - size // 2
    padded = F.pad(images, (before, after + beyond, before, after + beyond))
    steps = torch.arange(size, device=images.device)
    # The glimpse begins `before` pixels ahead of the fixation, which is the fixation itself in padded coordinates.
    image_numbers = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    glimpse_rows = (rows.unsqueeze(2) + steps).unsqueeze(3)
    glimpse_columns = (columns.unsqueeze(2) + steps).unsqueeze(2)
    return padded.permute(0, 2, 3, 1)[image_numbers, glimpse_rows, glimpse_columns].permute(0, 1, 4, 2, 3)


def fixation_positions(fixations: Tensor, height: int, width: int) -> Tensor:
    """Where the fixations [..., 2] lie, in units of the image's sides: float32 (row / height, column / width)."""
    return fixations / constant((height, width), fixations.device)
