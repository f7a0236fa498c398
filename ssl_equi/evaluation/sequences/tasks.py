"""Questions asked of a model that aggregates sequences of views (seq-JEPA, Ghaemi et al., NeurIPS 2025, section 3.3).

Parts are named "agg@M" (aggregate of M views) and "all" or "all@M" (features of the encoder: of any views, or of those
that stand beside "agg@M"), tasks by question and part of the action: "pair_rotation", "leakage_position". The
parts "base_translation" and "object_translation" are those of the action that the model is told, R12 t2 - t1 and
R1^-1 (t2 - t1), not the differences of positions that `ssl_equi.evaluation.tasks.pose` asks for.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord, records_of
from ssl_equi.evaluation.samples import feature_matrix
from ssl_equi.evaluation.sequences.embed import FeatureSequences, sequences_of_cache
from ssl_equi.evaluation.sequences.heads import (
    AggregatingModel,
    action_targets,
    aggregate_views,
    cache_of_windows,
    judge,
    read_action,
)
from ssl_equi.evaluation.task import Ask, TaskResult
from ssl_equi.evaluation.tasks.classification import classify_views

Question = Literal["classification", "pair_action", "leakage", "path_integration"]
QUESTIONS: tuple[Question, ...] = ("classification", "pair_action", "leakage", "path_integration")
PROTOCOLS = "ssl_equi_sequences_"  # begins the names of all protocols of sequences

Answer = tuple[str, str, TaskResult]  # task, part and what it achieved


@dataclass(frozen=True)
class SequenceProtocol:
    """What is asked, of which sequences, and how the heads are trained and judged.

    Pairs of windows are drawn as `heads` says of pairs of views, from one sequence of each object.
    """

    name: str = f"{PROTOCOLS}v1"
    questions: tuple[Question, ...] = QUESTIONS
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # numbers M of aggregated views
    leakage_lengths: tuple[int, ...] = (1, 3)  # M of each window
    views: int = 20  # of a sequence; more than the longest aggregate needs, so that there are many pairs of windows
    sequences_per_object: int = 4
    sequences_seed: int = 0
    heads: ProbeProtocol = field(default_factory=ProbeProtocol)

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
    """Records of all questions, and sentences on numbers that are missing or incomplete."""

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
    """Asks the questions of the protocol; lengths for which the sequences are too short are left out with a note.

    ValueError if the two sets of sequences don't belong together or to the model, or an object has no label.

    Args:
        model: a module on `device`; its state and modes are left untouched.
        train, test: sequences of different objects.
        seed: of the heads' initialisation and training.
    """
    if (train.length, train.action_names) != (test.length, test.action_names):
        raise ValueError(
            f"training sequences have {train.length} views and actions {train.action_names}, evaluated ones "
            f"{test.length} and {test.action_names}: make both alike"
        )
    for unlabelled in (int((sequences.labels < 0).sum()) for sequences in (train, test)):
        if unlabelled:
            raise ValueError(f"{unlabelled} sequences have no label: probe labelled images only")
    notes = _notes_on_what_is_left_out(protocol, train)
    results: dict[str, dict[str, TaskResult]] = {}
    for task, part, result in _Probing(model, train.to(device), test.to(device), num_classes, protocol, seed).answers():
        results.setdefault(part, {})[task] = result
        notes += [f"{task}, part {part}: {note}" for note in result.notes]
    records = records_of(
        results, None, split=split_name, protocol=protocol.name, seed=seed, num_objects=test.num_objects
    )
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

    @functools.cached_property
    def one_per_object(self) -> tuple[FeatureSequences, FeatureSequences]:
        """Of both sets: pairs of windows are drawn from these."""
        return self.train.one_per_object(), self.test.one_per_object()

    def answers(self) -> Iterator[Answer]:
        """What each question asks.

        - classification: the object's class from the aggregate of a sequence's first M views, by a head of its own for
          every M, beside the class from the encoder's features of the first view.
        - pair_action: the action between two views from the encoder's features of both, as the paper probes it.
        - leakage: what the aggregate should leave to the encoder. A sequence is cut into windows of M views, and the
          aggregates of two windows are asked for the action from the last view of the one to the last of the other, of
          which neither was told, beside the encoder's features of these two views. The paper doesn't say between which
          views it asks for the action; this definition is ours.
        - path_integration: see `_paths`.
        """
        questions = self.protocol.questions
        if "classification" in questions:
            yield self._class_from("all@1", [sequences.features[:, 0] for sequences in (self.train, self.test)])
        if "pair_action" in questions:
            features = [sequences.features for sequences in self.one_per_object]
            yield from self._actions_of_pairs("pair", {"all": features}, list(range(self.train.length)))
        for length in range(1, self.train.length + 1):
            asked = [
                question
                for question in questions
                if 0 < self.protocol.views_needed(question).get(length, 0) <= self.train.length
            ]
            # Classes and paths share their aggregates, which are large.
            if "classification" in asked or "path_integration" in asked:
                both = [aggregates[:, 0] for aggregates in aggregate_views(self.model, [self.train, self.test], length)]
                if "classification" in asked:
                    yield self._class_from(f"agg@{length}", both)
                if "path_integration" in asked:
                    yield from self._paths(length, *both)
            if "leakage" in asked:
                last_views = list(range(length - 1, self.train.length, length))
                sources = {
                    f"all@{length}": [sequences.features[:, last_views] for sequences in self.one_per_object],
                    f"agg@{length}": aggregate_views(self.model, self.one_per_object, length, windows=len(last_views)),
                }
                yield from self._actions_of_pairs("leakage", sources, last_views)

    def _ask(self, train: FeatureCache, test: FeatureCache) -> Ask:
        # Equally many pairs of each object, however few that makes.
        heads = replace(self.protocol.heads, evaluation_least_pairs=0)
        return Ask(train, test, self.num_classes, heads, self.seed)

    def _class_from(self, part: str, features: list[Tensor]) -> Answer:
        """The class from one row of features `[N, D]` per sequence of both sets."""
        caches = [
            cache_of_windows(sequences, of_sequences[:, None], sequences.actions[:, :1, :1])
            for sequences, of_sequences in zip((self.train, self.test), features, strict=True)
        ]
        result = classify_views(self._ask(*caches))
        # What is an object to the task is a sequence here, and several of one object are not independent of each other.
        return "classification", part, replace(result, object_scores=None, num_objects=None)

    def _actions_of_pairs(
        self, question: str, sources: dict[str, list[Tensor]], last_views: list[int]
    ) -> Iterator[Answer]:
        """Parts of the action between two windows' last views, from both sets' features `[N, K, D]` of K windows."""
        actions = [sequences.actions[:, last_views][:, :, last_views] for sequences in self.one_per_object]
        asks = {
            part: self._ask(*map(cache_of_windows, self.one_per_object, features, actions))
            for part, features in sources.items()
        }
        for target in action_targets(self.train):
            for part, ask in asks.items():
                seen = {part: feature_matrix(ask.test)}
                results = read_action(target, "pairs", ask, self.one_per_object[0].objects, seen)
                yield f"{question}_{target.name}", part, results[part]

    def _paths(self, length: int, train: Tensor, test: Tensor) -> Iterator[Answer]:
        """The action from view 1 to view M + 1, from the aggregates `[N, W]` of M = `length` views and the last step.

        For M = 1, the last step is the answer. "oracle" composes the exact actions of all steps; "no images"
        aggregates zeros for features, "no actions" zeros for every action. It is asked of actions that compose: those
        of latents but hues (translations of rigid motions are given the last step's rotation, too), and positions.
        """
        targets = [target for target in action_targets(self.train) if target.compose is not None]
        if not targets:
            return
        [no_images] = aggregate_views(self.model, [self.test], length, without_images=True)
        [no_actions] = aggregate_views(self.model, [self.test], length, without_actions=True)
        for target in targets:
            train_step, step = [
                target.steps_of(sequences.actions[:, length - 1, length]) for sequences in (self.train, self.test)
            ]
            # The head has learnt from intact inputs, so a loss shows what it relies on.
            seen = {
                f"agg@{length}": torch.cat([test, step], dim=1),
                f"agg@{length} no images": torch.cat([no_images[:, 0], step], dim=1),
                f"agg@{length} no actions": torch.cat([no_actions[:, 0], torch.zeros_like(step)], dim=1),
            }
            caches = [
                cache_of_windows(sequences, features[:, None], sequences.actions[:, :1, length : length + 1])
                for sequences, features in (
                    (self.train, torch.cat([train, train_step], dim=1)), (self.test, seen[f"agg@{length}"]),
                )
            ]  # fmt: skip
            results = read_action(target, "views", self._ask(*caches), self.train.objects, seen)
            composed, truth = target.composed(self.test.steps(0, length)), target.of(self.test.actions[:, 0, length])
            results[f"oracle@{length}"] = judge(target, composed, truth)
            for part, result in results.items():
                yield f"path_{target.name}", part, result


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
