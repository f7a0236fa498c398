"""Latents of 3DIEBench and 3DIEBench-T."""

import pytest
import torch

from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_RANGES, quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_from_euler_xyz


def test_names_and_ranges_agree() -> None:
    assert tuple(LATENT_RANGES) == LATENT_NAMES and len(LATENT_NAMES) == 10
    assert LATENT_NAMES[3] == "floor_hue" and LATENT_NAMES[6] == "light_hue"


@pytest.mark.parametrize("size", [7, 10])
def test_pose_is_read_from_the_first_three_columns(size: int) -> None:
    latents = torch.rand(5, 2, size, dtype=torch.float64)
    assert torch.equal(quat_xyzw_from_latents(latents), quat_from_euler_xyz(latents[..., :3]))


def test_latents_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 9\).*must be 7"):
        quat_xyzw_from_latents(torch.zeros(5, 9))
