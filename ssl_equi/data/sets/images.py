"""Ordinary images whose sizes differ: ImageNet, any image shards, and any folders of images."""

from pathlib import Path

from ssl_equi.data.images import Canvas, imagenet_center_crop
from ssl_equi.data.remote.views import RemoteImages
from ssl_equi.data.sets.image_folder import VAL, ImageFolder
from ssl_equi.data.sets.table import DataSet, DataSource, Place, dataset
from ssl_equi.data.shards.foreign import describe_counts
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError

CANVAS_PER_IMAGE_SIDE = 2  # side of the canvas of training images, in sides of the encoder's input


@dataset("imagenet", "shards")
@dataset("folder", may_lie_elsewhere=False)
def open_images(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Canvases to train on, central crops to probe on."""
    if evaluation_split == "train":
        raise DataError("--evaluation-split is 'train': choose a split that is never trained on, such as val or test")
    assert place.folder is not None
    if place.streamed:
        return _open_streamed(known, place.folder, evaluation_split, image_size, place.address or place.folder)
    folder = place.folder
    if known.name == "folder":
        train: ImageFolder | ImageShards = ImageFolder(folder, "train")
        evaluation: ImageFolder | ImageShards = ImageFolder(folder, evaluation_split)
    else:
        train = ImageShards(folder, "train")
        evaluation = _evaluation_images(folder, evaluation_split, train.class_names)
    labelled = train
    if isinstance(train, ImageShards) and (train.labels < 0).any():
        labelled = ImageShards(folder, "train", labelled_only=True)
    for store in (train, evaluation):
        say_passed_over(store)
    if isinstance(train, ImageFolder) and train.splits_itself:
        print(
            f"{folder} has no splits: {len(train.labels):,} images to train on and {len(evaluation.labels):,} to judge "
            f"on (split {VAL!r}, by a hash of their paths); {_described_classes(train.class_names)}",
            flush=True,
        )
    crop = imagenet_center_crop(image_size)
    return DataSource(
        name=known.name,
        train=SingleViews(train, Canvas(CANVAS_PER_IMAGE_SIDE * image_size)),
        probe_train=SingleViews(labelled, crop),
        evaluation=SingleViews(evaluation, crop),
        mean_rgb=train.mean_rgb,
        std_rgb=train.std_rgb,
    )


def _described_classes(names: tuple[str, ...]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names):,} classes, its folders"


def say_passed_over(store: ImageFolder | ImageShards) -> None:
    """Files that are no images may be there on purpose, or be all that is left of some under another name."""
    if store.passed_over:
        print(
            f"passed over in split {store.split!r} of {store.folder}: {describe_counts(store.passed_over)}", flush=True
        )


def _open_streamed(
    known: DataSet, folder: Path, evaluation_split: str, image_size: int, location: str | Path
) -> DataSource:
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
    return DataSource(known.name, train, probe_train, SingleViews(evaluation, crop), mean_rgb, std_rgb)


def _evaluation_images(folder: Path, split: str, class_names: tuple[str, ...]) -> ImageShards:
    evaluation = ImageShards(folder, split, num_classes=len(class_names))
    if evaluation.class_names != class_names:
        raise DataError(
            f"splits 'train' and {split!r} in {folder} have different classes: convert both again, from one source"
        )
    return evaluation
