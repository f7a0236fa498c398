"""Tasks on every part of cached features, and what they found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.features import FeatureCache, state_sha256
from ssl_equi.evaluation.known_tasks import Task, TaskResult, known_tasks, tasks_for
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.skipping import TaskSkipped, noted_if_unanswered
from ssl_equi.evaluation.task_results import without_undefined
from ssl_equi.evaluation.task_samples import require_varied

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
        asked = [tasks["relative_rotation"] for tasks in self.results.values() if "relative_rotation" in tasks]
        return asked[0].constant_angle_errors_deg if asked else None

    @property
    def per_class_recall(self) -> dict[str, np.ndarray]:
        """Recall of each class by part, NaN for classes without evaluated objects."""
        asked = {part: tasks["classification"] for part, tasks in self.results.items() if "classification" in tasks}
        return {part: result.per_class_recall for part, result in asked.items() if result.per_class_recall is not None}


def with_notes_of_random(notes: Sequence[str], random_notes: Sequence[str]) -> tuple[str, ...]:
    """The notes, and those of the random encoder that don't say the same."""
    return (*notes, *(f"random encoder, {note}" for note in random_notes if note not in notes))


def check_splits(parts: dict[str, slice], train: ViewCollection, test: ViewCollection, split_name: str) -> None:
    """Raises ValueError unless the splits are of one data set, all labelled, and there is something to probe."""
    if not parts:
        raise ValueError("parts is empty: name at least one slice of the features, such as {'all': slice(0, 512)}")
    if tuple(train.class_names) != tuple(test.class_names):
        raise ValueError(
            f"the train split has {len(train.class_names)} classes and the {split_name} split {len(test.class_names)} "
            "with other names: probe splits of one data set"
        )
    if train.schema != test.schema:
        raise ValueError(
            f"the latents of the train split are not those of the {split_name} split, in name, kind, range or order: "
            "write both splits with one schema"
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
    """One task of each kind on every part of cached features; what can't be asked is left out."""
    known = known_tasks(test.schema)
    tasks = {name: known[name] for name in tasks_for(test)}
    return ask_tasks(train, test, parts, tasks, num_classes, protocol, device, seed)[0]


def ask_tasks(
    train: FeatureCache,
    test: FeatureCache,
    parts: dict[str, slice],
    tasks: Mapping[str, Task],
    num_classes: int,
    protocol: ProbeProtocol,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    unchanged: nn.Module | None = None,
    before_task: Callable[[str, str], None] = lambda task, part: None,
) -> tuple[PartResults, list[str]]:
    """Tasks on parts of cached features; heads of different parts know nothing of each other.

    Args:
        unchanged: the encoder, whose parameters and buffers are hashed before and after each task.
        before_task: is told the task and the part that is asked next.

    Returns:
        Results by part and task, and a sentence for each answer that is missing: "TASK, part PART: why", or one for
        all tasks that can't be asked of a part whose features are the same in every view.

    Raises:
        RuntimeError: a task changed the encoder.
    """
    train, test = train.to(device), test.to(device)
    state = None if unchanged is None else state_sha256(unchanged)
    results: PartResults = {part: {} for part in parts}
    notes: list[str] = []
    for part, columns in parts.items():
        train_part, test_part = train.part(columns), test.part(columns)
        constant = _why_constant(train_part, test_part)
        not_asked = []
        for name, task in tasks.items():
            before_task(name, part)
            reasons: list[str] = []
            with noted_if_unanswered(f"{name}, part {part}", reasons):
                result = without_undefined(task(train_part, test_part, num_classes, protocol, seed))
                results[part][name] = result
                notes += [f"{name}, part {part}: {note}" for note in result.notes]
            if reasons and constant is not None:
                not_asked.append(name)
            else:
                notes += reasons
            if unchanged is not None and state_sha256(unchanged) != state:
                raise RuntimeError(
                    f"task {name!r} changed a parameter or a buffer of the encoder: a frozen encoder must stay as it is"
                )
        if constant is not None:
            notes.append(f"part {part} is constant: {constant} (not asked: {', '.join(not_asked) or 'nothing'})")
    return results, notes


def _why_constant(train: FeatureCache, test: FeatureCache) -> str | None:
    """A sentence if all training views have the same features; None otherwise."""
    try:
        require_varied(train, test)
    except TaskSkipped as reason:
        return str(reason)
    return None


def _angle_errors(results: PartResults) -> dict[str, np.ndarray]:
    with_poses = {part: tasks for part, tasks in results.items() if "relative_rotation" in tasks}
    errors = {part: tasks["relative_rotation"].angle_errors_deg for part, tasks in with_poses.items()}
    return {part: values for part, values in errors.items() if values is not None}
