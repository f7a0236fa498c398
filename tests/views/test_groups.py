"""Group laws, on the tables and on images."""

import pytest
import torch
from torch import Tensor

from ssl_equi.views.exact import JIGSAW_PERMUTATIONS
from ssl_equi.views.groups import BLUR_SIGMAS_PX, GROUPS, TransformationSet

GROUP_NAMES = [name for name, transformations in GROUPS.items() if transformations.is_group]
OTHER_NAMES = ["grayscale", "four_fold_blur"]


def random_images(count: int = 3, side: int = 8) -> Tensor:
    """Multiples of 1/256, so that inverting them is exact."""
    return torch.randint(0, 257, (count, 3, side, side), generator=torch.Generator().manual_seed(0)) / 256


def one_element(transformations: TransformationSet, images: Tensor, element: int) -> Tensor:
    return transformations.apply(images, torch.full((len(images),), element))


def test_names_and_sizes():
    sizes = {name: transformations.size for name, transformations in GROUPS.items()}
    assert sizes == {
        "four_fold_rotation": 4, "horizontal_flip": 2, "vertical_flip": 2, "jigsaw": 24, "inversion": 2,
        "half_translations": 4, "grayscale": 2, "four_fold_blur": 4,
    }  # fmt: skip
    assert all(name == transformations.name for name, transformations in GROUPS.items())
    assert [name for name in GROUPS if name not in GROUP_NAMES] == OTHER_NAMES


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_tables_keep_the_group_laws(name: str):
    group = GROUPS[name]
    table, inverses, labels = group.composition_table(), group.inverses(), torch.arange(group.size)
    assert table.dtype == torch.int64
    assert table.shape == (group.size, group.size)
    for line in (*table, *table.T):  # closure, and every element once
        assert torch.equal(line.sort().values, labels)
    g, h, k = torch.meshgrid(labels, labels, labels, indexing="ij")
    assert torch.equal(table[table[g, h], k], table[g, table[h, k]])
    assert torch.equal(table[0], labels)
    assert torch.equal(table[:, 0], labels)
    assert torch.equal(table[labels, inverses], torch.zeros_like(labels))
    assert torch.equal(table[inverses, labels], torch.zeros_like(labels))


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_tables_hold_on_images(name: str):
    group, image = GROUPS[name], random_images(1)
    g, h = torch.meshgrid(torch.arange(group.size), torch.arange(group.size), indexing="ij")
    g, h = g.flatten(), h.flatten()
    images = image.expand(len(g), -1, -1, -1)
    one_after_the_other = group.apply(group.apply(images, h), g)
    assert torch.equal(one_after_the_other, group.apply(images, group.composition_table()[g, h]))
    assert torch.equal(group.apply(group.apply(images, g), group.inverses()[g]), images)


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_relative_element_takes_first_to_second(name: str):
    group, image = GROUPS[name], random_images(1)
    first, second = torch.meshgrid(torch.arange(group.size), torch.arange(group.size), indexing="ij")
    relative = group.relative(first, second)
    assert torch.equal(relative, group.relative_table())
    assert (relative.diagonal() == 0).all()
    images = image.expand(first.numel(), -1, -1, -1)
    moved = group.apply(group.apply(images, first.flatten()), relative.flatten())
    assert torch.equal(moved, group.apply(images, second.flatten()))


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_relative_element_does_not_depend_on_how_the_data_lay(name: str):
    group = GROUPS[name]
    table, relative_table = group.composition_table(), group.relative_table()
    labels = torch.arange(group.size)
    first, second, before = torch.meshgrid(labels, labels, labels, indexing="ij")
    assert torch.equal(relative_table[table[first, before], table[second, before]], relative_table[first, second])


def test_jigsaw_does_not_commute():
    table = GROUPS["jigsaw"].composition_table()
    assert not torch.equal(table, table.T)


@pytest.mark.parametrize("name", GROUPS)
def test_all_elements_cover_every_label_once(name: str):
    transformations, images = GROUPS[name], random_images(3)
    views, elements = transformations.all_elements(images)
    assert views.shape == (3, transformations.size, 3, 8, 8)
    assert torch.equal(elements, torch.arange(transformations.size).expand(3, -1))
    assert torch.equal(views[:, 0], images)
    for element in range(transformations.size):
        expected = one_element(transformations, images, element)
        assert torch.allclose(views[:, element], expected, atol=1e-6)
    different = {tuple(view.flatten().tolist()) for view in views[0]}
    assert len(different) == transformations.size
    assert 0 <= views.min() <= views.max() <= 1


@pytest.mark.parametrize("name", GROUPS)
def test_sampled_elements_differ_within_an_image_and_are_applied(name: str):
    transformations, images = GROUPS[name], random_images(40)
    views, elements = transformations.sample_elements(images, 2, torch.Generator().manual_seed(3))
    assert views.shape == (40, 2, 3, 8, 8)
    assert elements.shape == (40, 2)
    assert (elements[:, 0] != elements[:, 1]).all()
    assert len(elements.flatten().unique()) >= min(transformations.size, 15)
    for number in range(2):
        expected = transformations.apply(images, elements[:, number])
        assert torch.allclose(views[:, number], expected, atol=1e-6)
    again = transformations.sample_elements(images, 2, torch.Generator().manual_seed(3))[1]
    assert torch.equal(again, elements)


def test_sampling_is_uniform():
    images = torch.zeros(4000, 3, 2, 2)
    elements = GROUPS["four_fold_rotation"].sample_elements(images, 1, torch.Generator().manual_seed(0))[1]
    shares = elements.flatten().bincount() / 4000
    assert (shares - 0.25).abs().max() < 0.03  # more than four standard deviations


def test_labels_of_rotation_reproduce_rot90():
    images = random_images(4)
    views, elements = GROUPS["four_fold_rotation"].all_elements(images)
    for image, versions, labels in zip(images, views, elements, strict=True):
        for version, label in zip(versions, labels, strict=True):
            assert torch.equal(version, torch.rot90(image, int(label), dims=(1, 2)))


def test_labels_of_the_other_groups():
    x = random_images(1)
    assert torch.equal(one_element(GROUPS["horizontal_flip"], x, 1), x.flip(3))
    assert torch.equal(one_element(GROUPS["vertical_flip"], x, 1), x.flip(2))
    assert torch.equal(one_element(GROUPS["inversion"], x, 1), 1 - x)
    for element, shifts in enumerate([(0, 0), (4, 0), (0, 4), (4, 4)]):
        assert torch.equal(one_element(GROUPS["half_translations"], x, element), torch.roll(x, shifts, (2, 3)))
    swapped = one_element(GROUPS["jigsaw"], x, JIGSAW_PERMUTATIONS.index((2, 3, 0, 1)))
    assert torch.equal(swapped, torch.roll(x, 4, 2))


def test_grey_has_three_equal_channels_of_the_same_luminance():
    grey = one_element(GROUPS["grayscale"], random_images(), 1)
    luminance = (random_images() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for channel in range(3):
        assert torch.allclose(grey[:, channel], luminance, atol=1e-6)


def test_blurs_grow_with_the_element_and_keep_the_mean():
    point = torch.zeros(1, 3, 31, 31)
    point[:, :, 15, 15] = 1
    views, _ = GROUPS["four_fold_blur"].all_elements(point)
    column = torch.arange(31) - 15.0
    variances = (views[0, :, 0].sum(1) * column.square()).sum(1)
    assert torch.allclose(views.sum((2, 3, 4)), torch.tensor(3.0))
    assert torch.allclose(variances.sqrt(), torch.tensor(BLUR_SIGMAS_PX), atol=0.1)
    assert torch.equal(views[:, 0], point)


def test_gradients_reach_the_images_and_are_finite():
    for transformations in GROUPS.values():
        images = random_images(2, 12).requires_grad_()
        transformations.all_elements(images)[0].square().sum().backward()
        assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_sets_that_are_not_groups_have_no_composition(name: str):
    transformations, labels = GROUPS[name], torch.zeros(2, dtype=torch.int64)
    assert not transformations.is_group
    for ask in (
        transformations.composition_table,
        transformations.inverses,
        transformations.relative_table,
        lambda: transformations.relative(labels, labels),
    ):
        with pytest.raises(ValueError, match=f"{name} is not a group"):
            ask()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("four_fold_rotation", (2, 3, 8, 6), "8 x 6 pixels: crop them to squares"),
        ("jigsaw", (2, 3, 7, 8), "7 x 8 pixels: use even sides"),
        ("half_translations", (2, 3, 8, 7), "8 x 7 pixels: use even sides"),
        ("four_fold_blur", (2, 3, 4, 4), "4 x 4 pixels: use a smaller kernel"),
        ("horizontal_flip", (2, 8, 8, 3), r"pass \[N, 3, H, W\]"),
    ],
)
def test_images_of_the_wrong_size_are_refused(name: str, shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        GROUPS[name].all_elements(torch.zeros(shape))


@pytest.mark.parametrize("name", GROUPS)
def test_wrong_elements_are_refused(name: str):
    transformations, images = GROUPS[name], random_images(2)
    size = transformations.size
    for elements in (torch.tensor([0, size]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=rf"elements of {name} have values .*: use 0\.\.{size - 1}"):
            transformations.apply(images, elements)
    with pytest.raises(ValueError, match=r"pass int64 \[2\]"):
        transformations.apply(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pass float images"):
        transformations.apply(images.to(torch.uint8), torch.zeros(2, dtype=torch.int64))
    for k in (0, size + 1):
        with pytest.raises(ValueError, match=rf"it has {size}, use 1\.\.{size}"):
            transformations.sample_elements(images, k, torch.Generator())
