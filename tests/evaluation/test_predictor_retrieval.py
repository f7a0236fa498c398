"""Retrieval by two-view predictors: an exact one, collapsed and untrained ones, and a loop of one query at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.predictors import two_views
from ssl_equi.evaluation.predictors.retrieval import (
    HIT_RANKS,
    Retrieval,
    chance_hit_at_k,
    chance_mean_reciprocal_rank,
    chance_retrieval_error,
    retrieval_records,
    retrieval_result,
)
from ssl_equi.evaluation.predictors.two_views import retrieve_with_predictor
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.export.predictor import PredictorCard, TrainedPredictor
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.heads import projector
from ssl_equi.objectives.parts.predictors import Hypernetwork, ProjectedPredictor
from tests.fakes import TurningPredictor, feature_cache, posed_features

OBJECTS, VIEWS, WIDTH = 20, 6, 12


class Constant(TurningPredictor):
    def embed(self, features: Tensor) -> Tensor:
        return torch.ones_like(features)

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        return torch.ones_like(embeddings)


def untrained(kind: str = "rotation", action_dim: int = 4, width: int = WIDTH) -> TrainedPredictor:
    """SIE's predictor on the last half of the columns."""
    torch.manual_seed(1)
    half = width // 2
    head = projector(half, (16, 16, 8))
    module = ProjectedPredictor(width, slice(half, width), head, Hypernetwork(8, action_dim))
    return TrainedPredictor(module, PredictorCard("sie", ToldActions.of(kind, action_dim), "test")).eval()


def values(retrieval: Retrieval) -> dict[str, float]:
    return retrieval_result(retrieval).metrics


@pytest.mark.parametrize("source_views", [1, 3, None])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_exact_predictor_finds_every_view(source_views: int | None, metric: Any) -> None:
    found = retrieve_with_predictor(TurningPredictor(), posed_features(), source_views=source_views, metric=metric)
    for name, value in values(found).items():
        assert value == pytest.approx(0.0 if "error" in name else 1.0, abs=1e-6), name
    assert len(found.with_source.ranks) == OBJECTS * VIEWS * (source_views or VIEWS)
    assert len(found.without_identity.ranks) == OBJECTS * (VIEWS - 1) * (source_views or VIEWS)


@torch.inference_mode()
def retrieve_by_a_loop(
    predictor: TrainedPredictor, cache: FeatureCache, sources: int
) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """Ranks and retrieval errors, one query at a time; actions by SciPy."""
    poses = cache.quats_xyzw.double().numpy()
    embeddings = torch.stack([predictor.embed(of_object) for of_object in cache.features])
    unit = (embeddings / embeddings.norm(dim=-1, keepdim=True)).double().numpy()
    ranks: dict[str, list[int]] = {"all": [], "without_identity": [], "without_source": []}
    errors: dict[str, list[float]] = {"all": [], "without_source": []}
    for item in range(len(poses)):
        for source in range(sources):
            for view in range(cache.num_views):
                action = (
                    Rotation.from_quat(poses[item, source]).inv() * Rotation.from_quat(poses[item, view])
                ).as_quat()
                if cache.latents.shape[-1] and predictor.actions == ToldActions.of("rotation_color"):
                    hues = cache.latents[item, view, [3, 6]] - cache.latents[item, source, [3, 6]]
                    action = np.concatenate([action, hues.numpy()])
                given = torch.from_numpy(action).float().unsqueeze(0)
                prediction = predictor.predict(cache.features[item, source].unsqueeze(0), given)[0].double().numpy()
                cosines = unit @ prediction
                competitors = [other for other in range(cache.num_views) if other != view]
                as_near = [other for other in competitors if cosines[item, other] >= cosines[item, view]]
                ranks["all"].append(1 + len(as_near))
                errors["all"].append(
                    1 - (poses[item, view] @ poses[divmod(int(cosines.argmax()), cache.num_views)]) ** 2
                )
                if view == source:
                    continue
                ranks["without_identity"].append(1 + len(as_near))
                ranks["without_source"].append(1 + len([other for other in as_near if other != source]))
                cosines[item, source] = -np.inf
                nearest = divmod(int(cosines.argmax()), cache.num_views)
                errors["without_source"].append(1 - (poses[item, view] @ poses[nearest]) ** 2)
    return ranks, errors


@pytest.mark.parametrize(("sources", "kind", "action_dim"), [(1, "rotation", 4), (4, "rotation_color", 6)])
def test_twenty_objects_equal_a_loop(sources: int, kind: str, action_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: two embeddings can be equally near in float32."""
    cache, predictor = posed_features(width=WIDTH), untrained(kind, action_dim).double()
    cache = replace(cache, features=cache.features.double())
    ranks, errors = retrieve_by_a_loop(predictor, cache, sources)
    predictor.train()
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    for rows_in_a_chunk in (16384, 7):
        monkeypatch.setattr(two_views, "ROWS_IN_A_CHUNK", rows_in_a_chunk)
        found = retrieve_with_predictor(predictor, cache, source_views=sources)
        assert found.with_source.ranks.tolist() == ranks["all"]
        assert found.without_identity.ranks.tolist() == ranks["without_identity"]
        assert found.without_source.ranks.tolist() == ranks["without_source"]
        numbers = values(found)
        for suffix, key in (
            ("", "all"),
            ("_without_identity", "without_identity"),
            ("_without_source", "without_source"),
        ):
            assert numbers[f"mrr{suffix}"] == pytest.approx(np.mean(1 / np.array(ranks[key])), abs=1e-12)
            assert numbers[f"hit_at_2{suffix}"] == pytest.approx(np.mean(np.array(ranks[key]) <= 2), abs=1e-12)
        assert numbers["retrieval_error"] == pytest.approx(np.mean(errors["all"]), abs=1e-5)
        assert numbers["retrieval_error_without_source"] == pytest.approx(np.mean(errors["without_source"]), abs=1e-5)
    assert predictor.training, "the modes are what they were before"
    assert all(torch.equal(value, before[name]) for name, value in predictor.state_dict().items())


def test_one_that_starts_from_features_finds_the_same() -> None:
    """Without `advance`, the source is embedded anew for each query."""
    predictor, cache = untrained(), posed_features(width=WIDTH)

    class FromFeatures:
        name, actions, embed, predict = "sie", ToldActions.of("rotation"), predictor.embed, predictor.predict

    found, expected = (retrieve_with_predictor(asked, cache) for asked in (FromFeatures(), predictor))
    assert torch.equal(found.with_source.ranks, expected.with_source.ranks)


def test_collapsed_embeddings_are_last() -> None:
    """Every view ties with the true one: worse than chance, never 1."""
    found = retrieve_with_predictor(Constant(), posed_features())
    assert found.with_source.ranks.unique().tolist() == [VIEWS]
    numbers = values(found)
    assert numbers["mrr"] == pytest.approx(1 / VIEWS) and numbers["hit_at_5"] == 0
    assert numbers["retrieval_error"] > found.chance_error - 0.1


def test_an_untrained_predictor_is_at_chance_among_fifty_views() -> None:
    """SIE's galleries: MRR .0900, hit@1, 2, 5, 10 .02, .04, .10, .20, retrieval error .627 of the Euler box.

    1000 objects ask for their 50 views from view 0. The errors have 100 sources, and few views are nearest to many
    predictions, hence a wider tolerance.
    """
    cache = posed_features(1000, 50, width=WIDTH)
    found = retrieve_with_predictor(untrained(), cache, whole_set=False)
    result = retrieval_result(found)
    chances = {"mrr": 0.0900} | dict(zip([f"hit_at_{k}" for k in HIT_RANKS], [0.02, 0.04, 0.10, 0.20], strict=True))
    for name, chance in chances.items():
        assert result.baselines[name].value == pytest.approx(chance, abs=1e-4)
        assert result.metrics[name] == pytest.approx(chance, abs=0.01)
        assert result.metrics[f"{name}_without_identity"] == pytest.approx(chance, abs=0.01)
        assert result.baselines[f"{name}_without_identity"].value == result.baselines[name].value
    assert result.baselines["mrr_without_source"].value == pytest.approx(chance_mean_reciprocal_rank(49))
    assert result.baselines["hit_at_5_without_source"].value == pytest.approx(chance_hit_at_k(5, 49))
    assert chance_retrieval_error(cache.quats_xyzw) == pytest.approx(0.627, abs=0.003)
    some = feature_cache(cache.features[:100], cache.labels[:100], cache.latents[:100], cache.quats_xyzw[:100])
    errors = retrieve_with_predictor(untrained(), some)
    assert errors.with_source.object_errors.mean().item() == pytest.approx(errors.chance_error, abs=0.06)
    assert errors.without_source.object_errors.mean().item() == pytest.approx(errors.chance_error, abs=0.06)


def test_records_name_gallery_and_chance() -> None:
    records = retrieval_records(retrieve_with_predictor(TurningPredictor(), posed_features()), "the encoder", "val")
    assert {(record.task, record.part, record.baseline_name) for record in records} == {
        ("retrieval", "pred@1", "chance")
    }
    counts = {record.metric: record.n for record in records}
    assert counts["mrr"] == OBJECTS * VIEWS and counts["mrr_without_identity"] == OBJECTS * (VIEWS - 1)
    assert {record.protocol for record in records if "without_identity" in record.metric} == {
        "retrieval_v1, 6 views of the object by the encoder"
    }


def test_objects_that_move_are_asked_for_by_rigid_motions() -> None:
    cache = posed_features(width=WIDTH, translation=True)
    found = retrieve_with_predictor(untrained("pose_object", 7), cache)
    assert 0 < values(found)["mrr"] < 1


def test_what_can_not_be_asked_is_skipped_with_a_reason() -> None:
    told_of_crops = untrained("augmentation", 9)
    cache = posed_features(width=WIDTH)
    with pytest.raises(TaskSkipped, match="told actions 'augmentation': between stored views only those of "):
        retrieve_with_predictor(told_of_crops, cache)
    with pytest.raises(TaskSkipped, match="told actions rotation and these views have no latents for rotation"):
        retrieve_with_predictor(
            untrained(), replace(cache, quats_xyzw=None, latents=cache.latents[..., :0], schema=None)
        )
    with pytest.raises(TaskSkipped, match="told actions pose_base and these views have no latents for pose_base"):
        retrieve_with_predictor(untrained("pose_base", 7), cache)
    with pytest.raises(TaskSkipped, match="objects have 1 view"):
        retrieve_with_predictor(untrained(), posed_features(num_views=1, width=WIDTH))


def test_malformed_input_is_named() -> None:
    cache = posed_features(width=WIDTH)
    with pytest.raises(ValueError, match=r"features have shape \(120, 10\): this predictor of sie reads \[N, 12\]"):
        retrieve_with_predictor(untrained(), replace(cache, features=cache.features[..., :10]))
    broken = untrained()
    nn.init.constant_(broken.module.predictor.matrices, torch.inf)
    with pytest.raises(ValueError, match="predictions are not finite"):
        retrieve_with_predictor(broken, cache)
    with pytest.raises(ValueError, match="predictions are not finite"):
        retrieve_with_predictor(untrained(), replace(cache, features=cache.features * torch.nan))
