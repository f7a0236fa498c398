"""Poses as distributions over SO(3): closed forms, sharp and flat answers, and objects of known symmetry.

Features of symmetric objects are means over the symmetry's rotations of waves of the turned matrix, so they tell apart
what an eye could, and nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import PROBE_PROTOCOLS, PoseDistributionProtocol, ProbeProtocol
from ssl_equi.evaluation.results import arrays_of_result
from ssl_equi.evaluation.suite import tasks_for
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult
from ssl_equi.evaluation.tasks.pose_distribution import Distributions, judge_distributions, uniform_scores
from ssl_equi.geometry.rotation_grids import even_rotations
from ssl_equi.geometry.rotations import geodesic_distance, quat_exp, quat_multiply, quat_to_matrix, random_quat
from tests.evaluation.conftest import make_posed_cache

MakeCache = Callable[..., FeatureCache]
NAMES = ("absolute_rotation_distribution", "relative_rotation_distribution")
SHORT = PoseDistributionProtocol(
    epochs=12, learning_rate=1e-2, hidden=(64,), num_codes=64, training_rotations=256, evaluation_rotations=2000
)
UNIFORM_LIKELIHOOD = -math.log(math.pi**2)
BLUR_RAD = 0.2
# In the measure of volume pi^2, distances are half the angles.
BLURRED_LIKELIHOOD = -1.5 * math.log(2 * math.pi * math.e * (BLUR_RAD / 2) ** 2)


def asked(
    name: str, train: FeatureCache, test: FeatureCache, chosen: PoseDistributionProtocol = SHORT, seed: int = 0
) -> TaskResult:
    protocol = ProbeProtocol(batch_size=64, pose_distribution=chosen)
    return TASKS[name](Ask(train, test, 4, protocol, seed))


def posed(num_objects: int, seed: int, num_views: int = 8) -> FeatureCache:
    """Views from all over SO(3); the features are nothing yet."""
    quats = random_quat(num_objects * num_views, torch.Generator().manual_seed(seed)).float()
    cache = make_posed_cache(num_objects, seed, num_views)
    return replace(cache, quats_xyzw=quats.view(num_objects, num_views, 4))


def with_features(cache: FeatureCache, features: torch.Tensor) -> FeatureCache:
    return replace(cache, features=features)


def seen(cache: FeatureCache, symmetry: torch.Tensor, num_features: int = 64) -> FeatureCache:
    """What an object shows, turned a little by chance, that the rotations `symmetry [s, 4]` of its frame don't change.

    By Bayes, the best distribution has a Gaussian of BLUR_RAD at each rotation that looks the same.
    """
    generator = torch.Generator().manual_seed(7)
    frequencies = 1.2 * torch.randn(9, num_features, generator=generator)
    phases = 2 * math.pi * torch.rand(num_features, generator=generator)
    turns = BLUR_RAD * torch.randn(*cache.quats_xyzw.shape[:2], 3, generator=generator)
    blurred = quat_multiply(cache.quats_xyzw, quat_exp(turns))
    turned = quat_multiply(*torch.broadcast_tensors(blurred[..., None, :], symmetry.float()))
    waves = quat_to_matrix(turned).flatten(-2) @ frequencies + phases
    return with_features(cache, waves.cos().mean(dim=-2))


def turns_about_z(count: int) -> torch.Tensor:
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return quat_exp(torch.stack([0 * angles, 0 * angles, angles], dim=1))


def turns_of_a_cube() -> torch.Tensor:
    """The 24 quaternions up to sign: closed under products of quarter turns about x and z."""
    quarter = quat_exp(torch.tensor([[math.pi / 2, 0, 0], [0, 0, math.pi / 2]], dtype=torch.float64))
    found = [torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)]
    for rotation in found:
        for product in quat_multiply(rotation.expand(2, 4), quarter):
            if min(float(geodesic_distance(product, known)) for known in found) > 0.1:
                found.append(product)
    return torch.stack(found)


# ---------------------------------------------------------------- closed forms


def test_a_uniform_distribution_scores_its_closed_forms() -> None:
    grid = even_rotations(20_000, torch.float32)
    truth = random_quat(40, torch.Generator().manual_seed(0)).float()
    flat = Distributions(lambda samples: torch.zeros(len(samples), len(grid)), torch.zeros(len(truth)))
    scores = {name: float(values.mean()) for name, values in judge_distributions(flat, grid, truth).items()}
    expected = uniform_scores()
    assert expected["log_likelihood"] == pytest.approx(-2.2895, abs=1e-4)
    assert expected["mass_within_30deg"] == pytest.approx((math.pi / 6 - 0.5) / math.pi)
    assert expected["angle_deg_spread"] == pytest.approx(126.476, abs=1e-3)
    for name, value in expected.items():
        if not name.startswith("recall"):  # of whatever rotation comes first
            assert scores[name] == pytest.approx(value, rel=0.05), name
    assert scores["log_likelihood"] == pytest.approx(UNIFORM_LIKELIHOOD, abs=1e-5)


def test_a_density_that_is_known_has_the_likelihood_of_its_formula() -> None:
    """exp(k trace(F^T R)) is exp(k (1 + 2 cos t)) of the angle t to F: its integral is one over t alone."""
    sharpness, grid = 4.0, even_rotations(20_000, torch.float64)
    mode, truth = random_quat(2, torch.Generator().manual_seed(0))
    of_mode = quat_to_matrix(mode).flatten()
    log_density = sharpness * quat_to_matrix(grid).flatten(1) @ of_mode
    at_truth = sharpness * quat_to_matrix(truth).flatten() @ of_mode
    known = Distributions(lambda samples: log_density.expand(len(samples), -1), at_truth[None])
    angles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * math.pi
    weights = (1 - angles.cos()) * (sharpness * (1 + 2 * angles.cos())).exp()
    mean = weights.sum() / (1 - angles.cos()).sum()
    scores = judge_distributions(known, grid, truth[None])
    assert float(scores["log_likelihood"]) == pytest.approx(float(at_truth - mean.log()) + UNIFORM_LIKELIHOOD, abs=0.01)
    at_the_mode = judge_distributions(
        replace(known, logits_at_truth=(of_mode @ of_mode * sharpness)[None]), grid, mode[None]
    )
    for limit in (15, 30):
        inside = weights[angles <= math.radians(limit)].sum() / weights.sum()
        assert float(at_the_mode[f"mass_within_{limit}deg"]) == pytest.approx(float(inside), rel=0.05)
    spread = math.degrees(float((weights * angles).sum() / weights.sum()))
    assert float(at_the_mode["angle_deg_spread"]) == pytest.approx(spread, rel=0.01)
    assert float(at_the_mode["mode_error_deg"]) < 8


def test_peaks_between_the_rotations_of_the_grid_gain_nothing() -> None:
    grid, truth = even_rotations(500, torch.float32), random_quat(1, torch.Generator().manual_seed(0)).float()
    spike = Distributions(lambda samples: torch.zeros(len(samples), 500), torch.tensor([100.0]))
    likelihood = float(judge_distributions(spike, grid, truth)["log_likelihood"])
    assert likelihood == pytest.approx(math.log(501) + UNIFORM_LIKELIHOOD)


# ---------------------------------------------------------------- learned distributions


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_the_rotation_give_sharp_and_right_distributions(posed_cache: MakeCache, name: str) -> None:
    train, test = (
        with_features(cache, quat_to_matrix(cache.quats_xyzw).flatten(-2))
        for cache in (posed_cache(90, 0), posed_cache(20, 1))
    )
    result = asked(name, train, test)
    metrics, baselines = result.metrics, result.baselines
    assert metrics.keys() == baselines.keys()
    assert metrics["log_likelihood"] > baselines["log_likelihood"].value + 2
    assert metrics["recall_at_30deg"] > 0.6 and metrics["mass_within_30deg"] > 0.4
    assert metrics["angle_deg_spread"] < 0.5 * baselines["angle_deg_spread"].value
    assert metrics["angle_deg_median"] < 0.4 * baselines["angle_deg_median"].value
    for metric, scores in result.object_scores.items():
        assert scores.shape == (20,) and np.mean(scores) == pytest.approx(metrics[metric])
    drawn = arrays_of_result(name, "all", result)
    assert drawn[f"rotation_density/{name}/all"].shape == (6, 200, 4)
    assert drawn[f"rotation_truth/{name}/all"].shape == (6, 4)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_no_relation_reach_the_constant_distribution(posed_cache: MakeCache, name: str) -> None:
    """Poses of the Euler box have a constant distribution that is far likelier than the uniform one."""
    train, test = posed_cache(120, 0), posed_cache(40, 1)
    generator = torch.Generator().manual_seed(0)
    train, test = (
        with_features(cache, torch.randn(*cache.features.shape[:2], 3, generator=generator)) for cache in (train, test)
    )
    result = asked(name, train, test, replace(SHORT, epochs=5, learning_rate=3e-3))
    baseline = result.baselines["log_likelihood"]
    assert result.metrics["log_likelihood"] == pytest.approx(baseline.value, abs=0.25)
    if name == "absolute_rotation_distribution":
        assert baseline.name == "constant distribution" and baseline.value > UNIFORM_LIKELIHOOD + 0.5
    else:
        assert baseline.value >= UNIFORM_LIKELIHOOD


def test_the_constant_distribution_is_learned_once_for_all_parts(posed_cache: MakeCache) -> None:
    cache = with_features(posed_cache(12, 0), torch.randn(12, 8, 3, generator=torch.Generator().manual_seed(0)))
    brief = replace(SHORT, epochs=1, training_rotations=16, evaluation_rotations=100)
    ask = Ask(cache, cache, 4, ProbeProtocol(pose_distribution=brief))
    first = TASKS[NAMES[0]](ask)
    (kept,) = ask.made.values()
    second = TASKS[NAMES[0]](replace(ask, part="inv", train=cache.part(slice(0, 2)), test=cache.part(slice(0, 2))))
    assert list(ask.made.values()) == [kept] and first.baselines == second.baselines
    assert first.metrics != second.metrics
    assert asked(NAMES[0], cache, cache, brief).metrics == asked(NAMES[0], cache, cache, brief).metrics


def test_classes_have_likelihoods_of_their_own(posed_cache: MakeCache) -> None:
    """Of two classes, one shows its rotation and the other nothing."""
    names = ("tomato", "boot", "a", "b")
    train, test = (replace(posed_cache(count, seed), class_names=names) for count, seed in ((80, 0), (20, 1)))

    def shown(cache: FeatureCache) -> FeatureCache:
        is_boot = (cache.labels == 1).float()[:, None, None]
        return with_features(cache, quat_to_matrix(cache.quats_xyzw).flatten(-2) * is_boot)

    result = asked(NAMES[0], shown(train), shown(test))
    likelihoods = {name: result.metrics[f"log_likelihood_of_{name}"] for name in names}
    assert likelihoods["boot"] > likelihoods["tomato"] + 1
    assert np.mean(list(likelihoods.values())) == pytest.approx(result.metrics["log_likelihood"])
    assert result.statistics["log_likelihood_of_boot"].num_objects == 5


def of_symmetries(
    symmetries: list[torch.Tensor], num_objects: int, chosen: PoseDistributionProtocol
) -> list[TaskResult]:
    """The same rotations of objects of each symmetry."""
    train, test = posed(num_objects, 0), posed(30, 1)
    ask = Ask(train, test, 4, ProbeProtocol(batch_size=128, pose_distribution=chosen))
    return [
        TASKS[NAMES[0]](replace(ask, train=seen(train, symmetry), test=seen(test, symmetry))) for symmetry in symmetries
    ]


def heaps(result: TaskResult, symmetry: torch.Tensor) -> np.ndarray:
    """Shares of the drawn rotations that are nearest to each rotation that looks as the true one, over all samples."""
    drawn = torch.from_numpy(result.arrays["rotation_density"]).double()
    truth = torch.from_numpy(result.arrays["rotation_truth"]).double()
    alike = quat_multiply(*torch.broadcast_tensors(truth[:, None], symmetry))  # [k, s, 4]
    nearest = (drawn @ alike.transpose(1, 2)).abs().argmax(dim=2)
    return np.bincount(nearest.flatten(), minlength=len(symmetry)) / nearest.numel()


def test_a_twofold_object_has_two_equal_heaps_where_a_point_is_wrong_half_the_time() -> None:
    result, whole = of_symmetries(
        [turns_about_z(2), turns_about_z(1)], 400, replace(SHORT, epochs=8, learning_rate=3e-3)
    )
    assert heaps(result, turns_about_z(2)) == pytest.approx([0.5, 0.5], abs=0.12)
    errors_deg = result.angle_errors_deg
    assert 0.3 < np.mean(errors_deg > 90) < 0.7, "the most likely rotation is either of two"
    assert BLURRED_LIKELIHOOD - 0.8 < whole.metrics["log_likelihood"] < BLURRED_LIKELIHOOD
    lost = whole.metrics["log_likelihood"] - result.metrics["log_likelihood"]
    assert lost == pytest.approx(math.log(2), abs=0.2)
    assert result.metrics["mass_within_30deg"] == pytest.approx(whole.metrics["mass_within_30deg"] / 2, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "symmetry", [turns_about_z(3), turns_about_z(4), turns_of_a_cube(), turns_about_z(36)],
    ids=["3 turns", "4 turns", "cube", "cylinder"],
)  # fmt: skip
def test_equal_heaps_stand_at_every_rotation_that_looks_the_same(symmetry: torch.Tensor) -> None:
    long = replace(SHORT, epochs=15, learning_rate=3e-3, hidden=(128, 128))
    result, whole = of_symmetries([symmetry, turns_about_z(1)], 1000, long)
    count = len(symmetry)
    assert heaps(result, symmetry) == pytest.approx(np.full(count, 1 / count), abs=0.6 / count)
    assert result.metrics["angle_deg_median"] > 40 > whole.metrics["angle_deg_median"]
    if count < 36:  # a cylinder's rotations lie closer together than its heap is wide
        lost = whole.metrics["log_likelihood"] - result.metrics["log_likelihood"]
        assert lost == pytest.approx(math.log(count), abs=0.5)


# ---------------------------------------------------------------- who is asked


def test_they_are_asked_by_name_only(posed_cache: MakeCache) -> None:
    for make in PROBE_PROTOCOLS.values():
        assert not {*NAMES} & {*tasks_for(posed_cache(2, 0), make().tasks)}
    assert len(turns_of_a_cube()) == 24
