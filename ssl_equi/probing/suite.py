"""All probes of one encoder: encode both splits once, then every task on every part; the same for a random encoder.

Whether augmentations move all features alike needs augmented images too, so it is asked beside the tasks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.probing.augmentation_equivariance import TASK as AUGMENTATION_EQUIVARIANCE
from ssl_equi.probing.augmentation_equivariance import probe_augmentation_equivariance
from ssl_equi.probing.encode import FeatureCache, encode_split
from ssl_equi.probing.protocol import ProbeProtocol
from ssl_equi.probing.records import ProbeRecord
from ssl_equi.probing.tasks import TaskResult, tasks_for

PartResults = dict[str, dict[str, TaskResult]]  # by part, then task


@dataclass(frozen=True)
class ProbeResults:
    """Records of all probes, and what the report draws.

    Attributes:
        records: one for each task, part and metric.
        parts: the probed slices of the feature columns.
        results: result of the encoder by part and task.
        random_results: the same of the random encoder; None if there was none.
        train_features: every view of the split that the heads were trained on, encoded by the encoder.
        test_features: the same of the evaluated split.
        class_names: of the data set.
        protocol: how the heads were trained and judged.
        seconds: time spent in "encode" (which includes all of the augmented images) and "heads", both encoders
            together.
        notes: why a number is missing or incomplete.
    """

    records: list[ProbeRecord]
    parts: dict[str, slice]
    results: PartResults
    random_results: PartResults | None
    train_features: FeatureCache
    test_features: FeatureCache
    class_names: tuple[str, ...]
    protocol: ProbeProtocol
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def angle_errors_deg(self) -> dict[str, np.ndarray]:
        """Rotation error of each evaluated pair, by part."""
        return _angle_errors(self.results)

    @property
    def random_angle_errors_deg(self) -> dict[str, np.ndarray]:
        """The same with the random encoder; empty if there was none."""
        return _angle_errors(self.random_results or {})

    @property
    def constant_angle_errors_deg(self) -> np.ndarray | None:
        """Rotation error of each evaluated pair if the mean rotation is always the answer; None without poses."""
        any_part = next(iter(self.results.values()))
        return any_part["relative_rotation"].constant_angle_errors_deg if "relative_rotation" in any_part else None

    @property
    def per_class_recall(self) -> dict[str, np.ndarray]:
        """Recall of each class by part, NaN for classes without evaluated objects."""
        recalls = {part: tasks["classification"].per_class_recall for part, tasks in self.results.items()}
        return {part: recall for part, recall in recalls.items() if recall is not None}


def run_probes(
    encoder: nn.Module,
    parts: dict[str, slice],
    train: ViewCollection,
    test: ViewCollection,
    *,
    random_encoder: nn.Module | None,
    protocol: ProbeProtocol,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    device: torch.device | str = "cpu",
    seed: int = 0,
    split_name: str = "test",
    encode_batch_size: int = 512,
) -> ProbeResults:
    """Probe `encoder` on objects of `test` with heads that were trained on objects of `train`.

    Without poses in both splits there are two questions: the class, and equivariance to augmentations.

    Args:
        encoder: maps `[N, 3, H, W]` to `[N, D]`; on `device`; its state and modes are left untouched.
        parts: named slices of the feature columns.
        random_encoder: the same architecture with fresh weights for the second baseline; None to leave it out.
        mean_rgb, std_rgb: of the training images, in units of [0, 1].
        seed: of the heads' initialisation and of their training pairs.

    Raises:
        ValueError: the two splits have different classes, an object has no label, or `parts` is empty.
    """
    _check_splits(parts, train, test, split_name)
    seconds = {"encode": 0.0, "heads": 0.0}

    def probe(module: nn.Module) -> tuple[PartResults, list[FeatureCache], tuple[str, ...]]:
        started = time.perf_counter()
        caches = [encode_split(module, split, mean_rgb, std_rgb, device, encode_batch_size) for split in (train, test)]
        equivariance = probe_augmentation_equivariance(
            module, parts, test, mean_rgb, std_rgb, protocol.augmentation_equivariance, device, encode_batch_size
        )
        encoded = time.perf_counter()
        results = probe_features(caches[0], caches[1], parts, len(train.class_names), protocol, device, seed)
        seconds["encode"] += encoded - started
        seconds["heads"] += time.perf_counter() - encoded
        for part, result in equivariance.results.items():
            results[part][AUGMENTATION_EQUIVARIANCE] = result
        return results, caches, tuple(f"{AUGMENTATION_EQUIVARIANCE}: {note}" for note in equivariance.notes)

    results, (train_features, test_features), notes = probe(encoder)
    random_results = None
    if random_encoder is not None:
        random_results, _, random_notes = probe(random_encoder)
        notes += tuple(f"random encoder, {note}" for note in random_notes if note not in notes)
    return ProbeResults(
        records=make_records(results, random_results, test_features.num_objects, split_name, protocol, seed),
        parts=dict(parts),
        results=results,
        random_results=random_results,
        train_features=train_features,
        test_features=test_features,
        class_names=tuple(train.class_names),
        protocol=protocol,
        seconds=seconds,
        notes=notes,
    )


def _check_splits(parts: dict[str, slice], train: ViewCollection, test: ViewCollection, split_name: str) -> None:
    """Raises ValueError unless the splits are of one data set, all labelled, and there is something to probe."""
    if not parts:
        raise ValueError("parts is empty: name at least one slice of the features, such as {'all': slice(0, 512)}")
    if tuple(train.class_names) != tuple(test.class_names):
        raise ValueError(
            f"the train split has {len(train.class_names)} classes and the {split_name} split {len(test.class_names)} "
            "with other names: probe splits of one data set"
        )
    for split in (train, test):
        if (split.labels < 0).any():
            raise ValueError(f"{int((split.labels < 0).sum())} objects have no label: probe labelled images only")


def probe_features(
    train: FeatureCache,
    test: FeatureCache,
    parts: dict[str, slice],
    num_classes: int,
    protocol: ProbeProtocol,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> PartResults:
    """Every task on every part of cached features; heads of different parts know nothing of each other."""
    train, test = train.to(device), test.to(device)
    return {
        part: {
            name: task(train.part(columns), test.part(columns), num_classes, protocol, seed)
            for name, task in tasks_for(test).items()
        }
        for part, columns in parts.items()
    }


def make_records(
    results: PartResults,
    random_results: PartResults | None,
    num_objects: int,
    split_name: str,
    protocol: ProbeProtocol,
    seed: int,
) -> list[ProbeRecord]:
    """Records in the order of the printed table: task by task, part by part; a task may be absent from a part."""
    tasks = dict.fromkeys(task for results_of_part in results.values() for task in results_of_part)
    return [
        ProbeRecord(
            task=task,
            part=part,
            metric=metric,
            value=value,
            baseline=results_of_part[task].baselines[metric].value,
            baseline_name=results_of_part[task].baselines[metric].name,
            random_encoder=_random_value(random_results, part, task, metric),
            n=results_of_part[task].num_samples,
            num_objects=num_objects,
            split=split_name,
            protocol=protocol.name,
            seed=seed,
        )
        for task in tasks
        for part, results_of_part in results.items()
        if task in results_of_part
        for metric, value in results_of_part[task].metrics.items()
    ]


def _random_value(random_results: PartResults | None, part: str, task: str, metric: str) -> float | None:
    """The random encoder's number; None if it was not measured."""
    result = None if random_results is None else random_results[part].get(task)
    return None if result is None else result.metrics.get(metric)


def _angle_errors(results: PartResults) -> dict[str, np.ndarray]:
    with_poses = {part: tasks for part, tasks in results.items() if "relative_rotation" in tasks}
    errors = {part: tasks["relative_rotation"].angle_errors_deg for part, tasks in with_poses.items()}
    return {part: values for part, values in errors.items() if values is not None}
