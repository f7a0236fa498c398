"""Capsules on any backbone: made by name, exported, loaded, compiled, and what they answer to wrong sizes."""

import pytest
import timm
import torch
from torch import nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.encoders.feature_maps import as_feature_map
from tests.encoders.symmetric_encoders import assert_refused

MAP_SIDES = {"resnet18": 2, "test_convnext": 2, "test_vit": 4, "strided_cnn_pooled": 4}


def make_network(backbone: str = "strided_cnn_pooled", **arguments: object) -> CapsuleNetwork:
    sizes: dict = {"backbone": backbone, "num_capsules": 4, "pose_side": 3} | arguments
    return create_encoder("capsule_network", 64, **sizes)


@pytest.mark.parametrize("backbone", MAP_SIDES)
def test_one_pass_gives_the_backbones_features_and_the_capsules(backbone: str) -> None:
    torch.manual_seed(0)
    network = make_network(backbone).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, (activations, poses) = network.features_and_capsules(images)
        together = network(images)
        feature_map = as_feature_map(network.backbone, network.feature_map(images))
        assert torch.equal(features, network.backbone(images))
    assert features.shape == (2, network.backbone.num_features)
    assert network.head.map_size == (MAP_SIDES[backbone],) * 2 == feature_map.shape[2:]
    assert together.shape == (2, network.num_features) == (2, 4 + 4 * 9)
    assert torch.equal(together[:, network.parts["all"]], together)
    assert torch.equal(together[:, network.parts["inv"]], activations)
    assert torch.equal(together[:, network.parts["equi"]].view(2, 4, 3, 3), poses)
    assert torch.allclose(activations.sum(dim=1), torch.ones(2))


def test_a_layer_behind_the_feature_map_is_refused_and_a_norm_frozen() -> None:
    backbone = create_encoder("strided_cnn_tiny", 32)
    statistics = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    with pytest.raises(
        ValueError, match=r"a layer behind its feature map \(embed.weight\), which capsules would never"
    ):
        CapsuleNetwork(backbone, 32, 4)
    assert backbone.training
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in backbone.named_buffers())

    network = make_network("test_convnext")
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert frozen == {"backbone.head.norm.weight", "backbone.head.norm.bias"}
    assert all(weight.grad is not None for weight in network.parameters() if weight.requires_grad)


def test_fixed_names_are_registered_with_timm() -> None:
    for name, image_size, map_side, backbone_parameters, head_parameters in (
        ("capsule_resnet18", 256, 8, 11_176_512, 7_438_976),
        ("capsule_strided_cnn_pooled", 64, 4, 388_896, 1_860_224),
    ):
        network = timm.create_model(name, num_classes=0)
        assert isinstance(network, CapsuleNetwork) and network.num_features == 32 + 32 * 9
        assert (network.image_size, network.head.map_size) == (image_size, (map_side, map_side))
        assert sum(parameter.numel() for parameter in network.backbone.parameters()) == backbone_parameters
        assert sum(parameter.numel() for parameter in network.head.parameters()) == head_parameters


def test_the_image_size_reaches_backbones_of_fixed_size_and_the_head() -> None:
    network = create_encoder("capsule_network", 96, backbone="test_vit", num_capsules=2)
    assert network.backbone.patch_embed.img_size == (96, 96)
    assert network.head.map_size == (6, 6)
    assert create_encoder("capsule_strided_cnn_pooled", 32, num_capsules=2).head.map_size == (2, 2)


def test_the_network_can_be_exported_as_a_graph_for_any_number_of_images() -> None:
    torch.manual_seed(0)
    network = make_network().eval()
    images = torch.randn(4, 3, 64, 64)
    graph = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    for n in (2, 4):
        assert torch.allclose(graph.module()(images[:n]), network(images[:n]), atol=1e-6)


@pytest.mark.slow
def test_the_network_compiles_as_one_graph_and_trains() -> None:
    torch.manual_seed(0)
    head = make_network().head
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    feature_map = torch.randn(4, 256, 4, 4)

    def gradients(module: nn.Module) -> tuple[torch.Tensor, ...]:
        activations, poses = module(feature_map)
        return torch.autograd.grad(activations.square().sum() + poses.square().sum(), list(head.parameters()))

    for ours, theirs in zip(gradients(compiled), gradients(head), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_every_parameter_learns_under_autocast() -> None:
    torch.manual_seed(0)
    network = make_network()
    nn.init.normal_(network.head.routing.routing_weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, (activations, poses) = network.features_and_capsules(torch.randn(4, 3, 64, 64))
    loss = features.float().square().sum() + activations.square().sum() + poses.square().sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_what_cannot_be_made_or_does_not_fit_is_named() -> None:
    assert_refused(
        ("no model named 'resnet81': did you mean resnet18", lambda: make_network("resnet81")),
        ("'capsule_network' can't be .*votes is 'square': choose 'free' or", lambda: make_network(votes="square")),
        ("pose_side is 0: it must be at least 1", lambda: make_network(pose_side=0)),
        ("gives no feature map .*1 tokens", lambda: create_encoder("capsule_network", 224, backbone="pit_ti_224")),
        error=EncoderError,
    )
    name, network = "capsule_strided_cnn_pooled", make_network()
    assert_refused(
        ("num_classes is 10: this encoder has no", lambda: timm.create_model(name, num_classes=10)),
        (r"img_size is \(64, 32\): this .* square images", lambda: timm.create_model(name, img_size=(64, 32))),
        (r"\(2, 3, 32, 32\), but .* was built for \[N, 3, 64, 64\]", lambda: network(torch.zeros(2, 3, 32, 32))),
        (r"shape \(3, 64, 64\)", lambda: network.features_and_capsules(torch.zeros(3, 64, 64))),
    )
