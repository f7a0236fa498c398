"""Layers that commute with quarter turns and mirrorings, element by element, and the sizes of map that allow it.

Also what is peculiar to the ResNets of these layers.
"""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.square.convolutions import (
    GroupBatchNorm,
    GroupConvolution,
    GroupName,
    LiftingConvolution,
    act_on_regular_maps,
    act_on_regular_stack,
    bake,
    group_size,
)
from ssl_equi.encoders.square.resnet import GroupResNet
from ssl_equi.encoders.square.sampling import Window, check_image_side, nearest_legal_side
from ssl_equi.encoders.square.symmetries import act_on_image, compose, inverse
from ssl_equi.objectives.parts.batch import convert_sync_batchnorm
from tests.encoders.symmetric_encoders import assert_refused, relative_error
from tests.fakes import with_other_values

GROUPS: tuple[GroupName, ...] = ("c4", "d4")
WINDOWS = [
    (1, 1, 0, 5), (2, 2, 0, 6), (3, 1, 1, 4), (3, 2, 1, 5), (4, 2, 1, 6), (6, 2, 2, 8), (3, 3, 0, 6), (2, 1, 0, 4),
]  # fmt: skip
"""kernel, stride, padding, side of a map that they suit"""


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), WINDOWS)
def test_an_orientation_is_the_first_ones_answer_to_the_input_turned_back(group, kernel, stride, padding, side) -> None:
    """out[h] = h (out of h^-1 x)[e], and out[e] is an ordinary convolution with the free kernel."""
    torch.manual_seed(0)
    size = group_size(group)
    lifting = LiftingConvolution(group, 3, 2, kernel, stride, padding, bias=True).double()
    convolution = GroupConvolution(group, 3, 2, kernel, stride, padding, bias=True).double()
    for layer in (lifting, convolution):
        nn.init.normal_(layer.bias)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    maps = torch.randn(2, size * 3, side, side, dtype=torch.float64)
    lifted, convolved = lifting(images).unflatten(1, (size, 2)), convolution(maps).unflatten(1, (size, 2))
    for h in range(size):
        back = inverse(h)
        expected = F.conv2d(act_on_image(back, images), lifting.weight[:, :, 0], lifting.bias, stride, padding)
        assert relative_error(lifted[:, h], act_on_image(h, expected)) < 1e-12
        kernels = convolution.weight.transpose(1, 2).flatten(1, 2)
        expected = F.conv2d(act_on_regular_maps(group, back, maps), kernels, convolution.bias, stride, padding)
        assert relative_error(convolved[:, h], act_on_image(h, expected)) < 1e-12


@pytest.mark.parametrize("group", GROUPS)
def test_every_layer_commutes_with_every_element(group: GroupName) -> None:
    torch.manual_seed(0)
    size = group_size(group)
    norm = GroupBatchNorm(group, 3).double()
    for tensor in (norm.norm.weight, norm.norm.bias, norm.norm.running_mean, norm.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    layers: list[nn.Module] = [
        *(GroupConvolution(group, 3, 2, k, s, p, bias=True).double() for k, s, p in ((3, 1, 1), (4, 2, 1), (2, 2, 0))),
        norm,
        copy.deepcopy(norm).eval(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
    ]
    maps = torch.randn(2, size * 3, 6, 6, dtype=torch.float64)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    lifting = LiftingConvolution(group, 3, 2, 4, 2, 1).double()
    for g in range(size):
        for layer in layers:
            expected = act_on_regular_maps(group, g, layer(maps))
            assert relative_error(layer(act_on_regular_maps(group, g, maps)), expected) < 1e-12
        moved = lifting(act_on_image(g, images))
        assert relative_error(moved, act_on_regular_maps(group, g, lifting(images))) < 1e-12
        if g > 0:  # the action is not the identity, nor one on the places alone
            assert relative_error(moved, lifting(images)) > 0.1
            assert relative_error(moved, act_on_image(g, lifting(images))) > 0.1


@pytest.mark.parametrize("group", GROUPS)
def test_actions_on_regular_maps_form_the_group(group: GroupName) -> None:
    torch.manual_seed(0)
    size = group_size(group)
    stack, maps = torch.randn(2, size * 3), torch.randn(2, size * 3, 4, 4)
    for act, tensor in ((act_on_regular_stack, stack), (act_on_regular_maps, maps)):
        assert torch.equal(act(group, 0, tensor), tensor)
        for g, h in itertools.product(range(size), repeat=2):
            assert torch.equal(act(group, g, act(group, h, tensor)), act(group, compose(g, h), tensor))
        results = [act(group, g, tensor) for g in range(size)]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("group", GROUPS)
def test_a_layer_has_as_many_times_fewer_weights_as_the_group_has_elements(group: GroupName) -> None:
    size = group_size(group)
    layer = GroupConvolution(group, 4, 6, 3, padding=1, bias=True)
    plain = nn.Conv2d(size * 4, size * 6, 3, padding=1)
    assert layer.weight.numel() * size == plain.weight.numel()
    assert layer.bias.numel() * size == plain.bias.numel()
    numbers, times = layer.expanded_weight().unique(return_counts=True)
    assert len(numbers) == layer.weight.numel() and (times == size).all()
    large = LiftingConvolution(group, 16, 64, 7)
    assert float(large.weight.detach().std()) == pytest.approx((2 / (size * 64 * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("group", GROUPS)
def test_batch_norm_takes_the_orientations_for_further_images(group: GroupName) -> None:
    torch.manual_seed(0)
    size = group_size(group)
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = GroupBatchNorm(group, 3).double()
        nn.init.uniform_(layer.norm.weight, 0.5, 2)
        maps = torch.randn(2, size * 3, 4, 5, dtype=torch.float64).to(memory_format=layout)
        normalised = layer(maps)
        fields = maps.unflatten(1, (size, 3))
        variance, mean = torch.var_mean(fields, (0, 1, 3, 4), correction=0, keepdim=True)
        expected = (fields - mean) / (variance + 1e-5).sqrt() * layer.norm.weight.view(1, 1, 3, 1, 1)
        assert relative_error(normalised, expected.flatten(1, 2)) < 1e-12
        assert torch.allclose(layer.norm.running_mean, 0.1 * mean.flatten())
        assert normalised.is_contiguous(memory_format=layout)


def test_a_window_suits_a_side_if_its_places_are_symmetric() -> None:
    for kernel, stride, padding, side in itertools.product(range(1, 6), range(1, 4), range(3), range(1, 13)):
        window = Window("layer", kernel, stride, padding)
        starts = list(range(-padding, side + padding - kernel + 1, stride))
        mirrored = [side - kernel - start for start in reversed(starts)]
        assert window.keeps_symmetry(side) == (bool(starts) and starts == mirrored)
        if starts:
            assert window.side_after(side) == len(starts)


def test_the_nearest_legal_side_is_that_of_a_search() -> None:
    networks = [
        [Window("a", 3, 2, 1), Window("b", 3, 2, 1)],
        [Window("a", 6, 2, 2), Window("b", 2, 2), Window("c", 4, 2, 1)],
        [Window("a", 7, 2, 3), Window("b", 4, 2, 1)],
        [Window("a", 5), Window("b", 5, 3, 1)],
        [Window("a", 1, 1, 2), Window("b", 2, 2)],
    ]

    def suits(windows: list[Window], side: int) -> bool:
        try:
            check_image_side(windows, side)
        except ValueError:
            return False
        return True

    for windows, side in itertools.product(networks, range(1, 70)):
        legal = [candidate for candidate in range(1, 120) if suits(windows, candidate)]
        nearest = min(legal, key=lambda candidate: (abs(candidate - side), -candidate))
        assert nearest_legal_side(windows, side) == nearest


def test_a_strided_layer_refuses_a_map_of_the_wrong_parity() -> None:
    for *window, side, nearest in ((3, 2, 1, 6, 7), (4, 2, 1, 5, 6), (1, 2, 0, 4, 5), (5, 1, 0, 3, 5)):
        message = rf"map of {side} x {side} .* \(kernel {window[0]}, stride {window[1]}.* is {nearest}$"
        layer, lifting = GroupConvolution("c4", 2, 2, *window), LiftingConvolution("c4", 3, 2, *window)
        for refusing, channels in ((layer, 8), (lifting, 3)):
            with pytest.raises(ValueError, match=message):
                refusing(torch.randn(1, channels, side, side))
        layer(torch.randn(1, 8, nearest, nearest))


@pytest.mark.parametrize("synchronised", [False, True])
def test_baking_leaves_ordinary_layers_of_the_same_function(synchronised: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        LiftingConvolution("d4", 3, 2, 4, 2, 1, bias=True),
        GroupBatchNorm("d4", 2),
        nn.Sequential(GroupConvolution("d4", 2, 3, 3, padding=1), GroupBatchNorm("d4", 3)),
    )
    nn.init.normal_(network[0].bias)
    if synchronised:
        convert_sync_batchnorm(network)
    images = torch.randn(4, 3, 8, 8)
    network(images)
    random_state = torch.get_rng_state()
    baked = bake(network)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(module) for module in baked.modules() if not isinstance(module, nn.Sequential)] == [
        nn.Conv2d,
        nn.BatchNorm2d,
    ] * 2
    assert network.training and not baked.training
    assert not any(parameter.requires_grad for parameter in baked.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(baked(images), network.eval()(images))
    assert sum(p.numel() for p in baked.parameters()) == 8 * sum(p.numel() for p in network.parameters())
    assert isinstance(bake(network[0]), nn.Conv2d)


def test_wrong_arguments_are_named() -> None:
    assert_refused(
        ("group is 'd8': choose 'c4' or 'd4'", lambda: LiftingConvolution("d8", 3, 2, 3)),
        ("group is 'C4'", lambda: GroupBatchNorm("C4", 2)),
        (r"element is 4: c4 has the elements 0\.\.3", lambda: act_on_regular_stack("c4", 4, torch.randn(1, 8))),
        (r"this layer takes \[N, 8 \* 3, h, w\]", lambda: GroupBatchNorm("d4", 3)(torch.randn(1, 16, 5, 5))),
        ("stride of group convolution is 0: it must be at least 1", lambda: GroupConvolution("d4", 3, 2, 3, stride=0)),
        ("out_fields is 0: it must be at least 1", lambda: GroupConvolution("d4", 3, 0, 3)),
        (r"stack .*\(1, 9\): d4 acts on \[N, 8 \* C, ...\]", lambda: act_on_regular_stack("d4", 1, torch.randn(1, 9))),
        ("square act on square images", lambda: act_on_regular_maps("d4", 1, torch.randn(1, 8, 4, 5))),
        (r"maps .* takes \[N, 24, H, W\]", lambda: GroupConvolution("d4", 3, 2, 3)(torch.randn(1, 16, 5, 5))),
    )


# ---------------------------------------------------------------- ResNets of these layers


def small_network() -> GroupResNet:
    """Two stages, for images of 16 pixels."""
    torch.manual_seed(0)
    return with_other_values(GroupResNet("d4", (1, 2), (8, 16), "small_images", img_size=16))


def test_the_layout_in_memory_changes_nothing() -> None:
    network, images = small_network(), torch.randn(3, 3, 16, 16)
    expected = network.forward_features(images)
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = network.forward_features(images.to(memory_format=layout))
        assert maps.is_contiguous(memory_format=layout)
        assert torch.allclose(maps, expected, atol=1e-5)


def test_sizes_that_break_the_symmetry_are_refused_with_the_nearest_legal_one() -> None:
    with pytest.raises(EncoderError, match=r"in stages.2.0.conv1 .* a map of 9 x 9: the nearest legal size is 64 x 64"):
        create_encoder("d4_resnet18", 72)
    network, sizes = small_network(), ("d4", (1, 1), (8, 16))
    assert_refused(
        (r"65 x 65 .* in conv1 \(kernel 4, .* is 64 x 64", lambda: GroupResNet(*sizes, "small_images", img_size=65)),
        (r"stages.1.0.conv1 .* a map of 27 x 27: .* is 112 x 112", lambda: GroupResNet(*sizes, img_size=108)),
        (r"18 x 18 pixels break .* stages.1.0.conv1 .* is 20 x 20", lambda: network(torch.randn(1, 3, 18, 18))),
        ("break the symmetry in conv1", lambda: bake(network)(torch.randn(1, 3, 17, 17))),
    )
