"""Every sign of the exact views, read off single pixels."""

import pytest
import torch
from torch import Tensor

from ssl_equi.views.exact import (
    JIGSAW_PERMUTATIONS,
    flip_horizontally,
    flip_vertically,
    invert,
    jigsaw,
    quarter_turns,
    roll,
)


def random_images(count: int = 5, height: int = 6, width: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0))
    return pixels.to(torch.uint8) if dtype == torch.uint8 else pixels.to(dtype) / 256


def one_bright_pixel(row: int, column: int, size: int = 4) -> Tensor:
    images = torch.zeros(1, 3, size, size)
    images[:, :, row, column] = 1
    return images


def bright_pixel(images: Tensor) -> tuple[int, int]:
    assert images.sum() == 3
    row, column = images[0, 0].nonzero()[0].tolist()
    return row, column


def test_a_quarter_turn_is_counter_clockwise():
    assert bright_pixel(quarter_turns(one_bright_pixel(0, 3), 1)) == (0, 0)  # top right to top left
    assert bright_pixel(quarter_turns(one_bright_pixel(0, 0), torch.tensor([1]))) == (3, 0)
    assert bright_pixel(quarter_turns(one_bright_pixel(1, 3), torch.tensor([2]))) == (2, 0)
    assert bright_pixel(quarter_turns(one_bright_pixel(0, 1), torch.tensor([3]))) == (1, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_quarter_turns_equal_rot90(dtype: torch.dtype):
    images = random_images(10, dtype=dtype)
    turns = torch.tensor([0, 1, 2, 3, 4, 5, -1, -2, -3, 102])
    expected = torch.stack([torch.rot90(x, int(k), dims=(1, 2)) for x, k in zip(images, turns, strict=True)])
    found = quarter_turns(images, turns)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    for k in (-1, 0, 1, 2, 3, 4):
        assert torch.equal(quarter_turns(images, k), torch.rot90(images, k, dims=(2, 3)))


def test_flips_swap_the_named_sides():
    assert bright_pixel(flip_horizontally(one_bright_pixel(0, 1))) == (0, 2)
    assert bright_pixel(flip_vertically(one_bright_pixel(0, 1))) == (3, 1)


@pytest.mark.parametrize("flip", [flip_horizontally, flip_vertically])
def test_only_masked_images_are_flipped(flip):
    images = random_images(4, 5, 7)
    mask = torch.tensor([True, False, False, True])
    found = flip(images, mask)
    assert torch.equal(found[[1, 2]], images[[1, 2]])
    assert torch.equal(found[[0, 3]], flip(images)[[0, 3]])


def test_jigsaw_puts_the_named_piece_at_each_place():
    pieces = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(3, 3).expand(24, 3, 4, 6)
    found = jigsaw(pieces, torch.arange(24))
    assert len(set(JIGSAW_PERMUTATIONS)) == 24
    for image, permutation in zip(found, JIGSAW_PERMUTATIONS, strict=True):
        assert image[:, ::2, ::3].reshape(3, 4).tolist() == [list(permutation)] * 3
        assert torch.equal(image[:, ::2, ::3], image[:, 1::2, 2::3])


def test_jigsaw_keeps_the_inside_of_a_piece():
    images = random_images(2, 4, 6, dtype=torch.uint8)
    swapped = jigsaw(images, torch.tensor([0, JIGSAW_PERMUTATIONS.index((1, 0, 2, 3))]))
    assert torch.equal(swapped[0], images[0])
    assert torch.equal(swapped[1, :, :2, :3], images[1, :, :2, 3:])
    assert torch.equal(swapped[1, :, :2, 3:], images[1, :, :2, :3])
    assert torch.equal(swapped[1, :, 2:], images[1, :, 2:])


def test_roll_moves_down_and_to_the_right():
    assert bright_pixel(roll(one_bright_pixel(1, 3), 0.25, 0.0)) == (2, 3)
    assert bright_pixel(roll(one_bright_pixel(1, 3), 0.0, 0.25)) == (1, 0)
    assert bright_pixel(roll(one_bright_pixel(1, 3), torch.tensor([-0.5]), torch.tensor([0.5]))) == (3, 1)


def test_roll_of_each_image_equals_torch_roll():
    images = random_images(4, 6, 8, dtype=torch.uint8)
    down, right = torch.tensor([0.0, 0.5, -1 / 3, 1.0]), torch.tensor([0.25, 0.5, 0.125, 2.0])
    expected = [
        torch.roll(image, (round(6 * float(d)), round(8 * float(r))), (1, 2))
        for image, d, r in zip(images, down, right, strict=True)
    ]
    assert torch.equal(roll(images, down, right), torch.stack(expected))
    assert torch.equal(roll(images, 0.5, right)[0], torch.roll(images[0], (3, 2), (1, 2)))


def test_inversion_is_the_negative_and_undoes_itself():
    images = random_images(2, dtype=torch.uint8)
    assert torch.equal(invert(images).int() + images, torch.full_like(images, 255, dtype=torch.int32))
    assert torch.equal(invert(invert(images)), images)
    images = random_images(2)
    assert torch.equal(invert(images), 1 - images)
    assert torch.equal(invert(invert(images)), images)


def test_gradients_follow_the_pixels():
    images = random_images(4).requires_grad_()
    weights = torch.rand(4, 3, 6, 6)
    turned = quarter_turns(images, torch.arange(4))
    (turned * weights).sum().backward()
    assert torch.equal(images.grad, quarter_turns(weights, -torch.arange(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quarter_turns(torch.zeros(2, 3, 4, 6), 1), "4 x 6 pixels: crop them to squares"),
        (lambda: quarter_turns(torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64)), r"int64 \[2\]"),
        (lambda: quarter_turns(torch.zeros(2, 3, 4, 4), torch.zeros(2)), "turns has"),
        (lambda: flip_vertically(torch.zeros(2, 3, 4, 4), torch.ones(2)), "mask has"),
        (lambda: jigsaw(torch.zeros(2, 3, 5, 4), torch.zeros(2, dtype=torch.int64)), "5 x 4 pixels: use even sides"),
        (lambda: jigsaw(torch.zeros(2, 3, 4, 4), torch.tensor([0, 24])), r"0\.\.24: use 0\.\.23"),
        (lambda: jigsaw(torch.zeros(2, 3, 4, 4), torch.tensor([-1, 0])), r"-1\.\.0: use 0\.\.23"),
        (lambda: roll(torch.zeros(2, 3, 4, 4), torch.zeros(3), 0.0), "fraction_down has"),
        (lambda: invert(torch.zeros(2, 4, 4, 3)), r"pass \[N, 3, H, W\]"),
        (lambda: invert(torch.zeros(2, 3, 4, 4, dtype=torch.int64)), "pass uint8 or float"),
    ],
)
def test_wrong_input_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_images_give_no_images():
    empty, none = torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)
    for found in (quarter_turns(empty, none), jigsaw(empty, none), roll(empty, none.float(), none.float())):
        assert found.shape == (0, 3, 4, 4)
