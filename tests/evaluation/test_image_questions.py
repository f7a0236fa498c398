"""Questions of images by the suite, on encoders made by hand: ceilings, floors, passes, and what can't be asked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_equi.data.derived import ViewSubset, spread_views
from ssl_equi.data.sources import DataSource, open_data, open_ood_rotation
from ssl_equi.errors import DataError, UserError
from ssl_equi.evaluation import suite
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.features import FeatureStore
from ssl_equi.evaluation.protocol import AugmentationParametersProtocol, CorruptionProtocol, ProbeProtocol
from ssl_equi.evaluation.suite import Evaluation, asked_tasks
from ssl_equi.evaluation.task import TASKS, Ask, Task, TaskResult
from ssl_equi.evaluation.tasks import robustness
from ssl_equi.evaluation.tasks.augmentation_parameters import drawn_parameters
from ssl_equi.evaluation.tasks.corruptions import CORRUPTIONS
from ssl_equi.evaluation.tasks.transfer import open_transfer_set, transfer_tasks
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.runtime.frozen import state_sha256
from ssl_equi.views.parameters import ViewParameters
from ssl_equi.views.presets import ViewRecipe
from tests.fakes import ViewsInMemory

SIDE, VIEWS = 16, 4
QUICK = ProbeProtocol(
    name="quick", learning_rate=1e-2, batch_size=64, classification_epochs=15, rotation_epochs=8,
    rotation_pairs_per_object=4, rotation_hidden=(64,), knn_neighbours=3, linear_epochs=60,
    corruption=CorruptionProtocol(max_images=72),
    augmentation_parameters=AugmentationParametersProtocol(hidden=(64,), epochs=40),
)  # fmt: skip


def views_of(images: np.ndarray, labels: np.ndarray, latents: np.ndarray, split: str = "test") -> ViewsInMemory:
    """uint8 [n, V, H, W, 3] as a collection with poses."""

    return ViewsInMemory(
        images, split=split, class_names=("left", "middle", "right"), labels=labels, latents=latents.astype(np.float32),
        quats_xyzw=quat_xyzw_from_latents(torch.from_numpy(latents)).float().numpy() if latents.shape[-1] else None,
    )  # fmt: skip


def bars(split: str, num_objects: int, seed: int) -> ViewsInMemory:
    """A bright third of the image says the class; how bright, which corruptions hardly hide, says nothing."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_objects) % 3
    images = np.tile(generator.uniform(70, 90, (num_objects, VIEWS, 1, 1, 1)), (1, 1, SIDE, SIDE, 3))
    for row, label in enumerate(labels):
        images[row, :, :, 5 * label : 5 * label + 6] += 90
    latents = generator.random((num_objects, VIEWS, 7))
    return views_of(images.astype(np.uint8), labels, latents, split)


def bars_source() -> DataSource:
    train, test = bars("train", 60, 0), bars("test", 24, 1)
    return DataSource("3diebench-p", train, train, test, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Contrasts(nn.Module):
    """How bright each third of the columns is beside the whole image: what noise, blur and tone leave as it is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        thirds = torch.stack([images[..., 5 * index : 5 * index + 6].mean(dim=(1, 2, 3)) for index in range(3)], dim=1)
        apart = thirds - thirds.mean(dim=1, keepdim=True)
        return apart / apart.abs().amax(dim=1, keepdim=True).clamp(min=0.02)


class BrokenByChange(Contrasts):
    """The same, as long as neighbouring rows are equal and the bar is 90 grey levels: else the class of another bar."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = super().forward(images)
        rows_differ = (images[:, :, 1:] - images[:, :, :-1]).abs().amax(dim=(1, 2, 3)) > 1e-3
        other_heights = (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)) - 90 / 255).abs() > 1e-2
        return torch.where((rows_differ | other_heights)[:, None], features.roll(1, dims=1), features)


class MeanColours(nn.Module):
    """Logarithms of the three channels' means."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)).clamp(min=1e-3).log()


def evaluate(
    module: nn.Module, data: DataSource, *tasks: str, protocol: ProbeProtocol = QUICK, **options: object
) -> Evaluation:
    parts = options.pop("feature_parts", {"all": slice(0, 3)})
    store = options.pop("store", FeatureStore(None))
    source = EncoderSource("by hand", module, parts, SIDE, None, None, state_sha256(module), "by hand", None)
    return suite.evaluate(source, data, protocol, tasks=tasks, store=store, **options)


def numbers(results: Evaluation, task: str, part: str = "all") -> dict[str, float]:
    return {each.metric: each.value for each in results.records if (each.task, each.part) == (task, part)}


def test_features_that_no_corruption_touches_stay_at_the_ceiling_and_those_that_all_touch_fall() -> None:
    data = bars_source()
    results = evaluate(Contrasts(), data, "corruption", "classification")
    found = numbers(results, "corruption")
    assert list(found) == ["top1_clean", *(f"top1_{name}" for name in CORRUPTIONS), "top1_mean_corruption"]
    unhidden = [name for name in CORRUPTIONS if name not in ("pixelate", "zoom_blur")]
    assert all(found[f"top1_{name}"] > 0.9 for name in ("clean", *unhidden, "mean_corruption"))
    assert results.encoder_passes == (60 + 24) * VIEWS + len(CORRUPTIONS) * 24 * 3, "3 of 4 views of each object"
    (record,) = [each for each in results.records if each.metric == "top1_mean_corruption"]
    assert (record.n, record.num_objects, record.baseline) == (72, 24, pytest.approx(1 / 3))
    assert record.object_standard_error is not None

    broken = numbers(evaluate(BrokenByChange(), data, "corruption"), "corruption")
    assert broken["top1_clean"] == 1
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "contrast", "fog"):
        assert broken[f"top1_{name}"] < 0.1
    assert broken["top1_mean_corruption"] == pytest.approx(np.mean([broken[f"top1_{name}"] for name in CORRUPTIONS]))


def test_rotations_of_corrupted_views_are_asked_of_pairs_of_the_chosen_views() -> None:
    results = evaluate(Contrasts(), bars_source(), "corruption_relative_rotation", "corruption")
    found = numbers(results, "corruption_relative_rotation")
    assert len(found) == 2 * (len(CORRUPTIONS) + 2)
    assert found["r2_uniform_clean"] < 0.05 and found["angle_deg_median_mean_corruption"] > 20
    assert {each.n for each in results.records if each.task == "corruption_relative_rotation"} == {24 * 3 * 2}
    assert results.encoder_passes == (60 + 24) * VIEWS + len(CORRUPTIONS) * 72, "views are shared by both questions"


def test_poses_that_were_never_trained_on_stand_beside_those_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bars_source()
    unseen = bars("ood_rotation", 24, 2)
    unseen.labels = (unseen.labels + (np.arange(24) < 12)) % 3  # the bars of half of the objects mean another class
    monkeypatch.setattr(robustness, "open_ood_rotation", lambda given: unseen)
    results = evaluate(Contrasts(), data, "robustness", "classification", "relative_rotation")
    found, judged = numbers(results, "ood_classification"), numbers(results, "classification")
    assert found["top1"] == 0.5 and found["top1_in_distribution"] == judged["top1"] == 1
    assert found["drop_of_top1"] == 0.5
    rotations, judged = numbers(results, "ood_relative_rotation"), numbers(results, "relative_rotation")
    for metric in ("r2_uniform", "angle_deg_median"):
        assert rotations[f"{metric}_in_distribution"] == judged[metric]
    drop = rotations["r2_uniform_in_distribution"] - rotations["r2_uniform"]
    assert rotations["drop_of_r2_uniform"] == pytest.approx(drop)
    assert {each.split for each in results.records if each.task.startswith("ood")} == {"ood_rotation"}
    assert results.encoder_passes == (60 + 24 + 24) * VIEWS + len(CORRUPTIONS) * 72


def test_the_embedded_set_has_such_poses_and_others_do_not(tiny_data: Path) -> None:
    data = open_data("3diebench-p", tiny_data, "test", 32)
    with pytest.raises(DataError, match="other settings"):
        open_ood_rotation(data)  # the tiny set is not the default one
    results = evaluate(Contrasts(), replace(data, name="3diebench-p"), "ood_classification")
    assert [note for note in results.notes if "ood_classification, part all" in note and "other settings" in note]
    with pytest.raises(DataError, match="cifar10 has no split 'ood_rotation': use 3diebench-p"):
        open_ood_rotation(replace(data, name="cifar10"))


def colour_fields(split: str, num_objects: int, seed: int) -> ViewsInMemory:
    """Nearly uniform colours, dim enough that jitter clips nothing, so that crops change no mean."""
    generator = np.random.default_rng(seed)
    tint = generator.uniform(60, 120, (num_objects, 1, 1, 1, 1)) + generator.uniform(-8, 8, (num_objects, 1, 1, 1, 3))
    images = np.clip(tint + generator.normal(0, 2, (num_objects, 1, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    return views_of(images, np.arange(num_objects) % 3, np.zeros((num_objects, 1, 0)), split)


def test_mean_colours_tell_the_brightness_and_random_features_nothing() -> None:
    train, test = colour_fields("train", 400, 0), colour_fields("test", 100, 1)
    data = DataSource("fields", train, train, test, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    results = evaluate(MeanColours(), data, "augmentation_parameters", seeds=(0, 1))
    found = numbers(results, "augmentation_parameters")
    assert found["r2_of_log_brightness"] > 0.9
    for metric in ("r2_of_horizontal_flip", "r2_uniform_crop", "r2_of_blur_sigma"):
        assert found[metric] < 0.05
    columns = [value for name, value in found.items() if name.startswith("r2_of_")]
    assert len(columns) == 4 + 1 + 4 + 1 and found["r2_uniform"] == pytest.approx(np.mean(columns))
    assert results.encoder_passes == 2 * (400 + 100), "one pass more, for all seeds"
    assert all(each.baseline == 0 and each.n == 100 for each in results.records)

    class Noise(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator().manual_seed(len(images))
            return torch.randn(len(images), 3, generator=generator)

    floor = numbers(evaluate(Noise(), data, "augmentation_parameters"), "augmentation_parameters")
    assert all(value < 0.1 for value in floor.values())


def test_parameters_are_those_between_the_image_as_it_is_and_its_augmentation() -> None:
    recipe = ViewRecipe(scale=(0.2, 0.9), jitter_probability=1.0, grayscale_probability=0.0, blur_probability=1.0)
    drawn, targets = drawn_parameters(recipe.pipeline(32), 20, 32, seed=3)
    assert isinstance(drawn, ViewParameters)
    right = ((drawn.crop.left + drawn.crop.width / 2) / 32 - 0.5) / 0.15
    torch.testing.assert_close(targets[:, 0], right)
    torch.testing.assert_close(targets[:, 4], drawn.horizontal_flip.applied.float())
    torch.testing.assert_close(targets[:, 5], drawn.jitter.brightness.log() / 0.3)
    torch.testing.assert_close(targets[:, 9], drawn.blur.sigma / 0.9)


def write_folder(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Pictures of three classes, whose bright third says which; of sizes of their own."""
    generator = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(("daisy", "rose", "tulip")):
            (folder / split / name).mkdir(parents=True)
            for number in range(6 if split == "train" else 2):
                pixels = generator.uniform(60, 100, (24 + 3 * number, 30, 1)) * np.ones(3)
                pixels[:, 10 * label : 10 * label + 10] += 80
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


def test_classes_of_a_folder_of_images_are_told_by_frozen_features(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "flowers")
    tasks = transfer_tasks([open_transfer_set(f"folder:{folder}", SIDE)])
    assert [task.name for task in tasks] == ["transfer_linear_folder_flowers", "transfer_knn_folder_flowers"]
    parts = {"all": slice(0, 3), "one": slice(0, 1)}
    results = evaluate(Contrasts(), bars_source(), "transfer", further=tasks, feature_parts=parts, seeds=(0, 1))
    assert {each.task for each in results.records} == {task.name for task in tasks}
    for record in results.records:
        if record.part == "all":
            assert record.value == 1 and record.baseline == pytest.approx(1 / 3)
            assert (record.n, record.num_objects, record.split) == (6, 6, "folder_flowers_test")
    assert numbers(results, "transfer_linear_folder_flowers", "one")["top1"] < 1
    assert results.encoder_passes == (60 + 24) * VIEWS + 18 + 6


def test_too_few_images_for_neighbours_are_noted(tmp_path: Path) -> None:
    tasks = transfer_tasks([open_transfer_set(f"folder:{write_folder(tmp_path / 'few')}", SIDE)])
    protocol = replace(QUICK, knn_neighbours=20)
    results = evaluate(Contrasts(), bars_source(), "transfer", protocol=protocol, further=tasks)
    assert {each.task for each in results.records} == {"transfer_linear_folder_few"}
    (note,) = results.notes
    assert note.startswith("transfer_knn_folder_few, part all: 20 neighbours can't be found among 18 training views")


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("flowers:/data", "test", "there is no data set 'flowers': give DATASET:DIR with one of"),
        ("cifar10", "test", "without a folder: give cifar10:DIR"),
        ("folder:{folder}", "val", "can't be judged on split 'val': .* has no split 'val' but test, train"),
        ("cifar10:{folder}", "test", "cifar10 is not complete"),
    ],
)
def test_other_data_that_are_not_there_are_named(text: str, split: str, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "flowers")
    with pytest.raises(DataError, match=message):
        open_transfer_set(text.format(folder=folder), SIDE, split)


def test_rendered_views_of_another_size_are_resized(tiny_data: Path) -> None:
    opened = open_transfer_set(f"3diebench-p:{tiny_data}", 24)
    assert opened.data.evaluation.image_size == opened.data.probe_train.image_size == (24, 24)
    assert opened.label == "3diebench-p_3diebench-p"
    same = np.empty((1, 1, 32, 32, 3), np.uint8)
    stored = open_data("3diebench-p", tiny_data, "test", 32).evaluation
    stored.read_views(np.array([3]), np.array([[1]]), same)
    resized = np.empty((1, 1, 24, 24, 3), np.uint8)
    opened.data.evaluation.read_views(np.array([3]), np.array([[1]]), resized)
    expected = Image.fromarray(same[0, 0]).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(resized[0, 0], np.asarray(expected))


def test_what_cannot_be_asked_is_noted_with_its_reason() -> None:
    fields = colour_fields("val", 12, 0)
    fields.image_size, fields.latents = (SIDE, SIDE), np.zeros((12, 1, 0), np.float32)
    data = DataSource("3diebench-p", fields, fields, fields, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    parts = {"all": slice(0, 3), "empty": slice(3, 5)}

    class WithEmptyPart(MeanColours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([super().forward(images), torch.zeros(len(images), 2)], dim=1)

    brief = replace(QUICK, augmentation_parameters=AugmentationParametersProtocol(epochs=1))
    tasks = ("robustness", "augmentation_parameters")
    results = evaluate(WithEmptyPart(), data, *tasks, feature_parts=parts, protocol=brief)
    assert {each.task for each in results.records} == {"corruption", "augmentation_parameters"}
    notes = "\n".join(results.notes)
    assert "ood_classification, part all: the judged split is 'val'" in notes
    for task in ("ood_relative_rotation", "corruption_relative_rotation"):
        assert f"{task}, part all: the views have no known rotations" in notes
    (empty,) = [note for note in results.notes if note.startswith("part empty is constant: all 12 training views")]
    assert all(task in empty for task in ("corruption", "augmentation_parameters", "ood_classification"))
    with pytest.raises(UserError, match="there is no task 'robustnes': did you mean robustness"):
        evaluate(MeanColours(), data, "robustnes")
    with pytest.raises(UserError, match="'transfer' is asked without a data set: give --transfer"):
        evaluate(MeanColours(), data, "transfer")


def test_groups_of_tasks_have_names() -> None:
    source = EncoderSource("by hand", Contrasts(), {"all": slice(0, 3)}, SIDE, None, None, "", "by hand", None)

    def names(*tasks: str, further: Sequence[Task] = ()) -> list[str]:
        return [task.name for task in asked_tasks(source.name, source.predictor, None, QUICK, tasks, further)]

    robustness = [name for name, task in TASKS.items() if task.group == "robustness"]
    assert len(robustness) == 4
    assert names("robustness", "knn", "corruption") == ["knn", *robustness], "those of features alone come first"
    other = Task("transfer_knn_x", TASKS["corruption"].answer, group="transfer")
    without_predictor = {name for name, task in TASKS.items() if task.group != "predictor"}
    assert {*names("all", further=[other])} == {*without_predictor, "transfer_knn_x"}
    of_images = {name for name, task in TASKS.items() if task.group in ("robustness", "images")}
    assert not of_images & {*names()}, "they are asked by name only"


def test_a_task_of_images_that_changes_the_encoder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(Contrasts(), nn.BatchNorm1d(3))

    def changes(ask: Ask) -> TaskResult:
        ask.encoding.encoder.module[1].running_mean += 1
        return TaskResult({}, {}, 1)

    monkeypatch.setitem(TASKS, "corruption", replace(TASKS["corruption"], answer=changes))
    with pytest.raises(RuntimeError, match="'corruption' changed a parameter or a buffer of the encoder"):
        evaluate(module.eval(), bars_source(), "corruption")


def test_changed_views_are_kept_apart_from_those_as_they_are(tmp_path: Path) -> None:
    data = bars_source()
    first = evaluate(Contrasts(), data, "corruption", store=FeatureStore(tmp_path))
    again = evaluate(Contrasts(), data, "corruption", store=FeatureStore(tmp_path))
    assert again.encoder_passes == 0 and again.records == first.records
    stronger = replace(QUICK, corruption=replace(QUICK.corruption, severity=5))
    other = evaluate(Contrasts(), data, "corruption", store=FeatureStore(tmp_path), protocol=stronger)
    assert other.encoder_passes == len(CORRUPTIONS) * 72


@pytest.mark.parametrize(
    ("num_objects", "num_views", "max_images", "shape"),
    [(288, 20, 2304, (288, 8)), (12, 4, 2304, (12, 4)), (10000, 1, 2304, (2304, 1)), (5000, 6, 100, (50, 2))],
)
def test_views_that_stand_for_a_split_are_distinct_and_no_more_than_asked(
    num_objects: int, num_views: int, max_images: int, shape: tuple[int, int]
) -> None:
    objects, views = spread_views(num_objects, num_views, max_images, seed=0)
    assert views.shape == shape and len(set(objects.tolist())) == shape[0] and (np.diff(objects) > 0).all()
    assert all(len(set(row)) == shape[1] for row in views.tolist()) and views.max() < num_views


def test_a_subset_reads_the_views_it_names() -> None:
    whole = bars("test", 6, 0)
    subset = ViewSubset(whole, np.array([1, 4]), np.array([[3, 0], [2, 1]]))
    pixels = np.empty((1, 1, SIDE, SIDE, 3), np.uint8)
    subset.read_views(np.array([1]), np.array([[0]]), pixels)
    expected = np.empty_like(pixels)
    whole.read_views(np.array([4]), np.array([[2]]), expected)
    assert np.array_equal(pixels, expected)
    assert np.array_equal(subset.latents[0, 1], whole.latents[1, 0]) and subset.labels.tolist() == [1, 1]
    assert subset.fingerprint != ViewSubset(whole, np.array([1, 4]), np.array([[3, 0], [1, 2]])).fingerprint
    with pytest.raises(ValueError, match="do not belong together"):
        ViewSubset(whole, np.array([1]), np.array([[3], [2]]))
