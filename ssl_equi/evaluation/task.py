"""Tasks: what frozen features are asked, by name, and what an answer holds.

A task is a function of an `Ask` that returns a `TaskResult`, registered by `@task`. A file in `evaluation/tasks` that
holds one is all that a new task takes: tables, reports and comparisons show whatever is registered.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.bootstrap import ObjectStatistic
from ssl_equi.evaluation.features import FeatureCache, FeatureStore, FrozenEncoder, ImageChange, OnProgress
from ssl_equi.evaluation.heads import HeadPlan, HeadRequest, Samples, predict, train_heads
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.samples import (
    SampleKind,
    TargetsOf,
    TaskSkipped,
    evaluated_rows,
    feature_matrix,
    require_varied,
    require_views,
    samples_of,
    training_rows,
)
from ssl_equi.export.predictor import TrainedPredictor
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.schema import Latent, LatentSchema

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class TaskResult:
    """What one part of the features achieved.

    Attributes:
        metrics: value by metric name.
        baselines: the best answer without an image, by metric name.
        num_samples: evaluated views or pairs.
        angle_errors_deg: tasks of rotations and other angles only, error of each pair or view `[num_samples]`.
        constant_angle_errors_deg: the same for the constant answer.
        per_class_recall: classification tasks only, `[C]`, NaN for a class without test objects.
        object_scores: of metrics that are means over samples, the mean of each evaluated object `[n_objects]`, NaN for
            an object without samples; objects are the independent units of a standard error.
        statistics: of metrics that are no such means, how they follow from the evaluated objects, for an interval.
        singular_values: collapse task only, of the matrix of features, largest first.
        retrieval_ranks: retrieval only, rank of the view that each query means, from 1.
        notes: sentences on metrics that are missing.
        split: evaluated split, where it isn't the one that is judged.
        num_objects: evaluated objects, where they aren't all of that split.
        details: numbers beside the metrics that are no scores: strengths that training objects chose, and the like.
        arrays: what the report draws besides, by kind.
    """

    metrics: dict[str, float]
    baselines: dict[str, Baseline]
    num_samples: int
    angle_errors_deg: np.ndarray | None = None
    constant_angle_errors_deg: np.ndarray | None = None
    per_class_recall: np.ndarray | None = None
    object_scores: dict[str, np.ndarray] | None = None
    statistics: dict[str, ObjectStatistic] | None = None
    singular_values: np.ndarray | None = None
    details: dict[str, float] | None = None
    retrieval_ranks: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    split: str | None = None
    num_objects: int | None = None
    arrays: dict[str, np.ndarray] | None = None

    def without_undefined(self) -> "TaskResult":
        """The result without metrics that are NaN or infinite, or whose baseline is; a note names each of them."""
        undefined = {
            metric: f"{metric} is {value} and its baseline {self.baselines[metric].value}, so it is left out"
            for metric, value in self.metrics.items()
            if not (math.isfinite(value) and math.isfinite(self.baselines[metric].value))
        }
        if not undefined:
            return self
        metrics = {metric: value for metric, value in self.metrics.items() if metric not in undefined}
        return replace(self, metrics=metrics, notes=(*self.notes, *undefined.values()))


def object_means(scores: Tensor, object_indices: Tensor, num_objects: int) -> np.ndarray:
    """Mean score `[num_objects]` float64 of each object's samples, from `[n]` and `[n]`; NaN without samples."""
    objects = object_indices.cpu().numpy()
    sums = np.bincount(objects, weights=scores.double().cpu().numpy(), minlength=num_objects)
    counts = np.bincount(objects, minlength=num_objects)
    return np.divide(sums, counts, out=np.full(num_objects, np.nan), where=counts > 0)


class Made(dict[Hashable, Any]):
    """What tasks of one encoder share, by keys in which part and seed stand if they matter."""

    def once(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """What `make` gives, made at the first call with this key."""
        if key not in self:
            self[key] = make()
        thing: Thing = self[key]
        return thing


@dataclass(frozen=True)
class Encoding:
    """An encoder with its data: how further images become features.

    Attributes:
        encoder: on the subject's device.
        data: what heads are trained on (`probe_train`) and judged on (`evaluation`).
        store: encodes, and counts the encoder's passes.
        progress_of: of a line of text: what is told how far an encoding is.
        predictor: trained with the encoder; None if there is none.
    """

    encoder: FrozenEncoder
    data: DataSource
    store: FeatureStore
    progress_of: Callable[[str], OnProgress] = lambda label: lambda done, total: None
    predictor: TrainedPredictor | None = None


@dataclass(eq=False)
class Subject:
    """Features under evaluation.

    Attributes:
        name: of the encoder, for errors and progress.
        parts: columns of the features by name.
        train, test: features of every view of the two splits, on the CPU.
        num_classes: of the data.
        device: where heads are trained, and the encoder runs.
        encoding: how further images are encoded; None where there is nothing but features.
        beside: all subjects that answer the same tasks, this one included, which may share what they make; empty for
            one alone.
    """

    name: str
    parts: dict[str, slice]
    train: FeatureCache
    test: FeatureCache
    num_classes: int
    device: torch.device | str = "cpu"
    encoding: Encoding | None = None
    made: Made = field(default_factory=Made)
    beside: Sequence["Subject"] = ()


@dataclass(frozen=True)
class Ask:
    """What a task is given: the features of one part, and how heads are trained and judged.

    Attributes:
        train, test: what heads are trained on and judged on, of this part, on the device of the heads.
        part: its name.
        seed: of the heads.
        subject: all features; None where a task is asked of these alone.
        made: what tasks of one encoder share, whatever the part and the seed.
    """

    train: FeatureCache
    test: FeatureCache
    num_classes: int
    protocol: ProbeProtocol
    seed: int = 0
    part: str = "all"
    subject: Subject | None = None
    made: Made = field(default_factory=Made)

    @property
    def encoding(self) -> Encoding:
        """The encoder, for tasks that need further images. Raises TaskSkipped where there is none."""
        if self.subject is None or self.subject.encoding is None:
            raise TaskSkipped("there is no encoder beside the features, and the task needs images: give an encoder")
        return self.subject.encoding

    def encode(self, views: ViewCollection, change: ImageChange | None = None) -> FeatureCache:
        """All features of every view of a split, changed or as they are, on the CPU; each is encoded once."""
        encoding = self.encoding
        label = views.split if change is None else f"{views.split}, {change.label}"
        key = ("features", views.content_key, views.split, None if change is None else change.fingerprint)
        on_progress = encoding.progress_of(f"{self.whole.name}: {label}")
        return self.made.once(
            key, lambda: encoding.store.encode(encoding.encoder, views, change=change, on_progress=on_progress)
        )

    @property
    def whole(self) -> Subject:
        """All features, of which this part is one."""
        assert self.subject is not None, "a task of an encoder is asked of features alone"
        return self.subject

    def part_of(self, cache: FeatureCache) -> FeatureCache:
        """This part of all features, on the device of the heads."""
        return cache.part(self.whole.parts[self.part]).to(self.whole.device)

    def head(self, probe: "Probe") -> nn.Sequential:
        """The trained head, which takes raw features; each is trained once, whoever asks for it."""
        return self.made.once(
            probe.key(self.part, self.seed), lambda: train_heads([probe.request(self)], self.protocol)[0]
        )

    def probe(self, probe: "Probe", test: FeatureCache | None = None) -> tuple[Tensor, Samples]:
        """Predictions `[n, K]` of a trained head for the fixed samples of a split, and these samples.

        `test` is this part of other features than those that are judged. Raises TaskSkipped where they can't be asked.
        """
        probe.check(self)
        test = self.test if test is None else test
        samples = samples_of(test, evaluated_rows(test, probe.of, self.protocol), probe.targets)
        return predict(self.head(probe), feature_matrix(test), samples.rows), samples


@dataclass(frozen=True)
class Probe:
    """A head on frozen features: what it learns from which samples.

    Attributes:
        targets: of samples, `[n, K]` to regress or `[n]` classes.
        plan: the head and its training.
        require: raises TaskSkipped where the head can't be trained or judged, for other reasons than the features.
        after_epoch: what is done with the head at each epoch's end, if anything.
    """

    of: SampleKind
    targets: TargetsOf
    plan: Callable[[Ask], HeadPlan]
    require: Callable[[Ask], None] = lambda ask: None
    after_epoch: Callable[[Ask], Callable[[nn.Sequential], None] | None] = lambda ask: None

    def key(self, part: str, seed: int) -> Hashable:
        """Under which a trained head is kept in `made`."""
        return ("head", self, part, seed)

    def check(self, ask: Ask) -> None:
        """Raises TaskSkipped where the features say nothing, or pairs are asked of objects of one view."""
        self.require(ask)
        if self.of == "pairs":
            require_views(ask.train, ask.test)
        require_varied(ask.train, ask.test)

    def request(self, ask: Ask) -> HeadRequest:
        """The training of this head."""
        plan, train = self.plan(ask), ask.train
        each = plan.samples_per_object or train.num_views

        def draw(epoch: int) -> Samples:
            return samples_of(train, training_rows(train, self.of, each, ask.seed, epoch), self.targets)

        # The same for all parts, so heads of all parts share what is drawn.
        samples_of_epoch = ask.made.once(("samples", self, ask.seed), lambda: draw)
        return HeadRequest(feature_matrix(train), samples_of_epoch, plan, ask.seed, after_epoch=self.after_epoch(ask))


@dataclass(frozen=True)
class Need:
    """The latents that a task asks for: `find` gives those of a schema, none where it doesn't have all of them.

    `name` and `cure` say what they are and which data have them.
    """

    find: Callable[[LatentSchema], tuple[Latent, ...]]
    name: str
    cure: str

    def latents(self, schema: LatentSchema | None) -> tuple[Latent, ...]:
        """Those of a schema; none where it doesn't have all of them, or nothing is known about the views."""
        return () if schema is None else self.find(schema)

    def require(self, *caches: FeatureCache) -> tuple[Latent, ...]:
        """Those of the last cache. Raises TaskSkipped if one of the caches has none."""
        found: tuple[Latent, ...] = ()
        for cache in caches:
            found = self.latents(cache.schema)
            if not found:
                known = "none" if cache.schema is None else ", ".join(cache.schema.by_name)
                raise TaskSkipped(f"the views have no known {self.name} (latents: {known}): {self.cure}")
        return found


def _translation(schema: LatentSchema) -> tuple[Latent, ...]:
    """Of a rigid motion, which says that the translation is in the object's own frame."""
    of_pose = [motion for motion in schema.motions if schema.pose is not None and motion.rotation == schema.pose.name]
    return (schema.by_name[of_pose[0].translation],) if of_pose else ()


def _hues(schema: LatentSchema) -> tuple[Latent, ...]:
    found = [schema.by_name.get(name) for name in ("floor_hue", "light_hue")]
    hues = tuple(hue for hue in found if hue is not None and isinstance(hue.kind, Angle))
    whole_circles = all(isinstance(hue.kind, Angle) and math.isclose(hue.kind.full_period, 1) for hue in hues)
    return hues if len(hues) == len(found) and whole_circles else ()


def _light(schema: LatentSchema) -> tuple[Latent, ...]:
    light = schema.by_name.get("light")
    return (light,) if light is not None and isinstance(light.kind, Direction) else ()


POSE = Need(
    lambda schema: () if schema.pose is None else (schema.pose,),
    "rotations",
    "use views whose latents include one rotation, such as those of 3diebench-p",
)
TRANSLATION = Need(
    _translation,
    "translations in the object's frame",
    "use a data set whose objects move (3diebench-t or 3diebench-pt)",
)
HUES = Need(_hues, "floor_hue and light_hue in turns", "use a data set of rendered views with latents")
LIGHT = Need(_light, "direction 'light'", "use a data set of rendered views with latents")

Group = Literal[
    "features", "latents", "distributions", "predictor", "robustness", "images", "transfer", "augmentations"
]
# Tasks of one place are asked in the order in which they are named, those that need more passes behind the others.
PLACE: dict[Group, int] = {
    "features": 0, "latents": 0, "distributions": 0, "predictor": 1, "robustness": 2, "images": 2, "transfer": 3,
    "augmentations": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A task by name.

    Attributes:
        answer: raises TaskSkipped where these data or features can't be asked.
        needs: the latents that it is about; None: it needs none.
        probes: heads that it trains, so that those of all parts and seeds can be trained together.
        group: with which others a name in `--tasks` stands for it. "features" need those of the two splits only,
            "latents" are of one latent of the data; "predictor" are of the predictor beside the encoder: asked of all
            features, and not of the random encoder. All others need further images, or learn long ("distributions"),
            and are asked when they are named.
        once: nothing is drawn or trained, so it is asked with the first seed only.
    """

    name: str
    answer: Callable[[Ask], TaskResult]
    needs: Need | None = None
    probes: tuple[Probe, ...] = ()
    group: Group = "features"
    once: bool = False

    def __call__(self, ask: Ask) -> TaskResult:
        """The answer. Raises TaskSkipped where the data lack the latents, or the features can't be asked."""
        if self.needs is not None:
            self.needs.require(ask.train, ask.test)
        return self.answer(ask).without_undefined()


TASKS: dict[str, Task] = {}


def task(
    name: str,
    *,
    needs: Need | None = None,
    probes: Sequence[Probe] = (),
    group: Group = "features",
    once: bool = False,
) -> Callable[[Callable[[Ask], TaskResult]], Callable[[Ask], TaskResult]]:
    """Registers a function as a task; see `Task`. Raises ValueError for a name that there is."""

    def register(answer: Callable[[Ask], TaskResult]) -> Callable[[Ask], TaskResult]:
        if name in TASKS:
            raise ValueError(f"there are two tasks {name!r}: choose another name")
        TASKS[name] = Task(name, answer, needs, tuple(probes), group, once)
        return answer

    return register
