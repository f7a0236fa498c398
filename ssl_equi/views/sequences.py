"""From a batch of stored images to the sequence of views, and the actions between them, that seq-JEPA observes.

Rendered data: the views are stored ones of an object, the action from one to another is the relative rotation (and
hues, or a translation). Ordinary images: the views are augmentations of one image; all but the last are drawn from the
preset's first pipeline and the last, which is to be predicted, from its second. As for pairs, whatever is random is a
function of (seed, step) for the whole global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_equi.data.actions import action_between_views
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError
from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.views.actions import sequence_actions_between
from ssl_equi.views.makers import (
    AugmentationDraws,
    PairAction,
    Processes,
    ViewsConfig,
    augmentation_columns,
    check_action,
    check_translations,
    first_images,
    stack_normalised,
    timed,
    warn_of_both_signs,
    with_action_options,
)
from ssl_equi.views.pipeline import apply_each
from ssl_equi.views.presets import view_pipelines


@dataclass(frozen=True)
class ViewSequence:
    """V views of each of B objects, in order, and the actions between any two of them.

    Attributes:
        images: [B, V, 3, S, S] float, normalised.
        action_between: (i, j) -> [B, A], the action that takes view i to view j, counted from 0; None if nothing is
            known, or nobody asks.
    """

    images: Tensor
    action_between: Callable[[int, int], Tensor] | None

    @property
    def length(self) -> int:
        """Number of views V."""
        return self.images.shape[1]

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
        return torch.stack([self.action_between(first, second) for first, second in pairs], dim=1)


class SequenceViews:
    """Makes sequences of `length` views of each object of a batch, with the actions if asked.

    Args:
        config: options of the recipe.
        data: what is trained on.
        processes: the run.
        length: number of views V, the one to predict included.
        actions: what the objective is told of the change from view to view; None for nothing.

    Raises:
        UserError: more rendered views than the objects have, rendered views of data without poses, actions that
            don't go with the views, relative poses of objects that don't move, or less than two views.
    """

    def __init__(
        self,
        config: ViewsConfig,
        data: DataSource,
        processes: Processes,
        *,
        length: int,
        actions: PairAction | None,
    ) -> None:
        self.options, self.data, self.actions, self.length = config.views, data, actions, length
        self.config = config
        check_length(length, config, data)
        self.action_columns: tuple[int, ...] = ()
        if actions is not None:
            check_action(actions, config.views)
            check_translations(actions, data)
            warn_of_both_signs(actions, data, processes)
        if actions == "augmentation":
            self.action_columns = augmentation_columns(config)
        self.draws = AugmentationDraws(config, processes)
        self.observed_pipeline, self.target_pipeline = view_pipelines(
            config.views.preset, config.image_size, compiled=config.compile
        )

    @property
    def stored_views(self) -> int:
        """How many stored views of each object a step needs."""
        return self.length if self.options.source == "rendered" else 1

    def describe(self) -> dict[str, Any]:
        """How sequences are made."""
        return describe_sequences(self.config, self.length - 1, self.actions)  # type: ignore[arg-type]

    @timed
    def __call__(self, batch: ViewBatch, step: int) -> ViewSequence:
        """The views of one step; random parameters depend on (seed, step) only."""
        return self._rendered(batch) if self.options.source == "rendered" else self._augmented(batch, step)

    def _rendered(self, batch: ViewBatch) -> ViewSequence:
        images = normalise_views(batch.images, self.data.mean_rgb, self.data.std_rgb)
        kind = self.actions
        if kind is None or kind == "augmentation":
            return ViewSequence(images, None)
        return ViewSequence(images, lambda first, second: action_between_views(batch, kind, first, second))

    def _augmented(self, batch: ViewBatch, step: int) -> ViewSequence:
        images, sizes = first_images(batch)
        pipelines = [self.observed_pipeline] * (self.length - 1) + [self.target_pipeline]
        parameters = [
            self.draws.parameters(pipeline, sizes, step, f"view {number}") for number, pipeline in enumerate(pipelines)
        ]
        views = stack_normalised(apply_each(pipelines, images, parameters), self.data)
        if self.actions is None:
            return ViewSequence(views, None)
        between = sequence_actions_between(parameters, with_action_options(self.options).action_encoding)

        def action_between(first: int, second: int) -> Tensor:
            return copy_together([between(first, second)[:, self.action_columns]], images.device)[0]

        return ViewSequence(views, action_between)


def check_length(length: int, config: ViewsConfig, data: DataSource) -> None:
    """Raises UserError unless so many different views of an object can be had."""
    if length < 2:
        raise UserError(f"--observed-views is {length - 1}: observe at least 1 view before the one to predict")
    if config.views.source == "augmented":
        return
    if data.train.num_views < 2:
        raise UserError(
            f"{data.name} holds one view of each image: choose --views.source augmented, which makes more of it"
        )
    if length > data.train.num_views:
        raise UserError(
            f"--observed-views is {length - 1} and one more is predicted, but the objects of {data.name} have "
            f"{data.train.num_views} views: choose {data.train.num_views - 1} or less"
        )


def describe_sequences(config: ViewsConfig, observed_views: int, actions: PairAction) -> dict[str, Any]:
    """How sequences were made, for an exported sequence model: source, actions, number of views, augmentations."""
    description: dict[str, Any] = {
        "source": config.views.source, "actions": actions, "observed_views": observed_views,
    }  # fmt: skip
    if config.views.source == "augmented":
        options = with_action_options(config.views)
        description |= {
            "preset": options.preset,
            "action_encoding": options.action_encoding,
            "action_transforms": list(options.action_transforms),
        }
    return description
