"""Rotations written in three ways, circular colour and light: ceilings, floors, closed forms and what is skipped."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.metrics import angle_errors_deg, direction_errors_deg
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.evaluation.tasks.pose import MATRIX, QUATERNION, SIX_NUMBERS, RotationTarget
from ssl_equi.geometry.rotations import quat_to_matrix, random_quat
from tests.fakes import NEEDS_TRANSLATIONS, OF_FEATURES

MakeCache = Callable[..., FeatureCache]
REGRESSIONS = [
    name
    for name in OF_FEATURES
    if TASKS[name].needs is not None and name not in NEEDS_TRANSLATIONS and name != "feature_action"
]
SHORT = replace(
    ProbeProtocol(), batch_size=128, learning_rate=4e-3, rotation_hidden=(96,), rotation_epochs=20,
    absolute_rotation_hidden=(96,), absolute_rotation_epochs=20, colour_circular_hidden=(96,),
    colour_circular_epochs=20, light_hidden=(96,), light_epochs=20,
)  # fmt: skip
UNTRAINED = replace(
    SHORT, rotation_epochs=1, absolute_rotation_epochs=1, colour_circular_epochs=1, light_epochs=1,
    evaluation_pairs_per_object=40,
)  # fmt: skip


def perfect_features(cache: FeatureCache) -> FeatureCache:
    """The latents without their seams: R, points on both colour circles, hues, the light's direction."""
    hues_rad = 2 * math.pi * cache.latents[..., [3, 6]]
    theta, phi = cache.latents[..., 4], cache.latents[..., 5]
    light = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=-1)
    rotations = quat_to_matrix(cache.quats_xyzw).flatten(-2)
    together = [rotations, hues_rad.cos(), hues_rad.sin(), cache.latents[..., [3, 6]], light]
    return replace(cache, features=torch.cat(together, dim=-1))


def noise(cache: FeatureCache, seed: int) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    return replace(cache, features=torch.randn(*cache.features.shape[:2], 4, generator=generator))


@pytest.mark.parametrize("name", REGRESSIONS)
def test_latents_as_features_reach_the_ceiling(posed_cache: MakeCache, name: str) -> None:
    result = TASKS[name](Ask(perfect_features(posed_cache(150, 0)), perfect_features(posed_cache(30, 1)), 4, SHORT, 0))
    assert result.metrics["r2_uniform"] > 0.85 and result.metrics["r2_pooled"] > 0.85
    assert result.metrics.keys() == result.baselines.keys()
    for metric, value in result.metrics.items():
        if metric.startswith("angle_deg"):
            assert value < 0.45 * result.baselines[metric].value
            if metric.startswith("angle_deg_mean"):
                assert result.object_scores[metric].shape == (30,)
                assert np.mean(result.object_scores[metric]) == pytest.approx(value)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_noise_reaches_the_floor(posed_cache: MakeCache, name: str) -> None:
    protocol = replace(UNTRAINED, absolute_rotation_epochs=12, light_epochs=12)
    result = TASKS[name](Ask(noise(posed_cache(200, 0), 0), noise(posed_cache(60, 1), 1), 4, protocol, 0))
    assert -0.25 < result.metrics["r2_uniform"] < 0.02
    for metric, value in result.metrics.items():
        if metric.startswith("angle_deg"):
            assert value == pytest.approx(result.baselines[metric].value, rel=0.25)


def test_constants_of_the_euler_box(posed_cache: MakeCache) -> None:
    """Relative quaternions: pooled .229 and uniform 0 (320,000 pairs); unrelated hues: 90 degrees."""
    cache = noise(posed_cache(8000, 0), 0)
    few = replace(cache, features=cache.features[:4], labels=cache.labels[:4], latents=cache.latents[:4],
                  quats_xyzw=cache.quats_xyzw[:4])  # fmt: skip
    baselines = TASKS["relative_rotation"](Ask(few, cache, 4, UNTRAINED, 0)).baselines
    assert baselines["r2_pooled"].value == pytest.approx(0.229, abs=2e-3)
    assert baselines["r2_uniform"].value == pytest.approx(0, abs=1e-6)
    of_hues = TASKS["colour_circular"](Ask(few, cache, 4, UNTRAINED, 0)).baselines
    assert of_hues["r2_uniform"].value == pytest.approx(0, abs=1e-6)
    for hue in ("floor_hue", "light_hue"):
        assert of_hues[f"angle_deg_mean_{hue}"].value == pytest.approx(90, abs=1)
        assert of_hues[f"angle_deg_median_{hue}"].value == pytest.approx(90, abs=1.5)


def test_circular_colour_does_not_see_the_seam(posed_cache: MakeCache) -> None:
    """Hues .95 and .05 are as far from each other as .45 and .55: the targets, and so the answers, are the same."""
    cache = perfect_features(posed_cache(60, 0))
    moved = cache.latents.clone()
    moved[..., [3, 6]] = (moved[..., [3, 6]] + 0.37) % 1
    first, second = (
        TASKS["colour_circular"](Ask(noise(cache, 0), replace(noise(cache, 1), latents=latents), 4, UNTRAINED, 0))
        for latents in (cache.latents, moved)
    )
    assert first.metrics == pytest.approx(second.metrics, abs=1e-4)
    assert first.baselines["r2_pooled"].value == pytest.approx(second.baselines["r2_pooled"].value, abs=1e-5)


@pytest.mark.parametrize("target", [QUATERNION, SIX_NUMBERS, MATRIX], ids=["quaternion", "6d", "matrix"])
def test_a_rotation_is_written_and_read_back(target: RotationTarget) -> None:
    quats = random_quat(200, torch.Generator().manual_seed(0))
    assert angle_errors_deg(target.decode(target.encode(quats)), quats).max() < 1e-5
    stretched = 3 * target.encode(quats)
    assert angle_errors_deg(target.decode(stretched), quats).max() < 1e-5, "the length of an answer plays no part"


def test_targets_are_columns_and_rows_of_scipys_matrices() -> None:
    quats = random_quat(10, torch.Generator().manual_seed(0))
    matrices = Rotation.from_quat(quats.numpy()).as_matrix()
    np.testing.assert_allclose(MATRIX.encode(quats), matrices.reshape(10, 9), atol=1e-12)
    columns = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1)
    np.testing.assert_allclose(SIX_NUMBERS.encode(quats), columns, atol=1e-12)


def test_angles_between_directions() -> None:
    first = torch.tensor([[1.0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1e-6, 0]])
    second = torch.tensor([[5.0, 0, 0], [-1, 0, 0], [0, 3, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    expected = [0, 180, 90, 45, 90, math.degrees(1e-6)]
    assert direction_errors_deg(first, second).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_change_of_light_is_judged_as_the_second_direction(posed_cache: MakeCache) -> None:
    """The constant: the mean difference (about 0) from the first direction, so the angle between the two lights."""
    cache = noise(posed_cache(50, 0), 0)
    result = TASKS["relative_light"](Ask(cache, cache, 4, replace(UNTRAINED, evaluation_pairs_per_object=4), 0))
    theta, phi = cache.latents[..., 4].double(), cache.latents[..., 5].double()
    lights = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=-1)
    cosines = (lights[:, :, None] * lights[:, None]).sum(-1)[:, ~torch.eye(8, dtype=torch.bool)]
    expected = float(torch.rad2deg(cosines.clamp(-1, 1).arccos()).mean())  # over all pairs, not the drawn ones
    assert result.baselines["angle_deg_mean"].value == pytest.approx(expected, rel=0.06)


def without_latents(cache: FeatureCache) -> FeatureCache:
    return replace(cache, latents=cache.latents[..., :0], quats_xyzw=None, schema=None)


def one_view(cache: FeatureCache) -> FeatureCache:
    return replace(cache, features=cache.features[:, :1], latents=cache.latents[:, :1],
                   quats_xyzw=cache.quats_xyzw[:, :1])  # fmt: skip


def zeros(cache: FeatureCache) -> FeatureCache:
    return replace(cache, features=torch.zeros_like(cache.features))


def not_a_number(cache: FeatureCache) -> FeatureCache:
    return replace(cache, features=torch.full_like(cache.features, float("nan")))


ALL_OF_THEM = [*REGRESSIONS, *NEEDS_TRANSLATIONS]
PAIRS = [name for name in ALL_OF_THEM if not name.startswith("absolute") and name != "light"]


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (ALL_OF_THEM, without_latents, r"no known .*\(latents: none\): use "),
        (PAIRS, one_view, "objects have 1 view and a pair takes 2"),
        (ALL_OF_THEM, zeros, "have the same 4 features: this part is empty"),
        (ALL_OF_THEM, not_a_number, "features of 160 of 160 views are not finite"),
    ],
    ids=["no latents", "one view", "empty part", "NaN"],
)
def test_what_cannot_be_asked_is_skipped_with_a_reason(
    posed_cache: MakeCache, names: list[str], change: Callable[[FeatureCache], FeatureCache], message: str
) -> None:
    cache = change(noise(posed_cache(20, 0), 0))
    for name in names:
        with pytest.raises(TaskSkipped, match=message):
            TASKS[name](Ask(cache, cache, 4, UNTRAINED, 0))


def test_objects_that_stay_in_place_have_no_translation(posed_cache: MakeCache) -> None:
    cache = noise(posed_cache(20, 0), 0)
    cache = replace(cache, latents=cache.latents[..., :7], schema=None)
    for name in NEEDS_TRANSLATIONS:
        with pytest.raises(TaskSkipped, match="no known translations in the object's frame"):
            TASKS[name](Ask(cache, cache, 4, UNTRAINED, 0))


def test_the_core_tasks_exist() -> None:
    assert set(CORE_TASKS) < set(TASKS)
