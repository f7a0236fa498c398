"""The suite on encoders made by hand: ceilings, floors, empty parts, passes, and what can't be asked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.data.sources import DataSource
from ssl_equi.errors import FeatureError, UserError
from ssl_equi.evaluation import suite
from ssl_equi.evaluation.bootstrap import stored_statistic
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.features import FeatureStore
from ssl_equi.evaluation.metrics import metric_of
from ssl_equi.evaluation.protocol import (
    AUGMENTATION_EQUIVARIANCE,
    CORE_TASKS,
    FEATURE_TASKS,
    PROBE_PROTOCOLS,
    ProbeProtocol,
)
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.suite import Evaluation
from ssl_equi.evaluation.task import TASKS, Ask, Task, TaskResult
from ssl_equi.export.predictor import PredictorCard, TrainedPredictor
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_to_matrix
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.predictors import PoseProduct
from ssl_equi.runtime.frozen import state_sha256
from tests.fakes import ViewsInMemory

CLASSES, VIEWS = 3, 6
QUICK = ProbeProtocol(
    name="quick", learning_rate=1e-2, batch_size=128, classification_epochs=40, rotation_epochs=16,
    rotation_pairs_per_object=6, rotation_hidden=(128,), absolute_rotation_epochs=16, absolute_rotation_hidden=(64,),
    absolute_rotation_views_per_object=6, translation_epochs=15, translation_pairs_per_object=6,
    translation_hidden=(64,), knn_neighbours=5,
)  # fmt: skip
BRIEF = replace(QUICK, classification_epochs=1, rotation_epochs=1, absolute_rotation_epochs=1, translation_epochs=1)
PARTS = {"inv": slice(0, 3), "equi": slice(3, 17), "empty": slice(17, 20)}


def split_of(name: str, first_view: int, num_objects: int, seed: int, num_latents: int = 10) -> ViewsInMemory:
    """Views whose first pixel is their number, from `first_view` on, with latents of moving objects."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(num_objects, VIEWS, num_latents, generator=generator)
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    numbers = first_view + np.arange(num_objects * VIEWS).reshape(num_objects, VIEWS)
    images = np.zeros((num_objects, VIEWS, 8, 8, 3), np.uint8)
    images[..., 0, 0, 0], images[..., 0, 0, 1] = numbers % 256, numbers // 256

    return ViewsInMemory(
        images, split=name, fingerprint=f"{name} {seed}", content_key=f"{name} {seed}",
        class_names=tuple(f"class {index}" for index in range(CLASSES)), labels=np.arange(num_objects) % CLASSES,
        latents=latents.numpy(), quats_xyzw=quat_xyzw_from_latents(latents[..., :7]).numpy(),
    )  # fmt: skip


def data_of(num_latents: int = 10) -> DataSource:
    train = split_of("train", 0, 120, seed=0, num_latents=num_latents)
    test = split_of("test", 120 * VIEWS, 30, seed=1, num_latents=num_latents)
    return DataSource("by hand", train, train, test, (0.5, 0.4, 0.3), (0.25, 0.5, 0.75))


class Table(nn.Module):
    """Reads a view's number from its first pixel, and looks its features up."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixel = images[:, :, 0, 0] * torch.tensor((0.25, 0.5, 0.75)) + torch.tensor((0.5, 0.4, 0.3))
        red, green = (pixel * 255).round().long()[:, :2].unbind(dim=1)
        return self.features[(red + 256 * green).clamp(max=len(self.features) - 1)]


def latents_as_features(data: DataSource) -> torch.Tensor:
    """Class (inv); rotation matrix, hues and where the object stands (equi); nothing (empty)."""
    rows = []
    for split in (data.probe_train, data.evaluation):
        latents, labels = torch.from_numpy(split.latents), torch.from_numpy(split.labels)
        rotation = quat_to_matrix(torch.from_numpy(split.quats_xyzw))
        position = (rotation @ latents[..., 7:, None])[..., 0]
        one_hot = nn.functional.one_hot(labels, CLASSES)[:, None].expand(-1, VIEWS, -1).float()
        hues = latents[..., [3, 6]]
        parts = [one_hot, rotation.flatten(-2), 3 * hues, 3 * position, torch.zeros(*latents.shape[:2], 3)]
        rows.append(torch.cat(parts, dim=-1).flatten(0, 1))
    return torch.cat(rows)


def source_of(module: nn.Module, parts: dict[str, slice] = PARTS, random: nn.Module | None = None) -> EncoderSource:
    return EncoderSource(
        "by hand", module, parts, 8, None, None, state_sha256(module), "table", (lambda: random) if random else None
    )


def evaluate(
    data: DataSource,
    source: EncoderSource,
    store: FeatureStore | None = None,
    protocol: ProbeProtocol = QUICK,
    **options,
) -> Evaluation:
    results = suite.evaluate(source, data, protocol, store=store, **options)
    assert all(metric_of(record.metric).meaning for record in results.records)
    return results


def value(results: Evaluation, task: str, part: str, metric: str) -> float:
    (found,) = {each.value for each in results.records if (each.task, each.part, each.metric) == (task, part, metric)}
    return found


@pytest.fixture(scope="module")
def perfect() -> Evaluation:
    data = data_of()
    return evaluate(data, source_of(Table(latents_as_features(data))), tasks=(*CORE_TASKS, "knn"))


def test_features_that_are_the_latents_reach_every_ceiling(perfect: Evaluation) -> None:
    assert value(perfect, "classification", "inv", "top1") == 1
    assert value(perfect, "knn", "inv", "top1") == 1
    for task, least in (
        ("relative_rotation", 0.85), ("absolute_rotation", 0.9), ("colour", 0.999), ("translation_base", 0.94),
    ):  # fmt: skip
        assert value(perfect, task, "equi", "r2_uniform") > least
    assert value(perfect, "translation_object", "equi", "r2_uniform") > 0.2  # asks for a product of two matrices
    assert value(perfect, "relative_rotation", "equi", "angle_deg_median") < 20


def check_floor(records: Sequence[ProbeRecord], part: str) -> None:
    checked = [record for record in records if record.part == part and record.metric in ("top1", "r2_uniform")]
    assert {record.task for record in checked} == {*CORE_TASKS, "knn"}
    for record in checked:
        if record.metric == "top1":
            assert record.value == pytest.approx(1 / 3, abs=0.2)
        else:
            assert record.value < 0.05


def test_a_part_without_relation_to_the_question_stays_at_the_floor(perfect: Evaluation) -> None:
    """Rotations and colours of features that are the class, the class of features that are poses."""
    check_floor([replace(record, part="equi") for record in perfect.records if (
        (record.part == "equi") == (record.task in ("classification", "knn"))
    )], "equi")  # fmt: skip


def test_random_features_stay_at_the_floor() -> None:
    data = data_of()
    noise = Table(torch.randn(150 * VIEWS, 8, generator=torch.Generator().manual_seed(0)))
    protocol = replace(QUICK, rotation_epochs=5, absolute_rotation_epochs=5, translation_epochs=3)
    parts = {"all": slice(0, 8)}
    results = evaluate(data, source_of(noise, parts), protocol=protocol, tasks=(*CORE_TASKS, "knn"))
    check_floor(results.records, "all")


def test_the_untrained_encoder_stands_beside_every_number() -> None:
    data = data_of()
    features = latents_as_features(data)
    noise = Table(torch.randn(features.shape, generator=torch.Generator().manual_seed(0)))
    results = evaluate(
        data, source_of(Table(features), {"inv": PARTS["inv"]}, random=noise), tasks=("classification", "knn")
    )
    for record in results.records:
        assert record.value == 1 and record.random_encoder == pytest.approx(1 / 3, abs=0.15)
    assert results.encoder_passes == 150 * VIEWS


def test_an_empty_part_is_said_to_be_constant_and_has_no_numbers(perfect: Evaluation) -> None:
    assert {record.part for record in perfect.records} == {"inv", "equi"}
    (note,) = [note for note in perfect.notes if note.startswith("part empty")]
    assert "part empty is constant: all 720 training views have the same 3 features" in note
    assert "(not asked: classification, relative_rotation, " in note


def test_nine_probes_need_one_pass_and_a_second_run_needs_none(tmp_path: Path) -> None:
    data = data_of()
    source = source_of(Table(latents_as_features(data)), {"all": slice(0, 17)} | PARTS)
    options = {
        "protocol": BRIEF, "tasks": ("classification", "relative_rotation", "colour"), "parts": ("all", "inv", "equi"),
        "seeds": (0, 1),
    }  # fmt: skip
    first = evaluate(data, source, FeatureStore(tmp_path), **options)
    assert first.encoder_passes == 150 * VIEWS
    assert len({(record.task, record.part) for record in first.records}) == 9
    again = evaluate(data, source, FeatureStore(tmp_path), **options)
    assert again.encoder_passes == 0
    assert again.records == first.records
    assert {record.seed for record in first.records} == {0, 1}
    keys = ["angle_errors_deg/relative_rotation/inv", "per_class_recall/classification/all"]
    arrays = first.arrays
    assert all(key in arrays for key in keys)
    by_metric = {record.metric: record for record in first.records if record.part == "all" and record.seed == 0}
    scores = arrays["object_scores.top1/classification/all"]
    assert by_metric["top1"].value == pytest.approx(scores.mean())
    assert by_metric["top1"].object_standard_error == pytest.approx(scores.std(ddof=1) / np.sqrt(30))
    assert by_metric["r2_uniform"].object_standard_error is None
    first_seed = [each for each in first.records if each.task == "relative_rotation" and each.seed == 0]
    for each in (each for each in first_seed if each.metric in ("r2_uniform", "angle_deg_median", "angle_deg_mean")):
        statistic = stored_statistic(first.arrays, each.task, each.part, each.metric)
        assert statistic.value() == pytest.approx(each.value, rel=1e-5, abs=1e-6)


def test_a_task_that_changes_the_encoder_is_caught() -> None:
    data = data_of()
    module = Table(latents_as_features(data))

    def careless(ask: Ask) -> TaskResult:
        module.features[0, 0] += 1e-3
        return TaskResult({}, {}, 0)

    with pytest.raises(RuntimeError, match="task 'careless' changed a parameter or a buffer of the encoder"):
        evaluate(data, source_of(module), further=[Task("careless", careless)], tasks=("knn",))


class CountsItsCalls(Table):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.features[-1] += 1
        return super().forward(images)


def test_an_encoder_that_changes_while_it_encodes_is_caught() -> None:
    data = data_of()
    with pytest.raises(RuntimeError, match="encoding changed 'features' of the encoder"):
        evaluate(data, source_of(CountsItsCalls(latents_as_features(data))))


def test_features_that_are_not_finite_name_encoder_and_view() -> None:
    data = data_of()
    features = latents_as_features(data)
    features[120 * VIEWS + 3 * VIEWS + 2, 5] = float("nan")
    message = "features of by hand are not finite, first those of view 2 of object 3 of the test split"
    with pytest.raises(FeatureError, match=message):
        evaluate(data, source_of(Table(features)))


def test_what_the_data_cannot_answer_becomes_a_note() -> None:
    data = data_of()
    features = latents_as_features(data)
    for split in (data.probe_train, data.evaluation):
        split.latents, split.quats_xyzw, split.schema = split.latents[..., :0], None, None
        split.labels = np.zeros_like(split.labels)
    results = evaluate(
        data,
        source_of(Table(features)),
        protocol=BRIEF,
        parts=("equi",),
        tasks=("classification", "features", "colour"),
    )
    assert not {record.task for record in results.records} & {"classification", "knn", "linear", "colour", "light"}
    notes = "\n".join(results.notes)
    assert "classification, part equi: all 120 training objects are of class 0: use a data set of two" in notes
    assert "relative_rotation, part equi: the views have no known rotations" in notes
    assert "colour, part equi: the views have no known floor_hue and light_hue in turns (latents: none)" in notes
    assert all(np.isfinite(record.value) for record in results.records)


def test_fewer_views_than_neighbours_become_a_note() -> None:
    data = data_of(num_latents=7)
    few = split_of("train", 0, 6, seed=0, num_latents=7)
    data = replace(data, train=few, probe_train=few)
    table = Table(torch.randn(150 * VIEWS, 4, generator=torch.Generator().manual_seed(0)))
    protocol = replace(BRIEF, knn_neighbours=37)
    results = evaluate(
        data, source_of(table, {"all": slice(0, 4)}), protocol=protocol, tasks=("knn", "translation_base")
    )
    assert results.records == []
    assert results.notes[0].startswith("knn, part all: 37 neighbours can't be found among 36 training views")
    assert results.notes[1].startswith("translation_base, part all: the views have no known translations")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("clasification",)}, "there is no task 'clasification': did you mean classification"),
        ({"parts": ("equi", "pose")}, "by hand has no part 'pose': choose from inv, equi, empty"),
    ],
)
def test_names_that_there_are_not(options: dict, message: str) -> None:
    data = data_of()
    with pytest.raises(UserError, match=message):
        evaluate(data, source_of(Table(latents_as_features(data))), **options)


def test_every_protocol_asks_for_tasks_and_metrics_that_exist() -> None:
    for name, make in PROBE_PROTOCOLS.items():
        protocol = make()
        assert set(protocol.tasks) <= {*TASKS, FEATURE_TASKS}
        assert (protocol.paper_metrics == ()) == (name in ("ssl_equi", "embedded"))
    assert PROBE_PROTOCOLS["ssl_equi"]().tasks == (FEATURE_TASKS, AUGMENTATION_EQUIVARIANCE)
    assert PROBE_PROTOCOLS["ssl_equi"]().name == PROBE_PROTOCOLS["embedded"]().name, "the heads are the same"


def test_the_best_epoch_is_reported_apart_and_only_where_the_paper_does() -> None:
    """An absurd learning rate makes epochs differ; the best of them is the maximum of shorter trainings' ends."""
    data = data_of()
    noisy = latents_as_features(data)[:, :3] + torch.randn(900, 3, generator=torch.Generator().manual_seed(0))
    source = source_of(Table(noisy), {"all": slice(0, 3)})
    best = replace(
        BRIEF, classification_epochs=4, classification_best_epoch=True, learning_rate=3.0,
        learning_rate_schedule="constant", batch_size=32,
    )  # fmt: skip
    found = evaluate(data, source, protocol=best, tasks=("classification",))
    last = [
        value(evaluate(data, source, protocol=replace(best, classification_epochs=epochs), tasks=("classification",)),
              "classification", "all", "top1") for epochs in (1, 2, 3, 4)
    ]  # fmt: skip
    assert len(set(last)) > 1
    assert value(found, "classification", "all", "top1") == last[-1]
    assert value(found, "classification", "all", "top1_best_epoch") == max(last)
    assert "top1_best_epoch" not in {
        record.metric for record in evaluate(data, source, protocol=BRIEF, tasks=("classification",)).records
    }


def test_the_predictor_of_a_run_is_asked_for_views_once() -> None:
    """Poses as embeddings: R2 = R1 R12 by the true action finds every view, and doing two actions is doing one."""
    data = data_of(num_latents=7)
    rotations = torch.cat([
        quat_to_matrix(torch.from_numpy(split.quats_xyzw)).flatten(-2).flatten(0, 1)
        for split in (data.probe_train, data.evaluation)
    ])  # fmt: skip
    exact = TrainedPredictor(
        PoseProduct(1, 3, unit_columns=None), PredictorCard("by hand", ToldActions.of("rotation"), "nothing")
    )
    features = torch.cat([torch.ones(len(rotations), 1), rotations], dim=1)
    source = replace(source_of(Table(features), {"all": slice(0, 10), "equi": slice(1, 10)}), predictor=exact)
    results = evaluate(data, source, protocol=replace(BRIEF, tasks=("colour",)), seeds=(0, 1))
    found = [record for record in results.records if record.task == "retrieval"]
    assert {record.seed for record in found} == {0} and {record.part for record in found} == {"all"}
    assert value(results, "retrieval", "all", "mrr") == 1
    assert {record.seed for record in results.records if record.task == "colour"} == {0, 1}
    assert value(results, "predictor_consistency", "all", "composition_error") == pytest.approx(0, abs=1e-5)
    assert results.results["all"]["retrieval"].retrieval_ranks.max() == 1
    assert evaluate(data, source, protocol=BRIEF, tasks=("retrieval",), parts=("equi",)).records, "of all features"
    with pytest.raises(UserError, match="by hand has no predictor beside it to ask for retrieval"):
        evaluate(data, replace(source, predictor=None), tasks=("retrieval",))


def test_quaternions_beyond_the_euler_box_are_noted_once() -> None:
    data = data_of(num_latents=7)
    for split in (data.probe_train, data.evaluation):
        split.latents[..., 2] *= 2
    source = source_of(Table(latents_as_features(data_of())), {"inv": slice(0, 3)})
    for task, noted in (("relative_rotation", 1), ("relative_rotation_6d", 0), ("classification", 0)):
        results = evaluate(data, source, protocol=BRIEF, tasks=(task,))
        assert sum("quaternions of equal relative rotations come with both signs" in n for n in results.notes) == noted
