"""Invariance and collapse in closed form, and linear action on features that turn with the object or don't."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.metrics import effective_rank
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.report.feature_map import map_arrays
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult
from ssl_equi.evaluation.tasks.feature_action import fit_components
from ssl_equi.geometry.rotations import quat_to_matrix

MakeCache = Callable[..., FeatureCache]
PROTOCOL = ProbeProtocol()


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(
    name: str, cache: FeatureCache, train: FeatureCache | None = None, protocol: ProbeProtocol = PROTOCOL
) -> TaskResult:
    return TASKS[name](Ask(cache if train is None else train, cache, 4, protocol, 0))


def values(result: TaskResult) -> tuple[dict[str, float], dict[str, float]]:
    assert result.metrics.keys() == result.baselines.keys()
    return result.metrics, {name: baseline.value for name, baseline in result.baselines.items()}


def test_invariant_features_reach_the_ceiling(posed_cache: MakeCache) -> None:
    metrics, baselines = values(
        ask("invariance", replace(posed_cache(50, 0), features=gaussian(50, 1, 16).expand(50, 8, 16)))
    )
    assert metrics == pytest.approx(
        {"within_between_ratio": 0, "cosine_same_object": 1, "hit_at_1_same_object": 1}, abs=1e-6
    )
    assert baselines["within_between_ratio"] > 5 and baselines["hit_at_1_same_object"] == pytest.approx(7 / 399)
    assert baselines["cosine_same_object"] == pytest.approx(-1 / 49, abs=5e-3), "centred rows sum to about 0"


def test_features_that_know_no_object_reach_the_null(posed_cache: MakeCache) -> None:
    """Of V = 8 independent views: within (1 - 1/V), between (1/V)(1 - 1/n), so about V - 1 = 7."""
    result = ask("invariance", replace(posed_cache(300, 0), features=gaussian(300, 8, 16)))
    metrics, baselines = values(result)
    assert metrics["within_between_ratio"] == pytest.approx(7 / (1 - 1 / 300), rel=0.05)
    assert baselines["within_between_ratio"] == pytest.approx(7 / (1 - 1 / 300), rel=0.05)
    assert metrics["cosine_same_object"] == pytest.approx(0, abs=0.01)
    assert metrics["hit_at_1_same_object"] == pytest.approx(7 / 2399, abs=5e-3)


def test_invariance_equals_the_definitions(posed_cache: MakeCache) -> None:
    features = gaussian(20, 1, 5) + 0.6 * gaussian(20, 8, 5, seed=1) + 3
    result = ask("invariance", replace(posed_cache(20, 0), features=features))
    centred = features.double().numpy() - features.double().numpy().mean(axis=(0, 1))
    means = centred.mean(axis=1, keepdims=True)
    exact = ((centred - means) ** 2).sum() / (8 * (means**2).sum())
    assert result.metrics["within_between_ratio"] == pytest.approx(exact, rel=1e-6)
    cosines = cosine_similarity(centred.reshape(-1, 5))
    objects = np.repeat(np.arange(20), 8)
    same = (objects[:, None] == objects) & ~np.eye(160, dtype=bool)
    assert result.metrics["cosine_same_object"] == pytest.approx(cosines[same].mean(), rel=1e-6)
    others = cosines[objects[:, None] != objects].mean()
    assert result.baselines["cosine_same_object"].value == pytest.approx(others, rel=1e-6)
    nearest = np.where(np.eye(160, dtype=bool), -2, cosines).argmax(axis=1)
    hits = (objects[nearest] == objects).reshape(20, 8).mean(axis=1)
    np.testing.assert_allclose(result.object_scores["hit_at_1_same_object"], hits)
    assert result.object_scores["cosine_same_object"].mean() == pytest.approx(result.metrics["cosine_same_object"])


def test_the_gallery_may_be_some_objects(posed_cache: MakeCache) -> None:
    cache = replace(posed_cache(30, 0), features=gaussian(30, 1, 4) + 0.5 * gaussian(30, 8, 4, seed=1))
    result = ask("invariance", cache, protocol=replace(PROTOCOL, compared_objects=10))
    assert result.baselines["hit_at_1_same_object"].value == pytest.approx(7 / 79)
    assert np.isfinite(result.object_scores["hit_at_1_same_object"]).sum() == 10


def test_views_as_near_as_those_of_other_objects_are_no_hits(posed_cache: MakeCache) -> None:
    """Two objects of one feature each: the third and fourth are their copies."""
    two = gaussian(2, 1, 4)
    metrics, _ = values(ask("invariance", replace(posed_cache(4, 0), features=torch.cat([two, two]).expand(4, 8, 4))))
    assert metrics["hit_at_1_same_object"] == 0


def numpy_rankme(matrix: np.ndarray) -> float:
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    shares = singular_values / singular_values.sum() + 1e-7
    return float(np.exp(-np.sum(shares * np.log(shares))))


def test_collapse_equals_numpys_singular_values(posed_cache: MakeCache) -> None:
    features = (gaussian(30, 8, 12) + 0.7) * torch.logspace(0, -2, 12)
    result = ask("collapse", replace(posed_cache(30, 0), features=features))
    matrix = features.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(result.singular_values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-6)
    assert result.metrics["rankme"] == pytest.approx(numpy_rankme(matrix), rel=1e-6)
    shares = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)
    shares /= shares.sum()
    assert result.metrics["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-6)
    unit_std = np.sqrt(12) * (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).std(axis=0)
    assert result.metrics["column_std_mean"] == pytest.approx(unit_std.mean())
    assert result.metrics["column_std_min"] == pytest.approx(unit_std.min())


def test_table_and_spectrum_have_one_effective_rank(posed_cache: MakeCache) -> None:
    cache = replace(posed_cache(30, 0), features=(gaussian(30, 8, 12) + 0.7) * torch.logspace(0, -2, 12))
    drawn = map_arrays(cache, {"all": slice(0, 12)})["singular_values/all"]
    assert ask("collapse", cache).metrics["effective_rank"] == pytest.approx(effective_rank(drawn), rel=1e-4)


def test_isotropic_features_are_their_own_baseline(posed_cache: MakeCache) -> None:
    metrics, baselines = values(ask("collapse", replace(posed_cache(100, 0), features=gaussian(100, 8, 10, seed=3))))
    assert metrics == pytest.approx(baselines, rel=0.03)
    assert metrics["rankme"] == pytest.approx(10, rel=0.01) and metrics["effective_rank"] == pytest.approx(10, rel=0.02)
    assert metrics["column_std_mean"] == pytest.approx(1, rel=0.02) and metrics["dead_dimensions"] == 0


COLLAPSED = {
    "zeros": (torch.zeros(20, 8, 6), {"rankme": 0, "effective_rank": 0, "column_std_mean": 0, "dead_dimensions": 1}),
    "one point": (
        torch.full((20, 8, 6), 0.1), {"rankme": 1, "effective_rank": 0, "column_std_mean": 0, "dead_dimensions": 1},
    ),
    "one line": (
        gaussian(20, 8, 1) * torch.ones(6),
        {"rankme": 1, "effective_rank": 1, "column_std_mean": 1, "column_std_min": 1, "dead_dimensions": 0},
    ),
    "two of six columns": (  # of rows of length 1 in a plane, each column has the variance 1 / 2
        torch.cat([gaussian(20, 8, 2), torch.zeros(20, 8, 4)], dim=2),
        {"rankme": 2, "effective_rank": 2, "column_std_mean": 3**-0.5, "column_std_min": 0, "dead_dimensions": 2 / 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("features", "expected"), COLLAPSED.values(), ids=COLLAPSED)
def test_collapsed_features_are_recognised(
    posed_cache: MakeCache, features: torch.Tensor, expected: dict[str, float]
) -> None:
    metrics, _ = values(ask("collapse", replace(posed_cache(20, 0), features=features)))
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=0.03)
    assert metrics["dead_dimensions"] == expected["dead_dimensions"]


def turning(cache: FeatureCache, width: int = 0) -> FeatureCache:
    """Columns that turn with the object, mixed and moved; and constants of the object."""
    rotations = quat_to_matrix(cache.quats_xyzw).flatten(-2)
    own = gaussian(cache.num_objects, 1, 3, seed=len(cache.labels)).expand(-1, cache.num_views, -1)
    features = torch.cat([rotations, own], dim=-1)
    mixing = gaussian(12, max(width, 12), seed=4)
    return replace(cache, features=features @ mixing + 2)


def test_features_that_turn_with_the_object_are_predicted(posed_cache: MakeCache) -> None:
    result = ask("feature_action", turning(posed_cache(60, 1)), turning(posed_cache(200, 0)))
    metrics, baselines = values(result)
    assert metrics["r2_action"] > 0.99 and metrics["skill_over_first_view"] > 0.99
    assert metrics["skill_over_object_mean"] > 0.98
    assert baselines["r2_action"] < 0.7
    assert baselines["skill_over_first_view"] == baselines["skill_over_object_mean"] == 0
    assert result.details["ridge_strength"] == 1e-4 and result.details["components"] == 12
    assert result.num_samples == 600


def test_random_features_are_not_predicted(posed_cache: MakeCache) -> None:
    train, test = (replace(posed_cache(n, n), features=gaussian(n, 8, 6, seed=n)) for n in (200, 60))
    metrics, baselines = values(ask("feature_action", test, train))
    assert metrics["r2_action"] == pytest.approx(0, abs=0.05) == baselines["r2_action"]
    assert metrics["skill_over_first_view"] == pytest.approx(0.5, abs=0.05), "z1 errs by twice the variance"
    # The mean of 7 other views errs by (1 + 1 / 7) of it.
    assert metrics["skill_over_object_mean"] == pytest.approx(1 - 7 / 8, abs=0.06)


def test_features_that_depend_on_the_object_alone_but_for_noise_gain_nothing_from_the_rotation(
    posed_cache: MakeCache,
) -> None:
    train, test = (
        replace(posed_cache(n, n), features=gaussian(n, 1, 6, seed=n) + 0.1 * gaussian(n, 8, 6, seed=n + 1))
        for n in (200, 60)
    )
    metrics, baselines = values(ask("feature_action", test, train))
    assert metrics["r2_action"] == pytest.approx(baselines["r2_action"], abs=0.01) and metrics["r2_action"] > 0.95
    assert metrics["skill_over_object_mean"] < 0


def test_wide_features_are_reduced_to_components(posed_cache: MakeCache) -> None:
    """40 columns that 12 directions span, and a little noise: 12 components lose nothing, 4 do."""
    train, test = turning(posed_cache(200, 0), 40), turning(posed_cache(60, 1), 40)
    whole = ask("feature_action", test, train, replace(PROTOCOL, feature_action_components=12))
    assert whole.metrics["r2_action"] > 0.99 and whole.details["components"] == 12
    assert whole.details["variance_kept"] == pytest.approx(1, abs=1e-4)
    four = ask("feature_action", test, train, replace(PROTOCOL, feature_action_components=4))
    assert 0.4 < four.details["variance_kept"] < 0.95 and four.details["components"] == 4
    features = train.features.flatten(0, 1)
    reference = PCA(4).fit(features.double().numpy())
    found = fit_components(features, 4).apply(test.features.flatten(0, 1))
    expected = reference.transform(test.features.flatten(0, 1).double().numpy())
    np.testing.assert_allclose(np.abs(found.numpy()[:, ::-1]), np.abs(expected), atol=1e-3)


def without_latents(cache: FeatureCache) -> FeatureCache:
    return replace(cache, latents=cache.latents[..., :0], quats_xyzw=None, schema=None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("invariance", lambda cache: replace(cache, features=cache.features[:1]), "has 1 object and 2 are needed"),
        ("invariance", lambda cache: replace(cache, features=cache.features[:, :1]), "objects have 1 view"),
        ("invariance", lambda cache: replace(cache, features=torch.zeros(20, 8, 4)), "this part is empty"),
        ("invariance", lambda cache: replace(cache, features=cache.features * torch.nan), "are not finite"),
        ("invariance", lambda cache: replace(cache, features=cache.features[:1].expand(20, 8, 4)), "all the same, so"),
        ("collapse", lambda cache: replace(cache, features=cache.features * torch.inf), "are not finite"),
        ("feature_action", without_latents, "no known rotations"),
        ("feature_action", lambda cache: replace(cache, features=cache.features[:, :1]), "objects have 1 view"),
        ("feature_action", lambda cache: replace(cache, features=cache.features[:1]), "has 1 object and 2 are needed"),
        ("feature_action", lambda cache: replace(cache, features=cache.features * torch.nan), "are not finite"),
        ("feature_action", lambda cache: replace(cache, features=torch.ones(20, 8, 4)), "this part is empty"),
        ("feature_action", lambda cache: replace(cache, features=cache.features[:, :1].expand(20, 8, 4)),
         "the views of each of the 20 evaluated objects have the same features"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_skipped_with_a_reason(
    posed_cache: MakeCache, name: str, change: Callable[[FeatureCache], FeatureCache], message: str
) -> None:
    cache = replace(posed_cache(20, 0), features=gaussian(20, 8, 4))
    with pytest.raises(TaskSkipped, match=message):
        ask(name, change(cache))
