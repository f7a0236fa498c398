"""Errors of the identity, of inverses, compositions and signs: exact predictors, wrong ones in known ways, a loop."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors import consistency as module
from ssl_equi.evaluation.predictors.consistency import predictor_consistency
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.export.predictor import PredictorCard, TrainedPredictor
from ssl_equi.geometry.rotations import quat_conjugate, quat_multiply
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.predictors import Hypernetwork, PoseProduct, ProjectedPredictor
from tests.fakes import TurningPredictor, posed_features

OBJECTS, VIEWS, WIDTH = 20, 6, 6


class Staying(TurningPredictor):
    """Answers the source, whatever the action is: right for the identity, and back is where it always was."""

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        return embeddings


class Backwards(TurningPredictor):
    """Takes every action for its inverse; right for the identity and there and back, wrong in a row."""

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        return quat_multiply(embeddings, quat_conjugate(actions))


class SquaredSign(TurningPredictor):
    """Does not tell q from -q: outer products of quaternions."""

    def embed(self, features: Tensor) -> Tensor:
        return (features.unsqueeze(2) * features.unsqueeze(1)).flatten(1)

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        return self.embed(quat_multiply(features, actions))

    advance = None


def hypernetwork(kind: str = "rotation", **options: Any) -> TrainedPredictor:
    torch.manual_seed(1)
    predictor = Hypernetwork(WIDTH, ToldActions.of(kind).width, **options)
    return TrainedPredictor(
        ProjectedPredictor(WIDTH, slice(0, WIDTH), None, predictor), PredictorCard("sie", ToldActions.of(kind), "test")
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_exact_predictor_makes_no_error_but_of_signs(metric: Any) -> None:
    found = predictor_consistency(TurningPredictor(), posed_features(), metric=metric)
    metrics = found.metrics
    assert list(metrics) == ["identity_error", "inverse_error", "composition_error", "sign_flip_error"]
    for name in ("identity_error", "inverse_error", "composition_error"):
        assert metrics[name] < 1e-6
    assert metrics["sign_flip_error"] > 1.4, "the negated quaternion is the farthest embedding"
    assert {baseline.value for baseline in found.baselines.values()} == {1.0}
    assert found.notes == () and found.num_samples == OBJECTS * VIEWS


def test_an_error_is_found_where_it_is_made() -> None:
    backwards = predictor_consistency(Backwards(), posed_features()).metrics
    assert max(backwards["identity_error"], backwards["inverse_error"]) < 1e-6 and backwards["composition_error"] > 0.5


@pytest.mark.parametrize("kind", ["rotation_6d", "rotation_matrix"])
def test_actions_without_a_sign_have_no_error_of_signs(kind: str) -> None:
    metrics = predictor_consistency(hypernetwork(kind), posed_features(width=WIDTH)).metrics
    assert list(metrics) == ["identity_error", "inverse_error", "composition_error"]
    with pytest.raises(ValueError, match="give 1, or -1 for quaternions"):
        TrainedPredictor(hypernetwork(kind).module, PredictorCard("sie", ToldActions.of(kind), "test", action_sign=-1))


@pytest.mark.parametrize(("kind", "translation"), [("rotation", False), ("rotation_color", False), ("pose_base", True)])
def test_a_linear_hypernetwork_negates_its_answer_with_the_quaternion(kind: str, translation: bool) -> None:
    """Exactly so, if the quaternion is all it is told: |p - (-p)| = 2 on unit vectors."""
    cache, predictor = posed_features(width=WIDTH, translation=translation), hypernetwork(kind)
    found = predictor_consistency(predictor, cache)
    assert all(np.isfinite(value) for value in found.metrics.values())
    if kind == "rotation":
        by_loop = errors_by_a_loop(predictor, cache)
        assert found.metrics["sign_flip_error"] == pytest.approx(2 / by_loop["predictions"], rel=1e-5)
        biased = hypernetwork(hypernetwork_bias=True)
        error, scale = predictor_consistency(biased, cache).metrics["sign_flip_error"], errors_by_a_loop(biased, cache)
        assert error * scale["predictions"] < 1.99


@torch.inference_mode()
def errors_by_a_loop(predictor: TrainedPredictor, cache: FeatureCache) -> dict[str, float]:
    """Mean distances of unit vectors, one triple at a time."""

    def action(item: int, first: int, second: int) -> Tensor:
        poses = cache.quats_xyzw[item]
        return quat_multiply(quat_conjugate(poses[first]), poses[second]).unsqueeze(0)

    def distance(first: Tensor, second: Tensor) -> float:
        return float((first / first.norm() - second / second.norm()).norm())

    sums: dict[str, list[float]] = {}
    for item in range(OBJECTS):
        for i in range(VIEWS):
            j, k = (i + 1) % VIEWS, (i + 2) % VIEWS
            here, there = (predictor.embed(cache.features[item, view].unsqueeze(0)) for view in (i, j))
            to_j, to_k = (predictor.advance(here, action(item, i, view)) for view in (j, k))
            found = {
                "identity": distance(predictor.advance(here, action(item, i, i)), here),
                "inverse": distance(predictor.advance(to_j, action(item, j, i)), here),
                "composition": distance(predictor.advance(to_j, action(item, j, k)), to_k),
                "embeddings": distance(here, there),
                "predictions": distance(to_j, to_k),
            }
            for name, value in found.items():
                sums.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sums.items()}


@pytest.mark.parametrize("sign", [1, -1])
def test_what_actions_share_changes_no_number(sign: Any) -> None:
    module, told = hypernetwork().module, ToldActions.of("rotation")
    trained = TrainedPredictor(module, PredictorCard("sie", told, "test", action_sign=sign))

    class OneByOne:
        name, actions = trained.name, told
        embed, advance, predict = trained.embed, trained.advance, trained.predict

    cache = posed_features(width=WIDTH)
    together, apart = (predictor_consistency(asked, cache).metrics for asked in (trained, OneByOne()))
    assert together == apart


def test_the_errors_equal_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, predictor = posed_features(width=WIDTH), hypernetwork()
    expected = errors_by_a_loop(predictor, cache)
    for rows_in_a_chunk in (16384, 12):
        monkeypatch.setattr(module, "ROWS_IN_A_CHUNK", rows_in_a_chunk)
        result = predictor_consistency(predictor, cache)
        assert result.metrics["identity_error"] == pytest.approx(
            expected["identity"] / expected["embeddings"], rel=1e-5
        )
        assert result.metrics["inverse_error"] == pytest.approx(expected["inverse"] / expected["embeddings"], rel=1e-5)
        ratio = expected["composition"] / expected["predictions"]
        assert result.metrics["composition_error"] == pytest.approx(ratio, rel=1e-5)
    for name, scores in result.object_scores.items():
        assert scores.shape == (OBJECTS,) and scores.mean() == pytest.approx(result.metrics[name])
    monkeypatch.setattr(module, "TRIPLES_PER_OBJECT", 2)
    few = predictor_consistency(predictor, cache)
    assert few.num_samples == 2 * OBJECTS and few.metrics != result.metrics


@pytest.mark.parametrize(("kind", "side", "columns"), [("rotation", 3, None), ("pose_object", 4, 3)])
def test_multiplying_poses_is_consistent_and_knows_no_signs(kind: str, side: int, columns: int | None) -> None:
    product = PoseProduct(4, side, columns)
    cache = posed_features(width=product.num_features, translation=True)
    predictor = TrainedPredictor(product, PredictorCard("equicaps", ToldActions.of(kind), "test"))
    errors = predictor_consistency(predictor, cache).metrics
    assert all(value < 1e-5 for value in errors.values()), errors


def test_what_starts_from_features_has_no_inverse_and_says_so() -> None:
    found = predictor_consistency(SquaredSign(), posed_features())
    assert list(found.metrics) == ["identity_error", "sign_flip_error"]
    assert max(found.metrics.values()) < 1e-5
    assert found.notes[0].startswith("inverse_error, composition_error: the predictor of turning starts from features")


def test_one_that_ignores_the_action_has_no_scale_for_its_compositions() -> None:
    found = predictor_consistency(Staying(), posed_features())
    assert found.metrics == {"identity_error": 0.0, "inverse_error": 0.0}
    assert found.notes[0].startswith("composition_error, sign_flip_error: the predictor of turning answers the same")


def test_what_can_not_be_asked_is_skipped_with_a_reason() -> None:
    cache = posed_features()
    with pytest.raises(
        TaskSkipped, match="the embeddings of an object's views by the predictor of turning do not differ"
    ):
        predictor_consistency(TurningPredictor(), replace(cache, features=torch.ones_like(cache.features)))
    with pytest.raises(TaskSkipped, match="objects have 2 views: two actions in a row need 3"):
        predictor_consistency(TurningPredictor(), posed_features(num_views=2))
    with pytest.raises(TaskSkipped, match="these views have no latents for rotation"):
        predictor_consistency(
            TurningPredictor(), replace(cache, quats_xyzw=None, latents=cache.latents[..., :0], schema=None)
        )
    with pytest.raises(ValueError, match="are not finite"):
        predictor_consistency(TurningPredictor(), replace(cache, features=cache.features * torch.nan))
