"""3DIEBench and 3DIEBench-T, and the embedded sets in their layouts: rendered objects with known latents."""

import dataclasses
from pathlib import Path

from ssl_equi.data.derived import ResizedViews, resized
from ssl_equi.data.procedural import ProceduralConfig, build_procedural, default_folder
from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.sets.table import DataSet, DataSource, Place, dataset, resized_note
from ssl_equi.data.shards.manifest import has_manifest, read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION

EMBEDDED_SPLITS = ("train", "val", "test")
OOD_ROTATION = "ood_rotation"  # the objects of a judged split under rotations outside of the trained ones
EMBEDDED_EVALUATION_SPLITS = ("test", "val", OOD_ROTATION)  # the splits with the classes of train
WEIGHTS_LICENCE = "apache-2.0"  # of what learnt from our own renderings


@dataset(
    "3diebench-p", embedded=True, num_latents=LATENT_SIZE, splits=EMBEDDED_EVALUATION_SPLITS, licence=WEIGHTS_LICENCE,
    ood_rotation_of="test",
)  # fmt: skip
@dataset(
    "3diebench-pt", embedded=True, num_latents=LATENT_SIZE_WITH_TRANSLATION, splits=EMBEDDED_EVALUATION_SPLITS,
    licence=WEIGHTS_LICENCE, ood_rotation_of="test",
)  # fmt: skip
def open_embedded(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Renders the splits that aren't there yet, as those that are."""
    stored_size = None if place.folder is None else stored_side(place.folder)
    config = embedded_config(known, stored_size or image_size)
    folder = default_folder(config) if place.folder is None else place.folder
    _refuse_other_latents(known, folder, ("train", evaluation_split))
    if not place.fetched:
        build_procedural(folder, config, tuple(dict.fromkeys((*EMBEDDED_SPLITS, evaluation_split))))
    return _open_shards(known, place, folder, evaluation_split, image_size)


@dataset("3diebench", num_latents=LATENT_SIZE, ood_rotation_of="val")
@dataset("3diebench-t", num_latents=LATENT_SIZE_WITH_TRANSLATION, ood_rotation_of="val")
def open_converted(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Opens what datasets/threediebench.py wrote."""
    folder = place.folder
    if folder is None or not (place.fetched or has_manifest(folder, "train")):
        raise DataError(
            f"{known.name} has no shards in {folder or 'an unnamed folder'}: convert it with "
            "`python datasets/threediebench.py` and give the folder as --data-dir"
        )
    _refuse_other_latents(known, folder, ("train", evaluation_split))
    return _open_shards(known, place, folder, evaluation_split, image_size)


def embedded_config(known: DataSet, image_size: int) -> ProceduralConfig:
    """The configuration of an embedded set."""
    config = ProceduralConfig(image_size=image_size)
    moves = known.num_latents == LATENT_SIZE_WITH_TRANSLATION
    return dataclasses.replace(config, translation=True) if moves else config


def stored_side(folder: Path) -> int | None:
    """Side in pixels of the images in a folder of rendered shards; None if there are none yet."""
    return read_manifest(folder, "train").image_size[0] if has_manifest(folder, "train") else None


def _open_shards(known: DataSet, place: Place, folder: Path, evaluation_split: str, image_size: int) -> DataSource:
    train = RemoteShards(place.address or folder, "train") if place.streamed else ShardDataset(folder, "train")
    evaluation = ShardDataset(folder, evaluation_split)
    if train.latents.shape[-1] != evaluation.latents.shape[-1]:
        raise DataError(
            f"split 'train' has {train.latents.shape[-1]} latents a view and {evaluation_split!r} in {folder} "
            f"{evaluation.latents.shape[-1]}: give the --data-dir of one data set"
        )
    if train.image_size != evaluation.image_size:
        sizes = [f"{height} x {width}" for height, width in (train.image_size, evaluation.image_size)]
        raise DataError(
            f"split 'train' has images of {sizes[0]} pixels and {evaluation_split!r} in {folder} of {sizes[1]}: give "
            f"the --data-dir of one data set"
        )
    if train.mean_rgb is None or train.std_rgb is None:
        raise DataError(f"the manifest of {folder} states no mean and std of the pixels: convert the data set again")
    notes = tuple(dict.fromkeys((*train.manifest.notes, *evaluation.manifest.notes)))
    views, judged = resized(train, image_size), resized(evaluation, image_size)
    if isinstance(views, ResizedViews):
        notes = (*notes, resized_note(known.name, train.image_size[0], image_size))
    return DataSource(known.name, views, views, judged, train.mean_rgb, train.std_rgb, train.manifest.license, notes)


def _refuse_other_latents(known: DataSet, folder: Path, splits: tuple[str, ...]) -> None:
    """Raises DataError for a split of the folder whose views move where the named set's do not, or the reverse."""
    for split in splits:
        if not has_manifest(folder, split):
            continue
        num_latents = len(read_manifest(folder, split).latent_names)
        if num_latents != known.num_latents:
            raise DataError(
                f"split {split!r} in {folder} has {num_latents} latents a view and {known.name} has "
                f"{known.num_latents}: give --dataset {known.counterpart}, or the --data-dir of {known.name}"
            )
