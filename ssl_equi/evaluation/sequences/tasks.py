"""Questions asked of a model that aggregates sequences of views (seq-JEPA, Ghaemi et al., NeurIPS 2025, section 3.3).

- classification: the object's class from the aggregate of a sequence's first M views, by a linear head of its own for
  every M, beside the class from the encoder's features of the first view ("all@1").
- pair_action: the action between two views from the encoder's features of both, as the paper probes equivariance.
- leakage: what the aggregate should leave to the encoder. One sequence of each object is cut into windows of M views,
  and the aggregates of two windows are asked for the action from the last view of the one to the last view of the
  other; neither was told of it. Beside them, the encoder's features of the same two views ("all@M"). The paper does not
  say between which views it asks for the action; this definition is ours.
- path_integration: the action from the first view to view M + 1, from the aggregate of M views and the last step's
  action. M = 1 is trivial: the last step is the answer. "oracle@M" composes the exact actions of all steps. Heads are
  trained on intact inputs; "no images" aggregates zeros for features, "no actions" zeros for every action. It is asked
  of actions that compose: those of latents but hues (translations of rigid motions are given the last step's rotation,
  too), and positions.

Parts are named "agg@M" (aggregate of M views) and "all" or "all@M" (features of the encoder: of any views, or of those
that stand beside "agg@M"), tasks by question and part of the action: "pair_rotation", "leakage_position". The
parts "base_translation" and "object_translation" are those of the action that the model is told, R12 t2 - t1 and
R1^-1 (t2 - t1), not the differences of positions that `ssl_equi.evaluation.tasks.pose` asks for.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import Samples, predict
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.samples import ViewPairs, evaluation_pairs, training_pairs
from ssl_equi.evaluation.sequences.embed import FeatureSequences, sequences_of_cache
from ssl_equi.evaluation.sequences.heads import (
    ActionTarget,
    AggregatingModel,
    action_targets,
    aggregate_views,
    fit_target,
    judge,
)
from ssl_equi.evaluation.task import Ask, TaskResult
from ssl_equi.evaluation.tasks.classification import classify_views

Question = Literal["classification", "pair_action", "leakage", "path_integration"]
QUESTIONS: tuple[Question, ...] = ("classification", "pair_action", "leakage", "path_integration")
TASK_ORDER = ("classification", "pair", "leakage", "path")  # first words of the tasks' names
PROTOCOLS = "ssl_equi_sequences_"  # begins the names of all protocols of sequences

Answers = dict[tuple[str, str], TaskResult]  # by task and part


@dataclass(frozen=True)
class SequenceProtocol:
    """What is asked, of which sequences, and how the heads are trained and judged.

    Heads learn from the fixed sequences of the training split and are judged on those of the evaluated one. Pairs of
    windows are drawn as `heads` says of pairs of views, from one sequence of each object.
    """

    name: str = f"{PROTOCOLS}v1"
    questions: tuple[Question, ...] = QUESTIONS
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # numbers M of aggregated views
    leakage_lengths: tuple[int, ...] = (1, 3)  # M of each window
    views: int = 20  # of a sequence; more than the longest aggregate needs, so that there are many pairs of windows
    sequences_per_object: int = 4
    sequences_seed: int = 0
    heads: ProbeProtocol = field(default_factory=ProbeProtocol)

    def __post_init__(self) -> None:
        if min((*self.lengths, *self.leakage_lengths, self.sequences_per_object)) < 1 or not self.lengths:
            raise ValueError(
                f"lengths are {self.lengths}, leakage_lengths {self.leakage_lengths} and sequences_per_object is "
                f"{self.sequences_per_object}: give one length or more, and numbers of at least 1"
            )
        unknown = [question for question in self.questions if question not in QUESTIONS]
        if unknown:
            raise ValueError(f"there is no question {unknown[0]!r}: choose from {', '.join(QUESTIONS)}")

    def views_needed(self, question: Question) -> dict[int, int]:
        """Views of a sequence that a question needs, by the number M of aggregated views."""
        if question == "leakage":
            return {length: 2 * length for length in self.leakage_lengths}
        further = 1 if question == "path_integration" else 0
        return {} if question == "pair_action" else {length: length + further for length in self.lengths}


QUICK = SequenceProtocol(
    name=f"{PROTOCOLS}quick",
    questions=("classification", "leakage"),
    lengths=(1, 2, 3, 5, 8),
    views=12,
    sequences_per_object=2,
    heads=ProbeProtocol(rotation_epochs=10, rotation_hidden=(256,)),
)


@dataclass(frozen=True)
class SequenceResults:
    """Records of all questions in the order of the table, and sentences on numbers that are missing or incomplete."""

    records: list[ProbeRecord]
    notes: tuple[str, ...]


def probe_sequences(
    model: AggregatingModel,
    train: FeatureSequences,
    test: FeatureSequences,
    num_classes: int,
    protocol: SequenceProtocol,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    split_name: str = "test",
) -> SequenceResults:
    """Ask the questions of the protocol; lengths for which the sequences are too short are left out with a note.

    Args:
        model: a module on `device`; its state and modes are left untouched.
        train, test: sequences of different objects.
        seed: of the heads' initialisation and training.

    Raises:
        ValueError: the two sets of sequences do not belong together or to the model, or an object has no label.
        RuntimeError: aggregating changed the state of the model.
    """
    if (train.length, train.action_names) != (test.length, test.action_names):
        raise ValueError(
            f"training sequences have {train.length} views and actions {train.action_names}, evaluated ones "
            f"{test.length} and {test.action_names}: make both alike"
        )
    for unlabelled in (int((sequences.labels < 0).sum()) for sequences in (train, test)):
        if unlabelled:
            raise ValueError(f"{unlabelled} sequences have no label: probe labelled images only")

    probing = _Probing(model, train.to(device), test.to(device), num_classes, protocol, seed)
    answers = probing.encoder_answers()
    # Length by length, so that classes and paths share their aggregates.
    for length in range(1, train.length + 1):
        answers |= probing.answers_at(length)
    tasks = sorted({task: None for task, _ in answers}, key=lambda task: TASK_ORDER.index(task.partition("_")[0]))
    records = [
        ProbeRecord(
            task=task,
            part=part,
            metric=metric,
            value=value,
            baseline=result.baselines[metric].value,
            baseline_name=result.baselines[metric].name,
            random_encoder=None,
            n=result.num_samples,
            num_objects=test.num_objects,
            split=split_name,
            protocol=protocol.name,
            seed=seed,
        )
        for task in tasks
        for (task_of_part, part), result in answers.items()
        if task_of_part == task
        for metric, value in result.metrics.items()
    ]
    notes = _notes_on_what_is_left_out(protocol, train)
    notes += [f"{task}, part {part}: {note}" for (task, part), result in answers.items() for note in result.notes]
    return SequenceResults(records, tuple(notes))


def quick_sequence_results(
    model: AggregatingModel,
    train_cache: FeatureCache,
    test_cache: FeatureCache,
    told: Sequence[str],
    num_classes: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    split_name: str = "test",
) -> SequenceResults:
    """The class from a few lengths, and the leakage at two, of stored views of rendered objects; see `QUICK`.

    Args:
        train_cache, test_cache: every view of the two splits, encoded by the model's encoder.
        told: names of the actions that the model is told; UserError if the views have no such latents.
        seed: of the heads; the sequences are the same for every model.
    """
    length = min(QUICK.views, train_cache.fewest_views, test_cache.fewest_views)
    train, test = [
        sequences_of_cache(cache, told, length, QUICK.sequences_per_object, QUICK.sequences_seed)
        for cache in (train_cache, test_cache)
    ]
    return probe_sequences(model, train, test, num_classes, QUICK, device=device, seed=seed, split_name=split_name)


@dataclass(frozen=True)
class _Probing:
    """One model, two sets of sequences on its device, and what is asked of them."""

    model: AggregatingModel
    train: FeatureSequences
    test: FeatureSequences
    num_classes: int
    protocol: SequenceProtocol
    seed: int

    def encoder_answers(self) -> Answers:
        """What needs no aggregate."""
        answers: Answers = {}
        if "classification" in self.protocol.questions:
            answers["classification", "all@1"] = self._class_from(self.train.features[:, 0], self.test.features[:, 0])
        if "pair_action" in self.protocol.questions:
            sets = [self.train.one_per_object(), self.test.one_per_object()]
            features, views = [sequences.features for sequences in sets], list(range(self.train.length))
            for target in action_targets(self.train):
                answers[f"pair_{target.name}", "all"] = self._action_of_pairs(target, sets, features, views)
        return answers

    def answers_at(self, length: int) -> Answers:
        """What is asked of aggregates of `length` views."""
        asked = [
            question
            for question in self.protocol.questions
            if 0 < self.protocol.views_needed(question).get(length, 0) <= self.train.length
        ]
        answers: Answers = {}
        if "classification" in asked or "path_integration" in asked:
            both = aggregate_views(self.model, [self.train, self.test], length)
            train, test = [aggregates[:, 0] for aggregates in both]
            if "classification" in asked:
                answers["classification", f"agg@{length}"] = self._class_from(train, test)
            if "path_integration" in asked:
                answers |= self._path(length, train, test)
        if "leakage" in asked:
            answers |= self._leakage(length)
        return answers

    def _class_from(self, train: Tensor, test: Tensor) -> TaskResult:
        """The class from one row of features `[N, D]` per sequence."""
        train_cache, test_cache = [
            FeatureCache(features[:, None], sequences.labels, features.new_zeros(len(features), 1, 0), None)
            for features, sequences in ((train, self.train), (test, self.test))
        ]
        return classify_views(Ask(train_cache, test_cache, self.num_classes, self.protocol.heads, self.seed))

    def _leakage(self, length: int) -> Answers:
        """The action between the last views of two windows, from aggregates of the windows and from these views."""
        sets = [self.train.one_per_object(), self.test.one_per_object()]
        last_views = list(range(length - 1, self.train.length, length))
        sources = {
            f"all@{length}": [sequences.features[:, last_views] for sequences in sets],
            f"agg@{length}": aggregate_views(self.model, sets, length, windows=len(last_views)),
        }
        return {
            (f"leakage_{target.name}", part): self._action_of_pairs(target, sets, windows, last_views)
            for target in action_targets(self.train)
            for part, windows in sources.items()
        }

    def _path(self, length: int, train: Tensor, test: Tensor) -> Answers:
        """The action from the first view to the one after `length` views, from their aggregates `[N, W]`."""
        targets = [target for target in action_targets(self.train) if target.compose is not None]
        if not targets:
            return {}
        [no_images] = aggregate_views(self.model, [self.test], length, without_images=True)
        [no_actions] = aggregate_views(self.model, [self.test], length, without_actions=True)
        answers: Answers = {}
        for target in targets:
            train_step, step = [
                target.steps_of(each.actions[:, length - 1, length]) for each in (self.train, self.test)
            ]
            train_truth, truth = [target.of(each.actions[:, 0, length]) for each in (self.train, self.test)]
            inputs = torch.cat([train, train_step], dim=1)
            samples = functools.partial(_same_every_epoch, Samples(_every_row(inputs), train_truth))
            head = fit_target(target, inputs, self.train.objects, samples, self.protocol.heads, self.seed)
            # The head has learnt from intact inputs, so a loss shows what it relies on.
            seen = {
                f"agg@{length}": torch.cat([test, step], dim=1),
                f"agg@{length} no images": torch.cat([no_images[:, 0], step], dim=1),
                f"agg@{length} no actions": torch.cat([no_actions[:, 0], torch.zeros_like(step)], dim=1),
            }
            predictions = {part: predict(head, features, _every_row(features)) for part, features in seen.items()}
            predictions[f"oracle@{length}"] = target.composed(self.test.steps(0, length))
            for part, predicted in predictions.items():
                answers[f"path_{target.name}", part] = judge(target, predicted, truth)
        return answers

    def _action_of_pairs(
        self, target: ActionTarget, sets: list[FeatureSequences], windows: list[Tensor], last_views: list[int]
    ) -> TaskResult:
        """A part of the action between two windows' last views, from the features `[N, K, D]` of K windows."""
        (train, test), heads = sets, self.protocol.heads
        count, per_sequence = len(last_views), heads.rotation_pairs_per_object

        def samples_of_epoch(epoch: int) -> Samples:
            pairs = training_pairs(len(train), count, per_sequence, self.seed, epoch)
            return _pair_samples(train, target, pairs, last_views)

        objects = train.objects.repeat_interleave(count)
        head = fit_target(target, windows[0].flatten(0, 1), objects, samples_of_epoch, heads, self.seed)
        pairs = evaluation_pairs(len(test), count, heads.evaluation_pairs_per_object, heads.evaluation_seed)
        samples = _pair_samples(test, target, pairs, last_views)
        return judge(target, predict(head, windows[1].flatten(0, 1), samples.rows), samples.targets)


def _every_row(features: Tensor) -> Tensor:
    """Rows `[N, 1]` of samples that each are one row of `features [N, D]`."""
    return torch.arange(len(features), device=features.device)[:, None]


def _same_every_epoch(samples: Samples, epoch: int) -> Samples:
    return samples


def _pair_samples(
    sequences: FeatureSequences, target: ActionTarget, pairs: ViewPairs, last_views: list[int]
) -> Samples:
    """Rows of `[N * K, D]`, where window k of sequence n is row n * K + k, and the action between their last views."""
    device = sequences.features.device
    index, first, second = [
        torch.from_numpy(array).to(device) for array in (pairs.object_indices, pairs.first_view, pairs.second_view)
    ]
    last = torch.tensor(last_views, device=device)
    rows = index[:, None] * len(last_views) + torch.stack([first, second], dim=1)
    return Samples(rows, target.of(sequences.actions[index, last[first], last[second]]))


def _notes_on_what_is_left_out(protocol: SequenceProtocol, train: FeatureSequences) -> list[str]:
    """A sentence for each question of which something is left out."""
    notes, views = [], train.length
    for question in protocol.questions:
        missing = [str(length) for length, needed in protocol.views_needed(question).items() if needed > views]
        if missing:
            notes.append(f"{question}: M = {', '.join(missing)} is left out, because sequences have {views} views")
    composes = any(target.compose is not None for target in action_targets(train))
    if "path_integration" in protocol.questions and not composes:
        notes.append("path_integration is left out: only steps of latents and positions compose")
    return notes
