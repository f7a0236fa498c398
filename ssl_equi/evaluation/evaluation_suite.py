"""One encoder through a whole protocol: every split encoded once, then all tasks on all parts with several seeds.

What can't be asked of the data or of a part becomes a note; the encoder's state is hashed before and after every task.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from torch import nn

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.feature_store import FeatureStore, counted_images
from ssl_equi.evaluation.features import FeatureCache, state_sha256
from ssl_equi.evaluation.image_context import ImageContext, ImageQuestion
from ssl_equi.evaluation.image_questions import IMAGE_QUESTIONS, ROBUSTNESS, ask_questions, spelled_out
from ssl_equi.evaluation.known_tasks import Task, known_tasks, latent_tasks, tasks_about
from ssl_equi.evaluation.predictors.tasks import PREDICTOR_TASKS, predictor_tasks
from ssl_equi.evaluation.predictors.two_views import PART
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, ProbeProtocol
from ssl_equi.evaluation.records import ProbeRecord
from ssl_equi.evaluation.skipping import noted_if_unanswered
from ssl_equi.evaluation.suite import (
    PartResults,
    ProbeResults,
    ask_tasks,
    check_splits,
    make_records,
    with_notes_of_random,
)
from ssl_equi.evaluation.task_results import without_undefined
from ssl_equi.evaluation.tasks.augmentation_equivariance import probe_augmentation_equivariance
from ssl_equi.evaluation.tasks.latents import ABSOLUTE, RELATIVE
from ssl_equi.latents.actions import warning_of_signs
from ssl_equi.latents.schema import LatentSchema

PROGRESS_EVERY_SECONDS = 20.0
QUATERNION_TASKS = ("relative_rotation", "absolute_rotation", *PREDICTOR_TASKS)
Say = Callable[[str], None]


@dataclass(frozen=True)
class SuiteResults:
    """What the suite found.

    Attributes:
        records: of every seed, task, part and metric.
        notes: a sentence for each answer that is missing or needs a remark.
        first_seed: all that the report draws, of the first seed.
        arrays: of the first seed, as in `ssl_equi.evaluation.evaluation_folder`.
        encoder_passes: images that went through the encoder; those of the random encoder are not among them.
    """

    records: list[ProbeRecord]
    notes: tuple[str, ...]
    first_seed: ProbeResults
    arrays: dict[str, np.ndarray]
    encoder_passes: int


@dataclass(frozen=True)
class Suite:
    """How an encoder is evaluated.

    Attributes:
        protocol: how heads are trained and judged.
        tasks: names of `ssl_equi.evaluation.known_tasks.known_tasks`, augmentation_equivariance, of `further_tasks`, or
            of `ssl_equi.evaluation.image_questions.IMAGE_QUESTIONS`; robustness stands for four of these, latents for
            the tasks of the data's own latents, transfer for `further_questions`, and all for everything. None: the
            protocol's, those of the data's own latents, and `further_tasks`.
        parts: names of parts; none: all that the encoder has.
        seeds: of the heads; every record keeps its own.
        further_tasks: other tasks of the encoder, in which nothing is drawn: asked once, with the first seed, and not
            of the random encoder.
        further_questions: questions of images that are asked whatever `tasks` says, such as transfer to other data.
        device: where the encoder and the heads run.
        batch_size: images in one forward pass.
        say: is told what is going on, line by line.
        show: is told of every task, for a line that is written over.
    """

    protocol: ProbeProtocol
    tasks: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    further_tasks: Mapping[str, Task] | None = None
    further_questions: Mapping[str, ImageQuestion] | None = None
    device: torch.device | str = "cpu"
    batch_size: int = 512
    say: Say = print
    show: Say = lambda line: None

    def evaluate(
        self,
        source: EncoderSource,
        data: DataSource,
        store: FeatureStore,
        *,
        compare_with_random: bool = True,
        bad_train_records: BadRecords | None = None,
    ) -> SuiteResults:
        """Puts an encoder through the suite; see the module.

        Args:
            bad_train_records: what is done with training objects that can't be read; they raise when it is None.
                Objects that are judged always do.

        Raises:
            DataError: an image can't be read.
            UserError: there is no such task or part, or features are not finite.
            ValueError: the splits don't belong together, or an object has no label.
            RuntimeError: the encoder's state changed.
        """
        parts = self.parts_of(source)
        check_splits(parts, data.probe_train, data.evaluation, data.evaluation.split)
        names = self.task_names(source, data.evaluation.schema)
        passes_before = store.encoder_passes
        outcome = self._probe(source.module, source.name, source, parts, names, data, store, bad_train_records)
        encoder_passes = store.encoder_passes - passes_before
        random_module = source.untrained() if compare_with_random else None
        random_outcome = None
        if random_module is not None:
            random_name = f"random {source.name}"
            random_outcome = self._probe(
                random_module, random_name, source, parts, names, data, store, bad_train_records
            )
        return self._collect(source, data, names, parts, outcome, random_outcome, encoder_passes)

    def parts_of(self, source: EncoderSource) -> dict[str, slice]:
        """The parts that are asked. Raises UserError for one that the encoder doesn't have."""
        unknown = [part for part in self.parts if part not in source.parts]
        if unknown:
            raise UserError(f"{source.name} has no part {unknown[0]!r}: choose from {', '.join(source.parts)}")
        return {part: source.parts[part] for part in self.parts or source.parts}

    def further_tasks_of(self, source: EncoderSource) -> dict[str, Task]:
        """Those that are asked of this encoder besides, of all its features: about the predictor that its run left."""
        own = {} if source.predictor is None else predictor_tasks(source.predictor)
        return own | dict(self.further_tasks or {})

    def task_names(self, source: EncoderSource, schema: LatentSchema | None) -> tuple[str, ...]:
        """The tasks that are asked of data with these latents. Raises UserError for one that there is not."""
        further, further_questions = self.further_tasks_of(source), tuple(self.further_questions or {})
        own = tuple(latent_tasks(schema))
        everything = (*known_tasks(schema), AUGMENTATION_EQUIVARIANCE, *further, *IMAGE_QUESTIONS, *further_questions)
        groups = {"robustness": ROBUSTNESS, "latents": own, "transfer": further_questions, "all": everything}
        known = [*everything, *groups]
        if "transfer" in self.tasks and not further_questions:
            raise UserError("task 'transfer' is asked without a data set: give --transfer DATASET:DIR")
        names = spelled_out(self.tasks or (*self.protocol.tasks, *own, *further), groups)
        for name in names:
            if name not in everything:
                close = get_close_matches(name, known, n=3)
                if name in PREDICTOR_TASKS:
                    raise UserError(f"{source.name} has no predictor beside it to ask for {name}: give a run that has")
                hint = f"did you mean {' or '.join(close)}" if close else f"choose from {', '.join(known)}"
                if name.startswith((RELATIVE, ABSOLUTE)):
                    offered = [task for task in tasks_about(schema) if task.startswith((RELATIVE, ABSOLUTE))]
                    hint = f"of these data's latents, choose from {', '.join(offered) or 'none'}"
                raise UserError(f"there is no task {name!r}: {hint}")
        return names

    def _probe(
        self,
        module: nn.Module,
        name: str,
        source: EncoderSource,
        parts: dict[str, slice],
        names: Sequence[str],
        data: DataSource,
        store: FeatureStore,
        bad_train_records: BadRecords | None,
    ) -> "_Outcome":
        """Everything about one module, the encoder or its random counterpart."""
        started = time.perf_counter()
        module = module.to(self.device)
        mean_rgb, std_rgb = source.mean_rgb or data.mean_rgb, source.std_rgb or data.std_rgb
        state = state_sha256(module)
        train, test = (
            store.encode(
                module, split, mean_rgb, std_rgb, name=name, architecture=source.architecture, encoder_sha256=state,
                device=self.device, batch_size=self.batch_size, bad_records=bad_records,
                on_progress=self._progress(f"{name}: {split.split}"),
            )
            for split, bad_records in ((data.probe_train, bad_train_records), (data.evaluation, None))
        )  # fmt: skip
        augmented: PartResults = {}
        notes: list[str] = []
        left_out = data.probe_train.num_objects - train.num_objects
        if left_out:
            notes.append(
                f"the heads were trained without {left_out} of {data.probe_train.num_objects} objects, which can't be "
                "read"
            )
        if AUGMENTATION_EQUIVARIANCE in names:
            self.say(f"{name}: {AUGMENTATION_EQUIVARIANCE}")
            with counted_images(module) as images, noted_if_unanswered(AUGMENTATION_EQUIVARIANCE, notes):
                measured = probe_augmentation_equivariance(
                    module, parts, data.evaluation, mean_rgb, std_rgb, self.protocol.augmentation_equivariance,
                    self.device, self.batch_size,
                )  # fmt: skip
                augmented = {
                    part: {AUGMENTATION_EQUIVARIANCE: without_undefined(result)}
                    for part, result in measured.results.items()
                }
                notes += [f"{AUGMENTATION_EQUIVARIANCE}: {note}" for note in measured.notes]
            store.encoder_passes += images[0]
        encoded = time.perf_counter()
        by_seed: dict[int, PartResults] = {}
        known = known_tasks(test.schema)
        tasks = {name: known[name] for name in names if name in known}
        num_classes = len(data.evaluation.class_names)
        for seed in self.seeds:
            self.say(f"{name}: {len(tasks)} tasks on {', '.join(parts)}, seed {seed}")
            by_seed[seed], skipped = ask_tasks(
                train, test, parts, tasks, num_classes, self.protocol, self.device, seed,
                unchanged=module, before_task=self._announce(name),
            )  # fmt: skip
            notes += [note for note in skipped if note not in notes]
        if module is source.module:
            answers, skipped = self._ask_further(source, names, train, test, num_classes)
            for part, answers_of_part in answers.items():
                by_seed[self.seeds[0]].setdefault(part, {}).update(answers_of_part)
            notes += skipped
        context = ImageContext(
            module, name, source.architecture, state, parts, mean_rgb, std_rgb, data, train, test, store, self.protocol,
            self.device, self.batch_size, self._progress,
        )  # fmt: skip
        notes += self._ask_questions(context, names, by_seed)
        for part, result in augmented.items():  # nothing is trained: one seed is all there is
            by_seed[self.seeds[0]][part] |= result
        return _Outcome(by_seed, train, test, tuple(notes), encoded - started, time.perf_counter() - encoded)

    def _ask_further(
        self, source: EncoderSource, names: Sequence[str], train: FeatureCache, test: FeatureCache, num_classes: int
    ) -> tuple[PartResults, list[str]]:
        """What is asked once, and of all features, whichever parts the other tasks are asked of."""
        tasks = {name: task for name, task in self.further_tasks_of(source).items() if name in names}
        return ask_tasks(
            train, test, {PART: slice(0, train.features.shape[-1])} if tasks else {}, tasks, num_classes, self.protocol,
            self.device, self.seeds[0], unchanged=source.module, before_task=self._announce(source.name),
        )  # fmt: skip

    def _ask_questions(self, context: ImageContext, names: Sequence[str], by_seed: dict[int, PartResults]) -> list[str]:
        """Adds what is asked of images to every seed's results; returns notes."""
        questions = {name: IMAGE_QUESTIONS[name] for name in names if name in IMAGE_QUESTIONS}
        questions |= self.further_questions or {}
        notes: list[str] = []
        for seed in self.seeds if questions else ():
            self.say(f"{context.name}: {len(questions)} questions of images, seed {seed}")
            answers, skipped = ask_questions(context, questions, seed, self._announce(context.name))
            for part, answers_of_part in answers.items():
                by_seed[seed][part] |= answers_of_part
            notes += [note for note in skipped if note not in notes]
        return notes

    def _announce(self, name: str) -> Callable[[str, str], None]:
        def announce(task: str, part: str) -> None:
            self.show(f"{name}: {task}, part {part}")

        return announce

    def _progress(self, label: str) -> Callable[[int, int], None]:
        """Says how far encoding is, and how fast; silent where features are found."""
        started = time.perf_counter()
        last = started

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if done == total or now - last >= PROGRESS_EVERY_SECONDS:
                self.say(f"{label}: encoded {done:,} of {total:,} views, {done / (now - started):,.0f} images/s")
                last = now

        return report

    def _collect(
        self,
        source: EncoderSource,
        data: DataSource,
        names: Sequence[str],
        parts: dict[str, slice],
        outcome: "_Outcome",
        random_outcome: "_Outcome | None",
        encoder_passes: int,
    ) -> SuiteResults:
        notes = (*source.notes, *data.notes, *notes_on_poses(data, names), *outcome.notes)
        if random_outcome is not None:
            notes = with_notes_of_random(notes, random_outcome.notes)
        split = data.evaluation.split
        by_seed = {
            seed: make_records(
                results,
                None if random_outcome is None else random_outcome.by_seed[seed],
                outcome.test.num_objects,
                split,
                self.protocol,
                seed,
            )
            for seed, results in outcome.by_seed.items()
        }
        seconds = [outcome] if random_outcome is None else [outcome, random_outcome]
        first = self.seeds[0]
        first_seed = ProbeResults(
            records=by_seed[first],
            parts=parts,
            results=outcome.by_seed[first],
            random_results=None if random_outcome is None else random_outcome.by_seed[first],
            train_features=outcome.train,
            test_features=outcome.test,
            class_names=tuple(data.evaluation.class_names),
            protocol=self.protocol,
            seconds={
                "encode": sum(each.encode_seconds for each in seconds),
                "heads": sum(each.head_seconds for each in seconds),
            },
            notes=notes,
        )
        records = [record for found in by_seed.values() for record in found]
        return SuiteResults(records, notes, first_seed, arrays_of(outcome.by_seed[first]), encoder_passes)


@dataclass(frozen=True)
class _Outcome:
    """What one module answered, by seed."""

    by_seed: dict[int, PartResults]
    train: FeatureCache
    test: FeatureCache
    notes: tuple[str, ...]
    encode_seconds: float
    head_seconds: float


def notes_on_poses(data: DataSource, names: Sequence[str]) -> tuple[str, ...]:
    """A sentence if quaternions are asked for and the poses let them jump: of the training split, or the judged one."""
    if not any(name.endswith(QUATERNION_TASKS) for name in names):
        return ()
    found = (
        warning_of_signs(views.split, views.schema, views.latents) for views in (data.probe_train, data.evaluation)
    )
    return tuple(note for note in found if note is not None)[:1]


def arrays_of(results: PartResults) -> dict[str, np.ndarray]:
    """What results hold besides numbers, by `KIND/TASK/PART`; the kind of objects' scores is `object_scores.METRIC`."""
    arrays: dict[str, np.ndarray] = {}
    for part, tasks in results.items():
        for task, result in tasks.items():
            found = {
                "angle_errors_deg": result.angle_errors_deg,
                "constant_angle_errors_deg": result.constant_angle_errors_deg,
                "per_class_recall": result.per_class_recall,
                "singular_values": result.singular_values,
                "retrieval_ranks": result.retrieval_ranks,
            } | {f"object_scores.{metric}": scores for metric, scores in (result.object_scores or {}).items()}
            arrays |= {f"{kind}/{task}/{part}": array for kind, array in found.items() if array is not None}
    return arrays
