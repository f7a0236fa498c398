"""Ranks, hits and retrieval errors against loops over NumPy arrays, and what collapsed embeddings get."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ssl_equi.evaluation.predictors import retrieval
from ssl_equi.evaluation.predictors.retrieval import (
    chance_hit_at_k,
    chance_mean_reciprocal_rank,
    chance_retrieval_error,
    hit_at_k,
    mean_reciprocal_rank,
    nearest_entries,
    prediction_retrieval_error,
    ranks,
)
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.scenes.sampling import sample_latents

OBJECTS, VIEWS, WIDTH = 20, 6, 5
METRICS = ["cosine", "euclidean"]


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similarity(first: np.ndarray, second: np.ndarray, metric: str) -> float:
    if metric == "euclidean":
        return -float(((first - second) ** 2).sum())
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def rank_by_a_loop(prediction, gallery, true_index, metric, excluded=()) -> int:
    prediction, gallery = prediction.double().numpy(), gallery.double().numpy()
    true_similarity = similarity(prediction, gallery[true_index], metric)
    others = [view for view in range(len(gallery)) if view != true_index and view not in excluded]
    return 1 + sum(similarity(prediction, gallery[view], metric) >= true_similarity for view in others)


@pytest.fixture(scope="module")
def twenty_objects() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy predictions of every view from every view, galleries, true indices, and each query's source view."""
    gallery = random_tensor(OBJECTS, VIEWS, WIDTH)
    source, target = torch.meshgrid(torch.arange(VIEWS), torch.arange(VIEWS), indexing="ij")
    source, target = source.flatten().expand(OBJECTS, -1), target.flatten().expand(OBJECTS, -1)
    predictions = gallery[:, target[0]] + 0.8 * random_tensor(OBJECTS, VIEWS**2, WIDTH, seed=1)
    return predictions, gallery, target, source


@pytest.mark.parametrize("metric", METRICS)
def test_ranks_equal_those_of_a_loop(twenty_objects, metric: str) -> None:
    predictions, gallery, target, _ = twenty_objects
    expected = [
        [rank_by_a_loop(predictions[o, q], gallery[o], int(target[o, q]), metric) for q in range(VIEWS**2)]
        for o in range(OBJECTS)
    ]
    found = ranks(predictions, gallery, target, metric)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert mean_reciprocal_rank(found) == pytest.approx(np.mean(1 / np.array(expected)), abs=1e-12)
    for k in (1, 2, 5, 10):
        assert hit_at_k(found, k) == pytest.approx(np.mean(np.array(expected) <= k), abs=1e-12)
    assert 0.5 < mean_reciprocal_rank(found) < 0.95


@pytest.mark.parametrize("metric", METRICS)
def test_excluded_views_are_no_competitors(twenty_objects, metric: str) -> None:
    predictions, gallery, target, source = twenty_objects
    asked = source[0] != target[0]
    excluded = source[:, asked].unsqueeze(-1)
    expected = [
        [
            rank_by_a_loop(predictions[o, q], gallery[o], int(target[o, q]), metric, {int(source[o, q])})
            for q in asked.nonzero()[:, 0].tolist()
        ]
        for o in range(OBJECTS)
    ]
    found = ranks(predictions[:, asked], gallery, target[:, asked], metric, excluded)
    assert found.tolist() == expected
    assert (found < ranks(predictions[:, asked], gallery, target[:, asked], metric)).any()
    twice = torch.cat([excluded, excluded], dim=-1)
    assert torch.equal(ranks(predictions[:, asked], gallery, target[:, asked], metric, twice), found)


def test_one_gallery_for_all_queries() -> None:
    gallery = random_tensor(VIEWS, WIDTH)
    assert ranks(gallery.flip(0), gallery, torch.arange(VIEWS).flip(0)).tolist() == [1] * VIEWS


@pytest.mark.parametrize("metric", METRICS)
def test_the_perfect_predictor_is_always_first(metric: str) -> None:
    gallery = random_tensor(OBJECTS, 50, WIDTH)
    found = ranks(gallery, gallery, torch.arange(50).expand(OBJECTS, -1), metric)
    assert mean_reciprocal_rank(found) == hit_at_k(found, 1) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("gallery_size", [20, 50])
def test_collapsed_embeddings_are_last(metric: str, gallery_size: int) -> None:
    everything = torch.arange(gallery_size)
    constant = random_tensor(1, 512).expand(gallery_size, -1)
    for predictions in (constant, random_tensor(gallery_size, 512, seed=1), torch.zeros(gallery_size, 512)):
        found = ranks(predictions, constant, everything, metric)
        assert found.tolist() == [gallery_size] * gallery_size
        assert mean_reciprocal_rank(found) == pytest.approx(1 / gallery_size)


@pytest.mark.parametrize("metric", METRICS)
def test_rounding_errors_of_a_collapsed_encoder_are_chance(metric: str) -> None:
    noisy = random_tensor(1, 64) * (1 + 1e-7 * random_tensor(200, 50, 64, seed=1))
    predictions = random_tensor(1, 64) * (1 + 1e-7 * random_tensor(200, 50, 64, seed=2))
    found = ranks(predictions, noisy, torch.arange(50).expand(200, -1), metric)
    assert mean_reciprocal_rank(found) < chance_mean_reciprocal_rank(50) + 0.01


def test_a_prediction_of_zero_points_at_nothing() -> None:
    assert ranks(torch.zeros(3, WIDTH), random_tensor(9, WIDTH), torch.arange(3)).tolist() == [9, 9, 9]


def test_a_large_common_offset_does_not_change_the_euclidean_order() -> None:
    predictions, gallery = random_tensor(30, WIDTH).double(), random_tensor(40, WIDTH, seed=1).double()
    expected = ranks(predictions, gallery, torch.arange(30), "euclidean")
    assert torch.equal(ranks(predictions + 1e4, gallery + 1e4, torch.arange(30), "euclidean"), expected)
    nearest = nearest_entries(predictions, gallery, "euclidean")
    assert torch.equal(nearest, torch.cdist(predictions, gallery).argmin(dim=1))
    assert torch.equal(nearest_entries(predictions + 1e4, gallery + 1e4, "euclidean"), nearest)


def test_chance_of_fifty_views() -> None:
    """The constants of SIE's galleries: MRR .0900, hit@1 .02, hit@2 .04, hit@5 .10, hit@10 .20."""
    assert chance_mean_reciprocal_rank(50) == pytest.approx(0.0900, abs=5e-5)
    assert [chance_hit_at_k(k, 50) for k in (1, 2, 5, 10)] == pytest.approx([0.02, 0.04, 0.10, 0.20])
    assert chance_mean_reciprocal_rank(1) == 1.0
    assert chance_hit_at_k(10, 4) == 1.0


def test_chance_is_what_unrelated_predictions_reach() -> None:
    found = ranks(random_tensor(500, 20, 8), random_tensor(500, 20, 8, seed=1), torch.arange(20).expand(500, -1))
    assert mean_reciprocal_rank(found) == pytest.approx(chance_mean_reciprocal_rank(20), abs=0.01)
    for k in (1, 2, 5, 10):
        assert hit_at_k(found, k) == pytest.approx(chance_hit_at_k(k, 20), abs=0.02)


def euler_box_quats_xyzw(count: int, seed: int = 0) -> torch.Tensor:
    return quat_xyzw_from_latents(torch.from_numpy(sample_latents(count, np.random.default_rng(seed))))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclude_source", [False, True])
def test_the_retrieval_error_equals_that_of_a_loop(
    metric: str, exclude_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, poses = random_tensor(OBJECTS * VIEWS, WIDTH), euler_box_quats_xyzw(OBJECTS * VIEWS)
    predictions = gallery + 0.5 * random_tensor(OBJECTS * VIEWS, WIDTH, seed=1)
    sources = torch.arange(OBJECTS * VIEWS)
    excluded = sources.unsqueeze(1) if exclude_source else None
    gallery_rows, rotations = gallery.double().numpy(), Rotation.from_quat(poses.numpy())
    expected = []
    for query, prediction in enumerate(predictions.double().numpy()):
        candidates = [row for row in range(len(gallery)) if not (exclude_source and row == query)]
        nearest = max(candidates, key=lambda row: similarity(prediction, gallery_rows[row], metric))
        angle_rad = (rotations[query].inv() * rotations[nearest]).magnitude()
        expected.append(1 - math.cos(angle_rad / 2) ** 2)
    for rows_at_once in (7, 50, 4096):
        monkeypatch.setattr(retrieval, "ROWS_AT_ONCE", rows_at_once)
        found = prediction_retrieval_error(predictions, gallery, poses, poses, metric, excluded)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert min(expected) < 0.01 if not exclude_source else min(expected) > 0


def test_the_retrieval_error_does_not_depend_on_signs() -> None:
    poses, embeddings = euler_box_quats_xyzw(50), random_tensor(50, WIDTH)
    assert prediction_retrieval_error(embeddings, embeddings, -poses, poses).abs().max() < 1e-12
    half_turn = torch.tensor([[1.0, 0, 0, 0]])
    identity = torch.tensor([[0.0, 0, 0, 1]])
    assert prediction_retrieval_error(embeddings[:1], embeddings[:1], half_turn, identity).item() == 1.0


def test_random_views_of_the_euler_box_are_at_0_627() -> None:
    poses = euler_box_quats_xyzw(20_000)
    assert chance_retrieval_error(poses) == pytest.approx(0.627, abs=0.003)
    few = poses[:200]
    assert chance_retrieval_error(few) == pytest.approx(float((1 - (few @ few.T).square()).mean()), abs=1e-12)
    embeddings, predictions = random_tensor(4000, 8), random_tensor(4000, 8, seed=1)
    sources = torch.arange(4000).unsqueeze(1)
    error = prediction_retrieval_error(predictions, embeddings, poses[:4000], poses[:4000], excluded=sources).mean()
    assert error == pytest.approx(0.627, abs=0.015)
    collapsed = torch.ones(4000, 8)
    assert prediction_retrieval_error(collapsed, collapsed, poses[:4000], poses[:4000]).mean() > 0.5


def test_embeddings_that_are_not_finite_are_refused() -> None:
    predictions, gallery, index = random_tensor(4, WIDTH), random_tensor(9, WIDTH), torch.arange(4)
    with pytest.raises(ValueError, match="gallery are not finite"):
        ranks(predictions, gallery * math.nan, index)
    with pytest.raises(ValueError, match="predictions are not finite"):
        ranks(predictions / 0, gallery, index)
