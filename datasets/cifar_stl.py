"""Build shards of CIFAR-10, CIFAR-100 or STL-10 from the files that their authors published.

    python datasets/cifar_stl.py cifar10 --source data --out data/cifar10-shards --verify
    python datasets/cifar_stl.py stl10 --source data --out data/stl10-shards --verify

`--source` is where the archive was unpacked: it holds `cifar-10-batches-py/`, `cifar-100-python/` or `stl10_binary/`,
whose MD5 are compared with the published ones. Pixels are stored as PNG, without loss. The splits are train and test;
STL-10's train holds the 5,000 labelled and the 100,000 unlabelled images, whose class is -1. Stopped, it goes on with
the next shard when the same command is given again. The card, images.md, has the rest.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.sets.torchvision_sets import MEAN_STD_RGB, ImagesInMemory, TorchvisionName, open_torchvision
from ssl_equi.data.shards.convert import (
    ConversionOptions,
    ListedImages,
    Provenance,
    convert_images,
    encode_png,
    summary,
)

_CIFAR_LICENSE = "none stated by the authors; cite Krizhevsky, Learning Multiple Layers of Features, 2009"
LICENSES: dict[TorchvisionName, str] = {
    "cifar10": _CIFAR_LICENSE,
    "cifar100": _CIFAR_LICENSE,
    "stl10": "none stated by the authors; images from ImageNet, for research; cite Coates, Lee and Ng, AISTATS 2011",
}
SOURCES: dict[TorchvisionName, str] = {
    "cifar10": "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "CIFAR-100, fine labels, https://www.cs.toronto.edu/~kriz/cifar.html",
    "stl10": "STL-10, https://cs.stanford.edu/~acoates/stl10/",
}


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    kind: Annotated[TorchvisionName, tyro.conf.Positional]
    """Which set."""
    source: Path
    """Folder in which the published archive was unpacked."""
    options: Annotated[ConversionOptions, tyro.conf.arg(name="")]
    """How images are stored."""


def main(config: Config) -> None:
    opened = open_torchvision(config.kind, config.source)
    mean_rgb, std_rgb = MEAN_STD_RGB[config.kind]
    provenance = Provenance(
        source=SOURCES[config.kind],
        source_version="the published files, compared by their MD5",
        license=LICENSES[config.kind],
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
    )
    splits = [listed_images(images) for images in (opened.train, opened.test)]
    for manifest in convert_images(splits, provenance, config.options).values():
        print(summary(manifest))


def listed_images(images: ImagesInMemory) -> ListedImages:
    """A split in the order of the published files."""
    return ListedImages(
        split=images.split,
        class_names=images.class_names,
        keys=[f"{images.split}_{row:06d}" for row in range(len(images.labels))],
        labels=images.labels.tolist(),
        read=functools.partial(_png, images),
        name_of=functools.partial(_name, images),
    )


def _png(images: ImagesInMemory, row: int) -> bytes:
    return encode_png(images.read_image(row))


def _name(images: ImagesInMemory, row: int) -> str:
    return f"{row} of split '{images.split}' of {images.source}"


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
