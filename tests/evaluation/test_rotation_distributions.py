"""Maps of distributions over rotations: Mollweide's projection, and where dots and rings stand."""

import re

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.report.rotation_distributions import HEIGHT, NUM_HUES, WIDTH, distribution_map, mollweide
from ssl_equi.geometry.rotation_grids import even_rotations
from ssl_equi.geometry.rotations import quat_exp, quat_multiply


def test_the_projection_keeps_areas_and_the_equator() -> None:
    """The cap above z holds (1 - z) / 2 of the sphere, and its edge is a line that cuts as much off an ellipse."""
    corners = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1], [-1, 1e-9, 0]])
    assert mollweide(corners) == pytest.approx(np.array([[0, 0], [0.5, 0], [0, 1], [0, -1], [1, 0]]), abs=1e-6)
    heights = np.linspace(-0.99, 0.99, 9)
    level = mollweide(np.stack([np.sqrt(1 - heights**2), 0 * heights, heights], axis=1))[:, 1]
    below = 0.5 + (np.arcsin(level) + level * np.sqrt(1 - level**2)) / np.pi
    assert below == pytest.approx((1 + heights) / 2, abs=1e-9)


def test_a_map_has_a_dot_for_each_rotation_and_a_ring_at_the_true_one() -> None:
    tilt = quat_exp(torch.tensor([[0.0, np.pi / 2, 0]], dtype=torch.float64))  # turns z to x, the map's centre
    about_z = quat_exp(torch.tensor([[0.0, 0, 2 * np.pi / NUM_HUES * 3]], dtype=torch.float64))
    quats = torch.cat([even_rotations(300), quat_multiply(tilt, about_z)]).numpy()
    drawn = distribution_map(quats, quats[-1])
    assert drawn == distribution_map(-quats, -quats[-1]), "q and -q are the same rotation"
    assert len(re.findall(r"M\d+ \d+h", drawn)) == 301
    assert len(set(re.findall(r'<path [^>]*stroke="(hsl[^"]*)"', drawn))) == NUM_HUES
    rings = re.findall(r'<circle cx="(\d+)" cy="(\d+)" r="7" fill="none" stroke="([^"]*)"', drawn)
    assert [ring[:2] for ring in rings] == [(str(WIDTH // 2), str(HEIGHT // 2))] * 2
    assert rings[1][2] == "hsl(90 70% 50%)"
    assert "NaN" not in drawn and "nan" not in drawn
