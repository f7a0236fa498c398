"""Configurations for a folder of your own images."""

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar

from ssl_equi.data.sets.image_folder import TEST, TRAIN, VAL, ImageFolder
from ssl_equi.errors import UserError
from ssl_equi.latents.actions import AUGMENTATION
from ssl_equi.training.config import ActionsConfig, GlimpsesConfig, PretrainingConfig, PretrainingOptions

Options = TypeVar("Options")

STEPS = 2400  # at least, as on the embedded set by default
FEW_IMAGES = 20_000  # whose decoded pixels are kept: 1 GB at the default image size


def for_own_images(config: Options, folder: Path) -> Options:
    """The configuration, changed to learn from a folder of images, flat or nested or with splits.

    Two augmentations of an image are its views, and the action is the change from one to the other. Batches are halved
    until the images make one, epochs are as many as `STEPS` steps take, and decoded images are kept where they are few.

    Raises UserError for a recipe without such options, or a folder that can't be split.
    """
    if not isinstance(config, PretrainingOptions):
        raise UserError(f"--images {folder} is given and this script doesn't pretrain on images: leave it out")
    images = ImageFolder(folder, TRAIN)
    count = len(images.labels)
    judged = VAL if images.splits_itself or (folder / VAL).is_dir() else TEST
    batch_size = config.batch_size
    while batch_size > max(count, 2):
        batch_size //= 2
    changes: dict[str, Any] = {
        "dataset": "folder", "data_dir": folder, "evaluation_split": judged, "batch_size": batch_size,
        "epochs": math.ceil(STEPS / (count // batch_size)), "cache_decoded": count <= FEW_IMAGES,
    }  # fmt: skip
    if isinstance(config, PretrainingConfig):
        changes["views"] = dataclasses.replace(config.views, source="augmented")
    if isinstance(config, ActionsConfig):
        changes["actions"] = (AUGMENTATION,)
    if isinstance(config, GlimpsesConfig):
        changes["saccades"] = dataclasses.replace(config.saccades, augmentation="crop_flip")  # to one size
    return dataclasses.replace(config, **changes)
