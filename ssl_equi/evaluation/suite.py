"""One encoder through tasks: every split encoded once, then all tasks on all parts with several seeds.

What can't be asked of the data or of a part becomes a note; the encoder's state is hashed after every task.
"""

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
import torch
from torch import nn

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.errors import UserError, described
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.features import FeatureCache, FeatureStore, FrozenEncoder
from ssl_equi.evaluation.heads import train_heads
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord, arrays_of_result, records_of
from ssl_equi.evaluation.samples import TaskSkipped, require_varied
from ssl_equi.evaluation.task import PLACE, TASKS, Ask, Encoding, Subject, Task, TaskResult
from ssl_equi.evaluation.tasks.latents import ABSOLUTE, RELATIVE, tasks_of_latent
from ssl_equi.evaluation.tasks.pose import RELATIVE_ROTATION
from ssl_equi.export.predictor import TrainedPredictor
from ssl_equi.latents.actions import warning_of_signs
from ssl_equi.latents.schema import LatentSchema
from ssl_equi.runtime.frozen import state_sha256
from ssl_equi.runtime.progress import LiveProgress

# Whose numbers rest on quaternions, which have two signs.
QUATERNION_TASKS = ("relative_rotation", "absolute_rotation", "retrieval", "predictor_consistency")
Say = Callable[[str], None]
PartResults = dict[str, dict[str, TaskResult]]  # by part, then task


@dataclass(frozen=True)
class Evaluation:
    """What an encoder achieved.

    Attributes:
        records: of every seed, task, part and metric.
        notes: a sentence for each number that is missing or needs a remark.
        warnings: those of the notes without which no number should be read.
        parts: the asked slices of the feature columns.
        results: of the first seed by part and task: all that the report draws.
        random_results: the same of the random encoder; None if there was none.
        rotation_heads: of the task relative_rotation, first seed, by part, on the CPU: features of two views side by
            side `[N, 2 D]` to quaternions `[N, 4]`.
        train_features: every view of the split that the heads were trained on, encoded.
        test_features: the same of the evaluated split.
        class_names: of the data set.
        protocol: how heads were trained and judged.
        seconds: spent in "encode" and "heads" (all that tasks do), both encoders together.
        encoder_passes: images that went through the encoder; those of the random encoder are not among them.
    """

    records: list[ProbeRecord]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    parts: dict[str, slice]
    results: PartResults
    random_results: PartResults | None
    rotation_heads: dict[str, nn.Module]
    train_features: FeatureCache
    test_features: FeatureCache
    class_names: tuple[str, ...]
    protocol: ProbeProtocol
    seconds: dict[str, float]
    encoder_passes: int

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What results hold besides numbers, by the keys of `arrays.npz`."""
        arrays: dict[str, np.ndarray] = {}
        for part, tasks in self.results.items():
            for task, result in tasks.items():
                arrays |= arrays_of_result(task, part, result)
        return arrays


def evaluate(
    source: EncoderSource,
    data: DataSource,
    protocol: ProbeProtocol,
    *,
    tasks: Sequence[str] = (),
    parts: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    further: Sequence[Task] = (),
    store: FeatureStore | None = None,
    compare_with_random: bool = True,
    bad_train_records: BadRecords | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    say: Say = lambda line: None,
    progress: LiveProgress | None = None,
) -> Evaluation:
    """Puts an encoder through tasks; see the module.

    Args:
        tasks: names of tasks or of groups of them; see `asked_tasks`.
        parts: names of parts; none: all that the encoder has.
        seeds: of the heads; every record keeps its own.
        further: tasks that are asked whatever `tasks` says, such as transfer to other data.
        bad_train_records: what is done with training objects that can't be read; they raise when it is None. Objects
            that are judged always do.
        say: receives what was encoded and what is asked, a line each.
        progress: shows how far encoding is, and the tasks; silent when None.
    """
    unknown = [part for part in parts if part not in source.parts]
    if unknown:
        raise UserError(f"{source.name} has no part {unknown[0]!r}: choose from {', '.join(source.parts)}")
    chosen = {part: source.parts[part] for part in parts or source.parts}
    check_splits(chosen, data.probe_train, data.evaluation)
    asked = asked_tasks(source.name, source.predictor, data.evaluation.schema, protocol, tasks, further)
    store, progress = store or FeatureStore(None), progress or LiveProgress(enabled=False)
    passes_before, started = store.encoder_passes, time.perf_counter()
    modules = {source.name: source.module}
    random = source.untrained() if compare_with_random else None
    if random is not None:
        modules[f"random {source.name}"] = random
    subjects = [
        _encoded(module, name, source, chosen, data, store, bad_train_records, device, batch_size, say, progress)
        for name, module in modules.items()
    ]
    for subject in subjects:
        subject.beside = subjects
    encoded = time.perf_counter()
    say(f"{source.name}: {len(asked)} tasks on {', '.join(chosen)}, seeds {', '.join(str(seed) for seed in seeds)}")
    own, *others = _ask(asked, subjects, seeds, protocol, progress)
    notes = [*source.notes, *data.notes, *notes_on_poses(data, [task.name for task in asked]), *own.all_notes()]
    for other in others:
        notes += [f"random encoder, {note}" for note in other.all_notes() if note not in notes]
    of_random = others[0].by_seed if others else dict.fromkeys(seeds)
    split, num_objects, first = data.evaluation.split, subjects[0].test.num_objects, seeds[0]
    records: list[ProbeRecord] = []
    for seed in seeds:
        records += records_of(
            own.by_seed[seed], of_random[seed], split=split, protocol=protocol, seed=seed, num_objects=num_objects
        )
    rotation_heads = {
        part: subjects[0].made[RELATIVE_ROTATION.key(part, first)].cpu()
        for part, results in own.by_seed[first].items()
        if "relative_rotation" in results
    }
    return Evaluation(
        records, tuple(notes), own.warnings(), chosen, own.by_seed[first], of_random[first], rotation_heads,
        subjects[0].train, subjects[0].test,
        tuple(data.evaluation.class_names), protocol,
        {"encode": encoded - started, "heads": time.perf_counter() - encoded}, store.encoder_passes - passes_before,
    )  # fmt: skip


def ask_features(
    train: FeatureCache,
    test: FeatureCache,
    parts: dict[str, slice],
    tasks: Sequence[str],
    num_classes: int,
    protocol: ProbeProtocol,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[PartResults, list[str]]:
    """Tasks on parts of cached features, without any encoder.

    Returns:
        Results by part and task, and a sentence for each answer that is missing: "TASK, part PART: why", or one for
        all tasks that can't be asked of a part whose features are the same in every view.
    """
    known = TASKS | own_latent_tasks(test.schema)
    subject = Subject("features", parts, train, test, num_classes, device)
    (answers,) = _ask([known[name] for name in tasks], [subject], (seed,), protocol, LiveProgress(enabled=False))
    return answers.by_seed[seed], answers.all_notes()


def own_latent_tasks(schema: LatentSchema | None) -> dict[str, Task]:
    """The tasks of latents that no registered task is about, by name: none of 3DIEBench and 3DIEBench-T."""
    if schema is None:
        return {}
    needs = {task.needs for task in TASKS.values() if task.needs is not None}
    covered = {latent.name for need in needs for latent in need.latents(schema)}
    uncovered = [latent for latent in schema.latents if latent.name not in covered]
    return {name: task for latent in uncovered for name, task in tasks_of_latent(latent).items()}


def tasks_for(views: FeatureCache | ViewCollection, names: Sequence[str] = CORE_TASKS) -> tuple[str, ...]:
    """Those of the named tasks whose latents a split has, and those of its latents that no task is about."""
    features = [task.name for task in TASKS.values() if task.group == "features"]
    spelled_out = [member for name in names for member in (features if name == "features" else [name])]
    having = [name for name in spelled_out if name not in TASKS or _has_latents(TASKS[name], views.schema)]
    return tuple(dict.fromkeys((*having, *own_latent_tasks(views.schema))))


def _has_latents(task: Task, schema: LatentSchema | None) -> bool:
    return task.needs is None or bool(task.needs.latents(schema))


def asked_tasks(
    encoder: str,
    predictor: TrainedPredictor | None,
    schema: LatentSchema | None,
    protocol: ProbeProtocol,
    names: Sequence[str] = (),
    further: Sequence[Task] = (),
) -> list[Task]:
    """The tasks that are asked of data with these latents, in the order in which they are asked.

    Args:
        encoder: its name.
        predictor: the one beside it.
        names: of tasks, or of groups of them (see `ssl_equi.evaluation.task.Group`), or `all`. None: the protocol's,
            those of the data's own latents, and those of the predictor beside the encoder.
        further: tasks that are asked besides.
    """
    own = own_latent_tasks(schema)
    known = {name: task for name, task in TASKS.items() if task.group != "predictor" or predictor is not None}
    known |= own | {task.name: task for task in further}
    groups: dict[str, list[str]] = {"all": list(known)}
    for group in PLACE:
        groups[group] = [name for name, task in known.items() if task.group == group]
    if "transfer" in names and not further:
        raise UserError("task 'transfer' is asked without a data set: give --transfer DATASET:DIR")
    chosen = names or (*protocol.tasks, *own, *groups["predictor"])
    spelled_out = dict.fromkeys(member for name in chosen for member in groups.get(name, [name]))
    for name in spelled_out:
        if name not in known:
            raise UserError(_why_unknown(name, encoder, schema, [*known, *groups]))
    asked = [known[name] for name in dict.fromkeys((*spelled_out, *(task.name for task in further)))]
    return sorted(asked, key=lambda task: PLACE[task.group])


def _why_unknown(name: str, encoder: str, schema: LatentSchema | None, known: Sequence[str]) -> str:
    if name in TASKS:
        return f"{encoder} has no predictor beside it to ask for {name}: give a run that has"
    close = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}" if close else f"choose from {', '.join(known)}"
    if name.startswith((RELATIVE, ABSOLUTE)):
        own = own_latent_tasks(schema)
        having = [task for task in TASKS.values() if _has_latents(task, schema)]
        offered = [each for each in (*(task.name for task in having), *own) if each.startswith((RELATIVE, ABSOLUTE))]
        hint = f"of these data's latents, choose from {', '.join(dict.fromkeys(offered)) or 'none'}"
    return f"there is no task {name!r}: {hint}"


def check_splits(parts: Mapping[str, slice], train: ViewCollection, test: ViewCollection) -> None:
    """Raises ValueError unless the splits are of one data set, all labelled, and there is something to probe."""
    if not parts:
        raise ValueError("parts is empty: name at least one slice of the features, such as {'all': slice(0, 512)}")
    if tuple(train.class_names) != tuple(test.class_names):
        raise ValueError(
            f"the train split has {len(train.class_names)} classes and the {test.split} split {len(test.class_names)} "
            "with other names: probe splits of one data set"
        )
    if train.schema != test.schema:
        raise ValueError(
            f"the latents of the train split are not those of the {test.split} split, in name, kind, range or order: "
            "write both splits with one schema"
        )
    for split in (train, test):
        if (split.labels < 0).any():
            raise ValueError(f"{int((split.labels < 0).sum())} objects have no label: probe labelled images only")


def _encoded(
    module: nn.Module,
    name: str,
    source: EncoderSource,
    parts: dict[str, slice],
    data: DataSource,
    store: FeatureStore,
    bad_train_records: BadRecords | None,
    device: torch.device | str,
    batch_size: int,
    say: Say,
    progress: LiveProgress,
) -> Subject:
    """The encoder, or its random counterpart, with the features of both splits."""
    encoder = FrozenEncoder(
        module.to(device), source.mean_rgb or data.mean_rgb, source.std_rgb or data.std_rgb, name, source.architecture,
        state_sha256(module), device, batch_size,
    )  # fmt: skip
    # Passes of the random encoder are not counted among those of the encoder.
    store = store if module is source.module else FeatureStore(store.folder)

    def progress_of(label: str) -> Callable[[int, int], None]:
        """Shows how far encoding is, and says how fast it was; silent where features are found."""
        started = time.perf_counter()

        def report(done: int, total: int) -> None:
            progress.show(f"encoding {label}", done, total, f"{done:,}/{total:,} views", timed=True)
            if done == total:
                speed = done / (time.perf_counter() - started)
                say(f"{label}: encoded {done:,} of {total:,} views, {speed:,.0f} images/s")

        return report

    train, test = (
        store.encode(encoder, split, bad_records=bad_records, on_progress=progress_of(f"{name}: {split.split}"))
        for split, bad_records in ((data.probe_train, bad_train_records), (data.evaluation, None))
    )
    encoding = Encoding(encoder, data, store, progress_of, source.predictor if module is source.module else None)
    return Subject(name, parts, train, test, len(data.evaluation.class_names), device, encoding)


def _ask(
    tasks: Sequence[Task],
    subjects: Sequence[Subject],
    seeds: Sequence[int],
    protocol: ProbeProtocol,
    progress: LiveProgress,
) -> list["_Answers"]:
    """All tasks on all parts of each subject with all seeds. Raises RuntimeError if one changed an encoder."""
    answers = [
        _Answers(subject, {seed: {part: {} for part in subject.parts} for seed in seeds}) for subject in subjects
    ]
    for number, task in enumerate(tasks, start=1):
        progress.show("probing", number - 1, len(tasks), f"task {number} of {len(tasks)}: {task.name}")
        asks = [_asks(task, subject, seeds, protocol) for subject in subjects]
        _train_together(task, [ask for of_subject in asks for ask in of_subject], protocol)
        for found, of_subject in zip(answers, asks, strict=True):
            for ask in of_subject:
                found.add(task, ask)
            encoding = found.subject.encoding
            if encoding is not None and state_sha256(encoding.encoder.module) != encoding.encoder.state_sha256:
                raise RuntimeError(
                    f"task {task.name!r} changed a parameter or a buffer of the encoder: a frozen encoder must stay as "
                    "it is"
                )
    return answers


def _asks(task: Task, subject: Subject, seeds: Sequence[int], protocol: ProbeProtocol) -> list[Ask]:
    """Of which parts and seeds of a subject a task is asked."""
    train, test = subject.made.once(
        "on the device", lambda: [cache.to(subject.device) for cache in (subject.train, subject.test)]
    )
    parts = subject.parts
    if task.group == "predictor":  # which reads its own columns
        has_predictor = subject.encoding is not None and subject.encoding.predictor is not None
        parts = {"all": slice(0, train.features.shape[-1])} if has_predictor else {}
    return [
        Ask(train.part(columns), test.part(columns), subject.num_classes, protocol, seed, part, subject, subject.made)
        for seed in (seeds[:1] if task.once else seeds)
        for part, columns in parts.items()
    ]


def _train_together(task: Task, asks: Sequence[Ask], protocol: ProbeProtocol) -> None:
    """Trains the heads of a task for all parts, seeds and encoders at once."""
    for probe in task.probes:
        waiting = []
        for ask in asks:
            try:
                if task.needs is not None:
                    task.needs.require(ask.train, ask.test)
                probe.check(ask)
            except TaskSkipped:
                continue  # noted when the task is asked
            if probe.key(ask.part, ask.seed) not in ask.made:
                waiting.append(ask)
        try:
            heads = train_heads([probe.request(ask) for ask in waiting], protocol)
        except Exception:
            return
        for ask, head in zip(waiting, heads, strict=True):
            ask.made[probe.key(ask.part, ask.seed)] = head


@contextmanager
def noted_if_unanswered(question: str, notes: list[str]) -> Iterator[None]:
    """Whatever a question raises becomes a note, so that it never costs the answers of the others.

    A reason to skip it is all that there is to say; anything else is a defect, and is warned of where it happened.
    """
    try:
        yield
    except TaskSkipped as reason:
        notes.append(f"{question}: {reason}")
    except Exception as error:
        note = f"{question}: not answered, because of an error ({described(error)})"
        notes.append(note)
        place = traceback.extract_tb(error.__traceback__)[-1]
        warnings.warn(f"{note} in {place.filename}, line {place.lineno}", stacklevel=3)


@dataclass
class _Answers:
    """What one encoder answered by seed, and why it didn't."""

    subject: Subject
    by_seed: dict[int, PartResults]
    notes: list[str] = field(default_factory=list)
    not_asked: dict[str, list[str]] = field(default_factory=dict)  # tasks of parts whose features don't vary

    def add(self, task: Task, ask: Ask) -> None:
        """Asks a task. Whatever it raises becomes a note, so that it never costs the numbers of others."""
        reasons: list[str] = []
        with noted_if_unanswered(f"{task.name}, part {ask.part}", reasons):
            result = task(ask)
            self.by_seed[ask.seed].setdefault(ask.part, {})[task.name] = result
            self.notes += [f"{task.name}, part {ask.part}: {note}" for note in result.notes]
        if reasons and ask.part in self.subject.parts and why_constant(self.subject, ask.part) is not None:
            self.not_asked.setdefault(ask.part, []).append(task.name)
        else:
            self.notes += reasons

    def all_notes(self) -> list[str]:
        """Notes on the features, on tasks, and one for each part whose features are the same in all views."""
        return list(dict.fromkeys([*self.on_left_out(), *self.notes, *self.on_constant_parts()]))

    def warnings(self) -> tuple[str, ...]:
        """The notes that belong beside any number: objects that heads did without, and features that don't vary."""
        return (*self.on_left_out(), *self.on_constant_parts())

    def on_left_out(self) -> list[str]:
        encoding = self.subject.encoding
        of_split = self.subject.train.num_objects if encoding is None else encoding.data.probe_train.num_objects
        left_out = of_split - self.subject.train.num_objects
        note = f"the heads were trained without {left_out} of {of_split} objects, which can't be read"
        return [note] if left_out else []

    def on_constant_parts(self) -> list[str]:
        notes = []
        for part in self.subject.parts:
            reason = why_constant(self.subject, part)
            if reason is not None:
                missing = ", ".join(dict.fromkeys(self.not_asked.get(part, []))) or "nothing"
                notes.append(f"part {part} is constant: {reason} (not asked: {missing})")
        return notes


def why_constant(subject: Subject, part: str) -> str | None:
    """A sentence if all training views have the same features; None otherwise."""

    def find() -> str | None:
        columns = subject.parts[part]
        try:
            require_varied(subject.train.part(columns), subject.test.part(columns))
        except TaskSkipped as reason:
            return str(reason)
        return None

    return subject.made.once(("why constant", part), find)


def notes_on_poses(data: DataSource, names: Sequence[str]) -> tuple[str, ...]:
    """A sentence if quaternions are asked for and the poses let them jump: of the training split, or the judged one."""
    if not any(name.endswith(QUATERNION_TASKS) for name in names):
        return ()
    found = (
        warning_of_signs(views.split, views.schema, views.latents) for views in (data.probe_train, data.evaluation)
    )
    return tuple(note for note in found if note is not None)[:1]
