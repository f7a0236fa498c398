"""Builds 3DIEBench-P: procedural objects rendered in 3DIEBench's scene, as shards or in 3DIEBench's own folder layout.

    python datasets/procedural.py                                       the embedded default, into the user's cache
    python datasets/procedural.py --out p128 --set.image-size 128       twice the resolution
    python datasets/procedural.py --set.translation 0.5                 objects that also move: 3DIEBench-PT
    python datasets/procedural.py --out ood --splits ood_rotation ood_family
    python datasets/procedural.py --out tree --layout files             CLASS/OBJECT/image_0.jpg, latent_0.npy, lists

An interrupted build goes on where it stopped when the same command is given again.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.rendering.procedural import (
    PlannedObject,
    ProceduralConfig,
    build_procedural,
    default_folder,
    plan_objects,
    rendered_split,
    split_plans,
)
from ssl_equi.data.rendering.splits import default_workers, process_pool
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.verify import verify_split
from ssl_equi.errors import DataError, UserError
from ssl_equi.geometry.latents import FURTHEST_TRANSLATION
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH
from ssl_equi.options import Threads


@dataclass(frozen=True)
class BuildConfig:
    """What to build, and where."""

    set: ProceduralConfig = field(default_factory=ProceduralConfig)
    """Families, sizes, poses and seed of the set."""
    out: Path | None = None
    """Folder to build in; the user's cache folder when not given."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Any of train, val, test, ood_rotation, ood_family."""
    layout: Literal["shards", "files"] = "shards"
    """Shards are what the recipes read; files is 3DIEBench's folder layout."""
    workers: Threads | None = None
    """Processes that render; one for each core when not given."""
    device: str = "cpu"
    """cpu, or cuda to render on a GPU."""
    verify: bool = False
    """Read everything back when done: every checksum compared, every image decoded (shards only)."""


def main(config: BuildConfig) -> None:
    folder = default_folder(config.set) if config.out is None else config.out
    if config.layout == "files":
        if config.set.schema not in SCHEMA_OF_WIDTH.values():
            raise UserError(
                f"--layout files has no place for how far objects move, and --set.translation is "
                f"{config.set.translation}: choose 0 or {FURTHEST_TRANSLATION}, or --layout shards"
            )
        for split in config.splits:
            write_files(folder, config.set, split, config.workers or default_workers(), config.device)
    else:
        build_procedural(folder, config.set, config.splits, workers=config.workers, device=config.device)
        if config.verify:
            for split in config.splits:
                verify_split(folder, split)
                print(f"verified {split}")
    print(f"{config.set.title} is in {folder}")


def write_files(folder: Path, config: ProceduralConfig, split: str, workers: int, device: str = "cpu") -> None:
    """Writes a split as CLASS/OBJECT/image_{i}.jpg and latent_{i}.npy, with SPLIT_images.npy and SPLIT_labels.npy.

    Objects whose folder exists are kept: each one is written under another name first, and renamed when complete.

    Raises:
        DataError: a file can't be written; the objects that are complete stay.
    """
    objects = plan_objects(config, split)
    families = split_plans(config)[split].families
    done = 0
    while done < len(objects) and _object_folder(folder, objects[done]).exists():
        done += 1
    try:
        with process_pool(workers) as pool:
            records = rendered_split(config, split).records(skip=done, pool=pool, device=device)
            for planned, record in zip(objects[done:], track(records, f"rendering {split}", len(objects) - done)):
                _write_object(_object_folder(folder, planned), record)
        _write_lists(folder, split, objects, families)
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror}): free some space or choose another folder, then run again"
        ) from error


def _object_folder(folder: Path, planned: PlannedObject) -> Path:
    return folder / planned.family / planned.key


def _write_object(folder: Path, record: ObjectRecord) -> None:
    unfinished = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for view, (image, latents) in enumerate(zip(record.images, record.latents)):
        (unfinished / f"image_{view}.jpg").write_bytes(image)
        np.save(unfinished / f"latent_{view}.npy", latents, allow_pickle=False)
    os.replace(unfinished, folder)


def _write_lists(folder: Path, split: str, objects: Iterable[PlannedObject], families: tuple[str, ...]) -> None:
    """3DIEBench's split files: paths with a leading and a trailing slash, and integer labels."""
    objects = list(objects)
    paths = np.array([f"/{planned.family}/{planned.key}/" for planned in objects])
    labels = np.array([families.index(planned.family) for planned in objects], dtype=np.int64)
    np.save(folder / f"{split}_images.npy", paths, allow_pickle=False)
    np.save(folder / f"{split}_labels.npy", labels, allow_pickle=False)


if __name__ == "__main__":
    config = parse_command_line(BuildConfig, __doc__)
    explain_errors(lambda: main(config))
