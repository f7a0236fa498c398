"""How much of a moved object is in sight, against a pinhole camera written by hand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ssl_equi.data.rendering.procedural import ProceduralConfig, plan_objects
from ssl_equi.scenes.families import build_object
from ssl_equi.scenes.sampling import sample_latents
from ssl_equi.scenes.scene import SceneSettings

SCRIPT = Path(__file__).parents[2] / "tools" / "check_visibility.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_check_visibility", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def moved(*translations: tuple[float, float, float]) -> np.ndarray:
    """Latents of upright objects at these places."""
    latents = np.zeros((len(translations), 10))
    latents[:, 7:] = translations
    return latents


def picture_positions(points: np.ndarray) -> np.ndarray:
    """Positions [n, 2] in a picture that reaches from -1 to 1: 2.5 away, 45 degrees up, 39.6 degrees wide."""
    right, up = np.array([-1.0, 0, 0]), np.array([0, -1.0, 1.0]) / np.sqrt(2)
    forward = np.array([0, -1.0, -1.0]) / np.sqrt(2)
    depths = points @ forward + 2.5
    return np.stack([points @ right, points @ up], axis=1) / depths[:, None] / np.tan(0.691111 / 2)


def test_an_object_loses_something_if_a_vertex_leaves_the_frame(tool: ModuleType) -> None:
    mesh = build_object("chair", 0)
    translations = np.random.default_rng(0).uniform([-0.5, -0.5, -0.1], 0.5, (40, 3))
    lost = tool.visibility(mesh, moved(*translations), 1.3, 128).lost
    one_pixel = 2 / 128
    reach = [np.abs(picture_positions(1.3 * mesh.vertices + place)).max() for place in translations]
    leaves, stays = np.array(reach) > 1 + one_pixel, np.array(reach) < 1 - one_pixel
    assert leaves.sum() > 5
    assert stays.sum() > 5
    assert (lost[leaves] > 0).all()
    assert (lost[stays] == 0).all()


def test_far_objects_are_lost_and_low_ones_sink(tool: ModuleType) -> None:
    found = tool.visibility(build_object("chair", 0), moved((0, 0, 0), (1.4, 0, 0), (0, 0, -1)), 0.5, 64)
    assert found.lost[:2].tolist() == [0, 1]
    assert 0.1 < found.lost[2] < 0.9
    assert found.sinks.tolist() == [False, False, True]


def test_moved_objects_of_the_embedded_set_stay_in_sight(tool: ModuleType) -> None:
    config = ProceduralConfig(train_objects=1, translation=0.5)
    lost = []
    for planned in plan_objects(config, "train"):
        latents = sample_latents(config.views, np.random.default_rng(planned.latents_seed), translation=0.5)
        mesh = build_object(planned.family, planned.object_seed)
        lost.append(tool.visibility(mesh, latents, SceneSettings().object_scale, 64).lost)
    assert np.max(lost) < 0.7
    assert np.mean(np.array(lost) > 0.25) < 0.03


def test_the_table_is_printed(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(tool.Config(families=("chair",), objects=1, views=4, resolution=32))
    printed = capsys.readouterr().out
    assert "at rest" in printed
    assert "4 views of 1 objects" in printed
