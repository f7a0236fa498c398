"""3DIEBench and 3DIEBench-T, and the embedded sets in their layouts: rendered objects with known latents."""

from pathlib import Path

from ssl_equi.data.derived import ResizedViews, resized
from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural, default_folder
from ssl_equi.data.sets.table import DataSet, DataSource, Place, dataset, resized_note
from ssl_equi.data.shards.manifest import has_manifest, read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from ssl_equi.latents.schema import THREEDIEBENCH, THREEDIEBENCH_T

OOD_ROTATION = "ood_rotation"  # the objects of a judged split under rotations outside of the trained ones
EMBEDDED_EVALUATION_SPLITS = ("test", "val", OOD_ROTATION)  # the splits with the classes of train
WEIGHTS_LICENCE = "apache-2.0"  # of what learnt from our own renderings


@dataset(
    "3diebench-p", embedded=True, posed=True, schema=THREEDIEBENCH, splits=EMBEDDED_EVALUATION_SPLITS,
    licence=WEIGHTS_LICENCE, ood_rotation_of="test",
)  # fmt: skip
@dataset(
    "3diebench-pt", embedded=True, posed=True, schema=THREEDIEBENCH_T, splits=EMBEDDED_EVALUATION_SPLITS,
    licence=WEIGHTS_LICENCE, ood_rotation_of="test",
)  # fmt: skip
def open_embedded(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Renders the splits that aren't there yet, as those that are."""
    stored_size = None if place.folder is None else stored_side(place.folder)
    config = embedded_config(known, stored_size or image_size)
    folder = default_folder(config) if place.folder is None else place.folder
    _refuse_other_latents(known, folder, ("train", evaluation_split))
    if not place.fetched:
        build_procedural(folder, config, ("train", evaluation_split))
    return _open_shards(known, place, folder, evaluation_split, image_size)


@dataset("3diebench", posed=True, schema=THREEDIEBENCH, ood_rotation_of="val")
@dataset("3diebench-t", posed=True, schema=THREEDIEBENCH_T, ood_rotation_of="val")
@dataset("posed", posed=True)
def open_converted(known: DataSet, place: Place, evaluation_split: str, image_size: int) -> DataSource:
    """Opens what datasets/threediebench.py, datasets/posed_images.py or anybody else wrote."""
    folder = place.folder
    if folder is None or not (place.fetched or has_manifest(folder, "train")):
        converter = "posed_images" if known.schema is None else "threediebench"
        raise DataError(
            f"{known.name} has no shards in {folder or 'an unnamed folder'}: convert it with "
            f"`python datasets/{converter}.py` and give the folder as --data-dir"
        )
    _refuse_other_latents(known, folder, ("train", evaluation_split))
    return _open_shards(known, place, folder, evaluation_split, image_size)


def embedded_config(known: DataSet, image_size: int) -> ProceduralConfig:
    """The configuration of an embedded set."""
    assert known.schema is not None and known.schema.scene_translation is not None, "embedded sets are rendered"
    return ProceduralConfig(image_size=image_size, translation=known.schema.scene_translation)


def stored_side(folder: Path) -> int | None:
    """Side in pixels of the images in a folder of rendered shards; None if there are none yet."""
    return read_manifest(folder, "train").image_size[0] if has_manifest(folder, "train") else None


def _open_shards(known: DataSet, place: Place, folder: Path, evaluation_split: str, image_size: int) -> DataSource:
    train = RemoteShards(place.address or folder, "train") if place.streamed else ShardDataset(folder, "train")
    evaluation = ShardDataset(folder, evaluation_split)
    if train.schema != evaluation.schema:
        names = [", ".join(manifest.schema.by_name) for manifest in (train.manifest, evaluation.manifest)]
        raise DataError(
            f"split 'train' has latents {names[0]} and {evaluation_split!r} in {folder} {names[1]}, or of other kinds: "
            "give the --data-dir of one data set"
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
        if known.schema is None or not has_manifest(folder, split):
            continue
        manifest = read_manifest(folder, split)
        if not known.holds(manifest.schema):
            raise DataError(
                f"split {split!r} in {folder} has latents {', '.join(manifest.schema.by_name)} and {known.name} has "
                f"{', '.join(known.schema.by_name)}: give --dataset {known.counterpart(manifest.schema)}, or the "
                f"--data-dir of {known.name}"
            )
