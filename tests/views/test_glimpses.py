"""Glimpses lie where the gaze rests, and the gaze rests where saliency and inhibition of return say."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.views.glimpses import (
    Inhibition,
    draw_fixations,
    extract_glimpses,
    fixation_positions,
    take_glimpses,
)

NO_INHIBITION = Inhibition("none")


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_maps(count: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(1)) ** 4


def painted(height: int, width: int, row: int, column: int) -> Tensor:
    """An image [1, 1, height, width] whose only bright pixel is that one."""
    image = torch.zeros(1, 1, height, width)
    image[0, 0, row, column] = 1
    return image


def bright_pixel(glimpse: Tensor) -> tuple[int, int]:
    return divmod(int(glimpse.flatten().argmax()), glimpse.shape[-1])


@pytest.mark.parametrize("size", [1, 2, 5, 32, 33])
@pytest.mark.parametrize("place", [(0, 0), (20, 60), (47, 95), (20, 0)])
def test_the_centre_of_a_glimpse_is_its_fixation_to_half_a_pixel(size: int, place: tuple[int, int]) -> None:
    glimpse = extract_glimpses(painted(48, 96, *place), torch.tensor([[place]]), size)[0, 0, 0]
    assert glimpse.sum() == 1
    assert all(abs(found - (size - 1) / 2) <= 0.5 for found in bright_pixel(glimpse))


def test_glimpses_are_pixels_of_the_image_at_a_pitch_of_one_and_zero_outside() -> None:
    images = torch.rand(3, 2, 20, 30, generator=torch.Generator().manual_seed(0))
    fixations = torch.tensor([[[10, 15], [0, 0]], [[19, 29], [3, 28]], [[7, 7], [7, 7]]])
    glimpses = extract_glimpses(images, fixations, 6)
    assert glimpses.shape == (3, 2, 2, 6, 6)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)))
    for image, glimpse in np.ndindex(3, 2):
        row, column = fixations[image, glimpse].tolist()
        expected = padded[image, :, row : row + 6, column : column + 6]
        assert np.array_equal(glimpses[image, glimpse].numpy(), expected)


def test_a_glimpse_is_not_transposed_unless_the_released_code_is_to_be_replicated() -> None:
    fixation = torch.tensor([[[20, 60]]])
    straight = painted(96, 96, 20, 60)
    swapped = painted(96, 96, 60, 20)
    assert bright_pixel(extract_glimpses(straight, fixation, 32)[0, 0, 0]) == (16, 16)
    assert extract_glimpses(swapped, fixation, 32).sum() == 0
    assert bright_pixel(extract_glimpses(swapped, fixation, 32, transposed=True)[0, 0, 0]) == (16, 16)
    assert extract_glimpses(straight, fixation, 32, transposed=True).sum() == 0
    # The patch itself stays upright: what lies one row below is one row below.
    below = extract_glimpses(painted(96, 96, 61, 20), fixation, 32, transposed=True)[0, 0, 0]
    assert bright_pixel(below) == (17, 16)
    wide = extract_glimpses(torch.ones(1, 1, 20, 96), torch.tensor([[[5, 90]]]), 4, transposed=True)
    assert wide.sum() == 0, "row 90 of an image of 20 rows is off the image"


def test_the_gradient_of_a_pixel_counts_the_glimpses_that_show_it() -> None:
    images = torch.rand(2, 1, 6, 5, requires_grad=True)
    fixations = torch.tensor([[[0, 0], [3, 2]], [[5, 4], [5, 4]]])
    extract_glimpses(images, fixations, 3).sum().backward()
    expected = torch.zeros(2, 1, 6, 5)
    expected[0, 0, :2, :2] += 1
    expected[0, 0, 2:5, 1:4] += 1
    expected[1, 0, 4:, 3:] += 2
    assert torch.equal(images.grad, expected)


def test_fixations_follow_the_saliency() -> None:
    saliency = random_maps(1, 8, 10)
    draws = 40_000
    found = draw_fixations(saliency.expand(draws, -1, -1), uniforms(draws, 1), NO_INHIBITION)[:, 0]
    counts = torch.bincount(found[:, 0] * 10 + found[:, 1], minlength=80).double().numpy()
    expected = draws * (saliency / saliency.sum()).double().flatten().numpy()
    frequent = expected >= 5
    chi_square = ((counts - expected)[frequent] ** 2 / expected[frequent]).sum()
    freedom = frequent.sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_draw_is_the_inverse_of_the_cumulated_saliency() -> None:
    saliency, numbers = random_maps(50), uniforms(50, 1)
    found = draw_fixations(saliency, numbers, NO_INHIBITION)[:, 0]
    for image in range(50):
        cumulated = np.cumsum(saliency[image].double().numpy().ravel())
        pixel = np.searchsorted(cumulated, numbers[image, 0].item() * cumulated[-1], side="right")
        assert tuple(found[image].tolist()) == divmod(int(pixel), 32)


@pytest.mark.parametrize("saliency", ["peaked", "uniform", "zero"])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_no_fixation_lies_within_the_inhibited_surroundings_of_an_earlier_one(shape: str, saliency: str) -> None:
    maps = {"peaked": random_maps(300) ** 3, "uniform": torch.ones(300, 24, 32), "zero": torch.zeros(300, 24, 32)}
    found = draw_fixations(maps[saliency], uniforms(300, 5), Inhibition(shape, 5)).double()
    apart = found.unsqueeze(1) - found.unsqueeze(2)
    distance = apart.square().sum(dim=3).sqrt() if shape == "circle" else apart.abs().amax(dim=3)
    different = ~torch.eye(5, dtype=torch.bool)
    assert distance[:, different].min() > 5
    assert (found >= 0).all() and (found[..., 0] < 24).all() and (found[..., 1] < 32).all()


def test_without_inhibition_the_gaze_returns() -> None:
    found = draw_fixations(random_maps(300) ** 8, uniforms(300, 5), NO_INHIBITION)
    assert (found[:, 0] == found[:, 1]).all(dim=1).any()


def test_pixels_without_saliency_are_looked_at_only_when_nothing_salient_is_left() -> None:
    maps = torch.zeros(4000, 21, 21)
    maps[:, 10, 10] = 3
    found = draw_fixations(maps, uniforms(4000, 2), Inhibition("circle", 4))
    assert (found[:, 0] == 10).all()
    rows = torch.arange(21).view(-1, 1)
    left = (rows - 10) ** 2 + (rows.T - 10) ** 2 > 16
    counts = torch.bincount(found[:, 1, 0] * 21 + found[:, 1, 1], minlength=441).view(21, 21)
    assert (counts[~left] == 0).all()
    expected = 4000 / int(left.sum())
    chi_square = float(((counts[left] - expected) ** 2 / expected).sum())
    assert abs(chi_square - int(left.sum())) < 5 * (2 * int(left.sum())) ** 0.5


def test_inhibition_is_lifted_when_it_has_taken_every_pixel() -> None:
    saliency = torch.zeros(50, 8, 8)
    saliency[:, 2, 3] = 1
    found = draw_fixations(saliency, uniforms(50, 12), Inhibition("square", 3))
    first, times = torch.tensor([2, 3]), (found == torch.tensor([2, 3])).all(dim=2)
    assert (found[:, 0] == first).all()
    assert (times.sum(dim=1) > 1).all(), "all four quarters were seen, and the gaze starts anew at the salient pixel"


def test_the_same_numbers_give_the_same_fixations_in_any_batch() -> None:
    saliency, numbers = random_maps(40), uniforms(40, 5)
    inhibition = Inhibition("circle", 6)
    whole = draw_fixations(saliency, numbers, inhibition)
    halves = [draw_fixations(saliency[rows], numbers[rows], inhibition) for rows in (slice(0, 20), slice(20, 40))]
    assert torch.equal(torch.cat(halves), whole)
    assert torch.equal(draw_fixations(saliency * 8, numbers, inhibition), whole), "a factor doesn't matter"


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_fall_on_salient_pixels(number: float) -> None:
    saliency = torch.zeros(1, 6, 7)
    saliency[0, 2, 3], saliency[0, 4, 1] = 0.1, 0.7
    found = draw_fixations(saliency, torch.tensor([[number]], dtype=torch.float64), NO_INHIBITION)
    # The lowest numbers, less than a billionth of all, belong to the pixels before the first salient one.
    assert found.flatten().tolist() == ([0, 0] if number == 0 else [5, 6])
    inner = torch.tensor([[1e-6 if number == 0 else 1 - 1e-6]], dtype=torch.float64)
    found = draw_fixations(saliency, inner, NO_INHIBITION)
    assert found.flatten().tolist() == ([2, 3] if number == 0 else [4, 1])


def test_more_saliency_lies_under_drawn_fixations_than_under_uniform_ones() -> None:
    saliency = random_maps(400, 48, 48)
    saliency = torch.nn.functional.avg_pool2d(saliency, 9, stride=1, padding=4) ** 4
    saliency = saliency / saliency.sum(dim=(1, 2), keepdim=True)
    inhibition = Inhibition("circle", 8)
    images, numbers = saliency.unsqueeze(1), uniforms(400, 5)
    mass = {}
    for name, maps in (("drawn", saliency), ("uniform", torch.ones_like(saliency))):
        glimpses, _ = take_glimpses(images, maps, numbers, size=9, inhibition=inhibition)
        mass[name] = float(glimpses.sum(dim=(2, 3, 4)).mean())
    assert mass["drawn"] > 1.2 * mass["uniform"], mass


def test_positions_are_in_units_of_the_sides() -> None:
    positions = fixation_positions(torch.tensor([[[20, 60], [0, 0]]]), 40, 80)
    assert torch.equal(positions, torch.tensor([[[0.5, 0.75], [0.0, 0.0]]]))


def test_taking_glimpses_is_drawing_and_cutting_out() -> None:
    images, saliency, numbers = torch.rand(3, 3, 24, 32), random_maps(3), uniforms(3, 4)
    glimpses, fixations = take_glimpses(images, saliency, numbers, size=8, inhibition=Inhibition("square", 3))
    assert torch.equal(fixations, draw_fixations(saliency, numbers, Inhibition("square", 3)))
    assert torch.equal(glimpses, extract_glimpses(images, fixations, 8))


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    images, maps, numbers = torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8), uniforms(2, 3)
    small = Inhibition("circle", 2)
    with pytest.raises(ValueError, match=r"saliency has shape \(2, 8, 9\) for images \(2, 3, 8, 8\): pass"):
        take_glimpses(images, torch.ones(2, 8, 9), numbers, size=4, inhibition=small)
    with pytest.raises(ValueError, match="the size of a glimpse is 0: give a side of at least 1 pixel"):
        extract_glimpses(images, torch.zeros(2, 1, 2, dtype=torch.int64), 0)
    for fixation in ([8, 0], [0, 8], [-1, 0]):
        with pytest.raises(ValueError, match=rf"fixation 1 of image 1 is row {fixation[0]}, column {fixation[1]}, off"):
            extract_glimpses(images, torch.tensor([[[0, 0], [0, 0]], [[7, 7], fixation]]), 4)
    with pytest.raises(ValueError, match=r"pass integers \[2, K, 2\]"):
        extract_glimpses(images, torch.zeros(2, 1, 2), 4)
    with pytest.raises(ValueError, match=r"images have shape \(3, 8, 8\)"):
        extract_glimpses(images[0], torch.zeros(2, 1, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"pass numbers from 0 to below 1"):
        draw_fixations(maps, torch.ones(2, 3), small)
    with pytest.raises(ValueError, match=r"uniforms have shape \(3, 1\) and type torch.float32: pass floats \[2, K\]"):
        draw_fixations(maps, torch.zeros(3, 1), small)
    with pytest.raises(ValueError, match=r"no number for any fixation"):
        draw_fixations(maps, torch.zeros(2, 0), small)
    with pytest.raises(ValueError, match=r"saliency has negative or non-finite values"):
        draw_fixations(-maps, numbers, small)
    with pytest.raises(ValueError, match=r"pass floats \[N, H, W\]"):
        draw_fixations(maps.long(), numbers, small)
    for shape, limit in (("circle", 6), ("square", 4)):
        with pytest.raises(
            ValueError, match=rf"an inhibition radius of 6 pixels leaves nothing .* give less than {limit}"
        ):
            draw_fixations(maps, numbers, Inhibition(shape, 6))
    with pytest.raises(ValueError, match="the inhibition's shape is 'disc': choose circle, square or none"):
        Inhibition("disc")
    with pytest.raises(ValueError, match="the inhibition's radius is -1 pixels: give 0 or more"):
        Inhibition("circle", -1)
