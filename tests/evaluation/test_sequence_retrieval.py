"""Retrieval from observed sequences: an exact predictor, predictors that are wrong in known ways, and a slow loop."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors.retrieval import (
    Retrieval,
    chance_mean_reciprocal_rank,
    mean_reciprocal_rank,
    retrieval_records,
    retrieval_result,
)
from ssl_equi.evaluation.sequences import retrieval as sequence_retrieval
from ssl_equi.evaluation.sequences.retrieval import retrieve_with_sequences
from ssl_equi.geometry.rotations import quat_conjugate, quat_multiply
from ssl_equi.latents.actions import ToldActions
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.schema import Latent, LatentSchema
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from tests.fakes import feature_cache, posed_features

OBJECTS, VIEWS = 20, 6


class Rotating(nn.Module):
    """Turns the first observed pose by every action in a row: exact, if the actions are the ones between the views."""

    aggregator_takes_actions = predictor_takes_actions = True

    def aggregate(self, features: Tensor, actions: Tensor) -> Tensor:
        pose = features[:, 0]
        for action in actions.unbind(dim=1):
            pose = quat_multiply(pose, action)
        return pose

    def predict(self, aggregates: Tensor, actions: Tensor) -> Tensor:
        return quat_multiply(aggregates, actions)


class Inverse(Rotating):
    def predict(self, aggregates: Tensor, actions: Tensor) -> Tensor:
        return quat_multiply(aggregates, quat_conjugate(actions))


class NegatedAction(Rotating):
    def predict(self, aggregates: Tensor, actions: Tensor) -> Tensor:
        return quat_multiply(aggregates, -actions)


class Staying(Rotating):
    """Answers the last observed view, whatever is asked for."""

    predictor_takes_actions = False

    def predict(self, aggregates: Tensor, actions: None) -> Tensor:
        assert actions is None
        return aggregates


def retrieve(model: nn.Module, cache: FeatureCache, **options: Any) -> Retrieval:
    return retrieve_with_sequences(model, cache, cache.features, ["rotation"], **options)


@pytest.mark.parametrize("context_views", [1, 2, 3, 5])
def test_the_exact_predictor_finds_every_view(context_views: int) -> None:
    found = retrieve(Rotating(), posed_features(), context_views=context_views)
    assert mean_reciprocal_rank(found.with_source.ranks) == mean_reciprocal_rank(found.without_source.ranks) == 1.0
    assert max(found.with_source.object_errors.mean().item(), found.without_source.object_errors.mean().item()) < 1e-6
    unseen = VIEWS - context_views
    assert len(found.with_source.ranks) == OBJECTS * VIEWS * (VIEWS if context_views == 1 else unseen)
    assert len(found.without_source.ranks) == OBJECTS * VIEWS * unseen
    assert (found.with_source.gallery_size, found.without_source.gallery_size) == (VIEWS, unseen)


@pytest.mark.parametrize("model", [Inverse(), NegatedAction()], ids=["inverse", "negated"])
def test_the_sign_and_direction_of_the_action_matter(model: nn.Module) -> None:
    found = retrieve(model, posed_features(100), context_views=1)
    assert mean_reciprocal_rank(found.without_source.ranks) < chance_mean_reciprocal_rank(VIEWS - 1) + 0.1
    if isinstance(model, NegatedAction):
        assert (found.without_source.ranks == VIEWS - 1).all(), (
            "the negated embedding is the farthest from the true one"
        )


def test_knowing_where_one_stands_is_rewarded_only_with_the_source() -> None:
    """A predictor that ignores the action finds the source itself, and stands at its own view for all others."""
    cache = posed_features(100)
    found = retrieve(Staying(), cache, context_views=1)
    by_source = found.with_source.ranks.view(100, VIEWS, VIEWS)
    assert (by_source.diagonal(dim1=1, dim2=2) == 1).all() and (by_source == 1).sum() == 100 * VIEWS
    expected = chance_mean_reciprocal_rank(VIEWS - 1)
    assert mean_reciprocal_rank(found.without_source.ranks) == pytest.approx(expected, abs=1e-9), "each rank once"
    assert found.with_source.object_errors.mean().item() < found.chance_error


def test_an_encoder_that_collapsed_is_no_better_than_chance() -> None:
    cache = posed_features()
    cache = replace(cache, features=torch.ones_like(cache.features))
    for context_views in (1, 3):
        found = retrieve(Staying(), cache, context_views=context_views)
        assert found.with_source.ranks.unique().tolist() == [VIEWS]
        assert found.without_source.ranks.unique().tolist() == [VIEWS - context_views]
        assert found.with_source.object_errors.mean().item() > found.chance_error - 0.1


def small_seq_jepa(conditioning: str = "both", action_dim: int = 4) -> SeqJEPA:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
    encoder.num_features = 8
    sizes = {"action_width": 4, "layers": 1, "heads": 2, "feedforward_width": 8, "predictor_hidden_width": 8}
    config = SeqJEPAConfig(action_dim=action_dim, conditioning=conditioning, momentum_target=False, **sizes)
    return SeqJEPA(encoder, config)


def actions_by_scipy(cache: FeatureCache, kind: str) -> np.ndarray:
    """`[o, V, V, A]`, from view to view."""
    rotations = [[Rotation.from_quat(pose) for pose in poses] for poses in cache.quats_xyzw.double().numpy()]
    actions = np.array([[[(a.inv() * b).as_quat() for b in of_item] for a in of_item] for of_item in rotations])
    if kind == "rotation_color":
        hues = cache.latents[..., [3, 6]].numpy()
        actions = np.concatenate([actions, hues[:, None, :] - hues[:, :, None]], axis=-1)
    if kind == "pose_object":
        steps = cache.latents[..., None, :, 7:].numpy() - cache.latents[..., None, 7:].numpy()
        turned = [[a.inv().apply(step) for a, step in zip(*item, strict=True)] for item in zip(rotations, steps)]
        actions = np.concatenate([actions, np.array(turned)], axis=-1)
    return actions.astype(np.float32)


@torch.inference_mode()
def retrieve_by_a_loop(
    model: SeqJEPA, cache: FeatureCache, target_features: Tensor, kind: str, context_views: int
) -> tuple[list[int], list[int], list[float], list[float]]:
    """Ranks with and without the source, and errors with and without it, one query at a time."""
    poses, actions = cache.quats_xyzw.double().numpy(), torch.from_numpy(actions_by_scipy(cache, kind))
    unit = (target_features / target_features.norm(dim=-1, keepdim=True)).double().numpy()
    answers: tuple[list[int], list[int], list[float], list[float]] = ([], [], [], [])
    for item in range(len(poses)):
        for last in range(VIEWS):
            context = [(last - back) % VIEWS for back in reversed(range(context_views))]
            steps = [actions[item, first, second] for first, second in itertools.pairwise(context)]
            steps = torch.stack(steps).unsqueeze(0) if steps else actions.new_zeros(1, 0, actions.shape[-1])
            aggregate = model.aggregate(cache.features[item, context].unsqueeze(0), steps)
            for view in range(VIEWS):
                cosines = unit @ model.predict(aggregate, actions[item, last, view].unsqueeze(0))[0].numpy()
                for left_out, ranks, errors in (([], *answers[::2]), (context, *answers[1::2])):
                    if view in left_out or (view in context and context_views > 1):
                        continue
                    others = [other for other in range(VIEWS) if other not in (view, *left_out)]
                    ranks.append(1 + sum(cosines[item, other] >= cosines[item, view] for other in others))
                    candidates = cosines.copy()
                    candidates[item, left_out] = -2
                    nearest = np.unravel_index(candidates.argmax(), candidates.shape)
                    errors.append(1 - (poses[item, view] @ poses[nearest]) ** 2)
    return answers


@pytest.mark.parametrize(
    ("context_views", "kind", "conditioning"),
    [(1, "rotation", "both"), (3, "rotation_color", "both"), (4, "rotation", "predictor"), (2, "rotation", "none"),
     (2, "pose_object", "both")],
)  # fmt: skip
def test_twenty_objects_equal_a_loop(
    context_views: int, kind: str, conditioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    cache = posed_features(width=8, translation=kind == "pose_object")
    target_features = torch.randn(OBJECTS, VIEWS, 8)
    model = small_seq_jepa(conditioning, ToldActions.of(kind).width).eval()
    expected = retrieve_by_a_loop(model, cache, target_features, kind, context_views)
    model.train()
    for predictions_in_a_chunk in (16384, 3 * VIEWS**2):
        monkeypatch.setattr(sequence_retrieval, "PREDICTIONS_IN_A_CHUNK", predictions_in_a_chunk)
        found = retrieve_with_sequences(model, cache, target_features, [kind], context_views=context_views)
        assert found.with_source.ranks.tolist() == expected[0]
        assert found.without_source.ranks.tolist() == expected[1]
        assert found.with_source.object_errors.mean().item() == pytest.approx(np.mean(expected[2]), abs=1e-5)
        assert found.without_source.object_errors.mean().item() == pytest.approx(np.mean(expected[3]), abs=1e-5)
    assert model.training, "the modes are what they were before"


def test_some_contexts_are_the_first_of_all() -> None:
    cache = posed_features()
    few = retrieve(Inverse(), cache, context_views=2, contexts_per_object=2, whole_set=False)
    every = retrieve(Inverse(), cache, context_views=2, whole_set=False)
    assert torch.equal(
        few.with_source.ranks.view(OBJECTS, 2, -1), every.with_source.ranks.view(OBJECTS, VIEWS, -1)[:, :2]
    )
    assert few.with_source.object_errors is few.without_source.object_errors is few.chance_error is None


def test_without_poses_views_are_found_among_those_of_their_object_only() -> None:
    """By azimuths alone: the predictor answers with the sine and cosine of where the action leads."""
    azimuths_deg = torch.rand(OBJECTS, VIEWS, 1, generator=torch.Generator().manual_seed(0)) * 360
    angle, schema = Angle(), LatentSchema((Latent("azimuth", Angle(), 0),))
    cache = feature_cache(angle.encode(azimuths_deg), torch.zeros(OBJECTS).long(), azimuths_deg, None, schema=schema)

    class Adding(nn.Module):
        aggregator_takes_actions = predictor_takes_actions = True

        def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
            return features[:, -1]

        def predict(self, aggregates: Tensor, actions: Tensor | None) -> Tensor:
            assert actions is not None
            return angle.compose(aggregates, actions)

    found = retrieve_with_sequences(Adding(), cache, cache.features, ["azimuth"], context_views=1)
    assert found.without_source.ranks.unique().tolist() == [1]
    assert found.chance_error is found.with_source.object_errors is None
    result = retrieval_result(found)
    assert result.metrics["mrr"] == 1 and "retrieval_error" not in result.metrics


def test_records_state_gallery_encoder_and_chance() -> None:
    records = retrieval_records(retrieve(Staying(), posed_features(), context_views=1), "the momentum encoder", "val")
    by_metric = {record.metric: record for record in records}
    assert list(by_metric) == [
        "mrr", "hit_at_1", "hit_at_2", "hit_at_5", "mrr_without_identity", "hit_at_1_without_identity",
        "hit_at_2_without_identity", "hit_at_5_without_identity", "mrr_without_source", "hit_at_1_without_source",
        "hit_at_2_without_source", "retrieval_error", "retrieval_error_without_source",
    ]  # fmt: skip
    assert {(record.task, record.part, record.split) for record in records} == {("retrieval", "pred@1", "val")}
    assert {record.baseline_name for record in records} == {"chance"}
    assert by_metric["mrr"].baseline == pytest.approx(sum(1 / rank for rank in range(1, 7)) / 6)
    assert by_metric["mrr_without_source"].baseline == pytest.approx(sum(1 / rank for rank in range(1, 6)) / 5)
    assert by_metric["hit_at_2"].baseline == pytest.approx(2 / 6)
    assert by_metric["hit_at_1"].value == pytest.approx(1 / 6) and by_metric["hit_at_1"].n == OBJECTS * 36
    assert by_metric["mrr"].protocol == "retrieval_v1, 6 views of the object by the momentum encoder"
    assert "5 views of the object" in by_metric["hit_at_1_without_source"].protocol
    assert "all views of the split by the momentum encoder" in by_metric["retrieval_error"].protocol
    assert by_metric["retrieval_error_without_source"].n == OBJECTS * 30


@pytest.mark.parametrize("context_views", [1, 3])
def test_a_result_has_the_mean_of_each_object(context_views: int) -> None:
    retrieval = retrieve(Inverse(), posed_features(), context_views=context_views)
    result = retrieval_result(retrieval)
    records = {record.metric: record for record in retrieval_records(retrieval, "the encoder", "val")}
    assert list(result.metrics) == list(result.baselines) == list(result.object_scores) == list(records)
    assert result.num_samples == len(retrieval.with_source.ranks)
    for name, scores in result.object_scores.items():
        assert scores.shape == (OBJECTS,) and scores.std() > 0
        assert scores.mean() == pytest.approx(result.metrics[name]) == records[name].value
        assert result.baselines[name].value == records[name].baseline
    first = retrieval.with_source.ranks.view(OBJECTS, -1)[0]
    assert result.object_scores["mrr"][0] == pytest.approx((1 / first.double()).mean())


def test_actions_that_are_not_known_are_refused() -> None:
    cache = posed_features()
    with pytest.raises(UserError, match="none are known of these views"):
        retrieve(
            Rotating(), replace(cache, quats_xyzw=None, latents=cache.latents[..., :0], schema=None), context_views=1
        )
    with pytest.raises(UserError, match="action 'augmentation' is none of this data's"):
        retrieve_with_sequences(Rotating(), cache, cache.features, ["augmentation"], context_views=1)
