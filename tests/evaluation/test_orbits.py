"""Orbits of encoders whose answers are known: one that no turn changes, one that reads the turn off the picture."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.data.derived import turn_quat_xyzw
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.symmetry.orbits import orbit_errors
from ssl_equi.evaluation.task import Ask
from ssl_equi.evaluation.tasks.pose import RELATIVE_ROTATION
from ssl_equi.geometry.rotations import quat_conjugate, quat_multiply
from tests.fakes import feature_cache

ANGLES_DEG = (0.0, 90.0, 180.0, 270.0)
COLOURS = {"mean_rgb": (0.5, 0.5, 0.5), "std_rgb": (0.2, 0.2, 0.2)}
NO_HEADS = {"rotation_heads": {}}


class Corners(nn.Module):
    """Mean colours, which quarter turns leave, and the mean brightness of the four quadrants, which they move."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quadrants = nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)
        return torch.cat([images.mean(dim=(2, 3)), quadrants], dim=1)


@pytest.fixture
def views(tiny_data: Path) -> ShardDataset:
    return ShardDataset(tiny_data, "test")


def source(**changes: object) -> SimpleNamespace:
    parts = {"inv": slice(0, 3), "equi": slice(3, 7)}
    values = {"module": Corners(), "parts": parts, "image_size": 32, "mean_rgb": None, "std_rgb": None}
    return SimpleNamespace(**(values | changes))


def test_invariant_features_stay_and_others_move_as_the_picture_does(views):
    arrays = orbit_errors(source(), views, ANGLES_DEG, num_objects=3, **COLOURS, **NO_HEADS)
    assert arrays["orbit_objects"].tolist() == np.linspace(0, views.num_objects - 1, 3).round().tolist()
    np.testing.assert_allclose(arrays["orbit/inv"], 0, atol=1e-6)
    images = np.empty((3, 1, 32, 32, 3), dtype=np.uint8)
    views.read_views(arrays["orbit_objects"], np.zeros((3, 1), dtype=np.int64), images)
    for row, image in enumerate(images[:, 0]):
        upright = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.2)
        before = Corners()(upright)[0, 3:].double()
        for column, turns in enumerate(range(4)):
            after = Corners()(torch.rot90(upright, turns, dims=(2, 3)))[0, 3:].double()
            expected = 1 - torch.cosine_similarity(before, after, dim=0)
            assert arrays["orbit/equi"][row, column] == pytest.approx(float(expected), abs=1e-5)


def test_a_head_that_knows_the_turn_is_right_and_one_that_denies_it_is_off_by_the_turn(views):
    arrays = orbit_errors(source(), views, ANGLES_DEG, num_objects=1, **COLOURS, **NO_HEADS)
    upright_xyzw = torch.from_numpy(views.quats_xyzw[arrays["orbit_objects"], 0]).double()
    turns_xyzw = turn_quat_xyzw(torch.tensor([math.radians(angle) for angle in ANGLES_DEG], dtype=torch.float64))
    true_xyzw = quat_multiply(quat_conjugate(upright_xyzw), quat_multiply(turns_xyzw, upright_xyzw.expand(4, 4)))
    heads = {
        "equi": lambda pairs: -true_xyzw,
        "inv": lambda pairs: torch.tensor([[0, 0, 0, 1.0]]).expand(len(pairs), 4),
    }
    arrays = orbit_errors(source(), views, ANGLES_DEG, num_objects=1, rotation_heads=heads, **COLOURS)
    np.testing.assert_allclose(arrays["orbit_rotation_deg/equi"], 0, atol=1e-3)
    np.testing.assert_allclose(arrays["orbit_rotation_deg/inv"], [[0, 90, 180, 90]], atol=1e-3)


def test_the_encoders_own_normalisation_is_used_and_its_modes_are_kept(views):
    encoder = source(module=nn.Sequential(nn.Dropout(0.5), Corners()).train(), **COLOURS)
    given = orbit_errors(
        encoder, views, ANGLES_DEG, num_objects=2, mean_rgb=(0, 0, 0), std_rgb=(9, 9, 9), rotation_heads={}
    )
    expected = orbit_errors(source(), views, ANGLES_DEG, num_objects=2, **COLOURS, **NO_HEADS)
    np.testing.assert_allclose(given["orbit/equi"], expected["orbit/equi"], atol=1e-6)
    assert encoder.module[0].training


@pytest.mark.parametrize(
    ("encoder", "changes", "message"),
    [
        ({"image_size": 64}, {}, "32 x 32 pixels and the encoder takes 64 x 64"),
        ({}, {"image_size": (32, 40)}, "a buffer of 32 x 40 pixels"),
        ({}, {"fills_image": False}, "only views that fill a square"),
    ],
)
def test_what_can_not_be_turned_is_refused(encoder, changes, message):
    views = SimpleNamespace(**({"split": "test", "image_size": (32, 32), "fills_image": True} | changes))
    with pytest.raises(TaskSkipped, match=message):
        orbit_errors(source(**encoder), views, **COLOURS, **NO_HEADS)


def test_heads_are_not_asked_of_views_without_known_poses(views, monkeypatch):
    monkeypatch.setattr(views, "quats_xyzw", None)
    heads = {"inv": nn.Identity()}
    arrays = orbit_errors(source(), views, ANGLES_DEG, num_objects=1, rotation_heads=heads, **COLOURS)
    assert {"orbit/inv", "orbit/equi"} == {key for key in arrays if "/" in key}


def test_features_that_are_not_finite_are_refused(views):
    class Diverged(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(1, 2, 3), keepdim=False)[:, None].expand(-1, 7) * torch.nan

    with pytest.raises(RuntimeError, match="not finite"):
        orbit_errors(source(module=Diverged()), views, ANGLES_DEG, **COLOURS, **NO_HEADS)


def test_the_head_learns_relative_rotations_from_features_that_are_poses():
    generator = torch.Generator().manual_seed(0)
    quats_xyzw = torch.nn.functional.normalize(torch.randn(60, 6, 4, generator=generator), dim=-1)
    quats_xyzw = torch.where(quats_xyzw[..., 3:] < 0, -quats_xyzw, quats_xyzw)
    cache = feature_cache(quats_xyzw, torch.zeros(60, dtype=torch.int64), torch.zeros(60, 6, 7), quats_xyzw)
    head = Ask(cache, cache, 0, ProbeProtocol(rotation_epochs=30, rotation_hidden=(128,))).head(RELATIVE_ROTATION)
    first, second = quats_xyzw[:, 0], quats_xyzw[:, 1]
    answers = head(torch.cat([first, second], dim=1)).detach()
    targets = quat_multiply(quat_conjugate(first), second)
    assert float((answers - targets).square().mean()) < 0.5 * float(targets.var())
