"""A folder of the user's own mesh files as a set of posed views, rendered in 3DIEBench's scene.

Every pose, light and split follows from the seed and the models' paths, so a set comes out the same again, and an
interrupted build goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_equi.data.collection import Rgb
from ssl_equi.data.rendering.mesh_files import Model, UpAxis, read_model
from ssl_equi.data.rendering.mesh_lists import MeshFile
from ssl_equi.data.rendering.splits import (
    ObjectTranslation,
    RenderedSplit,
    map_in_processes,
    process_pool,
    rendered_records,
    settings_of_plan,
)
from ssl_equi.data.shards.convert import measured_note
from ssl_equi.data.shards.format import MAX_KEY_LENGTH, ObjectRecord
from ssl_equi.data.shards.records import SplitSettings, mean_and_std, pixel_moments
from ssl_equi.errors import DataError
from ssl_equi.latents.schema import LatentSchema, scene_schema
from ssl_equi.options import Count, ImageSide, Range, Seed
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.sampling import RotationSampling, sample_latents
from ssl_equi.scenes.scene import SceneSettings

GENERATOR_VERSION = 1  # raised when the same models and settings would give other pictures
OBJECTS_A_TASK = 4  # that a process renders in one go; a model with its texture takes some 10 MB
MEASURED_OBJECTS, MEASURED_VIEWS = 250, 500  # at most, for mean and standard deviation of the pixels
FEW_MODELS = 50  # below this, starting worker processes takes longer than reading them
SAME_OBJECTS = "'val' and 'test' show the objects of 'train' in other poses and lights"

Share = Annotated[float, Range(minimum=0, maximum=0.9)]


@dataclass(frozen=True)
class MeshSetConfig:
    """What is rendered of the models."""

    views: Annotated[int, Range(minimum=2, maximum=10_000)] = 20
    """Views of each object (3DIEBench has 50)."""
    image_size: ImageSide = 64
    """Side of the images in pixels (3DIEBench has 256)."""
    supersampling: Annotated[int, Range(minimum=1, maximum=8)] = 2
    """Samples per pixel along each axis."""
    texture_size: Annotated[int, Range(minimum=1, maximum=16_384)] = 1024
    """Larger textures are shrunk to this side in texels."""
    object_scale: Annotated[float, Range(minimum=0.05, maximum=1.5)] = 1.3
    """Diagonal of every object's bounding box in world units: 1.3 as in the embedded set, 3DIEBench has 1."""
    up: UpAxis = "y"
    """Axis of the files that points up: y in most OBJ and all GLB files, z in many scans."""
    rotation: Literal["euler_box", "uniform"] = "euler_box"
    """euler_box as 3DIEBench (angles within 90 degrees), or uniform on SO(3)."""
    translation: ObjectTranslation = 0.0
    """Move the objects too, by up to this along each of their own axes: ten latents, as in 3DIEBench-T (0.5)."""
    split_by: Literal["auto", "objects", "views"] = "auto"
    """objects: val has other objects than train; views: the same in other poses; auto: views if no class has two."""
    val_share: Share = 0.1
    """Share of the objects of each class that are in val, but at least one of two; 0 makes no split of this name."""
    test_share: Share = 0.2
    """The same of test, but at least one of three."""
    held_out_classes: tuple[str, ...] = ()
    """Classes that are never trained on, for the split ood_family."""
    jpeg_quality: Annotated[int, Range(minimum=1, maximum=100)] = 95
    """Quality of the images, which are stored once and never encoded again."""
    objects_per_shard: Count = 500
    """Objects in a tar file."""
    seed: Seed = 0
    """Draws other splits, poses and lights."""

    @property
    def schema(self) -> LatentSchema:
        return scene_schema(self.translation)

    @property
    def scene(self) -> SceneSettings:
        return SceneSettings(self.image_size, self.supersampling, self.object_scale)


@dataclass(frozen=True)
class CheckedModel:
    """What reading a model once said of it.

    digest: SHA-256 of everything that is rendered of it; empty if it can't be
    problem: why it can't be rendered; empty if it can
    missing: names in it of material and texture files that aren't there
    """

    digest: str
    problem: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedModel:
    """One object of one split, before it is rendered."""

    key: str
    label: int
    path: str
    digest: str
    latents_seed: tuple[int, ...]


@dataclass(frozen=True)
class Provenance:
    """What the manifest says of where the models are from, and what a reader of numbers must know of them."""

    source: str
    license: str
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- which models are in which split


def splits_by_objects(models: Sequence[MeshFile], config: MeshSetConfig) -> bool:
    """True if val shall have other objects than train.

    Raises:
        DataError: that is asked for and no class has two objects.
    """
    counts = Counter(model.class_name for model in models if model.class_name not in config.held_out_classes)
    if config.split_by == "objects" and max(counts.values(), default=0) < 2:
        raise DataError(
            f"--split-by objects needs a class of two objects and these {len(counts)} have one each: sort them into "
            f"DIR/CLASS/OBJECT, name classes with --classes, or give --split-by views"
        )
    return config.split_by != "views" and max(counts.values(), default=0) >= 2


def divide(models: Sequence[MeshFile], config: MeshSetConfig) -> dict[str, list[MeshFile]]:
    """The models of each split that there are models for.

    Each class is drawn by itself, so that another class changes nothing, and keeps at least one object in train.

    Raises:
        DataError: a held-out class doesn't exist, or nothing is left to train on.
    """
    classes = {model.class_name for model in models}
    unknown = [name for name in config.held_out_classes if name not in classes]
    if unknown:
        raise DataError(f"there is no class {unknown[0]!r} to hold out: choose from {', '.join(sorted(classes)[:20])}")
    kept = [model for model in models if model.class_name not in config.held_out_classes]
    if not kept:
        raise DataError(f"all {len(classes)} classes are held out: leave some to train on")
    held_out = [model for model in models if model.class_name in config.held_out_classes]
    if not splits_by_objects(models, config):
        shown = {"train": kept, "val": kept if config.val_share else [], "test": kept if config.test_share else []}
    else:
        shown = {"train": [], "val": [], "test": []}
        for name, members in _by_class(kept).items():
            order = np.random.default_rng([config.seed, zlib.crc32(name.encode())]).permutation(len(members))
            drawn = [members[index] for index in order]
            num_val = _drawn_count(len(drawn), config.val_share, len(drawn) - 1)
            num_test = _drawn_count(len(drawn), config.test_share, len(drawn) - 1 - num_val)
            shown["val"] += drawn[:num_val]
            shown["test"] += drawn[num_val : num_val + num_test]
            shown["train"] += drawn[num_val + num_test :]
    # Nothing is outside of rotations that are all drawn.
    turned = (shown["test"] or shown["val"]) if config.rotation == "euler_box" else []
    shown |= {"ood_rotation": turned, "ood_family": held_out}
    return {split: members for split, members in shown.items() if members}


def _by_class(models: Iterable[MeshFile]) -> dict[str, list[MeshFile]]:
    grouped = defaultdict(list)
    for model in models:
        grouped[model.class_name].append(model)
    return grouped


def _drawn_count(count: int, share: float, most: int) -> int:
    return min(max(1, round(count * share)), most) if share else 0


# ---------------------------------------------------------------- reading and rendering


def check_models(
    folder: Path, models: Sequence[MeshFile], config: MeshSetConfig, workers: int
) -> dict[str, CheckedModel]:
    """Reads every model once; what that says of each, by path."""
    check = partial(_check, folder=folder, config=config)
    paths = [model.path for model in models]
    with process_pool(1 if len(paths) < FEW_MODELS else workers) as pool:
        return dict(zip(paths, map(check, paths) if pool is None else map_in_processes(check, paths, pool)))


def _check(path: str, folder: Path, config: MeshSetConfig) -> CheckedModel:
    try:
        model = _read(folder, path, config)
    except DataError as error:
        return CheckedModel("", problem=str(error))
    mesh, paint = model.mesh, model.mesh.paint
    assert paint is not None
    arrays = [mesh.vertices, mesh.faces, mesh.face_colors, paint.corner_colors, paint.corner_uv, paint.face_textures]
    digest = hashlib.sha256()
    for array in (*arrays, *paint.textures):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return CheckedModel(digest.hexdigest(), missing=model.missing)


def _read(folder: Path, path: str, config: MeshSetConfig) -> Model:
    return read_model(folder / path, config.up, config.texture_size)


def render_models(
    objects: Sequence[PlannedModel],
    folder: Path,
    config: MeshSetConfig,
    rotation: RotationSampling,
    device: str = "cpu",
) -> list[ObjectRecord]:
    """Reads some models, renders every view of them and encodes them as JPEG."""
    meshes = [_read(folder, planned.path, config).mesh for planned in objects]
    latents = [_latents_of(planned, config, rotation) for planned in objects]
    return rendered_records(objects, meshes, latents, config.scene, config.jpeg_quality, device)


def plan_models(
    models: Sequence[MeshFile], checked: Mapping[str, CheckedModel], class_names: Sequence[str], split: str, seed: int
) -> list[PlannedModel]:
    """The objects of a split in the order in which they are written, shuffled so that every shard mixes classes."""
    models = sorted(models, key=lambda model: model.path)
    planned = [
        PlannedModel(
            key=key,
            label=class_names.index(model.class_name),
            path=model.path,
            digest=checked[model.path].digest,
            latents_seed=(seed, zlib.crc32(split.encode()), zlib.crc32(model.name.encode())),
        )
        for model, key in zip(models, _keys_of([model.name for model in models]))
    ]
    order = np.random.default_rng([seed, zlib.crc32(split.encode())]).permutation(len(planned))
    return [planned[index] for index in order]


def _keys_of(names: Sequence[str]) -> list[str]:
    """Names in letters, digits, '_' and '-'; with a hash where that changes them, or would make two the same."""
    joined = [name.replace("/", "_") for name in names]
    counts = Counter(joined)
    keys = []
    for name, key in zip(names, joined):
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", key)
        if plain != key or counts[key] > 1 or len(key) > MAX_KEY_LENGTH:
            plain = f"{plain[: MAX_KEY_LENGTH - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
        keys.append(plain)
    return keys


def pixel_statistics(
    folder: Path, objects: Sequence[PlannedModel], config: MeshSetConfig, device: str = "cpu"
) -> tuple[Rgb, Rgb, str]:
    """Mean and standard deviation of pixels in [0, 1] of the first views of train's objects, and of how many in words.

    To three digits, which another device or another order of additions hardly ever changes.
    """
    objects = objects[:MEASURED_OBJECTS]
    views = min(config.views, -(-MEASURED_VIEWS // len(objects)))
    moments = []
    for planned in objects:
        renderer = Renderer([_read(folder, planned.path, config).mesh], config.scene, device)
        latents = torch.from_numpy(_latents_of(planned, config, config.rotation)[:views])
        pictures = renderer.render(torch.zeros(views, dtype=torch.int64), latents).cpu().numpy()
        moments += [pixel_moments(picture) for picture in pictures]
    return *mean_and_std(moments, digits=3), measured_note(len(moments))


def _latents_of(planned: PlannedModel, config: MeshSetConfig, rotation: RotationSampling) -> NDArray[np.float64]:
    return sample_latents(config.views, np.random.default_rng(planned.latents_seed), rotation, config.translation)


def rendered_splits(
    folder: Path,
    divided: Mapping[str, Sequence[MeshFile]],
    checked: Mapping[str, CheckedModel],
    config: MeshSetConfig,
    provenance: Provenance,
    device: str = "cpu",
) -> dict[str, RenderedSplit]:
    """All splits by name, ready to be rendered; the pixels of train are measured on the way."""
    planned = {}
    train_classes = sorted({model.class_name for model in divided["train"]})
    for name, models in divided.items():
        # Held-out classes have numbers of their own, as in the embedded set.
        classes = sorted({model.class_name for model in models}) if name == "ood_family" else train_classes
        planned[name] = tuple(classes), plan_models(models, checked, classes, name, config.seed)
    mean_rgb, std_rgb, measured = pixel_statistics(folder, planned["train"][1], config, device)
    notes = (*provenance.notes, measured)
    splits = {}
    for name, (class_names, objects) in planned.items():
        content = {"generator": GENERATOR_VERSION, "config": settings_of_plan(config)}
        content["objects"] = [dataclasses.astuple(each) for each in objects]
        settings = SplitSettings(
            split=name,
            class_names=class_names,
            source=provenance.source,
            license=provenance.license,
            seed=config.seed,
            schema=config.schema,
            objects_per_shard=config.objects_per_shard,
            mean_rgb=mean_rgb,
            std_rgb=std_rgb,
            notes=notes,
            plan=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        )
        rotation: RotationSampling = "outside_box" if name == "ood_rotation" else config.rotation
        render = partial(render_models, folder=folder, config=config, rotation=rotation)
        splits[name] = RenderedSplit(settings, objects, config.views, OBJECTS_A_TASK, render)
    return splits
