"""Layer groups of encoders: those that timm's layer decay has, and of our encoders in the order of the forward pass."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.layer_groups import layer_groups
from ssl_equi.errors import EncoderError
from tests.encoders.symmetric_encoders import ARCHITECTURES, CASES, IMAGE, VARIANTS
from tests.fakes import BatchNormEncoder

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT),
        ("vit_tiny_patch16_224", SMALL_VIT | {"global_pool": "avg"}),  # whose last norm stands behind the pooling
        ("tf_efficientnet_lite0", {}),
        ("resnet18", {}),
    ],
)
def test_a_classifier_on_top_moves_as_fast_as_our_heads(name: str, arguments: dict[str, object]) -> None:
    model = timm.create_model(name, num_classes=7, **arguments)
    names = {parameter: parameter_name for parameter_name, parameter in model.named_parameters()}
    theirs = {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for parameter in group["params"]
    }
    model.reset_classifier(0)
    groups = layer_groups(model)
    for parameter_name, _ in model.named_parameters():
        assert 0.75 ** (groups.count - groups.numbers[parameter_name]) == theirs[parameter_name], parameter_name


WRAPPERS = ("group_averaged", "canonicalized")
OURS = ["strided_cnn_nano", "strided_cnn_nano_pooled", "shift twins, three stages"]
OURS += [label for label in ARCHITECTURES if not label.startswith(WRAPPERS)]


@torch.no_grad()
@pytest.mark.parametrize("label", [*OURS, pytest.param("c8", marks=pytest.mark.slow)])  # escnn takes seconds
def test_groups_of_ours_follow_the_forward_pass(label: str) -> None:
    cases = CASES | VARIANTS
    encoder = cases[label].make() if label in cases else create_encoder(label, IMAGE).eval()
    groups = layer_groups(encoder)
    names = {layer: name for name, layer in encoder.named_modules()}
    passed: list[int] = []

    def note(layer: nn.Module, *_: object) -> None:
        own = [f"{names[layer]}.{name}" for name, _ in layer.named_parameters(recurse=False)]
        passed.extend({groups.numbers[name] for name in own})

    for layer in encoder.modules():
        if layer is not encoder:
            layer.register_forward_hook(note)
    encoder(torch.randn(2, 3, IMAGE, IMAGE))
    assert passed == sorted(passed), "no layer comes before one of an earlier group"
    assert set(passed) - {groups.count} == set(range(groups.count)) and groups.count >= 3


def test_an_encoder_that_does_not_tell_its_layers_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"BatchNormEncoder has no group_matcher.*leave out --layer-decay"):
        layer_groups(BatchNormEncoder())
