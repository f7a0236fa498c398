"""Which data a run learns from and is judged on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.errors import DataError
from ssl_equi.data.manifest import manifest_path
from ssl_equi.data.procedural import ProceduralConfig, build_procedural, default_folder
from ssl_equi.data.reader import ShardDataset

DatasetName = Literal["3diebench-p", "3diebench"]
EMBEDDED_SPLITS = ("train", "val", "test")
EMBEDDED_EVALUATION_SPLITS = ("test", "val", "ood_rotation")  # the splits with the classes of train


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

    @property
    def has_poses(self) -> bool:
        """True if rotations and colours of the views are known, so that the encoder can be probed for them."""
        return self.evaluation.quats_xyzw is not None


def open_data(name: DatasetName, data_dir: Path | None, evaluation_split: str, image_size: int) -> DataSource:
    """Opens a data set's shards; the procedural one is rendered first where it isn't there yet.

    Args:
        name: 3diebench-p is the embedded set, 3diebench the real one as written by datasets/threediebench.py.
        data_dir: folder of the shards; the user's cache folder for the embedded set when None.
        evaluation_split: split that is never trained on: test (to report), val (to choose settings), or
            ood_rotation (poses outside the trained ones).
        image_size: side of the images in pixels, which the shards must have.

    Raises:
        DataError: the shards are missing, damaged, or of another image size, or the split can't be evaluated.
    """
    if name == "3diebench-p":
        if evaluation_split not in EMBEDDED_EVALUATION_SPLITS:
            choices = ", ".join(EMBEDDED_EVALUATION_SPLITS)
            raise DataError(f"--evaluation-split is {evaluation_split!r}: choose from {choices}")
        config = ProceduralConfig(image_size=image_size)
        folder = default_folder(config) if data_dir is None else data_dir
        build_procedural(folder, config, tuple(dict.fromkeys((*EMBEDDED_SPLITS, evaluation_split))))
    elif data_dir is None or not manifest_path(data_dir, "train").exists():
        raise DataError(
            f"3DIEBench has no shards in {data_dir or 'an unnamed folder'}: convert it with "
            "`python datasets/threediebench.py` and give the folder as --data-dir"
        )
    else:
        folder = data_dir
    train, evaluation = ShardDataset(folder, "train"), ShardDataset(folder, evaluation_split)
    for dataset in (train, evaluation):
        if dataset.image_size != (image_size, image_size):
            height, width = dataset.image_size
            raise DataError(
                f"split {dataset.split!r} in {folder} has images of {height} x {width} pixels and the run wants "
                f"{image_size}: give --image-size {height}, or the --data-dir of a set of that size"
            )
    mean_rgb, std_rgb = train.manifest.mean_rgb, train.manifest.std_rgb
    if mean_rgb is None or std_rgb is None:
        raise DataError(f"the manifest of {folder} states no mean and std of the pixels: convert the data set again")
    return DataSource(name, train, train, evaluation, mean_rgb, std_rgb)
