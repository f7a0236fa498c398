"""Evaluation of objects with different numbers of views: what is no view has no part in any number.

Every task is asked of caches whose padding holds zeros or anything, and of objects with equally many views whose counts
are stated or not; what takes other paths there is compared with loops over lists of each object's own views.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_equi.data.derived import TurnedViews
from ssl_equi.evaluation.features import FeatureCache, FeatureStore, FrozenEncoder, encode_split
from ssl_equi.evaluation.predictors.capsules import probe_capsule_poses
from ssl_equi.evaluation.predictors.consistency import predictor_consistency
from ssl_equi.evaluation.predictors.two_views import retrieve_with_predictor
from ssl_equi.evaluation.protocol import EquivarianceProtocol, PoseDistributionProtocol, ProbeProtocol
from ssl_equi.evaluation.report.feature_map import map_arrays
from ssl_equi.evaluation.report.pictures import nearest_neighbours, neighbour_arrays, view_sheet
from ssl_equi.evaluation.samples import (
    TaskSkipped,
    all_pairs,
    evaluated_pairs,
    evaluation_pairs,
    evaluation_views,
    feature_matrix,
    require_views,
    training_pairs,
    training_views,
)
from ssl_equi.evaluation.sequences.embed import sequences_of_cache
from ssl_equi.evaluation.sequences.retrieval import retrieve_with_sequences
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult
from ssl_equi.evaluation.tasks.augmentation_equivariance import encode_augmented
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_to_matrix
from tests.data.uneven_objects import cut_short
from tests.fakes import (
    OF_FEATURES,
    LinearEncoder,
    PixelEncoder,
    TurningPredictor,
    ViewsInMemory,
    feature_cache,
    recorded_calls,
)

COUNTS = (5, 2, 8, 3, 6)
CLASSES = 4
QUICK = ProbeProtocol(
    name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(8,), rotation_pairs_per_object=3,
    absolute_rotation_epochs=1, absolute_rotation_hidden=(8,), absolute_rotation_views_per_object=4,
    translation_epochs=1, translation_hidden=(8,), colour_circular_epochs=1, colour_circular_hidden=(8,),
    light_epochs=1, light_hidden=(8,), light_samples_per_object=None, linear_epochs=1, low_shot_steps=2,
    knn_neighbours=3, knn_weighted_neighbours=9, compared_objects=11, batch_size=64, evaluation_least_pairs=100,
    evaluation_most_pairs=200, feature_action_ridge_strengths=(1e-3, 1.0), feature_action_components=6,
    linear_learning_rates=(1e-3, 1e-2), linear_weight_decays=(0.0,),
    pose_distribution=PoseDistributionProtocol(
        epochs=1, samples_per_object=4, hidden=(8,), num_codes=8, training_rotations=20, evaluation_rotations=50
    ),
)  # fmt: skip

MakeCache = Callable[..., FeatureCache]


def with_features(cache: FeatureCache, seed: int) -> FeatureCache:
    """Features that show some of everything: the class, the pose, the latents and noise."""
    generator = torch.Generator().manual_seed(seed)
    shown = [
        torch.nn.functional.one_hot(cache.labels, CLASSES)[:, None].expand(-1, cache.num_views, -1),
        quat_to_matrix(cache.quats_xyzw).flatten(-2), cache.latents,
        torch.randn(*cache.features.shape[:2], 3, generator=generator),
    ]  # fmt: skip
    return replace(cache, features=torch.cat([values.float() for values in shown], dim=-1))


def stated(cache: FeatureCache, counts: tuple[int, ...], padding: float = 0.0) -> FeatureCache:
    """The cache with so many views of objects in turn, and any number behind them."""
    view_counts = torch.from_numpy(np.resize(counts, cache.num_objects))
    there = torch.arange(cache.num_views) < view_counts[:, None]
    cut = {
        name: torch.where(there[..., None], getattr(cache, name), torch.full_like(getattr(cache, name), padding))
        for name in ("features", "latents", "quats_xyzw")
    }
    return replace(cache, **cut, view_counts=view_counts)


@pytest.fixture(scope="module")
def caches() -> tuple[FeatureCache, FeatureCache]:
    """Training and evaluated views, 8 of each object."""
    from tests.evaluation.conftest import make_posed_cache

    return with_features(make_posed_cache(40, 0), 0), with_features(make_posed_cache(20, 1), 1)


def assert_same(found: TaskResult, expected: TaskResult) -> None:
    """Equal to the bit in all fields but closures."""
    for field in fields(TaskResult):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "statistics":
            assert (ours or {}).keys() == (theirs or {}).keys()
        elif isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                np.testing.assert_equal(value, theirs[name], err_msg=f"{field.name} {name}")
        else:
            np.testing.assert_equal(ours, theirs, err_msg=field.name)


def asked(name: str, train: FeatureCache, test: FeatureCache) -> TaskResult:
    return TASKS[name](Ask(train, test, CLASSES, QUICK, 0))


ASKED = [
    *(name for name in OF_FEATURES if name != "low_shot_1pct"),  # which is low_shot_10pct with more objects
    "absolute_rotation_distribution", "relative_rotation_distribution",
]  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_no_task_looks_at_padding(name: str, caches: tuple[FeatureCache, FeatureCache]) -> None:
    result = asked(name, *(stated(cache, COUNTS) for cache in caches))
    assert_same(asked(name, *(stated(cache, COUNTS, padding=50.0) for cache in caches)), result)
    assert all(np.isfinite(value) for value in result.metrics.values()) and result.num_samples > 0


@pytest.mark.parametrize("name", ASKED)
def test_stating_equal_counts_changes_no_number(name: str, caches: tuple[FeatureCache, FeatureCache]) -> None:
    assert_same(asked(name, *(stated(cache, (8,)) for cache in caches)), asked(name, *caches))


def test_one_view_makes_no_pair(caches: tuple[FeatureCache, FeatureCache]) -> None:
    for name in ("invariance", "relative_rotation", "colour", "feature_action"):
        with pytest.raises(TaskSkipped, match="objects have 1 view and a pair takes 2"):
            asked(name, *(stated(cache, (5, 1)) for cache in caches))
    with pytest.raises(TaskSkipped):
        require_views(stated(caches[0], (1,)))


# ---------------------------------------------------------------- formulas, object by object


def own_views_of(cache: FeatureCache) -> list[np.ndarray]:
    """Features of each object's own views, [v, D] float64."""
    return [row[:count].double().numpy() for row, count in zip(cache.features, cache.view_counts.tolist())]


def test_invariance_equals_loops_over_each_objects_views(caches: tuple[FeatureCache, FeatureCache]) -> None:
    test = stated(caches[1], COUNTS)
    result = asked("invariance", test, test)
    lists = own_views_of(test)
    mean = np.concatenate(lists).mean(axis=0)
    lists = [views - mean for views in lists]
    within = np.concatenate([views - views.mean(axis=0) for views in lists])
    between = np.array([views.mean(axis=0) for views in lists])
    ratio = (within**2).sum(axis=1).mean() / (between**2).sum(axis=1).mean()
    assert result.metrics["within_between_ratio"] == pytest.approx(ratio)
    assert result.num_samples == sum(map(len, lists))
    unit = [views / np.linalg.norm(views, axis=1, keepdims=True) for views in lists]
    cosines = [(views @ views.T)[~np.eye(len(views), dtype=bool)].mean() for views in unit]
    np.testing.assert_allclose(result.object_scores["cosine_same_object"], cosines)
    of_others = [first @ second.T for row, first in enumerate(unit) for second in unit[:row]]
    expected = np.concatenate([products.ravel() for products in of_others]).mean()
    assert result.baselines["cosine_same_object"].value == pytest.approx(expected)
    hits = result.object_scores["hit_at_1_same_object"]
    chosen = np.flatnonzero(np.isfinite(hits))
    assert len(chosen) == QUICK.compared_objects
    rows, owners = np.concatenate([unit[row] for row in chosen]), np.repeat(chosen, [len(unit[row]) for row in chosen])
    similarities = rows @ rows.T - 9 * np.eye(len(rows))
    nearest = owners[similarities.argmax(axis=1)] == owners
    np.testing.assert_allclose(hits[chosen], [nearest[owners == row].mean() for row in chosen])
    chances = [(len(unit[row]) - 1) / (len(rows) - 1) for row in chosen]
    assert result.baselines["hit_at_1_same_object"].value == pytest.approx(np.mean(chances))


def test_collapse_and_map_are_of_the_views_that_there_are(caches: tuple[FeatureCache, FeatureCache]) -> None:
    test = stated(caches[1], COUNTS, padding=50.0)
    rows = np.concatenate(own_views_of(test))
    np.testing.assert_array_equal(feature_matrix(test).double().numpy(), rows)
    result = asked("collapse", test, test)
    assert result.num_samples == len(rows) == test.num_images
    expected = np.linalg.svd(rows, compute_uv=False)
    np.testing.assert_allclose(result.singular_values, expected, rtol=1e-4, atol=1e-4 * expected[0])
    arrays = map_arrays(test, {"all": slice(None)})
    np.testing.assert_array_equal(arrays["map_labels"], np.repeat(test.labels.numpy(), test.view_counts.numpy()))
    deviations = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) / len(rows) ** 0.5
    np.testing.assert_allclose(arrays["singular_values/all"], deviations, rtol=1e-4, atol=1e-5)
    assert len(arrays["map_features/all"]) == len(arrays["map_angle_deg"]) == len(rows)
    assert arrays["map_angle_deg"].min() > 0, "padding has no rotation"


def test_object_means_of_the_action_task_are_of_own_views(caches: tuple[FeatureCache, FeatureCache]) -> None:
    """Errors of the mean of an object's other views, as the two skills tell them apart."""
    train, test = (stated(cache, COUNTS, padding=50.0) for cache in caches)
    result = asked("feature_action", train.part(slice(20, 23)), test.part(slice(20, 23)))
    pairs = evaluated_pairs(test.num_objects, test.views_of_each, QUICK)
    lists = [views[:, 20:23] for views in own_views_of(test)]
    errors, spreads = [], []
    for row, first, second in zip(pairs.object_indices, pairs.first_view, pairs.second_view):
        others = np.delete(lists[row], second, axis=0).mean(axis=0)
        errors.append(((others - lists[row][second]) ** 2).sum())
        spreads.append(((lists[row][first] - lists[row][second]) ** 2).sum())
    skills = result.metrics
    of_map = (1 - skills["skill_over_first_view"]) * sum(spreads)
    assert 1 - of_map / sum(errors) == pytest.approx(skills["skill_over_object_mean"], abs=1e-4)
    assert result.num_samples == len(pairs)


# ---------------------------------------------------------------- pairs and views


def test_pairs_are_distinct_own_views_and_none_returns_before_the_others() -> None:
    counts = np.array([2, 7, 3, 4])
    for pairs in (evaluation_pairs(4, counts, 9, seed=0), training_pairs(4, counts, 9, seed=0, epoch=3)):
        assert np.array_equal(pairs.object_indices, np.repeat(np.arange(4), 9))
        assert (pairs.first_view != pairs.second_view).all()
        for row, count in enumerate(counts.tolist()):
            own = np.stack([pairs.first_view, pairs.second_view], axis=1)[pairs.object_indices == row]
            for start in range(0, 9 - count // 2 + 1, count // 2):
                in_round = own[start : start + count // 2].ravel().tolist()
                assert len(set(in_round)) == len(in_round) and max(in_round) < count
    found = all_pairs(4, counts)
    assert {*zip(found.object_indices.tolist(), found.first_view.tolist(), found.second_view.tolist())} == {
        (row, first, second)
        for row, count in enumerate(counts.tolist()) for first in range(count) for second in range(count)
        if first != second
    }  # fmt: skip
    assert len(found) == (counts * (counts - 1)).sum() and (np.diff(found.object_indices) >= 0).all()
    with pytest.raises(ValueError, match="a pair needs two distinct views, but objects have 1"):
        evaluation_pairs(3, np.array([4, 1, 2]), 2, seed=0)


def test_an_object_with_fewer_views_has_them_all() -> None:
    counts = np.resize(COUNTS, 9)
    drawn = np.concatenate([training_views(9, counts, 4, 0, 0), evaluation_views(9, counts, 4, 0)])
    for views, count in zip(drawn.tolist(), [*counts.tolist()] * 2, strict=True):
        own = [view for view in views if view >= 0]
        assert views == own + [-1] * (4 - len(own)) and len(set(own)) == min(4, count) and max(own) < count


@pytest.mark.parametrize("draw", [
    lambda views: training_views(6, views, 3, 0, 1), lambda views: evaluation_views(6, views, 3, 0),
    lambda views: np.stack([*vars(training_pairs(6, views, 5, 0, 1)).values()]),
    lambda views: np.stack([*vars(evaluation_pairs(6, views, 5, 0)).values()]),
    lambda views: np.stack([*vars(all_pairs(6, views)).values()]),
])  # fmt: skip
def test_draws_are_the_same_whether_equal_counts_are_one_number_or_not(draw: Callable[[Any], np.ndarray]) -> None:
    np.testing.assert_array_equal(draw(np.full(6, 5)), draw(5))


# ---------------------------------------------------------------- encoding


@pytest.fixture
def views(fake_dataset: ViewsInMemory) -> ViewsInMemory:
    """12 objects with at most 6 views of 8 x 10 pixels."""
    return cut_short(fake_dataset, (4, 6, 2))


COLOURS = {"mean_rgb": (0.5, 0.5, 0.5), "std_rgb": (0.25, 0.25, 0.25)}


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_only_views_that_there_are_are_encoded(views: ViewsInMemory, batch_size: int) -> None:
    encoder = LinearEncoder(5, 3 * 80)
    calls = recorded_calls(encoder)
    cache = encode_split(encoder, views, **COLOURS, batch_size=batch_size)
    assert sum(shape[0] for shape in calls) == views.num_images == cache.num_images == 12 * 4
    assert cache.view_counts.tolist() == [4, 6, 2] * 4 and cache.fewest_views == 2
    whole = encode_split(encoder, ViewsInMemory(views.pixels), **COLOURS).features
    for row, count in enumerate(cache.view_counts.tolist()):
        torch.testing.assert_close(cache.features[row, :count], whole[row, :count])
        assert not cache.features[row, count:].any()
    assert cache.first_rows.tolist() == [0, 4, 10, 12, 16, 22, 24, 28, 34, 36, 40, 46]
    some = cache.objects(torch.tensor([2, 0]))
    assert some.view_counts.tolist() == [2, 4] and some.to("cpu").num_images == 6


def test_stored_features_are_those_of_the_views_that_there_are(views: ViewsInMemory, tmp_path: Any) -> None:
    encoder = PixelEncoder()
    store, progress = FeatureStore(tmp_path), []
    frozen_encoder = FrozenEncoder(encoder, **COLOURS, architecture="pixels", state_sha256="0")
    expected = encode_split(encoder, views, **COLOURS)
    for _ in range(2):
        cache = store.encode(frozen_encoder, views, on_progress=lambda *done: progress.append(done))
        assert torch.equal(cache.features, expected.features) and torch.equal(cache.view_counts, expected.view_counts)
        assert store.encoder_passes == views.num_images
    assert progress[-1] == (12 * 6, 12 * 6)


def test_augmented_images_are_drawn_from_the_views_that_there_are(views: ViewsInMemory) -> None:
    square = cut_short(ViewsInMemory(views.pixels[:, :, :8, :8].copy()), (4, 6, 2))
    square.pixels[np.arange(6) >= square.view_counts[:, None]] = 255
    protocol = EquivarianceProtocol(num_augmentations=2, num_compositions=1, max_images=100)
    (found,) = encode_augmented([PixelEncoder()], square, **COLOURS, protocol=protocol)
    assert found.original.shape[0] == square.num_images
    (with_white,) = encode_augmented([PixelEncoder()], ViewsInMemory(square.pixels), **COLOURS, protocol=protocol)
    assert with_white.original.max() == 2 == with_white.original.amin(dim=1).max()
    assert found.original.amin(dim=1).max() < 2


def test_turned_views_know_nothing_of_places_without_a_view(fake_dataset: ViewsInMemory) -> None:
    images = fake_dataset.pixels[:, :, :, :8].copy()
    known = {name: getattr(fake_dataset, name) for name in ("latents", "quats_xyzw", "labels", "class_names")}
    whole = TurnedViews(ViewsInMemory(images, **known))
    turned = TurnedViews(cut_short(ViewsInMemory(images, **known), (4, 6, 2)))
    for row, count in enumerate(turned.view_counts.tolist()):
        for name in ("latents", "quats_xyzw"):
            np.testing.assert_array_equal(getattr(turned, name)[row, :count], getattr(whole, name)[row, :count])
            assert not getattr(turned, name)[row, count:].any()


# ---------------------------------------------------------------- predictors, sequences, capsules, pictures


def poses_as_features(cache: FeatureCache) -> FeatureCache:
    return replace(cache, features=cache.quats_xyzw)


def test_a_predictor_is_asked_for_consistency_but_not_for_retrieval(caches: tuple[FeatureCache, FeatureCache]) -> None:
    test = poses_as_features(stated(caches[1], (5, 3, 8), padding=9.0))
    found = predictor_consistency(TurningPredictor(), test)
    assert found.metrics["composition_error"] < 1e-3 and found.num_samples == 20 * 3
    reason = "objects have 3 to 8 views, and ranks among so many"
    with pytest.raises(TaskSkipped, match=reason):
        retrieve_with_predictor(TurningPredictor(), test)
    with pytest.raises(TaskSkipped, match=reason):
        retrieve_with_sequences(torch.nn.Identity(), test, test.features, ("rotation",), context_views=1)


def test_sequences_are_of_own_views(caches: tuple[FeatureCache, FeatureCache]) -> None:
    test = stated(caches[1], (5, 3, 8), padding=9.0)
    sequences = sequences_of_cache(test, ("rotation",), length=3, per_object=4, seed=0)
    assert sequences.features.shape == (80, 3, test.features.shape[2]) and not (sequences.features == 9).any()
    for row, features in zip(sequences.objects.tolist(), sequences.features):
        own = test.features[row, : test.view_counts[row]]
        places = [int((own == view).all(dim=1).nonzero()[0, 0]) for view in features]
        assert len(set(places)) == 3
    with pytest.raises(ValueError, match="of 4 distinct views were asked for and objects have 3"):
        sequences_of_cache(test, ("rotation",), length=4, per_object=1, seed=0)


@pytest.mark.parametrize("least_pairs", [0, 100])
def test_capsules_are_compared_with_actions_of_other_objects(least_pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(9, 8, 7, generator=generator) - 0.5
    quats_xyzw = quat_xyzw_from_latents(latents)
    matrices = quat_to_matrix(quats_xyzw).float().flatten(-2)
    features = torch.cat([torch.ones(9, 8, 1), matrices], dim=-1)
    cache = stated(feature_cache(features, torch.zeros(9).long(), latents, quats_xyzw), COUNTS, padding=3.0)
    protocol = replace(QUICK, evaluation_pairs_per_object=4, evaluation_least_pairs=least_pairs)
    found = probe_capsule_poses(cache, 1, 3, ("rotation",), protocol)
    assert found["capsule_equivariance"].metrics["pose_error"] < 1e-10
    assert found["capsule_equivariance"].baselines["pose_error"].value > 0.1
    assert found["capsule_rotation"].metrics["angle_deg_median"] < 0.1


def test_pictures_show_views_that_there_are(views: ViewsInMemory) -> None:
    assert view_sheet(views).shape[:2] == (8, 2)
    cache = replace(encode_split(PixelEncoder(), views, **COLOURS))
    arrays = neighbour_arrays(cache, {"all": slice(None)}, views, views.class_names)
    assert arrays["neighbour_images/all"].shape[:2] == (6, 7)
    # All real features point away from the query, and zeros would be nearer.
    features = torch.zeros(4, 3, 2)
    there = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [True, True, True]])
    features[there] = torch.tensor([-1.0, 0.1])
    features[0, 0] = torch.tensor([1.0, 0.0])
    found = nearest_neighbours(features, torch.tensor([[0, 0]]), 3, there)
    assert there[found[..., 0], found[..., 1]].all()
