"""Corruptions: what each one does, on smooth pictures and by closed forms."""

import itertools

import numpy as np
import pytest
import torch

from ssl_equi.evaluation.tasks.corruptions import CORRUPTIONS, Corruption, corrupt

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog")


def pictures(count: int = 4, side: int = 48) -> torch.Tensor:
    """Coloured disks before a smooth ground, with edges for blurs and colours for saturation; uint8 [n, H, W, 3]."""
    generator = np.random.default_rng(0)
    down, right = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    images = []
    for _ in range(count):
        ground = 0.35 + 0.2 * np.sin(5 * right + generator.uniform(0, 6))[..., None] * np.array([1, 0.7, 0.4])
        centre, colour = generator.uniform(0.35, 0.65, 2), generator.uniform(0.1, 0.9, 3)
        inside = np.hypot(down - centre[0], right - centre[1]) < 0.25
        stripes = 0.15 * np.sign(np.sin(40 * down))[..., None]
        images.append(np.where(inside[..., None], colour + stripes, ground))
    return torch.from_numpy((np.clip(images, 0, 1) * 255).round().astype(np.uint8))


def corrupted(images: torch.Tensor, name: str, severity: int, first: int = 0, seed: int = 0) -> torch.Tensor:
    return corrupt(images, name, severity, image_indices=np.arange(first, first + len(images)), seed=seed)


def mean_psnr_db(images: torch.Tensor, changed: torch.Tensor) -> float:
    squared = ((images.double() - changed.double()) / 255).square().mean(dim=(1, 2, 3))
    return float((-10 * squared.log10()).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_further_from_the_image(name: str) -> None:
    for side in (32, 64):
        images = pictures(side=side)
        found = [corrupted(images, name, severity) for severity in range(1, 6)]
        assert all(each.shape == images.shape and each.dtype == torch.uint8 for each in found)
        psnr = [mean_psnr_db(images, each) for each in found]
        assert all(later < earlier for earlier, later in itertools.pairwise(psnr)), psnr
        assert 15 < psnr[0] < 45 and psnr[4] > 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_changed_by_its_index_and_the_seed_not_by_its_batch(name: str) -> None:
    images = pictures()
    together = corrupted(images, name, 3)
    alone = corrupted(images[2:3], name, 3, first=2)
    assert (together[2:3].int() - alone.int()).abs().max() <= 1  # batched transforms may round differently
    assert torch.equal(together, corrupted(images, name, 3))
    same_picture = images[:1].expand(2, -1, -1, -1)
    first, second = corrupted(same_picture, name, 3)
    assert torch.equal(first, second) == (name not in RANDOM)
    assert torch.equal(corrupted(images, name, 3, seed=1), together) == (name not in RANDOM)


def test_views_of_a_split_are_numbered_object_by_object() -> None:
    images = pictures(6)
    change = Corruption("gaussian_noise", 2, seed=5)
    found = torch.cat([change(images[:4].unflatten(0, (2, 2)), 0), change(images[4:].unflatten(0, (1, 2)), 2)])
    assert torch.equal(found.flatten(0, 1), corrupted(images, "gaussian_noise", 2, seed=5))
    others = (Corruption("gaussian_noise", 3, 5), Corruption("shot_noise", 2, 5), Corruption("gaussian_noise", 2, 6))
    assert len({change.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_noises_have_their_moments() -> None:
    grey = torch.full((1, 200, 200, 3), 102, dtype=torch.uint8)  # .4
    normal = corrupted(grey, "gaussian_noise", 2).double() / 255
    assert normal.mean() == pytest.approx(0.4, abs=0.002) and normal.std() == pytest.approx(0.08, abs=0.002)
    shot = corrupted(grey, "shot_noise", 3).double() / 255
    assert shot.mean() == pytest.approx(0.4, abs=0.002) and shot.std() == pytest.approx((0.4 / 40) ** 0.5, abs=0.003)
    impulses = corrupted(grey, "impulse_noise", 3)
    black, white = ((impulses == value).all(dim=-1).double().mean() for value in (0, 255))
    assert black == pytest.approx(0.045, abs=0.004) and white == pytest.approx(0.045, abs=0.004)
    assert ((impulses == 102) | (impulses == 0) | (impulses == 255)).all()


def test_blurs_spread_a_point_by_their_definitions() -> None:
    """A white pixel becomes a disk of its radius, or a line through its place; its light stays."""
    image = torch.zeros(1, 65, 65, 3, dtype=torch.uint8)
    image[0, 30:35, 30:35] = 255
    light = image.double().sum()
    steps = torch.arange(65) - 32.0
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    disk = corrupted(image, "defocus_blur", 5)[0, ..., 0].double()
    assert disk.sum() * 3 == pytest.approx(float(light), rel=0.05)
    assert disk[torch.hypot(down, right) > 0.065 * 65 + 1 + 2 * 2**0.5].max() == 0
    assert torch.equal(disk, disk.flip(0)) and torch.equal(disk, disk.T)
    line = corrupted(image, "motion_blur", 5)[0, ..., 0].double()
    assert line.sum() * 3 == pytest.approx(float(light), rel=0.05)
    weights = line / line.sum()
    covariance = torch.tensor(
        [[(weights * down * down).sum(), (weights * down * right).sum()],
         [(weights * down * right).sum(), (weights * right * right).sum()]]
    )  # fmt: skip
    across, along = torch.linalg.eigvalsh(covariance).tolist()
    square = 2.0  # variance of five equal pixels
    assert along - square == pytest.approx((0.2 * 65) ** 2 / 12, rel=0.2) and across - square < 0.5


def test_flat_images_lose_nothing_to_what_moves_or_averages_pixels() -> None:
    flat = torch.full((2, 32, 40, 3), 90, dtype=torch.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "pixelate", "contrast", "saturate"):
        assert (corrupted(flat, name, 5).int() - 90).abs().max() <= 1, name
    assert ((corrupted(flat, "brightness", 1).int() - (90 + 0.1 * 255)).abs() <= 0.51).all()
    fog = corrupted(flat, "fog", 3).double() / 255
    assert fog.min() >= 0.5 * 90 / 255 + 0.5 * 0.7 - 0.01 and fog.max() <= 0.5 * 90 / 255 + 0.5 + 0.01
