"""Options of views and actions: where views come from, and of what an objective is told between two of them."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import tyro

from ssl_equi.data.sources import DATASETS, DataSource
from ssl_equi.errors import UserError
from ssl_equi.latents.actions import AUGMENTATION, LatentActions, actions_of, offered_names
from ssl_equi.latents.schema import LatentSchema
from ssl_equi.options import ActsWhen, ImageSide, Width
from ssl_equi.views.actions import ActionEncoding, action_columns, columns_about
from ssl_equi.views.presets import transforms_of_views

ActionNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]
"""Of the data's latents, see `ssl_equi.latents.actions.actions_of`; or `augmentation` alone."""
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


class ToldConfig(ViewsConfig, Protocol):
    """The options of objectives that are told of the change from view to view."""

    @property
    def dataset(self) -> str: ...

    @property
    def told(self) -> ActionNames | None: ...


def action_size(config: ToldConfig, data: DataSource | None = None) -> int:
    """Width A of the actions that an objective is told, see `told_actions`; 0 if it is told of none."""
    if config.told is None:
        return 0
    actions = told_actions(config, data)
    return len(augmentation_columns(config)) if actions is None else actions.width


def told_actions(config: ToldConfig, data: DataSource | None = None) -> LatentActions | None:
    """The actions between stored views that an objective is told; None for those between augmented ones, or none.

    Args:
        data: what is trained on; without them, latents are those that every copy of the named data set has.

    Raises:
        UserError: they don't go with the views, or the data have no such latents.
    """
    if config.told is None:
        return None
    schema = DATASETS[config.dataset].schema if data is None else data.train.schema
    check_actions(config.told, config.views, schema)
    return None if config.views.source == "augmented" else actions_of(schema, config.told)


def augmentation_columns(config: ViewsConfig) -> tuple[int, ...]:
    """The columns of the augmentation actions that the objective is told."""
    names = transforms_of_views(config.views.preset, config.image_size)
    told = with_action_options(config.views)
    encoding, transforms = told.action_encoding, told.action_transforms
    if not transforms:
        return tuple(range(len(action_columns(encoding, names))))
    try:
        return columns_about(transforms, encoding, names)
    except ValueError as error:
        raise UserError(f"--views.action-transforms is {' '.join(transforms)}: {error}") from error


def with_action_options(options: PairOptions) -> ViewOptions:
    """The options, with the default encoding of actions where they say nothing of it."""
    return options if isinstance(options, ViewOptions) else ViewOptions(options.source, options.preset)


def check_actions(names: ActionNames, options: PairOptions, schema: LatentSchema | None) -> None:
    """Raises UserError unless augmented views have augmentation actions and stored ones those of their latents.

    Args:
        schema: of the latents; None where it isn't known yet, nor what names there are.
    """
    asked = " ".join(names)
    if AUGMENTATION in names and len(names) > 1:
        raise UserError(f"--actions is {asked} and {AUGMENTATION} goes with no latents: name it alone, or leave it out")
    if (AUGMENTATION in names) != (options.source == "augmented"):
        cure = f"--actions {AUGMENTATION}"
        if options.source == "rendered":
            cure = f"from {', '.join(offered_names(schema))}" if schema else "names of the data's latents"
        raise UserError(f"--actions is {asked} and --views.source is {options.source}: choose {cure}")
    if options.source == "rendered" and schema is not None:
        actions_of(schema, names)
