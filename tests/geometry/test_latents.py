"""Latents of 3DIEBench and 3DIEBench-T."""

import pytest
import torch

from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_RANGES, light_direction, quat_xyzw_from_latents
from ssl_equi.geometry.rotations import quat_from_euler_xyz


def test_names_and_ranges_agree() -> None:
    assert tuple(LATENT_RANGES) == LATENT_NAMES and len(LATENT_NAMES) == 10
    assert LATENT_NAMES[3] == "floor_hue" and LATENT_NAMES[6] == "light_hue"


def test_poses_outside_the_box_have_positive_w_too() -> None:
    """Relative rotations are made from per-view quaternions with w > 0; Euler angles beyond pi/2 give either sign."""
    latents = torch.rand(2000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latents[:, :3] = (latents[:, :3] - 0.5) * 2 * torch.pi
    raw = quat_from_euler_xyz(latents[:, :3])
    assert (raw[:, 3] < 0).double().mean() > 0.1
    quats = quat_xyzw_from_latents(latents)
    assert (quats[:, 3] >= 0).all()
    assert torch.equal(quats * torch.where(raw[:, 3:] < 0, -1.0, 1.0), raw)


@pytest.mark.parametrize("size", [7, 10])
def test_pose_is_read_from_the_first_three_columns(size: int) -> None:
    latents = torch.rand(5, 2, size, dtype=torch.float64)
    assert torch.equal(quat_xyzw_from_latents(latents), quat_from_euler_xyz(latents[..., :3]))


def test_latents_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 9\).*must be 7"):
        quat_xyzw_from_latents(torch.zeros(5, 9))


def test_the_light_stands_at_the_zenith_for_theta_0_and_turns_from_x_to_y_with_phi() -> None:
    theta, phi = torch.tensor([0.0, torch.pi / 2, torch.pi / 2, torch.pi / 4]), torch.tensor([1.0, 0, torch.pi / 2, 0])
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [0.5**0.5, 0, 0.5**0.5]])
    torch.testing.assert_close(light_direction(theta, phi), expected, atol=1e-6, rtol=0)
