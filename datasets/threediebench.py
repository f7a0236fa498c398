"""Build shards of posed views: 3DIEBench, 3DIEBench-T, or a set of your own in the layout of their archives.

    python datasets/threediebench.py --source 3DIEBench --lists SIE/data --out data/3diebench --verify
    python datasets/threediebench.py --source 3DIEBench-T --lists EquiCaps/data --out data/3diebench-t --verify
    python datasets/threediebench.py --source 3DIEBench --lists SIE/data --out data/3diebench128 --resize 128
    python datasets/threediebench.py --source 3DIEBench --lists SIE/data --out data/3diebench --ood 3DIEBench-OOD
    python datasets/threediebench.py --source SCANS --out data/scans --source-name "our scans" --license CC0-1.0
    python datasets/threediebench.py --source TURNTABLE --out data/turntable --source-name "a turntable" \
        --license CC0-1.0 --val-every-view 4

`--source` is the unpacked archive (SYNSET/OBJECT/image_0.jpg, latent_0.npy, ...), `--lists` the folder with the split
files (train_images.npy, train_labels.npy, val_images.npy, val_labels.npy). Views may be PNG and other formats, and have
other names as long as a number at the end tells their order. `--ood` adds the split ood_rotation, val objects under
rotations beyond 90 degrees, from another such folder, also to shards that are there already. With `--val-every-view`
there are no lists: each object is a class of its own, and the split is by views. The authors' sets are recognised by
their lists; of all others the manifest says what `--source-name` and `--license` say, and the statistics of the pixels
are measured. Images are decoded once to check them and stored as they are, unless `--resize` asks for another size. An
interrupted run goes on where it stopped when started again with the same options. The card beside this file has the
rest.
"""

import hashlib
import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.posed.folders import (
    Layout,
    ListedObject,
    check_no_duplicates,
    class_names_of,
    layout_of,
    objects_as_classes,
    objects_shown_in,
    read_object,
    read_pixels,
    read_split_list,
)
from ssl_equi.data.shards.convert import PlannedSplit, in_stored_order, pixel_statistics, resized_note, write_splits
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import Manifest, canonical_json
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.data.sources import OOD_ROTATION
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION, ROTATION_COLUMNS
from ssl_equi.latents.rotation import EULER_BOX_DEG
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH
from ssl_equi.options import Count, Seed, Threads

SOURCES = {
    LATENT_SIZE: "3DIEBench, Garrido et al., ICML 2023, https://github.com/facebookresearch/SIE",
    LATENT_SIZE_WITH_TRANSLATION: (
        "3DIEBench-T, Konstantinou et al., 2025, https://huggingface.co/datasets/athenacon/3DIEBench-T"
    ),
}
LICENSE = "CC-BY-NC-4.0"  # of both
OOD_SOURCE = "3DIEBench-OOD, Ghaemi et al., NeurIPS 2025, https://huggingface.co/datasets/Hafez/3DIEBench-OOD"
OOD_LICENSE = "none stated"  # of models and scene of 3DIEBench
# The normalisation that SIE and seq-JEPA train with, and EquiCaps on 3DIEBench-T too.
MEAN_RGB = (0.5016, 0.5037, 0.5060)
STD_RGB = (0.1030, 0.0999, 0.0969)
# What both sets' lists of splits hold: train objects, val objects, and each extreme of the classes' train objects.
PUBLISHED_LISTS = (41_920, 10_552, 55, 44, 6_748)

SPLIT_BY_VIEWS = (
    "every object is a class of its own and the split is by views: 'val' shows the objects of 'train' in other views"
)


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    source: Path  # the unpacked archive
    out: Path  # where the shards go
    lists: Path | None = None  # where the four split files are; by default in the source folder
    train_images: Path = Path("train_images.npy")  # "/SYNSET/OBJECT/" strings; relative to lists, as the next three
    train_labels: Path = Path("train_labels.npy")
    val_images: Path = Path("val_images.npy")
    val_labels: Path = Path("val_labels.npy")
    ood: Path | None = None  # unpacked archive of 3DIEBench-OOD: val objects in other rotations, split ood_rotation
    # Without lists: each folder of views, OBJECT or CLASS/OBJECT, is a class, and every N-th of its views is in val.
    val_every_view: Count | None = None
    resize: Count | None = None  # store views of another size as JPEG of this side in pixels; original bytes by default
    objects_per_shard: Count = 500
    seed: Seed = 0  # of the order in which objects are stored
    # Threads that read and check objects.
    workers: Threads = field(default_factory=lambda: min(16, os.cpu_count() or 1))
    verify: bool = False  # read everything back at the end: checksums, and every image decoded
    # What the manifest says; only the authors' sets have values of their own.
    source_name: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Split:
    """The objects of a split in the order of its list, what is stored of each, and the folder where they lie."""

    objects: list[ListedObject]
    layout: Layout
    source: Path


@dataclass(frozen=True)
class Provenance:
    """What the manifest says of where the views are from, and how training normalises them."""

    source: str
    license: str
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    notes: tuple[str, ...]


def splits_of(config: Config) -> dict[str, Split]:
    """Train and val, by lists of objects or by views, and with --ood ood_rotation.

    Raises:
        DataError: options don't go together, or lists and folders don't.
    """
    if config.resize is not None and config.resize < 2:
        raise DataError(f"--resize is {config.resize}: give a side of at least 2 pixels")
    if config.val_every_view is not None:
        return _split_by_views(config, config.val_every_view)
    lists = config.source if config.lists is None else config.lists
    objects = {
        "train": read_split_list(lists / config.train_images, lists / config.train_labels),
        "val": read_split_list(lists / config.val_images, lists / config.val_labels),
    }
    check_no_duplicates(objects)
    for split, listed in objects.items():
        if not listed:
            raise DataError(f"{lists / f'{split}_images.npy'} lists no object: pass the list of the {split} split")
    layout = replace(layout_of(config.source, objects["train"][0]), resize=config.resize)
    splits = {split: Split(listed, layout, config.source) for split, listed in objects.items()}
    return splits if config.ood is None else splits | {OOD_ROTATION: _ood_split(config.ood, splits["val"])}


def _split_by_views(config: Config, every: int) -> dict[str, Split]:
    if config.lists is not None:
        raise DataError(
            "--lists and --val-every-view are given, and one split is by objects and one by views: drop one"
        )
    if config.ood is not None:
        raise DataError("--ood and --val-every-view are given, and no val objects are apart from train: drop one")
    objects = objects_as_classes(config.source)
    check_no_duplicates({"train": objects})
    layout = replace(layout_of(config.source, objects[0]), resize=config.resize)
    val = layout.numbers[:: max(every, 1)]
    train = tuple(number for number in layout.numbers if number not in val)
    if every < 2 or len(train) < 2:
        raise DataError(
            f"--val-every-view is {every} and objects have {len(layout.numbers)} views: give a number of at least 2 "
            f"that leaves two views or more to train on"
        )
    return {
        name: Split(objects, replace(layout, stored=stored), config.source)
        for name, stored in (("train", train), ("val", val))
    }


def _ood_split(source: Path, val: Split) -> Split:
    """The val objects that a folder shows in further rotations; of each, as many views as all of them have."""
    objects = objects_shown_in(source, val.objects)
    first = objects[0]
    layout = layout_of(source, first)
    if layout.latent_size != val.layout.latent_size:
        raise DataError(
            f"{source} has {layout.latent_size} latents a view and the val split {val.layout.latent_size}: give --ood "
            f"renders of the same set"
        )
    num_views = min(len(listed.views) for listed in objects)
    split = Split(objects, replace(layout, stored=layout.numbers[:num_views], resize=val.layout.resize), source)
    read_outside_box(split, first)  # before anything is converted
    return split


def read_outside_box(split: Split, listed: ListedObject) -> ObjectRecord:
    """An object of `ood_rotation`; refuses a view whose angles all lie within those of 3DIEBench."""
    record = read_object(split.source, listed, split.layout)
    furthest_rad = np.abs(record.latents[:, ROTATION_COLUMNS]).max(axis=1)
    least = int(furthest_rad.argmin())
    if furthest_rad[least] < math.radians(EULER_BOX_DEG):
        raise DataError(
            f"view {listed.views[least]} in {split.source / listed.path} turns by at most "
            f"{math.degrees(furthest_rad[least]):.0f} degrees about an axis, as trained views do: give --ood renders "
            f"that turn by more than 90"
        )
    return record


def is_published(splits: dict[str, Split]) -> bool:
    """True for the lists of 3DIEBench, which 3DIEBench-T has too, by how many objects of which classes they hold."""
    counts = Counter(listed.label for listed in splits["train"].objects)
    sizes = [len(splits[name].objects) for name in ("train", "val")]
    return (*sizes, len(counts), min(counts.values()), max(counts.values())) == PUBLISHED_LISTS


def provenance_of(config: Config, splits: dict[str, Split]) -> Provenance:
    """What is known of the authors' sets; of others what the options say and what is measured.

    Raises:
        DataError: nobody says where other data are from.
    """
    train = splits["train"]
    published = config.val_every_view is None and is_published(splits)
    source = config.source_name or (SOURCES[train.layout.latent_size] if published else None)
    terms = config.license or (LICENSE if published else None)
    if source is None or terms is None:
        raise DataError(
            f"these are not the lists of 3DIEBench ({PUBLISHED_LISTS[0]:,} train and {PUBLISHED_LISTS[1]:,} val "
            f"objects), but {len(train.objects):,} and {len(splits['val'].objects):,} objects: say whose images they "
            f'are with --source-name "..." and --license ...'
        )
    notes = () if config.val_every_view is None else (SPLIT_BY_VIEWS,)
    if config.resize is not None:
        notes += (resized_note(config.resize),)
    if published:
        return Provenance(source, terms, MEAN_RGB, STD_RGB, notes)
    ordered = in_stored_order(train.objects, config.seed)
    mean_rgb, std_rgb, measured = pixel_statistics(
        [len(train.layout.stored)] * len(ordered),
        lambda place, view: read_pixels(config.source, ordered[place], train.layout, view),
    )
    return Provenance(source, terms, mean_rgb, std_rgb, (*notes, measured))


def ood_provenance_of(config: Config, trained: Provenance, split: Split) -> Provenance:
    """What the manifest says of ood_rotation: other renders, normalised as the training views are."""
    most, stored = max(len(listed.views) for listed in split.objects), len(split.layout.stored)
    uneven = f"objects have {stored} to {most} views, of which the first {stored} are stored"
    if trained.source == SOURCES[LATENT_SIZE]:
        trained = replace(trained, source=OOD_SOURCE, license=config.license or OOD_LICENSE)
    return replace(trained, notes=trained.notes if most == stored else (*trained.notes, uneven))


def planned_split(
    config: Config, name: str, split: Split, class_names: tuple[str, ...], provenance: Provenance
) -> PlannedSplit[ListedObject]:
    """The split with what its manifest will say."""
    ordered = in_stored_order(split.objects, config.seed)
    plan = [[each.key, each.label, each.views] if each.views else [each.key, each.label] for each in ordered]
    settings = SplitSettings(
        split=name,
        class_names=class_names,
        source=provenance.source,
        license=provenance.license,
        seed=config.seed,
        schema=SCHEMA_OF_WIDTH[split.layout.latent_size],
        objects_per_shard=config.objects_per_shard,
        mean_rgb=provenance.mean_rgb,
        std_rgb=provenance.std_rgb,
        notes=provenance.notes,
        plan=hashlib.sha256(canonical_json([plan, split.layout.as_plan()])).hexdigest(),
    )

    def record_of(listed: ListedObject) -> ObjectRecord:
        if name == OOD_ROTATION:
            return read_outside_box(split, listed)
        return read_object(split.source, listed, split.layout)

    return PlannedSplit(settings, ordered, record_of)


def convert(config: Config) -> dict[str, Manifest]:
    """Convert all splits and, if asked, verify them; shows a progress bar."""
    splits = splits_of(config)
    class_names = class_names_of(listed for split in splits.values() for listed in split.objects)
    provenance = provenance_of(config, splits)
    planned = [
        planned_split(
            config, name, split, class_names,
            ood_provenance_of(config, provenance, split) if name == OOD_ROTATION else provenance,
        )
        for name, split in splits.items()
    ]  # fmt: skip
    return write_splits(config.out, planned, config.workers, config.verify)


def main() -> None:
    """Command line."""
    config = parse_command_line(Config, __doc__)
    manifests: dict[str, Manifest] = {}
    explain_errors(lambda: manifests.update(convert(config)))
    for split, manifest in manifests.items():
        size_gb = sum(entry.bytes for entry in manifest.shards) / 1e9
        print(
            f"{split}: {manifest.num_objects} objects x {manifest.num_views} views in {len(manifest.shards)} shards, "
            f"{size_gb:.2f} GB, fingerprint {manifest.fingerprint[:16]}"
        )


if __name__ == "__main__":
    main()
