"""Images in folders: SPLIT/CLASS/*.jpg, as ImageNet is unpacked and as torchvision's ImageFolder reads it."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np

from ssl_equi.data.decode import SUFFIXES, decode_image
from ssl_equi.data.errors import DataError
from ssl_equi.data.manifest import canonical_json
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB

TRAIN = "train"


class ImageFolder:
    """The images below `folder`/`split`/CLASS/; an `ImageStore`.

    The classes are the sorted folder names of the train split, whichever split is read. Images may lie in folders
    within the class's; files of other suffixes and hidden ones are passed over. The fingerprint is of the relative
    paths, sizes in bytes and classes. Normalisation is by ImageNet's constants.

    Raises:
        DataError: there is no such folder, no class, a class without an image, or a class that train lacks. Whether
            the files are images is seen when they are read.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.class_names = tuple(_class_folders(self.folder, TRAIN))
        self.source = f"image folder {self.folder.name}"
        self.mean_rgb, self.std_rgb = IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
        label_of = {name: label for label, name in enumerate(self.class_names)}
        files: list[tuple[str, int]] = []  # relative path, size in bytes
        labels: list[int] = []
        for name in _class_folders(self.folder, split):
            if name not in label_of:
                raise DataError(
                    f"class {name!r} of {self.folder / split} is unknown to {self.folder / TRAIN}, which has "
                    f"{len(label_of)} classes: add it there or take it out here"
                )
            found = _images_below(self.folder, f"{split}/{name}")
            files += found
            labels += [label_of[name]] * len(found)
        self.labels = np.array(labels, dtype=np.int64)
        # Bytes and not a list: processes that are forked would copy the pages of a million Python strings.
        self._paths = np.array([os.fsencode(path) for path, _ in files])
        content = {"files": files, "labels": labels, "classes": self.class_names}
        self.fingerprint = hashlib.sha256(canonical_json(content)).hexdigest()

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]; DataError naming the file if it is gone or damaged."""
        return self.load(index)[0]

    def load(self, index: int) -> tuple[np.ndarray, float]:
        """The same, and the seconds that reading the file took."""
        began = time.perf_counter()
        data = self.read_file(index)
        seconds = time.perf_counter() - began
        return decode_image(data, str(self.path(index))), seconds

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


def _class_folders(folder: Path, split: str) -> list[str]:
    """Names of the class folders of a split, sorted."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give the folder that holds train/ as --data-dir")
    if not (folder / split).is_dir():
        present = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "no folder"
        raise DataError(f"{folder} has no split {split!r} but {present}: lay images out as SPLIT/CLASS/NAME.jpg")
    names = sorted(path.name for path in (folder / split).iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder / split} holds no class folders: lay images out as SPLIT/CLASS/NAME.jpg")
    return names


def _images_below(folder: Path, relative_folder: str) -> list[tuple[str, int]]:
    """(path relative to `folder`, size in bytes) of each image below a class folder, sorted."""
    found: list[tuple[str, int]] = []
    folders = [relative_folder]
    while folders:
        present = folders.pop()
        with os.scandir(folder / present) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(f"{present}/{entry.name}")
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append((f"{present}/{entry.name}", entry.stat().st_size))
    if not found:
        raise DataError(
            f"class folder {folder / relative_folder} holds no image ({', '.join(SUFFIXES)}): fill it or remove it"
        )
    return sorted(found)
