"""From a batch of stored images to sequences of glimpses: predictive learning across saccades (seq-JEPA, section 2.2).

A gaze jumps from place to place of one image, drawn to what is salient and not returning to where it was. The views are
the glimpses at its fixations, and the action from one to another is the difference of their positions. As for other
views, whatever is random is a function of (seed, step) for the whole global batch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.encoders.catalogue import has_fixed_input_size
from ssl_equi.errors import UserError
from ssl_equi.options import ActsWhen, CountOrZero, ImageSide
from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.views.glimpses import Inhibition, InhibitionShape, fixation_positions, take_glimpses
from ssl_equi.views.makers import AugmentationDraws, DrawsConfig, Processes, first_images, normalise, timed
from ssl_equi.views.presets import view_pipelines
from ssl_equi.views.saliency_maps import SaliencyMaps, computed_saliency
from ssl_equi.views.sequences import ViewSequence

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
class SaccadeSequence(ViewSequence):
    """Glimpses of each of B images, in order; see `ViewSequence` for the rest.

    Attributes:
        fixations: int64 [B, V, 2], (row, column) of the pixel that each glimpse is centred on.
        positions: float32 [B, V, 2], the same in units of the image's height and width.
    """

    fixations: Tensor
    positions: Tensor


class SaccadeViews:
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
    """how many stored views of each object a step needs"""

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
        check_saccades(options, length, collection)
        self.inhibition = Inhibition(options.inhibition, options.inhibition_radius_px)
        self.pipeline = view_pipelines("crop_flip", config.image_size)[0]
        self.draws = AugmentationDraws(config, processes)
        self.maps = saliency_maps(options, collection)

    @timed
    def __call__(self, batch: ViewBatch, step: int) -> SaccadeSequence:
        """The glimpses of one step; random parameters depend on (seed, step) only."""
        images, sizes = first_images(batch)
        saliency, uniforms = self._saliency_and_uniforms(batch, images, step)
        if self.options.augmentation == "crop_flip":
            parameters = self.draws.parameters(self.pipeline, sizes, step, "saccades' image")
            images = self.pipeline.apply(images, parameters)
            # Interpolation is of images in [0, 1] with three channels; the draw needs proportions only.
            scaled = saliency / saliency.amax(dim=(1, 2), keepdim=True)
            coloured = scaled.unsqueeze(1).expand(-1, 3, -1, -1)
            saliency = self.pipeline.apply(coloured, parameters)[:, 0].clamp(min=0)
        else:
            images = images.float() / 255
        glimpses, fixations = take_glimpses(
            normalise(images, self.data),
            saliency,
            uniforms,
            size=self.options.glimpse_size,
            inhibition=self.inhibition,
            transposed=self.options.transposed,
        )
        positions = fixation_positions(fixations, *images.shape[2:])
        return SaccadeSequence(
            images=glimpses,
            action_between=lambda first, second: positions[:, second] - positions[:, first],
            fixations=fixations,
            positions=positions,
        )

    def _saliency_and_uniforms(self, batch: ViewBatch, images: Tensor, step: int) -> list[Tensor]:
        """[B, H, W], up to a factor, and the uniform numbers, on the images' device."""
        if self.maps is None:
            saliency = torch.ones(len(images), *images.shape[2:], device=images.device)
        else:
            saliency = self.maps.read(batch.object_indices, batch.view_indices[:, 0])
        return copy_together([saliency, self._uniforms(len(images), step)], images.device)

    def _uniforms(self, count: int, step: int) -> Tensor:
        """This process's rows [count, length] of the global batch's uniform numbers."""
        generator = self.draws.generator(step, "fixations")
        shape = (count * self.draws.world_size, self.length)
        return torch.rand(shape, generator=generator, dtype=torch.float64)[self.draws.rows(count)]


def saliency_maps(options: SaccadeOptions, collection: ViewCollection) -> SaliencyMaps | None:
    """The maps that the options ask for; None for a gaze that nothing draws.

    Raises:
        UserError: a file is asked for and not given, or given and not asked for.
        DataError: see `SaliencyMaps` and `computed_saliency`.
    """
    if (options.saliency == "file") != (options.saliency_file is not None):
        raise UserError(
            f"--saccades.saliency is {options.saliency} and --saccades.saliency-file is {options.saliency_file}: give "
            "file and a file, or neither"
        )
    if options.saliency_file is not None:
        return SaliencyMaps(options.saliency_file, collection)
    if options.saliency == "spectral_residual" or options.saliency == "centre_surround":
        return computed_saliency(collection, options.saliency)
    if options.saliency != "uniform":
        raise UserError(
            f"--saccades.saliency is {options.saliency!r}: choose spectral_residual, centre_surround, uniform or file"
        )
    return None


def check_saccades(options: SaccadeOptions, length: int, collection: ViewCollection) -> None:
    """Raises UserError unless a gaze can follow the options on images of this collection."""
    if length < 2:
        raise UserError(f"--observed-views is {length - 1}: observe at least 1 glimpse before the one to predict")
    if options.glimpse_size < 1:
        raise UserError(f"--saccades.glimpse-size is {options.glimpse_size}: give a side of at least 1 pixel")
    if options.augmentation not in ("none", "crop_flip"):
        raise UserError(f"--saccades.augmentation is {options.augmentation!r}: choose none or crop_flip")
    if options.augmentation == "none" and not collection.fills_image:
        raise UserError(
            f"the images of split {collection.split!r} of {collection.folder} have different sizes: choose "
            "--saccades.augmentation crop_flip, which crops them to one"
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
