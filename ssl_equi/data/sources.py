"""Which data a run learns from and is judged on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.fetched import fetch_splits
from ssl_equi.data.fit import Canvas, CenterCrop, imagenet_center_crop
from ssl_equi.data.foreign_shards import describe_counts
from ssl_equi.data.image_folder import ImageFolder
from ssl_equi.data.image_shards import ImageShards
from ssl_equi.data.manifest import has_manifest, read_manifest
from ssl_equi.data.procedural import ProceduralConfig, build_procedural, default_folder
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.remote_files import is_address
from ssl_equi.data.remote_shards import RemoteImages, RemoteShards
from ssl_equi.data.single_views import ImageStore, SingleViews
from ssl_equi.data.torchvision_sets import STORED_SIDE, TorchvisionName, open_torchvision
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION

RenderedName = Literal["3diebench-p", "3diebench-pt", "3diebench", "3diebench-t"]
DatasetName = Literal[
    "3diebench-p", "3diebench-pt", "3diebench", "3diebench-t", "cifar10", "cifar100", "stl10", "imagenet", "shards",
    "folder",
]  # fmt: skip
# The views of each rendered set have so many latents; its counterpart has the other number of them.
LATENT_SIZES: dict[RenderedName, int] = {
    "3diebench-p": LATENT_SIZE,
    "3diebench-pt": LATENT_SIZE_WITH_TRANSLATION,
    "3diebench": LATENT_SIZE,
    "3diebench-t": LATENT_SIZE_WITH_TRANSLATION,
}
COUNTERPARTS: dict[RenderedName, RenderedName] = {
    "3diebench-p": "3diebench-pt",
    "3diebench-pt": "3diebench-p",
    "3diebench": "3diebench-t",
    "3diebench-t": "3diebench",
}
Reading = Literal["indexed", "streamed"]
SHARDED = ("3diebench-p", "3diebench-pt", "3diebench", "3diebench-t", "imagenet", "shards")  # may lie elsewhere
EMBEDDED_SPLITS = ("train", "val", "test")
OOD_ROTATION = "ood_rotation"  # the objects of test under rotations outside of the trained ones
EMBEDDED_EVALUATION_SPLITS = ("test", "val", OOD_ROTATION)  # the splits with the classes of train
CANVAS_PER_IMAGE_SIDE = 2  # side of the canvas of training images whose sizes differ, in sides of the encoder's input


@dataclass(frozen=True)
class DataSource:
    """Images to train on and images to judge on, with the normalisation of the former."""

    name: str
    train: ViewCollection
    """What the encoder learns from."""
    probe_train: ViewCollection
    """What the final heads learn from: the labelled training images, as large as those of `evaluation`."""
    evaluation: ViewCollection
    """What the final heads are judged on."""
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    license: str | None = None
    """Terms of the training images, where their manifest states them for views with poses."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know of the images, such as that they are not of their stored size."""

    def normalised_with(
        self, mean_rgb: tuple[float, float, float] | None, std_rgb: tuple[float, float, float] | None
    ) -> "DataSource":
        """The same images with another normalisation; None leaves what it is."""
        return dataclasses.replace(self, mean_rgb=mean_rgb or self.mean_rgb, std_rgb=std_rgb or self.std_rgb)

    @property
    def has_poses(self) -> bool:
        """True if rotations and colours of the views are known, so that the encoder can be probed for them."""
        return self.evaluation.quats_xyzw is not None


@dataclass(frozen=True)
class _Place:
    """Where a data set lies."""

    folder: Path | None
    """Local folder, which holds at least what is judged; None if the user named none."""
    fetched: bool = False
    """True if the folder is a copy of an address, so that nothing is to be made there."""
    streamed: bool = False
    """True if the training split is read from front to back instead of by index."""
    address: str | None = None
    """Where a streamed training split lies, if not in the folder."""


def open_data(
    name: DatasetName,
    data_dir: str | Path | None,
    evaluation_split: str,
    image_size: int,
    reading: Reading = "indexed",
) -> DataSource:
    """Opens a data set; the procedural ones are rendered first where they aren't there yet.

    Nothing is downloaded but from an address that is given as `data_dir`.

    Args:
        name: 3diebench-p is the embedded set, 3diebench-pt the embedded set whose objects also move; 3diebench and
            3diebench-t are the real ones as written by datasets/threediebench.py; the others are ordinary images, as
            datasets/images.md says.
        data_dir: folder of the data set, or http://, https:// or s3:// address of shards with a manifest; the user's
            cache folder for an embedded set when None.
        evaluation_split: split that is never trained on: test (to report), val (to choose settings), or, of the
            embedded set, ood_rotation (poses outside the trained ones).
        image_size: side in pixels of what the encoder takes; stored views and images of other sizes are resized.
        reading: indexed copies the two splits of an address to the user's cache folder first; streamed leaves the
            training split where it is, for `ssl_equi.data.streaming` (and for the probes, who read it in order).

    Raises:
        DataError: the data are missing, damaged, of another number of latents or of views that are no squares and
            have to be resized, or the split can't be evaluated.
    """
    if image_size < 1:
        raise DataError(f"--image-size is {image_size}: give a side of at least 1 pixel")
    _check_evaluation_split(name, evaluation_split)
    place = _place_of(name, data_dir, evaluation_split, reading)
    data_dir = place.folder
    if name == "3diebench-p" or name == "3diebench-pt" or name == "3diebench" or name == "3diebench-t":
        return _open_rendered(name, place, evaluation_split, image_size)
    if data_dir is None:
        raise DataError(f"--dataset {name} is not part of this project: give its folder as --data-dir")
    if name == "imagenet" or name == "shards" or name == "folder":
        if place.streamed:
            return _open_streamed_images(name, data_dir, evaluation_split, image_size, place.address or data_dir)
        return _open_images(name, data_dir, evaluation_split, image_size)
    return _open_torchvision(name, data_dir, evaluation_split, image_size)


def open_ood_rotation(data: DataSource) -> ViewCollection:
    """The split of an embedded set whose rotations lie outside of the trained ones; rendered first if it isn't there.

    Raises:
        DataError: the data are not an embedded set, or the set was built with other settings and without this split.
    """
    if data.name != "3diebench-p" and data.name != "3diebench-pt":
        raise DataError(f"{data.name} has no split {OOD_ROTATION!r}: use 3diebench-p or 3diebench-pt")
    folder, image_size = data.evaluation.folder, data.evaluation.image_size[0]
    stored_size = stored_image_size(data.name, folder) or image_size
    config = ProceduralConfig(image_size=stored_size, translation=data.name == "3diebench-pt")
    build_procedural(folder, config, (OOD_ROTATION,))
    return ShardDataset(folder, OOD_ROTATION, image_size)


def stored_image_size(name: str, data_dir: str | Path | None) -> int | None:
    """Side in pixels of the images of rendered shards in the folder `data_dir`; None for all other data.

    Raises:
        DataError: the manifest is damaged.
    """
    if name not in LATENT_SIZES or data_dir is None or is_address(data_dir):
        return None
    folder = Path(data_dir)
    return read_manifest(folder, "train").image_size[0] if has_manifest(folder, "train") else None


def _check_evaluation_split(name: DatasetName, split: str) -> None:
    """Before anything is rendered or fetched."""
    if name in ("3diebench-p", "3diebench-pt") and split not in EMBEDDED_EVALUATION_SPLITS:
        raise DataError(f"--evaluation-split is {split!r}: choose from {', '.join(EMBEDDED_EVALUATION_SPLITS)}")
    if name in ("imagenet", "shards", "folder") and split == "train":
        raise DataError("--evaluation-split is 'train': choose a split that is never trained on, such as val or test")


def _place_of(name: DatasetName, data_dir: str | Path | None, evaluation_split: str, reading: Reading) -> _Place:
    """Fetches what an address holds and the run reads from a disk."""
    streamed = reading == "streamed"
    address = str(data_dir) if data_dir is not None and is_address(data_dir) else None
    if (address is not None or streamed) and name not in SHARDED:
        raise DataError(
            f"--dataset {name} is read from a local folder only: write shards of it (datasets/images.md says how) to "
            f"stream them or to fetch them from an address"
        )
    if address is None:
        return _Place(None if data_dir is None else Path(data_dir), streamed=streamed)
    splits = (evaluation_split,) if streamed else ("train", evaluation_split)
    return _Place(fetch_splits(address, splits), fetched=True, streamed=streamed, address=address)


def _open_rendered(name: RenderedName, place: _Place, evaluation_split: str, image_size: int) -> DataSource:
    data_dir = place.folder
    if name == "3diebench-p" or name == "3diebench-pt":
        config = ProceduralConfig(image_size=stored_image_size(name, data_dir) or image_size)
        if name == "3diebench-pt":
            config = dataclasses.replace(config, translation=True)
        folder = default_folder(config) if data_dir is None else data_dir
        _refuse_other_latents(name, folder, ("train", evaluation_split))
        if not place.fetched:
            build_procedural(folder, config, tuple(dict.fromkeys((*EMBEDDED_SPLITS, evaluation_split))))
    elif place.fetched and data_dir is not None:
        folder = data_dir
        _refuse_other_latents(name, folder, ("train", evaluation_split))
    elif data_dir is None or not has_manifest(data_dir, "train"):
        raise DataError(
            f"{name} has no shards in {data_dir or 'an unnamed folder'}: convert it with "
            "`python datasets/threediebench.py` and give the folder as --data-dir"
        )
    else:
        folder = data_dir
        _refuse_other_latents(name, folder, ("train", evaluation_split))
    train: ShardDataset | RemoteShards = (
        RemoteShards(place.address or folder, "train", image_size=image_size)
        if place.streamed
        else ShardDataset(folder, "train", image_size)
    )
    evaluation = ShardDataset(folder, evaluation_split, image_size)
    if train.latents.shape[-1] != evaluation.latents.shape[-1]:
        raise DataError(
            f"split 'train' has {train.latents.shape[-1]} latents a view and {evaluation_split!r} in {folder} "
            f"{evaluation.latents.shape[-1]}: give the --data-dir of one data set"
        )
    if train.stored_size != evaluation.stored_size:
        sizes = [f"{height} x {width}" for height, width in (train.stored_size, evaluation.stored_size)]
        raise DataError(
            f"split 'train' has images of {sizes[0]} pixels and {evaluation_split!r} in {folder} of {sizes[1]}: give "
            f"the --data-dir of one data set"
        )
    if train.mean_rgb is None or train.std_rgb is None:
        raise DataError(f"the manifest of {folder} states no mean and std of the pixels: convert the data set again")
    notes = tuple(dict.fromkeys((*train.manifest.notes, *evaluation.manifest.notes)))
    if train.fit is not None:
        notes = (*notes, _resized_note(name, train.stored_size[0], image_size))
    return DataSource(name, train, train, evaluation, train.mean_rgb, train.std_rgb, train.manifest.license, notes)


def _resized_note(name: str, stored_side: int, image_size: int) -> str:
    how = "shrunk" if image_size < stored_side else "enlarged, which adds no detail,"
    stored, wanted = (f"{side} x {side}" for side in (stored_side, image_size))
    return f"the stored images of {name} have {stored} pixels and are {how} to {wanted}"


def _refuse_other_latents(name: RenderedName, folder: Path, splits: tuple[str, ...]) -> None:
    """Raises DataError for a split of the folder whose views move where the named set's do not, or the reverse."""
    for split in splits:
        if not has_manifest(folder, split):
            continue
        latent_size = len(read_manifest(folder, split).latent_names)
        if latent_size != LATENT_SIZES[name]:
            raise DataError(
                f"split {split!r} in {folder} has {latent_size} latents a view and {name} has {LATENT_SIZES[name]}: "
                f"give --dataset {COUNTERPARTS[name]}, or the --data-dir of {name}"
            )


def _open_images(
    name: Literal["imagenet", "shards", "folder"], data_dir: Path, evaluation_split: str, image_size: int
) -> DataSource:
    """Images whose sizes differ: canvases to train on, central crops to probe on."""
    train: ImageFolder | ImageShards
    evaluation: ImageFolder | ImageShards
    labelled_train: ImageStore
    if name == "folder":
        train, evaluation = ImageFolder(data_dir, "train"), ImageFolder(data_dir, evaluation_split)
        labelled_train = train
    else:
        train = ImageShards(data_dir, "train")
        labelled_train = ImageShards(data_dir, "train", labelled_only=True) if (train.labels < 0).any() else train
        evaluation = _evaluation_images(data_dir, evaluation_split, train.class_names)
    for store in (train, evaluation):
        say_passed_over(store)
    crop = imagenet_center_crop(image_size)
    return DataSource(
        name=name,
        train=SingleViews(train, Canvas(CANVAS_PER_IMAGE_SIDE * image_size)),
        probe_train=SingleViews(labelled_train, crop),
        evaluation=SingleViews(evaluation, crop),
        mean_rgb=train.mean_rgb,
        std_rgb=train.std_rgb,
    )


def say_passed_over(store: ImageFolder | ImageShards) -> None:
    """Files that are no images may be there on purpose, or be all that is left of some under another name."""
    if store.passed_over:
        print(
            f"passed over in split {store.split!r} of {store.folder}: {describe_counts(store.passed_over)}", flush=True
        )


def _open_streamed_images(
    name: DatasetName, folder: Path, evaluation_split: str, image_size: int, location: str | Path
) -> DataSource:
    """As `_open_images`, but the training images stay where they are."""
    crop = imagenet_center_crop(image_size)
    train = RemoteImages(location, "train", Canvas(CANVAS_PER_IMAGE_SIDE * image_size))
    if (train.labels < 0).any():
        raise DataError(
            f"split 'train' at {location} holds images without a label, which the probes would have to pick out: give "
            f"--reading indexed, which fetches it"
        )
    mean_rgb, std_rgb = train.manifest.mean_rgb, train.manifest.std_rgb
    evaluation = _evaluation_images(folder, evaluation_split, train.class_names)
    probe_train = RemoteImages(location, "train", crop)
    return DataSource(name, train, probe_train, SingleViews(evaluation, crop), mean_rgb, std_rgb)


def _evaluation_images(folder: Path, split: str, class_names: tuple[str, ...]) -> ImageShards:
    evaluation = ImageShards(folder, split, num_classes=len(class_names))
    if evaluation.class_names != class_names:
        raise DataError(
            f"splits 'train' and {split!r} in {folder} have different classes: convert both again, from one source"
        )
    return evaluation


def _open_torchvision(name: TorchvisionName, data_dir: Path, evaluation_split: str, image_size: int) -> DataSource:
    """Images of one size: views are cropped from what is stored, and the encoder is probed at its own size."""
    stored_side = STORED_SIDE[name]
    if evaluation_split != "test":
        raise DataError(f"--evaluation-split is {evaluation_split!r} and {name} has only train and test: give test")
    opened = open_torchvision(name, data_dir)
    whole, stored = CenterCrop(image_size, image_size), CenterCrop(stored_side, stored_side)
    return DataSource(
        name=name,
        train=SingleViews(opened.train, stored),
        probe_train=SingleViews(opened.labelled_train, whole),
        evaluation=SingleViews(opened.test, whole),
        mean_rgb=opened.train.mean_rgb,
        std_rgb=opened.train.std_rgb,
        notes=(_resized_note(name, stored_side, image_size),) if image_size > stored_side else (),
    )
