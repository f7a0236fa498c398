import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol, embedded, sie
from ssl_equi.evaluation.suite import ask_features, records_of, tasks_for
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_to_matrix
from tests.evaluation.probed_by_hand import probed
from tests.fakes import NEEDS_TRANSLATIONS, feature_cache

PARTS = {"all": slice(0, 32), "inv": slice(0, 16), "equi": slice(16, 32)}
QUICK = replace(embedded(), rotation_hidden=(128,), rotation_epochs=30, classification_epochs=20, batch_size=128,
                learning_rate=5e-3, absolute_rotation_hidden=(64,), absolute_rotation_epochs=10)  # fmt: skip


def cache_with_class_in_inv_and_pose_and_hue_in_equi(num_objects: int, seed: int) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(num_objects, 10, 7, generator=generator)
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    quats_xyzw = quat_xyzw_from_latents(latents)
    labels = torch.arange(num_objects) % 4
    features = 0.1 * torch.randn(num_objects, 10, 32, generator=generator)
    features[..., :4] += torch.nn.functional.one_hot(labels, 4)[:, None]
    features[..., 16:25] += quat_to_matrix(quats_xyzw).flatten(-2)
    features[..., 25:27] += latents[..., [3, 6]] * 5
    return feature_cache(features, labels, latents, quats_xyzw)


@pytest.fixture(scope="module")
def results():
    train = cache_with_class_in_inv_and_pose_and_hue_in_equi(160, seed=0)
    test = cache_with_class_in_inv_and_pose_and_hue_in_equi(60, seed=1)
    return ask_features(train, test, PARTS, tasks_for(test), num_classes=4, protocol=QUICK)[0]


def test_class_is_found_only_where_it_is(results):
    for part in ("all", "inv"):
        assert results[part]["classification"].metrics["top1"] > 0.95
    assert results["equi"]["classification"].metrics["balanced_top1"] < 0.35


def test_rotation_is_found_only_where_it_is(results):
    for part in ("all", "equi"):
        assert results[part]["relative_rotation"].metrics["r2_uniform"] > 0.8
        assert results[part]["relative_rotation"].metrics["angle_deg_median"] < 40
    assert results["inv"]["relative_rotation"].metrics["r2_uniform"] < 0.05
    assert results["inv"]["relative_rotation"].metrics["angle_deg_median"] > 80


def test_absolute_rotation_is_found_only_where_it_is(results):
    for part in ("all", "equi"):
        assert results[part]["absolute_rotation"].metrics["r2_uniform"] > 0.8
        assert results[part]["absolute_rotation"].metrics["angle_deg_median"] < 25
    assert results["inv"]["absolute_rotation"].metrics["r2_uniform"] < 0.05
    assert results["inv"]["absolute_rotation"].metrics["angle_deg_median"] > 75


def test_absolute_rotation_asks_for_each_views_own_pose():
    """Features that are the quaternion itself: a linear head must become the identity, view by view."""
    train = cache_with_class_in_inv_and_pose_and_hue_in_equi(40, seed=0)
    test = cache_with_class_in_inv_and_pose_and_hue_in_equi(20, seed=1)
    train, test = (replace(cache, features=cache.quats_xyzw) for cache in (train, test))
    linear = replace(
        embedded(), absolute_rotation_hidden=(), absolute_rotation_epochs=60, learning_rate=3e-2, batch_size=32
    )
    result = TASKS["absolute_rotation"](Ask(train, test, 4, linear, 0))
    assert result.metrics["r2_uniform"] > 0.9999
    assert result.metrics["angle_deg_p90"] < 0.5
    assert result.num_samples == 200


def test_constant_absolute_rotation_is_judged_by_the_same_definitions(results):
    """Of 600 views: the component means for R2, and for angles the rotation nearest to all, by an eigenvector."""
    quats_xyzw = cache_with_class_in_inv_and_pose_and_hue_in_equi(60, seed=1).quats_xyzw.flatten(0, 1).double().numpy()
    total = ((quats_xyzw - quats_xyzw.mean()) ** 2).sum()
    pooled = 1 - ((quats_xyzw - quats_xyzw.mean(axis=0)) ** 2).sum() / total
    mean_rotation = np.linalg.eigh(quats_xyzw.T @ quats_xyzw)[1][:, -1]
    angles_deg = np.degrees(2 * np.arccos(np.clip(np.abs(quats_xyzw @ mean_rotation), 0, 1)))
    expected = {
        "r2_uniform": 0.0,
        "r2_pooled": pooled,
        "angle_deg_median": np.median(angles_deg),
        "angle_deg_mean": angles_deg.mean(),
        "angle_deg_p90": np.percentile(angles_deg, 90),
    }
    found = {name: baseline.value for name, baseline in results["all"]["absolute_rotation"].baselines.items()}
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_absolute_rotation_costs_at_most_a_third_of_the_relative_one():
    """Multiplications of the heads' training on 512 features and 20 views of each object, in the embedded protocol."""
    protocol = embedded()

    def weights(*sizes: int) -> int:
        return sum(first * second for first, second in itertools.pairwise(sizes))

    relative = weights(2 * 512, *protocol.rotation_hidden, 4)
    absolute = weights(512, *protocol.absolute_rotation_hidden, 4)
    relative_cost = relative * protocol.rotation_epochs * protocol.rotation_pairs_per_object
    absolute_cost = absolute * protocol.absolute_rotation_epochs * (protocol.absolute_rotation_views_per_object or 20)
    assert absolute_cost <= relative_cost / 3


def test_colour_is_found_only_where_it_is(results):
    for part in ("all", "equi"):
        assert results[part]["colour"].metrics["r2_uniform"] > 0.95
    assert abs(results["inv"]["colour"].metrics["r2_uniform"]) < 0.05


def test_every_metric_has_its_baseline(results):
    for tasks in results.values():
        assert list(tasks) == [name for name in CORE_TASKS if name not in NEEDS_TRANSLATIONS]
        for result in tasks.values():
            assert result.metrics.keys() == result.baselines.keys()
    assert results["all"]["classification"].baselines["top1"].value == pytest.approx(0.25)
    assert results["all"]["classification"].num_samples == 600
    assert results["all"]["relative_rotation"].num_samples == 600
    assert results["all"]["relative_rotation"].angle_errors_deg.shape == (600,)
    assert results["all"]["absolute_rotation"].num_samples == 600
    assert results["all"]["absolute_rotation"].angle_errors_deg.shape == (600,)
    assert results["all"]["classification"].per_class_recall.shape == (4,)


def test_records_hold_the_second_column_and_every_origin(results):
    records = records_of(results, results, split="val", protocol=QUICK, seed=7, num_objects=60)
    assert len(records) == 3 * (2 + 5 + 5 + 2)
    assert {(record.protocol, record.split, record.seed) for record in records} == {("ssl_equi_v1", "val", 7)}
    assert all(record.random_encoder == record.value for record in records)
    assert records[0].num_objects == 60
    assert all(
        record.random_encoder is None
        for record in records_of(results, None, split="val", protocol=QUICK, seed=7, num_objects=60)
    )


def test_sie_protocol_evaluates_one_view_and_one_pair_of_each_object():
    train = cache_with_class_in_inv_and_pose_and_hue_in_equi(20, seed=0)
    test = cache_with_class_in_inv_and_pose_and_hue_in_equi(12, seed=1)
    protocol = replace(sie(), classification_epochs=2, rotation_epochs=2, absolute_rotation_epochs=2, colour_epochs=2)
    tasks = ask_features(train, test, {"all": slice(0, 32)}, tasks_for(test), num_classes=4, protocol=protocol)[0][
        "all"
    ]
    assert {result.num_samples for result in tasks.values()} == {12}


class PixelEncoder(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, :3].flatten(1)


def test_the_suite_runs_from_images_to_records(fake_dataset, fake_test_dataset):
    protocol = ProbeProtocol(
        name="tiny", rotation_hidden=(8,), rotation_epochs=1, absolute_rotation_hidden=(8,), absolute_rotation_epochs=1,
        classification_epochs=1,
    )  # fmt: skip
    results = probed(
        PixelEncoder(),
        {"all": slice(0, 9), "equi": slice(3, 9)},
        fake_dataset,
        fake_test_dataset,
        random_encoder=PixelEncoder(),
        protocol=protocol,
    )
    assert {record.part for record in results.records} == {"all", "equi"}
    assert results.test_features.features.shape == (9, 6, 9)
    rotation = results.results["equi"]["relative_rotation"]
    assert rotation.angle_errors_deg.shape == rotation.constant_angle_errors_deg.shape == (270,)
    # The same network with the same heads twice: the two columns must be equal to the bit.
    assert all(record.value == record.random_encoder for record in results.records)
    for part, tasks in results.results.items():
        random = results.random_results[part]["relative_rotation"]
        np.testing.assert_array_equal(tasks["relative_rotation"].angle_errors_deg, random.angle_errors_deg)
    assert results.results["all"]["classification"].per_class_recall.shape == (3,)
    assert set(results.seconds) == {"encode", "heads"}


def test_splits_with_other_classes_are_refused(fake_dataset, fake_test_dataset):
    fake_test_dataset.class_names = ("one", "two", "three")
    with pytest.raises(ValueError, match="other names"):
        probed(PixelEncoder(), {"all": slice(0, 9)}, fake_dataset, fake_test_dataset, protocol=embedded())
