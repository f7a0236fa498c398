"""ResNets whose features turn with the image: exact at every element, in training, after it, baked and exported."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.feature_maps import as_feature_map, feature_map_size
from ssl_equi.encoders.square.convolutions import GroupName, act_on_regular_maps, bake, group_size
from ssl_equi.encoders.square.resnet import GroupResNet
from ssl_equi.encoders.square.symmetries import act_on_image, compose, inverse

GROUPS: tuple[GroupName, ...] = ("c4", "d4")


def small_network(group: GroupName, features: str = "regular", stem: str = "small_images") -> GroupResNet:
    """Two stages, and batch norms as different as after training."""
    torch.manual_seed(0)
    network = GroupResNet(group, (1, 2), (8, 16), stem, img_size=16, features=features)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_var):
                nn.init.uniform_(tensor, 0.2, 2)
            nn.init.normal_(module.running_mean)
    return network.eval()


def random_images(dtype: torch.dtype = torch.float64, side: int = 16) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float(((ours - expected).norm() / expected.norm()).detach())


def worst_error(network: GroupResNet, images: Tensor) -> float:
    """Of features of g x against g acting on those of x, over all elements."""
    features = network(images)
    return max(
        relative_error(network(act_on_image(g, images)), network.act_on_features(g, features))
        for g in range(group_size(network.group))
    )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("features", ["regular", "invariant", "both"])
@pytest.mark.parametrize("stem", ["small_images", "large_images"])
def test_features_move_as_predicted(group: GroupName, features: str, stem: str) -> None:
    network = small_network(group, features, stem)
    assert worst_error(network.float(), random_images(torch.float32)) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert worst_error(network, random_images(torch.float32)) < 2e-2
    assert worst_error(network.double(), random_images()) < 1e-10
    assert worst_error(network, random_images(side=32)) < 1e-10  # another size


@pytest.mark.parametrize("group", GROUPS)
def test_maps_move_as_predicted_and_are_those_of_timm(group: GroupName) -> None:
    network, images = small_network(group).double(), random_images()
    maps = network.forward_features(images)
    for g in range(group_size(group)):
        moved = network.forward_features(act_on_image(g, images))
        assert relative_error(moved, network.act_on_layer("stages.1", g, maps)) < 1e-10
        assert relative_error(moved, act_on_regular_maps(group, g, maps)) < 1e-10
        if g > 0:
            assert relative_error(moved, maps) > 0.1
    assert torch.equal(network.forward_head(maps), network(images))
    assert as_feature_map(network, maps) is maps
    assert feature_map_size(network, 16) == (16, 4, 4)


@pytest.mark.parametrize("group", GROUPS)
def test_in_training_mode_every_image_may_be_moved_by_its_own_element(group: GroupName) -> None:
    network, images = small_network(group).double().train(), random_images()
    features = network(images)
    elements = [1, group_size(group) - 1, 0]
    moved = network(torch.cat([act_on_image(g, image[None]) for g, image in zip(elements, images)]))
    expected = [network.act_on_features(g, row[None]) for g, row in zip(elements, features)]
    assert relative_error(moved, torch.cat(expected)) < 1e-10


@pytest.mark.parametrize("group", GROUPS)
def test_baked_and_exported_it_is_the_same_function(group: GroupName) -> None:
    network, images = small_network(group), random_images(torch.float32)
    features = network(images)
    baked = bake(network)
    assert torch.equal(baked(images), features)
    assert worst_error(baked, images) < 1e-5
    assert baked.parts == network.parts
    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(baked, (images,), dynamic_shapes=(batch,)).module()
    more = torch.cat([images, images.flip(0)])
    assert torch.allclose(exported(images), features, atol=1e-6)
    assert torch.allclose(exported(more), network(more), atol=1e-6)
    unbaked = torch.export.export(network, (images,)).module()
    assert torch.allclose(unbaked(images), features, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_changes_nothing(layout: torch.memory_format) -> None:
    network, images = small_network("d4"), random_images(torch.float32)
    maps = network.forward_features(images.to(memory_format=layout))
    assert maps.is_contiguous(memory_format=layout)
    assert torch.allclose(maps, network.forward_features(images), atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_actions_on_features_form_the_group(group: GroupName) -> None:
    network = small_network(group, "both")
    features = torch.randn(2, network.num_features)
    assert torch.equal(network.act_on_features(0, features), features)
    for g, h in itertools.product(range(group_size(group)), repeat=2):
        twice = network.act_on_features(g, network.act_on_features(h, features))
        assert torch.equal(twice, network.act_on_features(compose(g, h), features))
        assert torch.equal(twice, features) == (g == inverse(h))


@pytest.mark.parametrize("group", GROUPS)
def test_the_parts_are_what_they_are_called(group: GroupName) -> None:
    network, images = small_network(group, "both").double(), random_images()
    assert network.parts == {
        "all": slice(0, network.num_features),
        "inv": slice(0, 16 // group_size(group)),
        "equi": slice(16 // group_size(group), network.num_features),
    }
    features, moved = network(images), network(act_on_image(1, images))
    inv, equi = network.parts["inv"], network.parts["equi"]
    assert relative_error(moved[:, inv], features[:, inv]) < 1e-10
    assert relative_error(moved[:, equi], features[:, equi]) > 0.01
    assert torch.equal(small_network(group, "invariant").double()(images), features[:, inv])
    assert torch.equal(small_network(group, "regular").double()(images), features[:, equi])


def test_ordinary_networks_and_other_elements_do_not_pass() -> None:
    """What the tolerances above would miss is far larger than they are."""
    images = random_images(torch.float32, side=32)
    plain = create_encoder("strided_cnn_pooled", 32).eval()
    assert relative_error(plain(act_on_image(1, images)), plain(images)) > 0.05
    turns_only, images = small_network("c4", "invariant").double(), random_images()
    assert relative_error(turns_only(act_on_image(4, images)), turns_only(images)) > 0.005
    network = small_network("d4").double()
    moved = network(act_on_image(5, images))
    for g in range(8):
        error = relative_error(moved, network.act_on_features(g, network(images)))
        assert error < 1e-10 if g == 5 else error > 0.005


@pytest.mark.parametrize(
    ("name", "image_size", "features", "parameters"),
    [
        ("c4_resnet18", 224, 512, 3_094_560),
        ("d4_resnet18", 64, 512, 1_547_280),
        ("c4_resnet10_small_images", 64, 256, 382_032),
        ("d4_resnet10_small_images", 64, 256, 191_016),
    ],
)
def test_networks_by_name_have_the_stated_sizes(name: str, image_size: int, features: int, parameters: int) -> None:
    encoder = create_encoder(name, image_size).eval()
    assert encoder.num_features == features
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    plain = sum(parameter.numel() for parameter in bake(encoder).parameters())
    assert plain == parameters * group_size(name[:2])


def test_sizes_that_break_the_symmetry_are_refused_with_the_nearest_legal_one() -> None:
    with pytest.raises(EncoderError, match=r"in stages.2.0.conv1 .* a map of 9 x 9: the nearest legal size is 64 x 64"):
        create_encoder("d4_resnet18", 72)
    with pytest.raises(ValueError, match=r"65 x 65 pixels break the symmetry in conv1 \(kernel 4, .*: .* is 64 x 64"):
        GroupResNet("d4", (1, 1), (8, 16), "small_images", img_size=65)
    with pytest.raises(ValueError, match=r"stages.1.0.conv1 .* a map of 27 x 27: the nearest legal size is 112 x 112"):
        GroupResNet("d4", (1, 1), (8, 16), img_size=108)
    network = small_network("d4")
    with pytest.raises(ValueError, match=r"18 x 18 pixels break .* stages.1.0.conv1 .* is 20 x 20"):
        network(torch.randn(1, 3, 18, 18))
    with pytest.raises(ValueError, match="break the symmetry in conv1"):
        bake(network)(torch.randn(1, 3, 17, 17))


def test_wrong_arguments_are_named() -> None:
    network = small_network("c4")
    with pytest.raises(ValueError, match=r"images have shape \(1, 3, 16, 20\): .* pad them to 20 x 20 pixels"):
        network(torch.randn(1, 3, 16, 20))
    with pytest.raises(ValueError, match=r"img_size is \(16, 20\)"):
        GroupResNet(img_size=(16, 20))
    with pytest.raises(ValueError, match="group is 'so2': choose 'c4' or 'd4'"):
        GroupResNet("so2")
    with pytest.raises(ValueError, match="channels has 20: with d4 they come in multiples of 8, such as 16"):
        GroupResNet("d4", (1,), (20,))
    with pytest.raises(ValueError, match=r"blocks are \(1, 0\)"):
        GroupResNet("d4", (1, 0), (8, 8))
    with pytest.raises(ValueError, match="features is 'max'"):
        GroupResNet("d4", features="max")
    with pytest.raises(ValueError, match="stem is 'none'"):
        GroupResNet("d4", stem="none")
    with pytest.raises(ValueError, match="global_pool is 'max': this encoder has 'avg' only"):
        network.reset_classifier(10, "max")
    with pytest.raises(ValueError, match=r"element is 4: c4 has the elements 0\.\.3"):
        network.act_on_features(4, torch.randn(1, 16))
    with pytest.raises(ValueError, match=r"features have shape \(1, 12\): these are \[N, 16\]"):
        network.act_on_features(1, torch.randn(1, 12))
