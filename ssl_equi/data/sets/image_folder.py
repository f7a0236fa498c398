"""Images in folders: SPLIT/CLASS/*.jpg, as ImageNet is unpacked and as torchvision's ImageFolder reads it."""

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

TRAIN = "train"


class ImageFolder:
    """The images below `folder`/`split`/CLASS/; an `ImageStore`.

    The classes are the sorted folder names of the train split, whichever split is read. Images may lie in folders
    within the class's, and be links. Files of other suffixes, hidden ones and those outside of the class folders are
    passed over and counted. The fingerprint is of the relative paths, sizes in bytes and classes, so that a copy has
    the same; the content key also of what changes once a file is written anew. Normalisation is by ImageNet's
    constants.

    Raises DataError for a folder, class or link with nothing in it, and a class that train lacks; whether files are
    images is seen when they are read.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.class_names = tuple(_class_folders(self.folder, TRAIN, Counter()))
        self.source = f"image folder {self.folder.name}"
        self.mean_rgb, self.std_rgb = IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
        label_of = {name: label for label, name in enumerate(self.class_names)}
        found: list[tuple[str, FileState]] = []  # by relative path
        labels: list[int] = []
        passed_over: Counter[str] = Counter()
        for name in _class_folders(self.folder, split, passed_over):
            if name not in label_of:
                raise DataError(
                    f"class {name!r} of {self.folder / split} is unknown to {self.folder / TRAIN}, which has "
                    f"{len(label_of)} classes: add it there or take it out here"
                )
            images = _images_below(self.folder, f"{split}/{name}", passed_over)
            found += images
            labels += [label_of[name]] * len(images)
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


def _class_folders(folder: Path, split: str, passed_over: Counter[str]) -> list[str]:
    """Names of the class folders of a split, sorted; counts what else lies there."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: give the folder that holds train/ as --data-dir")
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


def _images_below(folder: Path, relative_folder: str, passed_over: Counter[str]) -> list[tuple[str, FileState]]:
    """(path relative to `folder`, state) of each image below a class folder, sorted; counts what is no image."""
    found: list[tuple[str, FileState]] = []
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(relative_folder, frozenset())]
    while folders:
        present, above = folders.pop()
        identity = _identity(folder / present)
        if identity in above:
            raise DataError(f"{folder / present} is a link to a folder that contains it: remove the link")
        for entry in list_folder(folder / present):
            if entry.name.startswith("."):
                passed_over["hidden"] += 1
            elif entry.is_dir():
                folders.append((f"{present}/{entry.name}", above | {identity}))
            elif entry.name.lower().endswith(SUFFIXES):
                found.append((f"{present}/{entry.name}", _state_of_image(entry)))
            else:
                passed_over[os.path.splitext(entry.name)[1].lower() or "without a suffix"] += 1
    if not found:
        raise DataError(
            f"class folder {folder / relative_folder} holds no image ({', '.join(SUFFIXES)}): fill it or remove it"
        )
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
