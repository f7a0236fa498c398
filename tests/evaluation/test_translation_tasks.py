"""Where an object moves, asked in two frames: of features that hold t, or R t, or neither."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol, embedded, equicaps, sie
from ssl_equi.evaluation.samples import evaluation_pairs
from ssl_equi.evaluation.suite import tasks_for
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult
from ssl_equi.evaluation.tasks.pose import displacement_in_base_frame, displacement_in_object_frame
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.latents.schema import THREEDIEBENCH
from tests.fakes import NEEDS_TRANSLATIONS, feature_cache

Features = np.ndarray | Tensor
LINEAR = replace(embedded(), translation_hidden=(), translation_epochs=30, learning_rate=2e-2)


def random_latents(num_objects: int, seed: int) -> Tensor:
    latents = torch.rand(num_objects, 6, 10, generator=torch.Generator().manual_seed(seed))
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    latents[..., 7:] -= 0.5
    return latents


def rotations(latents: Tensor) -> np.ndarray:
    """R = Rz Ry Rx of each view, by SciPy: [n_objects, n_views, 3, 3]."""
    matrices = Rotation.from_euler("xyz", latents[..., :3].flatten(0, 1).numpy()).as_matrix()
    return matrices.reshape(*latents.shape[:2], 3, 3)


def places(latents: Tensor) -> np.ndarray:
    """R t of each view, by NumPy: [n_objects, n_views, 3]."""
    return np.einsum("ovij,ovj->ovi", rotations(latents), latents[..., 7:].numpy())


def cache_of(latents: Tensor, features: Features) -> FeatureCache:
    labels = torch.arange(len(latents)) % 3
    return feature_cache(torch.as_tensor(features).float(), labels, latents, quat_xyzw_from_latents(latents))


def ask(
    features_of: Callable[[Tensor], Features], protocol: ProbeProtocol = LINEAR, num_objects: int = 80
) -> dict[str, TaskResult]:
    """Both questions to features that are a function of the latents."""
    train, test = (cache_of(latents, features_of(latents)) for latents in (random_latents(num_objects, 0),
                                                                           random_latents(40, 1)))  # fmt: skip
    return {name: TASKS[name](Ask(train, test, 3, protocol, 0)) for name in NEEDS_TRANSLATIONS}


def test_displacements_are_those_of_numpy() -> None:
    latents = random_latents(5, 0)
    cache = cache_of(latents, torch.zeros(5, 6, 1))
    rows = torch.tensor([[0, 1], [4, 2], [13, 17], [29, 24]])
    objects, views = np.divmod(rows.numpy(), 6)
    translations = latents[..., 7:].numpy()[objects, views]
    found = displacement_in_object_frame(cache, rows).numpy()
    np.testing.assert_array_equal(found, translations[:, 1] - translations[:, 0])
    positions = places(latents)[objects, views]
    found = displacement_in_base_frame(cache, rows).numpy()
    np.testing.assert_allclose(found, positions[:, 1] - positions[:, 0], atol=1e-6)


def test_the_frames_are_told_apart() -> None:
    """A linear head reads the displacement off t in the object's own frame only, and off R t in the world's only."""
    from_translations = ask(lambda latents: latents[..., 7:])
    assert from_translations["translation_object"].metrics["r2_uniform"] > 0.999
    assert from_translations["translation_object"].metrics["distance_median"] < 0.02
    assert from_translations["translation_base"].metrics["r2_uniform"] < 0.5
    from_places = ask(places)
    assert from_places["translation_base"].metrics["r2_uniform"] > 0.999
    assert from_places["translation_base"].metrics["distance_median"] < 0.02
    assert from_places["translation_object"].metrics["r2_uniform"] < 0.5


def test_the_objects_own_frame_needs_the_rotation_too() -> None:
    """t = R^-1 (R t): an MLP finds more of it beside R, and the place alone never suffices."""
    mlp = replace(embedded(), translation_hidden=(128,), translation_epochs=40, learning_rate=3e-3, batch_size=128)
    place_alone = ask(places, mlp)

    def places_and_rotations(latents: Tensor) -> np.ndarray:
        return np.concatenate([places(latents), rotations(latents).reshape(*latents.shape[:2], 9)], axis=-1)

    both = ask(places_and_rotations, mlp)
    for results in (place_alone, both):
        assert results["translation_base"].metrics["r2_uniform"] > 0.95
    gained = both["translation_object"].metrics["r2_uniform"] - place_alone["translation_object"].metrics["r2_uniform"]
    assert gained > 0.4


def test_features_that_know_nothing_score_nothing() -> None:
    noise = torch.Generator().manual_seed(0)
    found = ask(lambda latents: torch.randn(*latents.shape[:2], 4, generator=noise), num_objects=200)
    for result in found.values():
        assert abs(result.metrics["r2_uniform"]) < 0.05
        assert result.metrics["distance_median"] == pytest.approx(result.baselines["distance_median"].value, rel=0.05)


@pytest.mark.parametrize("name", NEEDS_TRANSLATIONS)
def test_the_constant_answers_with_the_mean_displacement(name: str) -> None:
    protocol = replace(LINEAR, translation_epochs=1, evaluation_least_pairs=0)
    result = ask(lambda latents: latents[..., 7:], protocol)[name]
    latents = random_latents(40, 1)
    pairs = evaluation_pairs(40, 6, 10, seed=0)
    positions = places(latents) if name == "translation_base" else latents[..., 7:].numpy()
    objects = pairs.object_indices
    moves = positions[objects, pairs.second_view] - positions[objects, pairs.first_view]
    residual = ((moves - moves.mean(axis=0)) ** 2).sum()
    expected = {
        "r2_uniform": 0.0,
        "r2_pooled": 1 - residual / ((moves - moves.mean()) ** 2).sum(),
        "distance_median": np.median(np.linalg.norm(moves - moves.mean(axis=0), axis=1)),
    }
    assert {name: baseline.value for name, baseline in result.baselines.items()} == pytest.approx(expected, abs=1e-5)
    assert {baseline.name for baseline in result.baselines.values()} == {"constant"}
    assert result.metrics.keys() == result.baselines.keys()
    assert result.num_samples == 400


def test_objects_that_stay_in_place_are_not_asked() -> None:
    latents = random_latents(3, 0)
    moving = cache_of(latents, torch.zeros(3, 6, 1))
    assert tasks_for(moving) == CORE_TASKS
    still = replace(moving, latents=latents[..., :7], schema=THREEDIEBENCH)
    assert set(CORE_TASKS) - set(tasks_for(still)) == set(NEEDS_TRANSLATIONS)
    unposed = replace(moving, latents=latents[..., :0], quats_xyzw=None, schema=None)
    assert tasks_for(unposed) == ("classification",)


def test_heads_of_the_named_protocols() -> None:
    """EquiCaps' MLP 1024-1024-1024-3 takes two views of 512 features: two hidden layers, as in SIE's protocol."""
    assert embedded().name == "ssl_equi_v1"
    assert (embedded().translation_hidden, embedded().translation_epochs) == ((512, 512), 20)
    for protocol in (sie(), equicaps()):
        assert protocol.translation_hidden == protocol.rotation_hidden == (1024, 1024)
        assert protocol.translation_epochs == protocol.rotation_epochs == protocol.classification_epochs == 300
        assert protocol.translation_pairs_per_object == protocol.evaluation_pairs_per_object == 1
        assert (protocol.learning_rate_schedule, protocol.standardise) == ("constant", False)
    assert equicaps().name == "equicaps"
    assert (equicaps().colour_solver, equicaps().colour_hidden, equicaps().colour_epochs) == ("adam", (), 50)
    assert (sie().colour_solver, sie().colour_hidden, sie().colour_epochs) == ("adam", (1024, 1024), 300)
