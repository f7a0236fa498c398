"""Build the shards of 3DIEBench, or 3DIEBench-T, from the folders of the original archive.

    python datasets/threediebench.py --source 3DIEBench --lists SIE/data --out data/3diebench --verify
    python datasets/threediebench.py --source 3DIEBench-T --lists EquiCaps/data --out data/3diebench-t --verify

Which of the two it is follows from the number of latents of a view, seven or ten. `--source` is the unpacked archive
(SYNSET/OBJECT/image_0.jpg, latent_0.npy, ...), `--lists` the folder with the authors' split files (train_images.npy,
train_labels.npy, val_images.npy, val_labels.npy). Images are decoded once to check them and stored as they are. An
interrupted run goes on where it stopped when started again with the same options: finished shards are kept after
comparing their size and SHA-256. The card beside this file has the rest.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from ssl_equi.data.errors import DataError
from ssl_equi.data.manifest import Manifest, canonical_json, has_manifest, read_manifest
from ssl_equi.data.order import epoch_permutation
from ssl_equi.data.parallel import map_in_order
from ssl_equi.data.verify import verify_split
from ssl_equi.data.writer import ObjectRecord, SplitSettings, SplitWriter
from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION
from ssl_equi.npy import map_npy

SOURCES = {
    LATENT_SIZE: "3DIEBench, Garrido et al., ICML 2023, https://github.com/facebookresearch/SIE",
    LATENT_SIZE_WITH_TRANSLATION: (
        "3DIEBench-T, Konstantinou et al., 2025, https://huggingface.co/datasets/athenacon/3DIEBench-T"
    ),
}
LICENSE = "CC-BY-NC-4.0"  # of both
# The normalisation that SIE and seq-JEPA train with, and EquiCaps on 3DIEBench-T too.
MEAN_RGB = (0.5016, 0.5037, 0.5060)
STD_RGB = (0.1030, 0.0999, 0.0969)

_LISTED_OBJECT = re.compile(r"/?([A-Za-z0-9_-]+)/([A-Za-z0-9_-]+)/?")
_VIEW_FILE = re.compile(r"(?:image|latent)_(\d{1,6})\.(?:jpg|npy)")
_READ_AHEAD_PER_WORKER = 4


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
    objects_per_shard: int = 500
    seed: int = 0  # of the order in which objects are stored
    workers: int = min(16, os.cpu_count() or 1)  # threads that read and check objects
    verify: bool = False  # read everything back at the end: checksums, and every image decoded
    # What the manifest says; override for a set of your own in the same layout.
    source_name: str | None = None  # by default the published set whose views have as many latents
    license: str = LICENSE


@dataclass(frozen=True)
class ListedObject:
    """One line of a split list."""

    synset: str
    object_id: str
    label: int

    @property
    def key(self) -> str:
        return f"{self.synset}_{self.object_id}"


@dataclass(frozen=True)
class Layout:
    """What the first object has and all others must have."""

    num_views: int
    latent_size: int


def read_split_list(images_file: Path, labels_file: Path) -> list[ListedObject]:
    """The objects of a split with their labels, in the order of the list."""
    names, labels = _read_list(images_file), _read_list(labels_file)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{images_file} holds {names.dtype} {names.shape}, not strings '/SYNSET/OBJECT/': pass that list"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{labels_file} holds {labels.dtype} {labels.shape}, not integer labels: pass the labels file")
    if len(names) != len(labels):
        raise DataError(
            f"{images_file} lists {len(names)} objects but {labels_file} {len(labels)} labels: "
            f"pass the two files of one split"
        )
    objects = []
    for name, label in zip(names.tolist(), labels.tolist()):
        match = _LISTED_OBJECT.fullmatch(name)
        if not match:
            raise DataError(f"{images_file} lists '{name}': every entry must read '/SYNSET/OBJECT/'")
        objects.append(ListedObject(match[1], match[2], label))
    return objects


def _read_list(path: Path) -> np.ndarray:
    cure = (
        "download it from the data folder of the SIE repository (3DIEBench-T: of the EquiCaps repository) and pass its "
        "folder with --lists"
    )
    return map_npy(path, f"split file {path}", DataError, cure)


def check_no_duplicates(splits: dict[str, list[ListedObject]]) -> None:
    """An object may occur once in one split."""
    seen: dict[str, tuple[str, ListedObject]] = {}
    for split, objects in splits.items():
        for listed in objects:
            other_split, other = seen.setdefault(listed.key, (split, listed))
            if other is listed:
                continue
            if (other.synset, other.object_id) != (listed.synset, listed.object_id):
                raise DataError(
                    f"objects '{other.synset}/{other.object_id}' and '{listed.synset}/{listed.object_id}' would both "
                    f"be stored as '{listed.key}': rename one of these folders, and in its list"
                )
            raise DataError(
                f"object '{listed.key}' of the {split} list is already in the {other_split} list: "
                f"list every object once"
            )


def class_names_of(objects: Iterable[ListedObject]) -> tuple[str, ...]:
    """The synset of each label; synsets and labels must match one to one and labels count from 0 without a gap."""
    synset_of: dict[int, str] = {}
    for listed in objects:
        known = synset_of.setdefault(listed.label, listed.synset)
        if known != listed.synset:
            raise DataError(
                f"label {listed.label} stands for synsets {known} and {listed.synset}: pass the labels of this list"
            )
    if sorted(synset_of) != list(range(len(synset_of))):
        raise DataError(f"labels are {sorted(synset_of)}: number the classes 0, 1, 2, ... without a gap")
    if len(set(synset_of.values())) != len(synset_of):
        raise DataError("two labels stand for the same synset: pass the labels of this list")
    return tuple(synset_of[label] for label in range(len(synset_of)))


def layout_of(source: Path, first: ListedObject) -> Layout:
    """Count the views and the latents of the first object."""
    folder = source / first.synset / first.object_id
    numbers = [int(match[1]) for name in _list_folder(folder) if (match := _VIEW_FILE.fullmatch(name))]
    if not numbers:
        raise DataError(f"{folder} holds no image_0.jpg: pass the folder of the unpacked archive with --source")
    latent_size = _read_latent(folder / "latent_0.npy").size
    if latent_size not in (LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION):
        raise DataError(
            f"{folder / 'latent_0.npy'} holds {latent_size} values: expected {LATENT_SIZE} (3DIEBench) or "
            f"{LATENT_SIZE_WITH_TRANSLATION} (3DIEBench-T), so check the archive"
        )
    return Layout(max(numbers) + 1, latent_size)


def read_object(source: Path, listed: ListedObject, layout: Layout) -> ObjectRecord:
    """Read and check one object; every image is decoded once, strictly, and kept as the bytes it was.

    Raises DataError for missing or extra files, latents of another shape or not finite, and undecodable images.
    """
    folder = source / listed.synset / listed.object_id
    _check_folder(folder, layout.num_views)
    images, latents = [], []
    for view in range(layout.num_views):
        image_path, latent_path = folder / f"image_{view}.jpg", folder / f"latent_{view}.npy"
        image = image_path.read_bytes()
        try:
            simplejpeg.decode_jpeg(image, strict=True)
        except ValueError as error:
            raise DataError(f"{image_path} does not decode ({error}): unpack it from the archive again") from error
        latent = _read_latent(latent_path)
        if latent.shape != (layout.latent_size,) or latent.dtype.kind != "f":
            raise DataError(
                f"{latent_path} holds {latent.dtype} {latent.shape}, expected {layout.latent_size} floating point "
                f"values: unpack it from the archive again"
            )
        if not np.isfinite(latent).all():
            raise DataError(f"{latent_path} holds NaN or infinity: unpack it from the archive again")
        images.append(image)
        latents.append(latent)
    return ObjectRecord(listed.key, listed.label, np.stack(latents), images)


def _check_folder(folder: Path, num_views: int) -> None:
    found = set(_list_folder(folder))
    expected = {f"image_{view}.jpg" for view in range(num_views)} | {f"latent_{view}.npy" for view in range(num_views)}
    if missing := expected - found:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(expected)} files of {num_views} views, the first of them "
            f"{min(missing)}: unpack the archive again"
        )
    if extra := found - expected:
        raise DataError(
            f"{folder} holds {len(extra)} files beside its {num_views} views, the first of them {min(extra)}: "
            f"remove them or unpack the archive again"
        )


def _list_folder(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"folder {folder} of a listed object is missing: unpack the archive again and pass its folder with --source"
        ) from None


def _read_latent(path: Path) -> np.ndarray:
    return map_npy(path, str(path), DataError, "unpack it from the archive again")


def settings_of(
    config: Config, split: str, ordered: Sequence[ListedObject], class_names: tuple[str, ...], layout: Layout
) -> SplitSettings:
    """What the manifest will say; the plan names every object, so that only runs of the same list are continued."""
    plan = [[listed.key, listed.label] for listed in ordered]
    return SplitSettings(
        split=split,
        class_names=class_names,
        source=SOURCES[layout.latent_size] if config.source_name is None else config.source_name,
        license=config.license,
        seed=config.seed,
        latent_names=LATENT_NAMES[: layout.latent_size],
        objects_per_shard=config.objects_per_shard,
        mean_rgb=MEAN_RGB,
        std_rgb=STD_RGB,
        plan=hashlib.sha256(canonical_json([plan, dataclasses.astuple(layout)])).hexdigest(),
    )


def convert_split(
    config: Config,
    settings: SplitSettings,
    ordered: Sequence[ListedObject],
    layout: Layout,
    report_done: Callable[[int], None] = lambda count: None,
) -> Manifest:
    """Write one split, going on after its finished shards; `report_done` hears how many objects are stored."""
    if has_manifest(config.out, settings.split):
        manifest = read_manifest(config.out, settings.split)
        if manifest.plan_sha256 != settings.plan_sha256:
            raise DataError(
                f"{config.out} holds a {settings.split} split made with other options or from another list: "
                f"choose another folder with --out or delete that split"
            )
        report_done(manifest.num_objects)
        return manifest
    with (
        SplitWriter(config.out, settings, resume=True) as writer,
        ThreadPoolExecutor(config.workers) as pool,
    ):
        report_done(writer.num_objects)
        remaining = ordered[writer.num_objects :]
        ahead = config.workers * _READ_AHEAD_PER_WORKER
        for record in map_in_order(pool, lambda listed: read_object(config.source, listed, layout), remaining, ahead):
            writer.add(record)
            report_done(writer.num_objects)
        return writer.finish()


def convert(config: Config) -> dict[str, Manifest]:
    """Convert both splits and, if asked, verify them; shows a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    lists = config.source if config.lists is None else config.lists
    splits = {
        "train": read_split_list(lists / config.train_images, lists / config.train_labels),
        "val": read_split_list(lists / config.val_images, lists / config.val_labels),
    }
    check_no_duplicates(splits)
    class_names = class_names_of(listed for objects in splits.values() for listed in objects)
    if not splits["train"]:
        raise DataError(f"{lists / config.train_images} lists no object: pass the list of the train split")
    layout = layout_of(config.source, splits["train"][0])
    manifests = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for split, objects in splits.items():
            ordered = [objects[i] for i in epoch_permutation(len(objects), config.seed, epoch=0)]
            settings = settings_of(config, split, ordered, class_names, layout)
            task = progress.add_task(f"{split} objects", total=len(ordered))
            manifests[split] = convert_split(
                config, settings, ordered, layout, lambda done, task=task: progress.update(task, completed=done)
            )
        if config.verify:
            for split, manifest in manifests.items():
                task = progress.add_task(f"verifying {split} shards", total=len(manifest.shards))
                verify_split(config.out, split, decode=True, report_shard=lambda _, task=task: progress.advance(task))
    return manifests


def main() -> None:
    """Command line."""
    import tyro

    config = tyro.cli(Config, description=__doc__)
    try:
        manifests = convert(config)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    for split, manifest in manifests.items():
        size_gb = sum(entry.bytes for entry in manifest.shards) / 1e9
        print(
            f"{split}: {manifest.num_objects} objects x {manifest.num_views} views in {len(manifest.shards)} shards, "
            f"{size_gb:.2f} GB, fingerprint {manifest.fingerprint[:16]}"
        )


if __name__ == "__main__":
    main()
