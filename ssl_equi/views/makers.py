"""From a batch of stored images to the views that an objective sees.

Rendered data hold several views of each object, whose poses are known: two of them are a pair, and the action is the
relative rotation, with hues or a translation if asked. Ordinary images have one view: a pair is made of two
augmentations of it, and the action comes from the two parameter sets. Whatever is random is a function of (seed, step)
for the whole global batch, of which a process applies its own rows; so the views don't depend on the number of
processes, nor on whether a run was resumed.
"""

import functools
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ssl_equi.data.actions import (
    ACTION_SIZES,
    POSE_ACTION_KINDS,
    QUATERNION_ACTION_KINDS,
    ActionKind,
    action_from_batch,
    beyond_euler_box,
)
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError
from ssl_equi.geometry.latents import LATENT_SIZE_WITH_TRANSLATION
from ssl_equi.options import ActsWhen, ImageSide, Width
from ssl_equi.runtime.device_copies import constant, copy_together
from ssl_equi.views.action_columns import columns_about
from ssl_equi.views.actions import ActionEncoding, augmentation_action, augmentation_action_size
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.parameters import ViewParameters
from ssl_equi.views.pipeline import ViewPipeline, apply_each
from ssl_equi.views.presets import small_view_pipeline, transforms_of_views, view_pipelines

PairAction = Literal[
    "rotation", "rotation_color", "rotation_6d", "rotation_matrix", "pose_base", "pose_object", "augmentation"
]


_AUGMENTED = ActsWhen(lambda options: options.source == "augmented", "add --views.source augmented")


@dataclass(frozen=True)
class PairOptions:
    """Where the two views of an object come from, for objectives that are not told what lies between them."""

    source: Literal["rendered", "augmented"] = "rendered"
    """rendered: two stored views of an object (data with known poses). augmented: two augmentations of one image."""
    preset: Annotated[str, _AUGMENTED] = "simclr_cifar"
    """Whose augmentations, if augmented: crop_flip, simclr_cifar, simclr_imagenet, mocov2, byol_imagenet, care_cifar,
    care_imagenet100 or seq_jepa."""


@dataclass(frozen=True)
class ViewOptions(PairOptions):
    """Where the views of an object come from, and what is told of the way from one to another."""

    action_encoding: Annotated[ActionEncoding, _AUGMENTED] = "standard"
    """How the change from one augmentation to the other is written as a vector; seq_jepa_legacy, of seq-JEPA's released
    code, leaks what is to be predicted into what is observed."""
    action_transforms: Annotated[tuple[str, ...], _AUGMENTED] = ()
    """Which transforms that vector tells of, such as crop, jitter or blur; all of the preset's if none is named."""


@dataclass(frozen=True)
class SharedPairOptions(PairOptions):
    """As `PairOptions`, for objectives that augment rendered views as well (CARE)."""

    preset: str = "simclr_cifar"
    """Whose augmentations: crop_flip, simclr_cifar, simclr_imagenet, mocov2, byol_imagenet, care_cifar,
    care_imagenet100 or seq_jepa."""


@dataclass(frozen=True)
class SmallViewOptions:
    """The separate small view whose transformation E-SSL predicts."""

    group: str = "four_fold_rotation"
    """Which transformations: four_fold_rotation, horizontal_flip, vertical_flip, jigsaw, inversion, grayscale,
    four_fold_blur or half_translations."""
    preset: str = "cifar"
    """Whose augmentations before the transformation: cifar, imagenet or imagenet_wide."""
    size: ImageSide = 32
    """Side of the small view in pixels; 16 for CIFAR-10 and 96 for ImageNet in the paper."""
    elements: Width | None = None
    """Transformations of each image; all when not given, as in the paper, else this number of drawn ones."""


@dataclass(frozen=True)
class Views:
    """What a two-view objective is given: images [B, 2, 3, S, S] float, normalised; actions [B, A] or None."""

    images: Tensor
    actions: Tensor | None

    @property
    def action(self) -> Tensor | None:
        """The action from view 1 to view 2."""
        return self.actions


class DrawsConfig(Protocol):
    """The options that drawing augmentations, and making views by them, depends on."""

    @property
    def image_size(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def compile(self) -> bool: ...


class ViewsConfig(DrawsConfig, Protocol):
    """The options that making views depends on."""

    @property
    def views(self) -> PairOptions: ...


class Processes(Protocol):
    """This process among those of the run."""

    rank: int
    world_size: int


_Maker = TypeVar("_Maker")
_Made = TypeVar("_Made")


def timed(make: Callable[[_Maker, ViewBatch, int], _Made]) -> Callable[[_Maker, ViewBatch, int], _Made]:
    """Lets a batch's stopwatch run while views are made of it. It doesn't wait for a GPU to finish."""

    @functools.wraps(make)
    def timed_make(maker: _Maker, batch: ViewBatch, step: int) -> _Made:
        with batch.augmenting:
            return make(maker, batch, step)

    return timed_make


def action_size(kind: PairAction, config: ViewsConfig) -> int:
    """Width A of the actions.

    Raises:
        UserError: the kind doesn't go with the source of the views.
    """
    check_action(kind, config.views)
    if kind != "augmentation":
        return ACTION_SIZES[kind]
    return len(augmentation_columns(config))


def augmentation_columns(config: ViewsConfig) -> tuple[int, ...]:
    """The columns of the augmentation actions that the objective is told.

    Raises:
        UserError: a transform is named that the action doesn't tell of.
    """
    names = transforms_of_views(config.views.preset, config.image_size)
    told = with_action_options(config.views)
    encoding, transforms = told.action_encoding, told.action_transforms
    if not transforms:
        return tuple(range(augmentation_action_size(encoding, names)))
    try:
        return columns_about(transforms, encoding, names)
    except ValueError as error:
        raise UserError(f"--views.action-transforms is {' '.join(transforms)}: {error}") from error


def with_action_options(options: PairOptions) -> ViewOptions:
    """The options, with the default encoding of actions where they say nothing of it."""
    return options if isinstance(options, ViewOptions) else ViewOptions(options.source, options.preset)


def check_action(kind: PairAction, options: PairOptions) -> None:
    """Raises UserError unless augmented views have augmentation actions and rendered ones the others."""
    if (kind == "augmentation") != (options.source == "augmented"):
        cure = "--actions augmentation" if options.source == "augmented" else f"one of {', '.join(ACTION_SIZES)}"
        raise UserError(f"--actions is {kind} and --views.source is {options.source}: choose {cure}")


class AugmentationDraws:
    """Augmentation parameters as a function of (seed, step, purpose), the rows of this process only."""

    def __init__(self, config: DrawsConfig, processes: Processes) -> None:
        self.seed, self.rank, self.world_size = config.seed, processes.rank, processes.world_size

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each seed, step and purpose."""
        seed = hash((self.seed, step, zlib.crc32(purpose.encode()))) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator().manual_seed(seed)

    def parameters(
        self, pipeline: ViewPipeline, sizes: Tensor, step: int, purpose: str, shared_by: int = 1
    ) -> ViewParameters:
        """Parameters for the local images, whose heights and widths are `sizes` [b, 2] on the CPU.

        Args:
            shared_by: consecutive images of the global batch that share their parameters.
        """
        # Every image takes its own random numbers, so which sizes stand in for the other processes' doesn't matter.
        global_sizes = sizes.repeat(self.world_size, 1)
        generator = self.generator(step, purpose)
        drawn = pipeline.draw(len(global_sizes), source_sizes=global_sizes, generator=generator, shared_by=shared_by)
        return drawn.rows(self.rows(len(sizes)))

    def rows(self, count: int) -> slice:
        """This process's rows of a global batch of which it holds `count`."""
        return slice(self.rank * count, (self.rank + 1) * count)


class TrainingViews:
    """Makes the two views of each object of a batch, and the action between them if asked.

    Args:
        config: options of the recipe.
        data: what is trained on.
        processes: the run.
        actions: what the objective is told of the change from view 1 to view 2; None for nothing.
        shared_by: consecutive images that share their augmentations (CARE's chunks).

    Raises:
        UserError: rendered views of data without poses, actions that don't go with the views, or relative poses of
            objects that don't move.
    """

    def __init__(
        self,
        config: ViewsConfig,
        data: DataSource,
        processes: Processes,
        *,
        actions: PairAction | None = None,
        shared_by: int = 1,
    ) -> None:
        self.options, self.data, self.actions, self.shared_by = config.views, data, actions, shared_by
        check_source(config.views, data)
        self.action_columns: tuple[int, ...] = ()
        if actions is not None:
            check_action(actions, config.views)
            check_translations(actions, data)
            warn_of_both_signs(actions, data, processes)
        if actions == "augmentation":
            self.action_columns = augmentation_columns(config)
        if shared_by > 1 and config.views.source == "rendered":
            raise UserError("rendered views share no augmentations: choose --views.source augmented")
        check_chunks(config, processes, shared_by)
        self.draws = AugmentationDraws(config, processes)
        self.pipelines = view_pipelines(config.views.preset, config.image_size, compiled=config.compile)

    @timed
    def __call__(self, batch: ViewBatch, step: int) -> Views:
        """The views of one step; random parameters depend on (seed, step) only."""
        if self.options.source == "rendered":
            images = normalise_views(batch.images, self.data.mean_rgb, self.data.std_rgb)
            kind: ActionKind | None = None if self.actions in (None, "augmentation") else self.actions  # type: ignore[assignment]
            return Views(images, None if kind is None else action_from_batch(batch, kind))
        images, sizes = first_images(batch)
        parameters = [
            self.draws.parameters(pipeline, sizes, step, f"view {number}", self.shared_by)
            for number, pipeline in enumerate(self.pipelines)
        ]
        views = stack_normalised(apply_each(self.pipelines, images, parameters), self.data)
        if self.actions is None:
            return Views(views, None)
        action = augmentation_action(parameters[0], parameters[1], with_action_options(self.options).action_encoding)
        return Views(views, copy_together([action[:, self.action_columns]], images.device)[0])


class SharedViews:
    """Two more views of each object's first image, whose augmentations are shared by chunks of images (CARE).

    Returns [B, 2, 3, S, S], normalised. Each chunk of the global batch has a pair of its own.
    """

    def __init__(self, config: ViewsConfig, data: DataSource, processes: Processes, *, shared_by: int) -> None:
        check_chunks(config, processes, shared_by)
        self.data, self.shared_by = data, shared_by
        self.draws = AugmentationDraws(config, processes)
        self.pipelines = view_pipelines(config.views.preset, config.image_size, compiled=config.compile)

    @timed
    def __call__(self, batch: ViewBatch, step: int) -> Tensor:
        """The shared views of one step."""
        images, sizes = first_images(batch)
        parameters = [
            self.draws.parameters(pipeline, sizes, step, f"shared view {number}", self.shared_by)
            for number, pipeline in enumerate(self.pipelines)
        ]
        return stack_normalised(apply_each(self.pipelines, images, parameters), self.data)


class TransformedSmallViews:
    """Small augmented views of each object's first image under elements of a finite set (E-SSL).

    Args:
        relative: two different small views, each under one drawn element; otherwise one small view under all elements
            or under some drawn ones.
    """

    def __init__(
        self, config: DrawsConfig, options: SmallViewOptions, data: DataSource, processes: Processes, *, relative: bool
    ) -> None:
        if options.group not in GROUPS:
            raise UserError(f"--small-view.group is {options.group!r}: choose from {', '.join(GROUPS)}")
        self.group, self.data, self.relative = GROUPS[options.group], data, relative
        self.elements = self.group.size if options.elements is None else options.elements
        if not 1 <= self.elements <= self.group.size:
            raise UserError(
                f"--small-view.elements is {self.elements}: {options.group} has {self.group.size}, choose 1 to "
                f"{self.group.size}"
            )
        self.draws = AugmentationDraws(config, processes)
        self.pipeline = small_view_pipeline(options.preset, options.size, compiled=config.compile)

    @timed
    def __call__(self, batch: ViewBatch, step: int) -> tuple[Tensor, Tensor]:
        """Transformed views [B, K, 3, s, s], normalised, and the elements [B, K] that transformed them."""
        images, sizes = first_images(batch)
        if self.relative:
            views = self._small_views(images, sizes, step, ["small view 0", "small view 1"])
            count = len(images) * self.draws.world_size
            generator = self.draws.generator(step, "relative elements")
            drawn = torch.randint(self.group.size, (count, 2), generator=generator)[self.draws.rows(len(images))]
            (elements,) = copy_together([drawn], images.device)
            transformed = torch.stack(
                [self.group.apply(view, elements[:, number]) for number, view in enumerate(views)], dim=1
            )
        elif self.elements == self.group.size:
            transformed, elements = self.group.all_elements(*self._small_views(images, sizes, step, ["small view"]))
        else:
            count = len(images) * self.draws.world_size
            # The ranks of random numbers are distinct elements, drawn for the whole global batch.
            noise = torch.rand(count, self.group.size, generator=self.draws.generator(step, "elements"))
            drawn = noise.argsort(dim=1)[self.draws.rows(len(images)), : self.elements]
            (elements,) = copy_together([drawn], images.device)
            (small,) = self._small_views(images, sizes, step, ["small view"])
            repeated = small.repeat_interleave(self.elements, dim=0)
            transformed = self.group.apply(repeated, elements.flatten()).unflatten(0, elements.shape)
        return normalise(transformed, self.data), elements

    def _small_views(self, images: Tensor, sizes: Tensor, step: int, purposes: list[str]) -> list[Tensor]:
        parameters = [self.draws.parameters(self.pipeline, sizes, step, purpose) for purpose in purposes]
        return apply_each([self.pipeline] * len(purposes), images, parameters)


def views(
    config: ViewsConfig, data: DataSource, processes: Processes, *, length: int = 2, actions: PairAction | None = None,
    shared_by: int = 1,
) -> Any:  # fmt: skip
    """Pairs, or sequences of more views, as the options say."""
    from ssl_equi.views.sequences import SequenceViews

    if length == 2:
        return TrainingViews(config, data, processes, actions=actions, shared_by=shared_by)
    return SequenceViews(config, data, processes, length=length, actions=actions)


def check_source(options: PairOptions, data: DataSource) -> None:
    """Raises UserError for rendered pairs of data that hold one view of each object."""
    if options.source == "rendered" and data.train.num_views < 2:
        raise UserError(
            f"{data.name} holds one view of each image: choose --views.source augmented, which makes two of it"
        )


def check_translations(actions: str, data: DataSource) -> None:
    """Raises UserError for relative poses between views of data whose objects don't move."""
    if actions in POSE_ACTION_KINDS and data.train.latents.shape[-1] != LATENT_SIZE_WITH_TRANSLATION:
        raise UserError(
            f"actions {actions} tell of translations and the objects of {data.name} have none: choose a set with "
            "translations (--dataset 3diebench-pt or 3diebench-t)"
        )


def warn_of_both_signs(actions: str, data: DataSource, processes: Processes) -> None:
    """Says once, on the first process, that quaternions are told as actions although the poses let them jump."""
    found = beyond_euler_box(data.train) if actions in QUATERNION_ACTION_KINDS and processes.rank == 0 else None
    if found is not None:
        print(f"warning: {found}", file=sys.stderr, flush=True)


def check_chunks(config: DrawsConfig, processes: Processes, shared_by: int) -> None:
    """Raises UserError unless each process holds whole chunks; single images are the loader's to share out."""
    if shared_by > 1 and config.batch_size % (shared_by * processes.world_size):
        raise UserError(
            f"--batch-size is {config.batch_size} and chunks of {shared_by} images share their augmentations: choose a "
            f"multiple of {shared_by * processes.world_size}, so that each process has whole chunks"
        )


def views_to_load(options: PairOptions) -> int:
    """How many stored views of each object a step needs."""
    return 2 if options.source == "rendered" else 1


def first_images(batch: ViewBatch) -> tuple[Tensor, Tensor]:
    """The first image of each object, uint8 [B, 3, H, W], and its picture's height and width [B, 2] on the CPU."""
    images = batch.images[:, 0].permute(0, 3, 1, 2)
    if batch.content_sizes is not None:
        return images, batch.content_sizes[:, 0]
    return images, torch.tensor(images.shape[-2:], device="cpu").expand(len(images), 2)


def stack_normalised(views: Sequence[Tensor], data: DataSource) -> Tensor:
    """V views [B, 3, S, S] of values in [0, 1] as [B, V, 3, S, S], normalised; on a GPU in channels-last memory."""
    if views[0].device.type == "cpu":
        return normalise(torch.stack([*views], dim=1), data)
    count, channels, height, width = views[0].shape
    stacked = views[0].new_empty(count, len(views), height, width, channels).permute(0, 1, 4, 2, 3)
    scale, shift = (
        constant(tuple(values), views[0].device).view(3, 1, 1)
        for values in (
            (1 / std for std in data.std_rgb),
            (-mean / std for mean, std in zip(data.mean_rgb, data.std_rgb)),
        )
    )
    for number, view in enumerate(views):
        torch.addcmul(shift, view, scale, out=stacked[:, number])
    return stacked


def normalise(views: Tensor, data: DataSource) -> Tensor:
    """Shifts and scales [..., 3, H, W] in [0, 1] by the data's mean and standard deviation."""
    mean, std = (
        constant(tuple(values), views.device, views.dtype).view(3, 1, 1) for values in (data.mean_rgb, data.std_rgb)
    )
    return (views - mean) / std
