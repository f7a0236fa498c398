"""Maps and spectra of features whose principal axes are known."""

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.report.feature_map import MAX_POINTS, map_arrays, map_coordinates
from ssl_equi.geometry.rotations import quat_exp
from tests.fakes import feature_cache


def cache_of(features: torch.Tensor, quats_xyzw: torch.Tensor | None = None) -> FeatureCache:
    num_objects, num_views = features.shape[:2]
    return feature_cache(features, torch.arange(num_objects) % 3, torch.zeros(num_objects, num_views, 0), quats_xyzw)


def test_components_and_singular_values_are_those_of_an_svd():
    features = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7) + 5
    arrays = map_arrays(cache_of(features), {"all": slice(0, 6), "inv": slice(0, 3)})
    rows = features.flatten(0, 1).double().numpy()
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(arrays["singular_values/all"], values / np.sqrt(120), rtol=1e-5)
    np.testing.assert_allclose(np.abs(arrays["map_features/all"]), np.abs(left * values), atol=1e-4)
    assert arrays["map_features/inv"].shape == (120, 3)
    assert arrays["map_labels"].tolist() == [label for obj in range(30) for label in [obj % 3] * 4]
    assert "map_angle_deg" not in arrays


def test_at_most_so_many_views_are_drawn_and_the_same_for_every_encoder():
    first, second = (torch.randn(200, 10, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    angles_rad = torch.rand(200, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3
    quats_xyzw = quat_exp(torch.stack([angles_rad, angles_rad * 0, angles_rad * 0], dim=-1))
    one, other = (map_arrays(cache_of(each, quats_xyzw), {"all": slice(0, 2)}, seed=4) for each in (first, second))
    assert one["map_features/all"].shape == (MAX_POINTS, 2)
    np.testing.assert_array_equal(one["map_labels"], other["map_labels"])
    drawn = np.sort(np.random.default_rng(4).permutation(2000)[:MAX_POINTS])
    expected = np.rad2deg(angles_rad.flatten().numpy())[drawn]
    np.testing.assert_allclose(one["map_angle_deg"], expected, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_constant_features_have_no_components(value):
    arrays = map_arrays(cache_of(torch.full((5, 4, 8), value)), {"inv": slice(0, 8)})
    assert arrays["map_features/inv"].shape == (20, 0)


def test_one_component_is_drawn_on_a_line():
    features = torch.arange(12.0).reshape(3, 4, 1) * torch.tensor([1.0, 2.0])
    components = map_arrays(cache_of(features), {"all": slice(0, 2)})["map_features/all"]
    assert components.shape == (12, 1)
    places = map_coordinates(components, "tsne")
    np.testing.assert_allclose(places[:, 1], 0)
    assert len(np.unique(places[:, 0])) == 12


def test_tsne_separates_clusters_and_repeats_itself():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    components = generator.standard_normal((60, 5)) + 40 * labels[:, None]
    first, second = (map_coordinates(components, "tsne") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    gap = np.linalg.norm(first[labels == 0].mean(axis=0) - first[labels == 1].mean(axis=0))
    spread = max(
        np.linalg.norm(first[labels == each] - first[labels == each].mean(axis=0), axis=1).mean() for each in (0, 1)
    )
    assert gap > 2 * spread
