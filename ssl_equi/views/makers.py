"""From a batch of stored images to the views that an objective sees, and the actions between them.

Rendered data and posed photographs hold several views of each object, whose latents are known: they are the views, and
an action is what changes between two of them in the latents that are named. Ordinary images have one view: views are
augmentations of it, and an action comes from the parameters of two of them. Pairs are sequences of two. Whatever is
random is a function of (seed, step) for the whole global batch, of which a process applies its own rows; so the views
don't depend on the number of processes, nor on whether a run was resumed.
"""

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError
from ssl_equi.latents.actions import (
    AUGMENTATION,
    ToldActions,
    actions_of,
    warning_of_signs,
)
from ssl_equi.runtime.device_copies import constant, copy_together
from ssl_equi.views.actions import actions_between
from ssl_equi.views.groups import GROUPS
from ssl_equi.views.options import (
    ActionNames,
    DrawsConfig,
    SmallViewOptions,
    ViewsConfig,
    augmentation_columns,
    check_actions,
    with_action_options,
)
from ssl_equi.views.parameters import ViewParameters
from ssl_equi.views.pipeline import ViewPipeline, apply_each
from ssl_equi.views.presets import small_view_pipeline, view_pipelines


@dataclass(frozen=True)
class ViewSequence:
    """V views of each of B objects, in order, and the actions between any two of them.

    Attributes:
        images: [B, V, 3, S, S] float, normalised.
        action_between: (i, j) -> [B, A], the action that takes view i to view j, counted from 0, on the CPU where it
            can be computed there; None if nothing is known, or nobody asks.
    """

    images: Tensor
    action_between: Callable[[int, int], Tensor] | None

    @property
    def length(self) -> int:
        """Number of views V."""
        return self.images.shape[1]

    @property
    def action(self) -> Tensor | None:
        """The action from the first view to the second, [B, A]: all that there is of a pair; None without actions."""
        return None if self.action_between is None else self._beside_images(self.action_between(0, 1))

    def steps(self) -> Tensor | None:
        """The actions from each view to the next, [B, V - 1, A]; None without actions."""
        return self._stacked([(first, first + 1) for first in range(self.length - 1)])

    def from_first(self) -> Tensor | None:
        """The actions from the first view to each later one, [B, V - 1, A]; None without actions."""
        return self._stacked([(0, later) for later in range(1, self.length)])

    def to_last(self) -> Tensor | None:
        """The actions from each earlier view to the last one, [B, V - 1, A]; None without actions."""
        return self._stacked([(earlier, self.length - 1) for earlier in range(self.length - 1)])

    def _stacked(self, pairs: list[tuple[int, int]]) -> Tensor | None:
        if self.action_between is None:
            return None
        return self._beside_images(torch.stack([self.action_between(first, second) for first, second in pairs], dim=1))

    def _beside_images(self, actions: Tensor) -> Tensor:
        return copy_together([actions], self.images.device)[0]


class ViewMaker(Protocol):
    """Makes a sequence of views of each object of a batch."""

    @property
    def stored_views(self) -> int:
        """How many stored views of each object a step needs."""

    def __call__(self, batch: ViewBatch, step: int) -> ViewSequence:
        """The views of one step; what is random depends on (seed, step) only."""

    def describe(self) -> dict[str, Any]:
        """How the sequences are made, for an exported sequence model; the last view is the one that is predicted."""


class Processes(Protocol):
    """This process among those of the run."""

    rank: int
    world_size: int


def views(
    config: ViewsConfig,
    data: DataSource,
    processes: Processes,
    *,
    length: int = 2,
    actions: ActionNames | None = None,
    shared_by: int = 1,
) -> ViewMaker:
    """The maker of rendered or augmented views that the options ask for.

    Args:
        config: options of the recipe.
        data: what is trained on.
        processes: the run.
        length: number of views V; 2 for a pair.
        actions: what the objective is told of the change from view to view; None for nothing.
        shared_by: consecutive images that share their augmentations (CARE's chunks).

    Raises:
        UserError: more rendered views than the objects have, actions that don't go with the views or the data, or
            chunks that don't divide the batch.
    """
    if actions is not None:
        check_actions(actions, config.views, data.train.schema)
    if config.views.source == "augmented":
        told = actions is not None
        return AugmentedViews(config, data, processes, length=length, with_actions=told, shared_by=shared_by)
    if shared_by > 1:
        raise UserError("rendered views share no augmentations: choose --views.source augmented")
    made = StoredViews(data, length=length, actions=actions)
    if actions is not None and processes.rank == 0:
        found = warning_of_signs(data.train.split, data.train.schema, data.train.latents, actions)
        if found is not None:
            print(f"warning: {found}", file=sys.stderr, flush=True)
    return made


class StoredViews:
    """Stored views of each object, with the actions between their latents if asked."""

    def __init__(self, data: DataSource, *, length: int = 2, actions: ActionNames | None = None) -> None:
        fewest, lacking = data.train.fewest_views, data.train.lacking(length)
        if fewest < 2:
            raise UserError(
                f"{data.name} holds one view of each image: choose --views.source augmented, which makes more of it"
            )
        if lacking is not None:
            raise UserError(
                f"sequences of {length} views are asked for and in {data.name} {lacking}: choose --observed-views "
                f"{fewest - 1} or less, or data with more views"
            )
        self.data, self.stored_views = data, length
        self.actions = None if actions is None else actions_of(data.train.schema, actions)

    def __call__(self, batch: ViewBatch, step: int) -> ViewSequence:
        with batch.augmenting:
            images = normalise_views(batch.images, self.data.mean_rgb, self.data.std_rgb)
            actions = self.actions
            latents, quats = batch.known_on_cpu or (batch.latents, batch.quat_xyzw)
            if actions is None:
                return ViewSequence(images, None)

            # Made when it is asked for: an objective is told of some of the V x V actions.
            def action_between(first: int, second: int) -> Tensor:
                poses = None if quats is None else (quats[:, first], quats[:, second])
                return actions(latents[:, first], latents[:, second], poses)

            return ViewSequence(images, action_between)

    def describe(self) -> dict[str, Any]:
        actions = None if self.actions is None else self.actions.describe()
        return {"source": "rendered", "actions": actions, "observed_views": self.stored_views - 1}


class AugmentationDraws:
    """Augmentation parameters as a function of (seed, step, purpose), the rows of this process only."""

    def __init__(self, config: DrawsConfig, processes: Processes) -> None:
        self.seed, self.rank, self.world_size = config.seed, processes.rank, processes.world_size

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each seed, step and purpose."""
        # Unlike that of a string, the hash of a tuple of integers is the same in every process.
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

    def views(
        self, pipelines: Mapping[str, ViewPipeline], batch: ViewBatch, step: int, shared_by: int = 1
    ) -> tuple[list[Tensor], list[ViewParameters]]:
        """A view [B, 3, S, S] in [0, 1] of each object's first image by each pipeline, drawn for the purpose of its
        name, and its parameters."""
        images, sizes = first_images(batch)
        parameters = [self.parameters(pipeline, sizes, step, name, shared_by) for name, pipeline in pipelines.items()]
        return apply_each([*pipelines.values()], images, parameters), parameters


class AugmentedViews:
    """Augmentations of each object's first image, with the actions between them if asked.

    The last view, which a sequence model predicts, is drawn from the preset's second pipeline, the others from its
    first.

    Args:
        shared_by: consecutive images of the global batch that share their augmentations.
        name: of what the views are drawn for; views of other names are others.
    """

    stored_views = 1

    def __init__(
        self,
        config: ViewsConfig,
        data: DataSource,
        processes: Processes,
        *,
        length: int = 2,
        with_actions: bool = False,
        shared_by: int = 1,
        name: str = "view",
    ) -> None:
        # Single images are the loader's to share out.
        if shared_by > 1 and config.batch_size % (shared_by * processes.world_size):
            raise UserError(
                f"--batch-size is {config.batch_size} and chunks of {shared_by} images share their augmentations: "
                f"choose a multiple of {shared_by * processes.world_size}, so that each process has whole chunks"
            )
        self.options = with_action_options(config.views)
        self.data, self.shared_by = data, shared_by
        self.action_columns = augmentation_columns(config) if with_actions else None
        self.draws = AugmentationDraws(config, processes)
        first, last = view_pipelines(config.views.preset, config.image_size, compiled=config.compile)
        self.pipelines = {f"{name} {number}": first for number in range(length - 1)} | {f"{name} {length - 1}": last}

    def __call__(self, batch: ViewBatch, step: int) -> ViewSequence:
        with batch.augmenting:
            made, parameters = self.draws.views(self.pipelines, batch, step, self.shared_by)
            images = stack_normalised(made, self.data)
            columns = self.action_columns
            if columns is None:
                return ViewSequence(images, None)
            between = actions_between(parameters, self.options.action_encoding)

            # Parameters lie on the CPU, where they were drawn.
            def action_between(first: int, second: int) -> Tensor:
                return between(first, second)[:, columns]

            return ViewSequence(images, action_between)

    def describe(self) -> dict[str, Any]:
        columns = self.action_columns
        return {
            "source": "augmented",
            "actions": None if columns is None else ToldActions.of(AUGMENTATION, len(columns)).describe(),
            "observed_views": len(self.pipelines) - 1,
            "preset": self.options.preset,
            "action_encoding": self.options.action_encoding,
            "action_transforms": list(self.options.action_transforms),
        }


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
        if self.group.halves_sides and options.size % 2:
            raise UserError(f"--small-view.size is {options.size}, and {options.group} halves it: give an even side")
        self.elements = options.elements or self.group.size
        if self.elements > self.group.size:
            raise UserError(
                f"--small-view.elements is {self.elements}: {options.group} has {self.group.size}, choose 1 to "
                f"{self.group.size}"
            )
        self.draws = AugmentationDraws(config, processes)
        pipeline = small_view_pipeline(options.preset, options.size, compiled=config.compile)
        self.pipelines = dict.fromkeys(("small view 0", "small view 1") if relative else ("small view",), pipeline)

    def __call__(self, batch: ViewBatch, step: int) -> tuple[Tensor, Tensor]:
        """Transformed views [B, K, 3, s, s], normalised, and the elements [B, K] that transformed them."""
        with batch.augmenting:
            made, _ = self.draws.views(self.pipelines, batch, step)
            (elements,) = copy_together([self._elements(len(batch.images), step)], batch.images.device)
            # One small view is repeated under its K elements, two relative ones have one each.
            small = torch.stack(made, dim=1).expand(-1, elements.shape[1], -1, -1, -1)
            transformed = self.group.apply(small.flatten(0, 1), elements.flatten()).unflatten(0, elements.shape)
            return normalise(transformed, self.data), elements

    def _elements(self, count: int, step: int) -> Tensor:
        """int64 [count, K] on the CPU; random ones are drawn for the whole global batch."""
        global_count = count * self.draws.world_size
        if self.relative:
            generator = self.draws.generator(step, "relative elements")
            return torch.randint(self.group.size, (global_count, 2), generator=generator)[self.draws.rows(count)]
        if self.elements == self.group.size:
            return torch.arange(self.group.size).repeat(count, 1)
        # The ranks of random numbers are distinct elements.
        noise = torch.rand(global_count, self.group.size, generator=self.draws.generator(step, "elements"))
        return noise.argsort(dim=1)[self.draws.rows(count), : self.elements]


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
    # One launch per view, straight to where it belongs.
    for number, view in enumerate(views):
        torch.addcmul(shift, view, scale, out=stacked[:, number])
    return stacked


def normalise(views: Tensor, data: DataSource) -> Tensor:
    """Shifts and scales [..., 3, H, W] in [0, 1] by the data's mean and standard deviation."""
    mean, std = (
        constant(tuple(values), views.device, views.dtype).view(3, 1, 1) for values in (data.mean_rgb, data.std_rgb)
    )
    return (views - mean) / std
