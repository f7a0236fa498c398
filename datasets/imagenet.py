"""Build shards of ImageNet-1k (ILSVRC2012) from the official archives, or from unpacked class folders.

    python datasets/imagenet.py --source ILSVRC2012 --out data/imagenet --verify
    python datasets/imagenet.py --source ILSVRC2012 --out data/imagenet256 --resize-shorter-side 256

For each split `--source` holds either a folder of class folders, train/n01440764/*.JPEG and val/n01440764/*.JPEG, or
the official archive, which is read where it lies: ILSVRC2012_img_train.tar (a tar of a tar for each class), or
ILSVRC2012_img_val.tar together with two text files for its labels, which the card, imagenet.md, explains. Classes are
numbered in the order of their sorted WordNet ids. Every image is decoded once to check it and stored as the bytes it
was, also those in CMYK and the PNG named .JPEG. Stopped, it goes on with the next shard when the same command is given
again. Train on the shards with `--dataset imagenet --data-dir data/imagenet`.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarInfo
from typing import Annotated

import numpy as np
import tyro
from rich.progress import track

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.sets.images import say_passed_over
from ssl_equi.data.shards.convert import ConversionOptions, ListedImages, Provenance, convert_images, summary
from ssl_equi.data.shards.files import ShardFiles
from ssl_equi.data.shards.tar import tar_members
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ssl_equi.errors import DataError
from ssl_equi.files import map_in_order

PROVENANCE = Provenance(
    source="ImageNet-1k, Russakovsky et al., IJCV 2015, https://www.image-net.org",
    source_version="ILSVRC2012",
    license="ImageNet terms of access: non-commercial research and education",
    mean_rgb=IMAGENET_MEAN_RGB,
    std_rgb=IMAGENET_STD_RGB,
)
OFFICIAL_COUNTS = {"train": 1_281_167, "val": 50_000}
TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

_WNID = re.compile(r"n\d{8}")
_CLASS_ARCHIVE = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"(?:.*/)?(ILSVRC2012_val_(\d{8}))\.JPEG")
_DOWNLOAD_AGAIN = "download the archive again and compare its MD5 with the published one"


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    source: Path
    """Folder that holds train/ or ILSVRC2012_img_train.tar, and val/ or ILSVRC2012_img_val.tar."""
    options: Annotated[ConversionOptions, tyro.conf.arg(name="")]
    """How images are stored."""
    ground_truth: Path = Path("ILSVRC2012_validation_ground_truth.txt")
    """Labels of the validation archive, one a line: ids from the devkit, or WordNet ids; relative to the source."""
    synset_ids: Path = Path("synset_ids.txt")
    """Lines 'ID WNID' for the devkit's ids; relative to the source."""
    source_name: str | None = None
    """Where the images are from, for the manifest; a part of ImageNet, or another set with WordNet ids, must say."""
    license: str | None = None
    """The licence of such images, for the manifest."""


@dataclass(frozen=True)
class ArchivedImages:
    """Images within an archive."""

    archive: Path
    names: list[str]  # NAME.JPEG, without folders
    offsets: np.ndarray  # int64 [n], first byte of each image in the archive
    sizes: np.ndarray  # int64 [n], bytes
    files: ShardFiles

    @classmethod
    def of_members(cls, archive: Path, members: Sequence[TarInfo]) -> "ArchivedImages":
        return cls(
            archive=archive,
            names=[member.name.rpartition("/")[2] for member in members],
            offsets=np.array([member.offset_data for member in members], dtype=np.int64),
            sizes=np.array([member.size for member in members], dtype=np.int64),
            files=ShardFiles([archive]),
        )

    @property
    def keys(self) -> list[str]:
        """Names without their suffix."""
        return [name.rpartition(".")[0] for name in self.names]

    def read(self, row: int) -> bytes:
        """The file of image `row`; DataError if the archive is gone. What is cut doesn't decode."""
        return self.files.read(0, int(self.offsets[row]), int(self.sizes[row]))

    def name_of(self, row: int) -> str:
        return f"'{self.names[row]}' in {self.archive}"


def main(config: Config) -> None:
    train = train_images(config)
    splits = [sorted_by_key(images) for images in (train, val_images(config, train.class_names))]
    for manifest in convert_images(splits, provenance_of(config, splits), config.options).values():
        print(summary(manifest))


def provenance_of(config: Config, splits: Sequence[ListedImages]) -> Provenance:
    """ImageNet's for as many images as it has; else what the options say, or DataError if they don't."""
    counts = {images.split: len(images.keys) for images in splits}
    official = counts == OFFICIAL_COUNTS
    if not official and (config.source_name is None or config.license is None):
        raise DataError(
            f"{config.source} holds {counts['train']:,} train and {counts['val']:,} val images, and ImageNet has "
            f"{OFFICIAL_COUNTS['train']:,} and {OFFICIAL_COUNTS['val']:,}: complete it, or say whose images they are "
            f'with --source-name "..." and --license ...'
        )
    return dataclasses.replace(
        PROVENANCE,
        source=config.source_name or PROVENANCE.source,
        source_version=PROVENANCE.source_version if official else "unversioned",
        license=config.license or PROVENANCE.license,
    )


def sorted_by_key(images: ListedImages) -> ListedImages:
    """The same images by their names, so that folders and archives give the same shards."""
    order = sorted(range(len(images.keys)), key=images.keys.__getitem__)
    return dataclasses.replace(
        images,
        keys=[images.keys[row] for row in order],
        labels=[images.labels[row] for row in order],
        read=lambda row: images.read(order[row]),
        name_of=lambda row: images.name_of(order[row]),
    )


def train_images(config: Config) -> ListedImages:
    """The training images, from class folders if there are any, else from the archive."""
    if (config.source / "train").is_dir():
        return images_of_folders(config.source, "train")
    archive = config.source / TRAIN_ARCHIVE
    if not archive.is_file():
        raise DataError(
            f"{config.source} holds neither train/ nor {TRAIN_ARCHIVE}: download the archive from image-net.org and "
            f"name its folder with --source"
        )
    return images_of_train_archive(archive, config.options.workers)


def val_images(config: Config, class_names: tuple[str, ...]) -> ListedImages:
    """The validation images, from class folders if there are any, else from the archive and its text files."""
    if (config.source / "val").is_dir():
        if not (config.source / "train").is_dir():
            raise DataError(f"{config.source} holds val/ but no train/: unpack {TRAIN_ARCHIVE} too, or remove val/")
        return images_of_folders(config.source, "val")
    archive = config.source / VAL_ARCHIVE
    if not archive.is_file():
        raise DataError(
            f"{config.source} holds neither val/ nor {VAL_ARCHIVE}: download the archive from image-net.org and name "
            f"its folder with --source"
        )
    wnids = read_ground_truth(config.source / config.ground_truth, config.source / config.synset_ids)
    return images_of_val_archive(archive, wnids, config.source / config.ground_truth, class_names)


def images_of_folders(source: Path, split: str) -> ListedImages:
    """A split that was unpacked into class folders; DataError for folders that aren't WordNet ids."""
    store = ImageFolder(source, split)
    say_passed_over(store)
    for name in store.class_names:
        if not _WNID.fullmatch(name):
            raise DataError(
                f"class folder {source / 'train' / name} isn't named by a WordNet id such as n01440764: use "
                f"datasets/image_folder.py for images of other sources"
            )
    paths = [store.path(row) for row in range(len(store.labels))]
    return ListedImages(
        split=split,
        class_names=store.class_names,
        keys=[path.stem for path in paths],
        labels=store.labels.tolist(),
        read=store.read_file,
        name_of=lambda row: str(paths[row]),
    )


def images_of_train_archive(archive: Path, workers: int) -> ListedImages:
    """The images within the archives within the archive, found by walking their headers; nothing is unpacked."""
    inner_archives = sorted(tar_members(archive, _DOWNLOAD_AGAIN, what="archive"), key=lambda member: member.name)
    class_names = []
    for inner in inner_archives:
        match = _CLASS_ARCHIVE.fullmatch(inner.name)
        if not match:
            raise DataError(f"{archive} holds '{inner.name}' where only nXXXXXXXX.tar are due: {_DOWNLOAD_AGAIN}")
        class_names.append(match[1])
    if not class_names:
        raise DataError(f"{archive} holds no class: {_DOWNLOAD_AGAIN}")
    walk = functools.partial(_images_of_class, archive)
    parts: list[ArchivedImages] = []
    with ThreadPoolExecutor(workers) as pool:
        found_in_order = map_in_order(pool, walk, inner_archives, ahead=2 * workers)
        parts += track(found_in_order, "reading headers", len(inner_archives))
    images = ArchivedImages(
        archive=archive,
        names=[name for part in parts for name in part.names],
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        files=ShardFiles([archive]),
    )
    labels = np.repeat(np.arange(len(parts)), [len(part.names) for part in parts]).tolist()
    return ListedImages("train", tuple(class_names), images.keys, labels, images.read, images.name_of)


def _images_of_class(archive: Path, inner: TarInfo) -> ArchivedImages:
    wnid = inner.name.rpartition("/")[2].removesuffix(".tar")
    found = list(tar_members(archive, _DOWNLOAD_AGAIN, inner, what="archive"))
    if not found:
        raise DataError(f"class archive '{inner.name}' in {archive} holds no image: {_DOWNLOAD_AGAIN}")
    for member in found:
        if not re.fullmatch(rf"(?:.*/)?{wnid}_\d+\.JPEG", member.name):
            raise DataError(
                f"class archive '{inner.name}' in {archive} holds '{member.name}' where only {wnid}_NUMBER.JPEG are "
                f"due: {_DOWNLOAD_AGAIN}"
            )
    return ArchivedImages.of_members(archive, found)


def images_of_val_archive(
    archive: Path, wnids: Sequence[str], ground_truth: Path, class_names: tuple[str, ...]
) -> ListedImages:
    """The images of the validation archive; image number k has the k-th WordNet id."""
    members = list(tar_members(archive, _DOWNLOAD_AGAIN, what="archive"))
    if len(members) != len(wnids):
        raise DataError(
            f"{archive} holds {len(members)} images but {ground_truth} {len(wnids)} labels: give the ground truth of "
            f"this archive with --ground-truth"
        )
    label_of = {wnid: label for label, wnid in enumerate(class_names)}
    labels = []
    for member in members:
        match = _VAL_IMAGE.fullmatch(member.name)
        if not match or not 1 <= int(match[2]) <= len(wnids):
            raise DataError(
                f"{archive} holds '{member.name}' where ILSVRC2012_val_00000001.JPEG to {len(wnids):08d} are due: "
                f"{_DOWNLOAD_AGAIN}"
            )
        wnid = wnids[int(match[2]) - 1]
        if wnid not in label_of:
            raise DataError(
                f"{ground_truth} gives '{member.name}' the class {wnid}, which the train split doesn't have: give the "
                f"ground truth of these classes"
            )
        labels.append(label_of[wnid])
    images = ArchivedImages.of_members(archive, members)
    return ListedImages("val", class_names, images.keys, labels, images.read, images.name_of)


def read_ground_truth(path: Path, synset_ids: Path) -> list[str]:
    """The WordNet id of each validation image, from lines of WordNet ids or of the devkit's ids."""
    lines = _read_lines(path, "the devkit's ILSVRC2012_validation_ground_truth.txt", "--ground-truth")
    if all(_WNID.fullmatch(line) for line in lines):
        return lines
    wnid_of: dict[str, str] = {}
    for line in _read_lines(synset_ids, "lines 'ID WNID', as datasets/imagenet.md explains", "--synset-ids"):
        words = line.split()
        if len(words) < 2 or not words[0].isdecimal() or not _WNID.fullmatch(words[1]):
            raise DataError(f"{synset_ids} has the line '{line}': every line must read like '1 n02119789'")
        if words[0] in wnid_of:
            raise DataError(f"{synset_ids} lists id {words[0]} twice: give every id one line")
        wnid_of[words[0]] = words[1]
    for number, line in enumerate(lines, 1):
        if line not in wnid_of:
            raise DataError(
                f"line {number} of {path} is '{line}', an id that {synset_ids} doesn't have: give the ids of this "
                f"ground truth with --synset-ids"
            )
    return [wnid_of[line] for line in lines]


def _read_lines(path: Path, what: str, option: str) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing: put {what} there or name it with {option}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable text file ({error}): put {what} there") from error
    if not lines:
        raise DataError(f"{path} is empty: put {what} there")
    return lines


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
