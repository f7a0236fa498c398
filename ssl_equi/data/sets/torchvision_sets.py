"""CIFAR-10, CIFAR-100 and STL-10 from the folders that torchvision unpacks them into; nothing is downloaded.

The CIFAR archives are Python pickles of their authors. torchvision opens them, after comparing their MD5 with that of
the published files; nothing here unpickles. STL-10 is plain binary.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_equi.data.collection import Rgb
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.sets.table import DataSet, DataSource, Place, dataset, resized_note
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError

TorchvisionName = Literal["cifar10", "cifar100", "stl10"]
# Mean and standard deviation in units of [0, 1], as E-SSL (Dangovski et al., ICLR 2022; CIFAR-10) and CARE (Gupta et
# al., 2023) normalise.
MEAN_STD_RGB: dict[str, tuple[Rgb, Rgb]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4406, 0.4273, 0.3858), (0.2312, 0.2265, 0.2237)),
}


@dataclass(eq=False)
class ImagesInMemory:
    """Decoded images of one size; an `ssl_equi.data.single_views.ImageStore`."""

    images: np.ndarray  # uint8 [n, H, W, 3]
    labels: np.ndarray  # int64 [n], -1 for an image without a label
    class_names: tuple[str, ...]
    split: str
    folder: Path
    source: str
    fingerprint: str
    mean_rgb: Rgb
    std_rgb: Rgb

    @property
    def content_key(self) -> str:
        """The fingerprint, which is of checksums."""
        return self.fingerprint

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as uint8 [H, W, 3]."""
        return self.images[index]


@dataclass(frozen=True)
class TorchvisionSet:
    """A set's images to train on, the labelled ones among them, and those to judge on."""

    train: ImagesInMemory
    labelled_train: ImagesInMemory
    test: ImagesInMemory


@dataset("cifar10", "cifar100", side=32, may_lie_elsewhere=False, splits=("test",))
@dataset("stl10", side=96, may_lie_elsewhere=False, splits=("test",))
def open_images_of_one_size(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Views are cropped from what is stored, and the encoder is probed at its own size."""
    assert place.folder is not None and known.side is not None
    opened = open_torchvision(known.name, place.folder)
    whole, stored = CenterCrop(image_size, image_size), CenterCrop(known.side, known.side)
    return DataSource(
        name=known.name,
        train=SingleViews(opened.train, stored),
        probe_train=SingleViews(opened.labelled_train, whole),
        evaluation=SingleViews(opened.test, whole),
        mean_rgb=opened.train.mean_rgb,
        std_rgb=opened.train.std_rgb,
        notes=(resized_note(known.name, known.side, image_size),) if image_size > known.side else (),
    )


def open_torchvision(name: str, data_dir: Path) -> TorchvisionSet:
    """Read a set into memory: CIFAR 0.2 GB; STL-10 3 GB (twice that while it is read).

    STL-10 trains on its 5,000 labelled and 100,000 unlabelled images, the latter with label -1.

    Raises DataError if a file is missing or isn't the published one.
    """
    from torchvision import datasets  # takes a second, and the other data sets need none of it

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    try:
        if name == "stl10":
            train, test = (kind(data_dir, split=split, download=False) for split in ("train+unlabeled", "test"))
        else:
            train, test = (kind(data_dir, train=train, download=False) for train in (True, False))
    except (RuntimeError, OSError) as error:
        files = ", ".join(file for file, _ in (*kind.train_list, *kind.test_list))
        raise DataError(
            f"{name} is not complete in {data_dir}, and nothing is downloaded: unpack {kind.filename} there, so that "
            f"{data_dir / kind.base_folder} holds the published {files}"
        ) from error
    train_images = labelled_images = _in_memory(name, "train", train, kind.train_list, data_dir)
    if (train_images.labels < 0).any():
        labelled = _in_memory(name, "labelled train", train, kind.train_list, data_dir)
        rows = np.flatnonzero(labelled.labels >= 0)
        labelled_images = replace(labelled, images=labelled.images[rows], labels=labelled.labels[rows])
    return TorchvisionSet(train_images, labelled_images, _in_memory(name, "test", test, kind.test_list, data_dir))


def _in_memory(name: str, split: str, dataset: Any, files: list[list[str]], data_dir: Path) -> ImagesInMemory:
    if name == "stl10":
        images, labels = dataset.data.transpose(0, 2, 3, 1), dataset.labels
        class_names = getattr(dataset, "classes", [str(label) for label in range(10)])  # class_names.txt may be absent
    else:
        images, labels, class_names = dataset.data, dataset.targets, dataset.classes
    mean_rgb, std_rgb = MEAN_STD_RGB[name]
    # torchvision has compared the files with these MD5 sums.
    identity = canonical_json({"set": name, "split": split, "md5": files})
    return ImagesInMemory(
        images=images,
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        split=split,
        folder=data_dir,
        source=name,
        fingerprint=hashlib.sha256(identity).hexdigest(),
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
    )
