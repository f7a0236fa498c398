"""Group laws, on the tables and on images, and every sign read off pixels."""

import pytest
import torch
from torch import Tensor

from ssl_equi.views.groups import BLUR_SIGMAS_PX, GROUPS, JIGSAW_PERMUTATIONS

OTHER_NAMES = ["grayscale", "four_fold_blur"]
GROUP_NAMES = [name for name in GROUPS if name not in OTHER_NAMES]
SIZES = {
    "four_fold_rotation": 4, "horizontal_flip": 2, "vertical_flip": 2, "jigsaw": 24, "inversion": 2,
    "half_translations": 4, "grayscale": 2, "four_fold_blur": 4,
}  # fmt: skip


def random_images(count: int = 3, side: int = 8) -> Tensor:
    """Multiples of 1/256, so that inverting them is exact."""
    return torch.randint(0, 257, (count, 3, side, side), generator=torch.Generator().manual_seed(0)) / 256


def under_all(name: str, images: Tensor) -> Tensor:
    """Each image under every element, [G, N, 3, S, S]."""
    elements = torch.arange(GROUPS[name].size)
    repeated = images.repeat(len(elements), 1, 1, 1)
    return GROUPS[name].apply(repeated, elements.repeat_interleave(len(images))).unflatten(0, (-1, len(images)))


def test_names_and_sizes() -> None:
    assert {name: transformations.size for name, transformations in GROUPS.items()} == SIZES
    assert all(name == transformations.name for name, transformations in GROUPS.items())


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_tables_keep_the_group_laws(name: str) -> None:
    group = GROUPS[name]
    table, inverses, labels = group.composition_table(), group.inverses(), torch.arange(group.size)
    assert table.dtype == torch.int64
    assert table.shape == (group.size, group.size)
    for line in (*table, *table.T):  # closure, and every element once
        assert torch.equal(line.sort().values, labels)
    g, h, k = torch.meshgrid(labels, labels, labels, indexing="ij")
    assert torch.equal(table[table[g, h], k], table[g, table[h, k]])
    assert torch.equal(table[0], labels) and torch.equal(table[:, 0], labels)
    assert not table[labels, inverses].any() and not table[inverses, labels].any()
    assert torch.equal(table, table.T) == (name != "jigsaw")
    # What takes one element to another doesn't depend on how the data lay.
    relative = group.relative_table()
    assert torch.equal(relative[table[g, k], table[h, k]], relative[g, h])
    assert not relative.diagonal().any()


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_tables_hold_on_images(name: str) -> None:
    group = GROUPS[name]
    g, h = (each.flatten() for each in torch.meshgrid(*[torch.arange(group.size)] * 2, indexing="ij"))
    images = random_images(1).expand(len(g), -1, -1, -1)
    under_g, under_h = group.apply(images, g), group.apply(images, h)
    assert torch.equal(group.apply(under_h, g), group.apply(images, group.composition_table()[g, h]))
    assert torch.equal(group.apply(under_g, group.inverses()[g]), images)
    assert torch.equal(group.apply(under_g, group.relative_table().flatten()), under_h)


@pytest.mark.parametrize("name", GROUPS)
def test_elements_differ_and_the_first_is_the_identity(name: str) -> None:
    images = random_images()
    versions = under_all(name, images)
    assert torch.equal(versions[0], images)
    assert len({tuple(version[0].flatten().tolist()) for version in versions}) == GROUPS[name].size
    assert 0 <= versions.min() <= versions.max() <= 1


EXPECTED = {
    "four_fold_rotation": lambda x: [torch.rot90(x, turns, dims=(2, 3)) for turns in range(4)],
    "horizontal_flip": lambda x: [x, x.flip(3)],
    "vertical_flip": lambda x: [x, x.flip(2)],
    "inversion": lambda x: [x, 1 - x],
    "half_translations": lambda x: [torch.roll(x, shift, (2, 3)) for shift in ((0, 0), (4, 0), (0, 4), (4, 4))],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_say_what_is_done(name: str) -> None:
    images = random_images()
    assert torch.equal(under_all(name, images), torch.stack(EXPECTED[name](images)))


def test_a_quarter_turn_is_counter_clockwise() -> None:
    top_right = torch.zeros(1, 3, 4, 4)
    top_right[:, :, 0, 3] = 1
    assert [divmod(int(x[0, 0].argmax()), 4) for x in under_all("four_fold_rotation", top_right)] == [
        (0, 3), (0, 0), (3, 0), (3, 3),
    ]  # fmt: skip


def test_a_jigsaw_puts_the_named_piece_at_each_place_and_keeps_its_inside() -> None:
    images = random_images(2, 6)
    pieces = [images[:, :, top : top + 3, left : left + 3] for top in (0, 3) for left in (0, 3)]
    for found, permutation in zip(under_all("jigsaw", images), JIGSAW_PERMUTATIONS, strict=True):
        first, second, third, fourth = (pieces[piece] for piece in permutation)
        rows = [torch.cat([first, second], dim=3), torch.cat([third, fourth], dim=3)]
        assert torch.equal(found, torch.cat(rows, dim=2))


def test_grey_has_three_equal_channels_of_the_same_luminance() -> None:
    grey = under_all("grayscale", random_images())[1]
    luminance = (random_images() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(grey, luminance.expand_as(grey), atol=1e-6)


def test_blurs_grow_with_the_element_and_keep_the_mean() -> None:
    point = torch.zeros(1, 3, 31, 31)
    point[:, :, 15, 15] = 1
    views = under_all("four_fold_blur", point)[:, 0]
    column = torch.arange(31) - 15.0
    variances = (views[:, 0].sum(1) * column.square()).sum(1)
    assert torch.allclose(views.sum((1, 2, 3)), torch.tensor(3.0))
    assert torch.allclose(variances.sqrt(), torch.tensor(BLUR_SIGMAS_PX), atol=0.1)


def test_gradients_reach_the_images_and_are_finite() -> None:
    for name in GROUPS:
        images = random_images(2, 12).requires_grad_()
        under_all(name, images).square().sum().backward()
        assert images.grad is not None and images.grad.isfinite().all()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_sets_that_are_not_groups_have_no_composition(name: str) -> None:
    for ask in (GROUPS[name].composition_table, GROUPS[name].inverses, GROUPS[name].relative_table):
        with pytest.raises(ValueError, match=f"{name} is not a group"):
            ask()
