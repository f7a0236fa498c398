"""Build shards of your own images from a tree of class folders, SPLIT/CLASS/*.jpg.

    python datasets/image_folder.py --source IMAGES --out data/shards --license CC-BY-4.0 --verify
    python datasets/image_folder.py --source IMAGES --out data/shards --license CC-BY-4.0 --splits train test

Train on them with `--dataset shards --data-dir data/shards`. Every image is decoded once to check it and stored as the
bytes it was. Files of other suffixes and hidden ones are passed over, as `--dataset folder` does. Stopped, it goes on
with the next shard when the same command is given again. The card, images.md, has the rest.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.sets.images import say_passed_over
from ssl_equi.data.shards.convert import (
    ConversionOptions,
    ListedImages,
    Provenance,
    convert_images,
    key_with_hash,
    summary,
)
from ssl_equi.data.shards.format import MAX_KEY_LENGTH
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    source: Path
    """Folder that holds a folder for each split, with a folder for each class; or any folder of images, of which a
    fifth becomes the split val."""
    options: Annotated[ConversionOptions, tyro.conf.arg(name="")]
    """How images are stored."""
    license: str
    """The licence of the images, for the manifest."""
    splits: tuple[str, ...] = ("train", "val")
    """Folders to convert; the classes are those of train, whichever are given."""
    source_name: str | None = None
    """Where the images are from, for the manifest; the name of the source folder by default."""
    source_version: str = "unversioned"
    """Version of the images, for the manifest."""
    normalisation: Literal["imagenet", "measured"] = "imagenet"
    """What training normalises with: ImageNet's constants, as with --dataset folder, or what is measured here."""


def main(config: Config) -> None:
    splits = [listed_folder(config.source, split) for split in config.splits]
    by_imagenet = config.normalisation == "imagenet"
    provenance = Provenance(
        source=config.source_name or config.source.resolve().name,
        source_version=config.source_version,
        license=config.license,
        mean_rgb=IMAGENET_MEAN_RGB if by_imagenet else None,
        std_rgb=IMAGENET_STD_RGB if by_imagenet else None,
    )
    for manifest in convert_images(splits, provenance, config.options).values():
        print(summary(manifest))


def listed_folder(source: Path, split: str) -> ListedImages:
    """The images of one split in the order of their classes and names."""
    store = ImageFolder(source, split)
    say_passed_over(store)
    paths = [store.path_in_split(row) for row in range(len(store.labels))]
    return ListedImages(
        split=split,
        class_names=store.class_names,
        keys=keys_of_paths([path.as_posix() for path in paths]),
        labels=store.labels.tolist(),
        read=store.read_file,
        name_of=functools.partial(_name, store.path),
    )


def keys_of_paths(paths: Sequence[str]) -> list[str]:
    """CLASS/NAME.jpg as keys: CLASS_NAME, for each path.

    A tar shard takes letters, digits, '_' and '-'. Where others become '_', the key would be too long, or those of
    maple/tree_1.jpg and maple_tree/1.jpg would meet, the end of the key is a hash of the path, so that different paths
    have different keys. Paths that differ in their suffix alone keep one key, which converting refuses.
    """
    keys, stems_of = [], defaultdict(set)
    for path in paths:
        stem = path.rpartition(".")[0]
        key = stem.replace("/", "_")
        fits = re.fullmatch(r"[A-Za-z0-9_-]+", key) and len(key) <= MAX_KEY_LENGTH and stem.count("/") == 1
        keys.append(key if fits else _key_with_hash(path))
        stems_of[keys[-1]].add(stem)
    return [key if len(stems_of[key]) == 1 else _key_with_hash(path) for key, path in zip(keys, paths)]


def _key_with_hash(path: str) -> str:
    return key_with_hash(path.rpartition(".")[0].replace("/", "_"), path)


def _name(path_of: Callable[[int], Path], row: int) -> str:
    return str(path_of(row))


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
