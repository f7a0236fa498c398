"""Which data a run learns from and is judged on: data sets opened by name."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import TurnedViews, Turns, resized
from ssl_equi.data.remote.download import fetch_splits
from ssl_equi.data.remote.transport import is_address
from ssl_equi.data.rendering.procedural import build_procedural
from ssl_equi.data.sets import images, rendered, torchvision_sets  # noqa: F401 - they enter their sets into the table
from ssl_equi.data.sets.rendered import OOD_ROTATION, embedded_config, stored_side
from ssl_equi.data.sets.table import DATASETS, DataSet, DataSource, Place
from ssl_equi.data.shards.manifest import has_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError

__all__ = [
    "DATASETS", "OOD_ROTATION", "DataSource", "DatasetName", "Reading", "open_data", "open_ood_rotation",
    "stored_image_size", "turned_source",
]  # fmt: skip

Reading = Literal["indexed", "streamed"]
if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = Literal[tuple(sorted(DATASETS))]  # the choices of an option


def open_data(
    name: DatasetName,
    data_dir: str | Path | None,
    evaluation_split: str,
    image_size: int,
    reading: Reading = "indexed",
) -> DataSource:
    """Opens a data set; the embedded ones are rendered first where they aren't there yet.

    Nothing is downloaded but from an address that is given as `data_dir`.

    Args:
        name: 3diebench-p is the embedded set, 3diebench-pt the embedded set whose objects also move; 3diebench and
            3diebench-t are the real ones as written by datasets/threediebench.py; the others are ordinary images, as
            datasets/images.md says.
        data_dir: folder of the data set, or http://, https:// or s3:// address of shards with a manifest; the user's
            cache folder for an embedded set when None.
        evaluation_split: split that is never trained on: test (to report), val (to choose settings), or, of a set
            that has it, ood_rotation (poses outside the trained ones).
        image_size: side in pixels of what the encoder takes; stored views and images of other sizes are resized.
        reading: indexed copies the two splits of an address to the user's cache folder first; streamed leaves the
            training split where it is, for `ssl_equi.data.remote.streaming` (and for the probes, who read it in order).

    Raises DataError if the data are missing, damaged or not those of the name, or the split can't be evaluated.
    """
    if image_size < 1:
        raise DataError(f"--image-size is {image_size}: give a side of at least 1 pixel")
    known = DATASETS[name]
    # Before anything is rendered or fetched.
    if known.splits is not None and evaluation_split not in known.splits:
        raise DataError(f"--evaluation-split is {evaluation_split!r}: choose from {', '.join(known.splits)}")
    place = _place_of(known, data_dir, evaluation_split, reading)
    if place.folder is None and not known.posed:
        raise DataError(f"--dataset {name} is not part of this project: give its folder as --data-dir")
    return known.open(known, place, evaluation_split, image_size)


def turned_source(data: DataSource, turns: Literal["none"] | Turns, turn_training_views: bool = False) -> DataSource:
    """The data with judged views turned, and if asked the views that heads are trained on.

    Raises DataError if the training views alone would be turned, or for views that aren't square.
    """
    if turns == "none":
        if turn_training_views:
            raise DataError("--turn-training-views is given and --turns is none: give --turns quarter or any")
        return data
    probe_train = TurnedViews(data.probe_train, turns) if turn_training_views else data.probe_train
    return dataclasses.replace(data, probe_train=probe_train, evaluation=TurnedViews(data.evaluation, turns))


def open_ood_rotation(data: DataSource) -> ViewCollection:
    """The split whose rotations lie outside of the trained ones; embedded sets render it if it isn't there.

    Raises DataError if the set has no such split, or the judged split shows other objects, or has other classes.
    """
    known = DATASETS.get(data.name)
    if known is None or known.ood_rotation_of is None:
        others = " or ".join(name for name, other in DATASETS.items() if other.ood_rotation_of)
        raise DataError(f"{data.name} has no split {OOD_ROTATION!r}: use {others}")
    judged, folder, image_size = data.evaluation.split, data.evaluation.folder, data.evaluation.image_size[0]
    if judged != known.ood_rotation_of:
        raise DataError(
            f"the judged split is {judged!r}, and {OOD_ROTATION} shows the objects of {known.ood_rotation_of!r}: "
            f"judge {known.ood_rotation_of!r}"
        )
    if known.embedded:
        build_procedural(folder, embedded_config(known, stored_side(folder) or image_size), (OOD_ROTATION,))
    elif not has_manifest(folder, OOD_ROTATION):
        raise DataError(
            f"{folder} has no split {OOD_ROTATION!r}: add it with `python datasets/threediebench.py --ood FOLDER`"
        )
    views = resized(ShardDataset(folder, OOD_ROTATION), image_size)
    if tuple(views.class_names) != tuple(data.evaluation.class_names):
        raise DataError(f"{OOD_ROTATION} has other classes than {judged!r}: build both splits with the same settings")
    return views


def stored_image_size(name: str, data_dir: str | Path | None) -> int | None:
    """Side in pixels of the images of rendered shards in the folder `data_dir`; None for all other data.

    Raises DataError if the manifest is damaged.
    """
    known = DATASETS.get(name)
    if known is None or not known.posed or data_dir is None or is_address(data_dir):
        return None
    return stored_side(Path(data_dir))


def _place_of(known: DataSet, data_dir: str | Path | None, evaluation_split: str, reading: Reading) -> Place:
    """Fetches what an address holds and the run reads from a disk."""
    streamed = reading == "streamed"
    address = str(data_dir) if data_dir is not None and is_address(data_dir) else None
    if (address is not None or streamed) and not known.may_lie_elsewhere:
        raise DataError(
            f"--dataset {known.name} is read from a local folder only: write shards of it (datasets/images.md says "
            f"how) to stream them or to fetch them from an address"
        )
    if address is None:
        return Place(None if data_dir is None else Path(data_dir), streamed=streamed)
    splits = (evaluation_split,) if streamed else ("train", evaluation_split)
    return Place(fetch_splits(address, splits), fetched=True, streamed=streamed, address=address)
