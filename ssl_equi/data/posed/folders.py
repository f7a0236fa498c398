"""Objects as folders of views with known latents: image_0.jpg, latent_0.npy, image_1.jpg, ... and lists of splits.

Views of an object are told apart by the number that ends their names, which is their order: `image_7.jpg` and
`obj3__007.png` are both view 7, and each has a latent of the same number, `latent_7.npy`.
"""

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from ssl_equi.data.images import JPEG_START, SUFFIXES, decode_image
from ssl_equi.data.npy import map_npy
from ssl_equi.data.shards.convert import encode_jpeg_view, natural_order, resized_square
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION

_LISTED_OBJECT = re.compile(r"/?([A-Za-z0-9_-]+)/([A-Za-z0-9_-]+)/?")
_NUMBERED_FILE = re.compile(r"(|.*\D)(\d{1,9})(\.[A-Za-z]+)")


@dataclass(frozen=True)
class ListedObject:
    """One object: its folder within the source, and its class."""

    path: str
    class_name: str
    label: int
    views: tuple[int, ...] = ()
    """Numbers of its views, of which as many are stored as the layout says; empty: those of the layout."""

    @property
    def key(self) -> str:
        return self.path.replace("/", "_")


@dataclass(frozen=True)
class Layout:
    """What the first object has and all others must have, and what is stored of it."""

    numbers: tuple[int, ...]
    """Of its views."""
    latent_size: int
    stored: tuple[int, ...]
    """Numbers of the views that the split holds."""
    resize: int | None = None
    """Side in pixels that views are resized to; None keeps their bytes."""

    def as_plan(self) -> list[object]:
        """For the hash of a split's plan: as short as it always was where nothing is special."""
        if self.stored == self.numbers == tuple(range(len(self.numbers))) and self.resize is None:
            return [len(self.numbers), self.latent_size]
        return list(dataclasses.astuple(self))


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
        objects.append(ListedObject(f"{match[1]}/{match[2]}", match[1], label))
    return objects


def _read_list(path: Path) -> np.ndarray:
    cure = (
        "download it from the data folder of the SIE repository (3DIEBench-T: of the EquiCaps repository) and pass its "
        "folder with --lists, or split by views with --val-every-view"
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
            if other.path != listed.path:
                raise DataError(
                    f"objects '{other.path}' and '{listed.path}' would both be stored as '{listed.key}': rename one of "
                    f"these folders, and in its list"
                )
            raise DataError(
                f"object '{listed.key}' of the {split} list is already in the {other_split} list: "
                f"list every object once"
            )


def class_names_of(objects: Iterable[ListedObject]) -> tuple[str, ...]:
    """The synset of each label; synsets and labels must match one to one and labels count from 0 without a gap."""
    synset_of: dict[int, str] = {}
    for listed in objects:
        known = synset_of.setdefault(listed.label, listed.class_name)
        if known != listed.class_name:
            raise DataError(
                f"label {listed.label} stands for synsets {known} and {listed.class_name}: pass the labels of this list"
            )
    if sorted(synset_of) != list(range(len(synset_of))):
        raise DataError(f"labels are {sorted(synset_of)}: number the classes 0, 1, 2, ... without a gap")
    if len(set(synset_of.values())) != len(synset_of):
        raise DataError("two labels stand for the same synset: pass the labels of this list")
    return tuple(synset_of[label] for label in range(len(synset_of)))


def objects_as_classes(source: Path) -> list[ListedObject]:
    """Every folder of views in OBJECT/ or CLASS/OBJECT/ of the source, in natural order, as a class of its own."""
    paths = []
    for name in _list_folder(source):
        if (source / name).is_dir() and not name.startswith("."):
            within = [f"{name}/{inner}" for inner in _list_folder(source / name) if (source / name / inner).is_dir()]
            paths += within or [name]
    if not paths:
        raise DataError(f"{source} holds no folder of views: give one folder OBJECT/ or CLASS/OBJECT/ for each object")
    return [ListedObject(path, path, label) for label, path in enumerate(sorted(paths, key=natural_order))]


def objects_shown_in(source: Path, listed: Iterable[ListedObject]) -> list[ListedObject]:
    """The listed objects that have a folder in the source, in the order of the list, with the numbers of their views.

    Raises DataError for another object, or one of fewer than two views.
    """
    folders = {found.path for found in objects_as_classes(source)}
    shown = [each for each in listed if each.path in folders]
    others = sorted(folders - {each.path for each in shown})
    if others:
        raise DataError(
            f"{source} holds {len(others)} objects that the val list does not name, the first of them {others[0]}: "
            f"pass other renders of the val objects, such as 3DIEBench-OOD"
        )
    numbered = []
    for each in shown:
        images, latents, _ = _files_of(source / each.path)
        if len(images) < 2:
            raise DataError(f"{source / each.path} holds {len(images)} views: give every object at least 2")
        numbered.append(dataclasses.replace(each, views=tuple(sorted(images.keys() | latents.keys()))))
    return numbered


def layout_of(source: Path, first: ListedObject) -> Layout:
    """The views and the number of latents of the first object."""
    folder = source / first.path
    images, latents, _ = _files_of(folder)
    if not images:
        raise DataError(f"{folder} holds no image_0.jpg: pass the folder of the unpacked archive with --source")
    if not latents:
        raise DataError(f"{folder} holds no latent_0.npy: write a latent of {LATENT_SIZE} values for each view")
    latent_path = folder / latents[min(latents)]
    latent_size = _read_latent(latent_path).size
    if latent_size not in (LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION):
        raise DataError(
            f"{latent_path} holds {latent_size} values: expected {LATENT_SIZE} (3DIEBench) or "
            f"{LATENT_SIZE_WITH_TRANSLATION} (3DIEBench-T), so check the archive"
        )
    numbers = tuple(sorted(images.keys() | latents.keys()))
    return Layout(numbers, latent_size, stored=numbers)


def read_object(source: Path, listed: ListedObject, layout: Layout) -> ObjectRecord:
    """Read and check one object; every image is decoded once, strictly, and kept as the bytes it was.

    Raises DataError for missing or extra files, latents of another shape or not finite, and undecodable images.
    """
    folder = source / listed.path
    if listed.views:
        stored = listed.views[: len(layout.stored)]
        layout = dataclasses.replace(layout, numbers=listed.views, stored=stored)
    images, latents = _checked_files(folder, layout)
    rows = []
    for number in layout.stored:
        latent_path = folder / latents[number]
        latent = _read_latent(latent_path)
        if latent.shape != (layout.latent_size,) or latent.dtype.kind != "f":
            raise DataError(
                f"{latent_path} holds {latent.dtype} {latent.shape}, expected {layout.latent_size} floating point "
                f"values: unpack it from the archive again"
            )
        if not np.isfinite(latent).all():
            raise DataError(f"{latent_path} holds NaN or infinity: unpack it from the archive again")
        rows.append(latent)
    views = [_view(folder / images[number], layout.resize)[0] for number in layout.stored]
    return ObjectRecord(listed.key, listed.label, np.stack(rows), views)


def read_pixels(source: Path, listed: ListedObject, layout: Layout, view: int) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of one of an object's stored views, counted from 0."""
    folder = source / listed.path
    images, _ = _checked_files(folder, layout)
    return _view(folder / images[layout.stored[view]], layout.resize)[1]


def _view(path: Path, resize: int | None) -> tuple[bytes, np.ndarray]:
    """The bytes to store and their pixels uint8 [H, W, 3]; the file's own bytes unless it is resized."""
    data = path.read_bytes()
    try:
        pixels = (
            simplejpeg.decode_jpeg(data, strict=True) if data.startswith(JPEG_START) else decode_image(data, str(path))
        )
    except ValueError as error:
        raise DataError(f"{path} does not decode ({error}): unpack it from the archive again") from error
    height, width = pixels.shape[:2]
    if resize is None or (height, width) == (resize, resize):
        return data, pixels
    if height != width:
        raise DataError(
            f"{path} has {height} x {width} pixels and only squares can be resized: pad or crop the views to squares"
        )
    encoded = encode_jpeg_view(resized_square(pixels, resize))
    return encoded, simplejpeg.decode_jpeg(encoded, strict=True)


def _files_of(folder: Path) -> tuple[dict[int, str], dict[int, str], list[str]]:
    """Names of the images and of the latents by the views' numbers, and those of all other files.

    Raises DataError where names leave open which view comes when.
    """
    images: dict[int, str] = {}
    latents: dict[int, str] = {}
    others = []
    for name in sorted(_list_folder(folder)):
        match = _NUMBERED_FILE.fullmatch(name)
        if match is None or match[3].lower() not in (*SUFFIXES, ".npy"):
            others.append(name)
            continue
        files, number = latents if match[3] == ".npy" else images, int(match[2])
        like = files.get(number) or next(iter(files.values()), name)
        if number in files or not like.startswith(match[1]) or not like[len(match[1])].isdigit():
            raise DataError(
                f"{folder} holds '{like}' and '{name}', which leaves the order of its views open: name them alike but "
                f"for a number, such as image_0.jpg, image_1.jpg"
            )
        files[number] = name
    return images, latents, others


def _checked_files(folder: Path, layout: Layout) -> tuple[dict[int, str], dict[int, str]]:
    """Names of the images and of the latents by number; DataError unless they are those of the layout."""
    images, latents, others = _files_of(folder)
    num_views, expected = len(layout.numbers), set(layout.numbers)
    missing = [_name_like(images, "image_0.jpg", number) for number in expected - images.keys()]
    missing += [_name_like(latents, "latent_0.npy", number) for number in expected - latents.keys()]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {2 * num_views} files of {num_views} views, the first of them "
            f"{min(missing)}: unpack the archive again"
        )
    extra = others + [files[number] for files in (images, latents) for number in files.keys() - expected]
    if extra:
        raise DataError(
            f"{folder} holds {len(extra)} files beside its {num_views} views, the first of them {min(extra)}: "
            f"remove them or unpack the archive again"
        )
    return images, latents


def _name_like(files: dict[int, str], usual: str, number: int) -> str:
    match = _NUMBERED_FILE.fullmatch(next(iter(files.values()), usual))
    assert match is not None
    return f"{match[1]}{number}{match[3]}"


def _list_folder(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"folder {folder} of a listed object is missing: unpack the archive again and pass its folder with --source"
        ) from None


def _read_latent(path: Path) -> np.ndarray:
    return map_npy(path, str(path), DataError, "unpack it from the archive again")
