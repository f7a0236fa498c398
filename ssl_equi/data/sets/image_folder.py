"""Images in folders: SPLIT/CLASS/*.jpg, as torchvision's ImageFolder reads them, or any folder of photographs."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ssl_equi.data.images import SUFFIXES, decode_image
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.data.stage_seconds import CLOCK
from ssl_equi.errors import DataError
from ssl_equi.files import FileState, file_state, list_folder

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
HELD_OUT_SHARE = 0.2  # of a folder without splits

Image = tuple[str, FileState]  # its path relative to the folder


class ImageFolder:
    """The images below `folder`/`split`/CLASS/, or those of a folder without splits; an `ImageStore`.

    The classes are the sorted folder names of the train split, whichever split is read. Images may lie in folders
    within the class's, and be links. Files of other suffixes, hidden ones and those outside of the class folders are
    passed over and counted. The fingerprint is of the relative paths, sizes in bytes and classes, so that a copy has
    the same; the content key also of what changes once a file is written anew. Normalisation is by ImageNet's
    constants.

    In a folder without train/, val/ and test/, images lie flat or in folders, which are the classes; those that lie
    flat are a class of the folder's name. A fifth of them, by a hash of their paths, are the split val, the others
    train: an image stays in its split when others are added.

    Raises DataError for a folder, class or link with nothing in it, and a class that train lacks; whether files are
    images is seen when they are read.

    Attributes:
        splits_itself: whether the folder has no splits.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.source = f"image folder {self.folder.resolve().name}"
        self.mean_rgb, self.std_rgb = IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
        if not os.path.isdir(self.folder):
            raise DataError(f"there is no folder {self.folder}: give the folder of the images as --data-dir")
        passed_over: Counter[str] = Counter()
        self.splits_itself = not any(os.path.isdir(self.folder / name) for name in {*SPLITS, split})
        if self.splits_itself:
            self.class_names, images = _without_splits(self.folder, split, passed_over)
        else:
            self.class_names, images = _of_split(self.folder, split, passed_over)
        found = [image for of_class in images for image in of_class]
        labels = [label for label, of_class in enumerate(images) for _ in of_class]
        self.labels = np.array(labels, dtype=np.int64)
        self.passed_over: dict[str, int] = dict(passed_over)  # files that are no images, counted by their suffix
        # Bytes and not a list: processes that are forked would copy the pages of a million Python strings.
        self._paths = np.array([os.fsencode(path) for path, _ in found])
        files = [(path, state[0]) for path, state in found]
        content = {"files": files, "labels": labels, "classes": self.class_names}
        self.fingerprint = hashlib.sha256(canonical_json(content)).hexdigest()
        states = [state for _, state in found]
        self.content_key = hashlib.sha256(canonical_json([self.fingerprint, states])).hexdigest()

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]; DataError naming the file if it is gone or damaged."""
        with CLOCK.during("reading"):
            data = self.read_file(index)
        return decode_image(data, str(self.path(index)))

    def read_file(self, index: int) -> bytes:
        """The bytes of image `index`; DataError naming the file if it is gone."""
        path = self.path(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"image {path} cannot be read ({error.strerror}): put it back, then run again") from error

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.folder / os.fsdecode(self._paths[index])

    def path_in_split(self, index: int) -> Path:
        """The file of image `index`, from the folder of its split on: CLASS/NAME.jpg."""
        return self.path(index).relative_to(self.folder if self.splits_itself else self.folder / self.split)


def _of_split(folder: Path, split: str, passed_over: Counter[str]) -> tuple[tuple[str, ...], list[list[Image]]]:
    """The classes of train, and the images of each in the split."""
    class_names = tuple(_class_folders(folder, TRAIN, Counter()))
    images: dict[str, list[Image]] = {name: [] for name in class_names}
    for name in _class_folders(folder, split, passed_over):
        if name not in images:
            raise DataError(
                f"class {name!r} of {folder / split} is unknown to {folder / TRAIN}, which has {len(images)} classes: "
                f"add it there or take it out here"
            )
        images[name] = _images_below(folder, f"{split}/{name}", passed_over)
        if not images[name]:
            raise DataError(
                f"class folder {folder / split / name} holds no image ({', '.join(SUFFIXES)}): fill it or remove it"
            )
    return class_names, list(images.values())


def _without_splits(folder: Path, split: str, passed_over: Counter[str]) -> tuple[tuple[str, ...], list[list[Image]]]:
    """The classes of a folder without splits, and the images of each that fall into the split."""
    if split not in (TRAIN, VAL):
        raise DataError(
            f"{folder} has no split {split!r}, and without splits it has but train and val: choose {VAL}, or lay "
            f"images out as SPLIT/CLASS/NAME.jpg"
        )
    by_class: dict[str, list[Image]] = {}
    for path, state in sorted(_images_below(folder, "", passed_over)):
        top, slash, _ = path.partition("/")
        by_class.setdefault(top if slash else folder.resolve().name, []).append((path, state))
    count = sum(map(len, by_class.values()))
    held_out = [path for images in by_class.values() for path, _ in images if _is_held_out(path)]
    if len(held_out) < 2 or count - len(held_out) < 2:
        raise DataError(
            f"{folder} holds {count} images ({', '.join(SUFFIXES)}), of which {len(held_out)} would be judged: give a "
            f"folder of more, or lay them out as SPLIT/CLASS/NAME.jpg"
        )
    names, held_out_ones = tuple(sorted(by_class)), split == VAL
    return names, [[image for image in by_class[name] if _is_held_out(image[0]) == held_out_ones] for name in names]


def _is_held_out(path: str) -> bool:
    """Whether an image of a folder without splits is judged."""
    return int(hashlib.sha256(os.fsencode(path)).hexdigest()[:8], 16) < HELD_OUT_SHARE * 16**8


def _class_folders(folder: Path, split: str, passed_over: Counter[str]) -> list[str]:
    """Names of the class folders of a split, sorted; counts what else lies there."""
    if not os.path.isdir(folder / split):
        present = ", ".join(sorted(entry.name for entry in list_folder(folder) if entry.is_dir())) or "no folder"
        raise DataError(f"{folder} has no split {split!r} but {present}: lay images out as SPLIT/CLASS/NAME.jpg")
    names = []
    for entry in list_folder(folder / split):
        if entry.is_dir() and not entry.name.startswith("."):
            names.append(entry.name)
        else:
            passed_over["hidden" if entry.name.startswith(".") else "outside of the class folders"] += 1
    if not names:
        raise DataError(f"{folder / split} holds no class folders: lay images out as SPLIT/CLASS/NAME.jpg")
    return sorted(names)


def _images_below(folder: Path, relative_folder: str, passed_over: Counter[str]) -> list[Image]:
    """Each image below a folder within `folder`, sorted; counts what is no image."""
    found: list[Image] = []
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(relative_folder, frozenset())]
    while folders:
        present, above = folders.pop()
        identity = _identity(folder / present)
        if identity in above:
            raise DataError(f"{folder / present} is a link to a folder that contains it: remove the link")
        for entry in list_folder(folder / present):
            path = f"{present}/{entry.name}" if present else entry.name
            if entry.name.startswith("."):
                passed_over["hidden"] += 1
            elif entry.is_dir():
                folders.append((path, above | {identity}))
            elif entry.name.lower().endswith(SUFFIXES):
                found.append((path, _state_of_image(entry)))
            else:
                passed_over[os.path.splitext(entry.name)[1].lower() or "without a suffix"] += 1
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"folder {folder} can't be read ({error.strerror}): allow it, or take it out") from error
    return status.st_dev, status.st_ino


def _state_of_image(entry: os.DirEntry[str]) -> FileState:
    try:
        if entry.is_file():
            return file_state(entry)
    except OSError as error:
        raise DataError(f"image {entry.path} can't be read ({error.strerror}): allow it, or take it out") from error
    if entry.is_symlink():
        raise DataError(
            f"image {entry.path} is a link to {os.readlink(entry.path)}, where no file is: restore that file or remove "
            f"the link"
        )
    raise DataError(f"image {entry.path} is neither a file nor a link to one: take it out")
