"""Which class, on another data set? Linear heads and neighbours on the frozen features of its images.

A data set is given as DATASET:DIR, such as `folder:/data/flowers` or `cifar10:/data`; heads are trained on its train
split, which also chooses the linear head's learning rate and weight decay, and judged on its test split. Images are
resized to what the encoder takes, and normalised as the encoder's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_equi.data.rendering.procedural import ProceduralConfig
from ssl_equi.data.sources import DATASETS, DataSource, open_data
from ssl_equi.errors import DataError
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS, Ask, Made, Task, TaskResult

TRANSFER_TASKS = ("linear", "knn")


@dataclass(frozen=True)
class TransferSet:
    """Another data set: its label is part of the tasks' names."""

    label: str
    data: DataSource


def open_transfer_set(text: str, image_size: int, split: str = "test") -> TransferSet:
    """Opens DATASET:DIR.

    Args:
        image_size: side in pixels that images are brought to.
        split: what is judged.
    """
    name, _, folder = text.partition(":")
    if name not in DATASETS:
        raise DataError(
            f"--transfer is {text!r}, and there is no data set {name!r}: give DATASET:DIR with one of "
            f"{', '.join(sorted(DATASETS))}"
        )
    if not folder and not DATASETS[name].embedded:
        raise DataError(f"--transfer is {text!r} without a folder: give {name}:DIR")
    data_dir = Path(folder) if folder else None
    location = data_dir
    try:
        if location is None:  # rendered in the size that the embedded set has by itself, and resized
            size = ProceduralConfig().image_size
            location = open_data(name, None, split, size).evaluation.folder
        data = open_data(name, location, split, image_size)
    except DataError as error:
        raise DataError(f"--transfer {text} can't be judged on split {split!r}: {error}") from error
    label = name if data_dir is None or DATASETS[name].side is not None else f"{name}_{data_dir.resolve().name}"
    return TransferSet(label, data)


def transfer_tasks(sets: Sequence[TransferSet]) -> list[Task]:
    """`transfer_TASK_LABEL` for every data set."""
    labels = [each.label for each in sets]
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"--transfer names {label} {labels.count(label)} times: give each data set once")
    return [
        Task(f"transfer_{name}_{each.label}", _transferred(each, TASKS[name]), group="transfer")
        for each in sets
        for name in TRANSFER_TASKS
    ]


def _transferred(transfer_set: TransferSet, task: Task) -> Callable[[Ask], TaskResult]:
    def answer(ask: Ask) -> TaskResult:
        train, test = transfer_set.data.probe_train, transfer_set.data.evaluation
        _require_comparable(transfer_set)
        # Heads of other data are nobody else's, so nothing that was made for this encoder's own data is shared.
        result = task(replace(
            ask, train=ask.part_of(ask.encode(train)), test=ask.part_of(ask.encode(test)),
            num_classes=len(test.class_names), made=Made(),
        ))  # fmt: skip
        return replace(
            result, split=f"{transfer_set.label}_{test.split}", num_objects=result.num_objects or test.num_objects
        )

    return answer


def _require_comparable(transfer_set: TransferSet) -> None:
    """Raises TaskSkipped unless both splits have the same classes and every image has one."""
    train, test = transfer_set.data.probe_train, transfer_set.data.evaluation
    if tuple(train.class_names) != tuple(test.class_names):
        raise TaskSkipped(
            f"{transfer_set.label} has {len(train.class_names)} classes in 'train' and others in {test.split!r}: use "
            "splits of one data set"
        )
    unlabelled = int((train.labels < 0).sum() + (test.labels < 0).sum())
    if unlabelled:
        raise TaskSkipped(f"{unlabelled} images of {transfer_set.label} have no label: use labelled images only")
