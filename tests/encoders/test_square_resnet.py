"""ResNets whose features turn with the image: exact at every element, in training, after it, baked and exported."""

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.square.convolutions import GroupName, bake, group_size
from ssl_equi.encoders.square.resnet import GroupResNet

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_changes_nothing(layout: torch.memory_format) -> None:
    network, images = small_network("d4"), random_images(torch.float32)
    maps = network.forward_features(images.to(memory_format=layout))
    assert maps.is_contiguous(memory_format=layout)
    assert torch.allclose(maps, network.forward_features(images), atol=1e-5)


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
    with pytest.raises(ValueError, match="global_pool is 'max': choose 'avg'"):
        network.reset_classifier(10, "max")
    with pytest.raises(ValueError, match=r"element is 4: c4 has the elements 0\.\.3"):
        network.act_on_features(4, torch.randn(1, 16))
    with pytest.raises(ValueError, match=r"features have shape \(1, 12\): these are \[N, 16\]"):
        network.act_on_features(1, torch.randn(1, 12))
