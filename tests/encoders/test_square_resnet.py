"""ResNets whose features turn with the image: their sizes, and the images that keep the symmetry."""

import pytest
import torch

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.square.convolutions import bake, group_size
from ssl_equi.encoders.square.resnet import GroupResNet
from tests.fakes import with_other_values


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
    network = small_network()
    with pytest.raises(ValueError, match=r"18 x 18 pixels break .* stages.1.0.conv1 .* is 20 x 20"):
        network(torch.randn(1, 3, 18, 18))
    with pytest.raises(ValueError, match="break the symmetry in conv1"):
        bake(network)(torch.randn(1, 3, 17, 17))
