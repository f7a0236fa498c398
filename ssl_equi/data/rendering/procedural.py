"""3DIEBench-P: the embedded data set, rendered on the spot from procedural objects, in the layout of 3DIEBench.

3DIEBench-PT is the same objects under other poses and lights, moved too, in the layout of 3DIEBench-T.

Every object, its pose and its light follow from (seed, split, family, instance), so the set comes out the same on any
machine up to the rounding of the renderer, an interrupted build goes on where it stopped, and no file is downloaded.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from ssl_equi.data.rendering.splits import (
    ObjectTranslation,
    RenderedSplit,
    build_splits,
    rendered_records,
    settings_of_plan,
)
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import FURTHEST_TRANSLATION
from ssl_equi.latents.schema import LatentSchema, scene_schema
from ssl_equi.options import Count, ImageSide, Range, Seed
from ssl_equi.scenes.families import DEFAULT_FAMILIES, HELD_OUT_FAMILIES, build_object
from ssl_equi.scenes.sampling import RotationSampling, sample_latents
from ssl_equi.scenes.scene import SceneSettings

SOURCE = "procedural objects rendered by ssl_equi.scenes"
LICENSE = "CC0-1.0"
GENERATOR_VERSION = 1  # raised when the same settings would give other objects or pictures, so that no cache is stale
# Mean and standard deviation over all pixels of the default train split, in [0, 1].
PIXEL_MEAN_RGB = (0.486, 0.486, 0.487)
PIXEL_STD_RGB = (0.119, 0.120, 0.119)
TRANSLATED_PIXEL_MEAN_RGB = (0.488, 0.487, 0.487)  # the same of the translated set
TRANSLATED_PIXEL_STD_RGB = (0.122, 0.122, 0.122)

OBJECTS_A_TASK = 12  # what a worker renders in one go: 240 images of 64 x 64 fill its caches well


@dataclasses.dataclass(frozen=True)
class ProceduralConfig:
    """What is rendered. The defaults are the embedded set: 24 families x 60 objects x 20 views of 64 x 64 pixels."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """Object families; each is a class."""
    held_out_families: tuple[str, ...] = HELD_OUT_FAMILIES
    """Families of the split ood_family, unseen in training."""
    train_objects: Count = 42
    """Objects of each family in the split train."""
    val_objects: Count = 6
    """Objects of each family in the split val, for choosing settings."""
    test_objects: Count = 12
    """Objects of each family in the splits test, ood_rotation and ood_family, for reporting."""
    views: Annotated[int, Range(minimum=2, maximum=10_000)] = 20
    """Views of each object (3DIEBench has 50)."""
    image_size: ImageSide = 64
    """Side of the images in pixels (3DIEBench has 256)."""
    rotation: RotationSampling = "euler_box"
    """euler_box as 3DIEBench (angles within 90 degrees), or uniform on SO(3)."""
    translation: ObjectTranslation = 0.0
    """Move the objects too, by up to this along each of their own axes: ten latents, as in 3DIEBench-T (0.5)."""
    jpeg_quality: Annotated[int, Range(minimum=1, maximum=100)] = 95
    """Quality of the images, which are stored once and never encoded again."""
    objects_per_shard: Count = 500
    """Objects in a tar file."""
    seed: Seed = 0
    """Draws another set of objects, poses and lights."""

    def __post_init__(self) -> None:
        if set(self.families) & set(self.held_out_families):
            both = sorted(set(self.families) & set(self.held_out_families))
            raise DataError(f"family {both[0]!r} is both trained on and held out: take it out of one of the two lists")
        for field in ("train_objects", "val_objects", "test_objects", "views"):
            if getattr(self, field) < (2 if field == "views" else 1):
                raise DataError(f"{field} is {getattr(self, field)}: it is too small to make pairs of views")
        if not 0 <= self.translation <= FURTHEST_TRANSLATION:
            raise DataError(f"translation is {self.translation}: choose from 0 to {FURTHEST_TRANSLATION}")

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that change with every setting; part of the cache folder's name."""
        text = json.dumps({"generator": GENERATOR_VERSION, **settings_of_plan(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """What the set is called: 3DIEBench-P, or 3DIEBench-PT where its objects move."""
        return "3DIEBench-PT" if self.translation else "3DIEBench-P"

    @property
    def schema(self) -> LatentSchema:
        return scene_schema(self.translation)


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """One split: which objects, seen under which rotations."""

    instances: Literal["train", "val", "test"]  # pool of objects: splits of one show the same ones, pools share none
    families: tuple[str, ...]
    objects_per_family: int
    rotation: RotationSampling


def split_plans(config: ProceduralConfig) -> dict[str, SplitPlan]:
    """All splits by name. The two `ood_` ones show what was never trained on: rotations, and families."""
    return {
        "train": SplitPlan("train", config.families, config.train_objects, config.rotation),
        "val": SplitPlan("val", config.families, config.val_objects, config.rotation),
        "test": SplitPlan("test", config.families, config.test_objects, config.rotation),
        "ood_rotation": SplitPlan("test", config.families, config.test_objects, "outside_box"),
        "ood_family": SplitPlan("test", config.held_out_families, config.test_objects, config.rotation),
    }


@dataclasses.dataclass(frozen=True)
class PlannedObject:
    """One object of one split, before it is rendered."""

    key: str
    label: int
    family: str
    object_seed: int
    latents_seed: tuple[int, ...]


def plan_objects(config: ProceduralConfig, split: str) -> list[PlannedObject]:
    """The objects of a split in the order in which they are written: shuffled, so that every shard mixes classes."""
    plans = split_plans(config)
    if split not in plans:
        raise DataError(f"{config.title} has no split {split!r}: choose from {', '.join(plans)}")
    plan = plans[split]
    # Pools of object seeds far apart, so that no object is in two of them whatever the sizes.
    pool = {"train": 0, "val": 1, "test": 2}[plan.instances] * 10_000_000 + config.seed * 100_000_000
    planned = [
        PlannedObject(
            key=f"{family}_{split}_{instance:05d}",
            label=label,
            family=family,
            object_seed=pool + instance,
            latents_seed=(config.seed, zlib.crc32(split.encode()), zlib.crc32(family.encode()), instance),
        )
        for label, family in enumerate(plan.families)
        for instance in range(plan.objects_per_family)
    ]
    order = np.random.default_rng([config.seed, zlib.crc32(split.encode())]).permutation(len(planned))
    return [planned[index] for index in order]


def latents_of_object(
    planned: PlannedObject, config: ProceduralConfig, rotation: RotationSampling
) -> NDArray[np.float64]:
    """The latents of an object's views, [V, L]."""
    return sample_latents(config.views, np.random.default_rng(planned.latents_seed), rotation, config.translation)


def render_objects(
    objects: Sequence[PlannedObject], config: ProceduralConfig, rotation: RotationSampling, device: str = "cpu"
) -> list[ObjectRecord]:
    """Renders every view of some objects and encodes them as JPEG."""
    latents = [latents_of_object(planned, config, rotation) for planned in objects]
    meshes = [build_object(planned.family, planned.object_seed) for planned in objects]
    settings = SceneSettings(resolution=config.image_size)
    return rendered_records(objects, meshes, latents, settings, config.jpeg_quality, device)


def rendered_split(config: ProceduralConfig, split: str) -> RenderedSplit:
    """One split, ready to be rendered.

    Raises:
        DataError: there is no such split.
    """
    objects = plan_objects(config, split)
    render = partial(render_objects, config=config, rotation=split_plans(config)[split].rotation)
    return RenderedSplit(split_settings(config, split), objects, config.views, OBJECTS_A_TASK, render)


def build_procedural(
    folder: Path,
    config: ProceduralConfig,
    splits: Sequence[str],
    *,
    workers: int | None = None,
    device: str = "cpu",
    show_progress: bool = True,
) -> None:
    """Builds the splits that the folder doesn't hold yet, as shards; safe to call from several processes at once.

    After an error, such as a full disk, what is finished stays, and the next call goes on from there.
    """
    known = {split: rendered_split(config, split) for split in dict.fromkeys((*split_plans(config), *splits))}
    build_splits(folder, known, splits, workers=workers, device=device, show_progress=show_progress)


def default_folder(config: ProceduralConfig) -> Path:
    """Where the set is cached: the user's cache folder (XDG on Linux), one folder for each configuration."""
    return user_cache_path("ssl_equi") / f"{config.title.lower()}-{config.image_size}px-{config.fingerprint}"


def split_settings(config: ProceduralConfig, split: str) -> SplitSettings:
    """What the manifest of a split says besides its contents."""
    plan = split_plans(config)[split]
    return SplitSettings(
        split=split,
        class_names=plan.families,
        source=f"{config.title}, {SOURCE}",
        license=LICENSE,
        seed=config.seed,
        schema=config.schema,
        objects_per_shard=config.objects_per_shard,
        mean_rgb=TRANSLATED_PIXEL_MEAN_RGB if config.translation else PIXEL_MEAN_RGB,
        std_rgb=TRANSLATED_PIXEL_STD_RGB if config.translation else PIXEL_STD_RGB,
        plan=config.fingerprint,
    )
