"""The map of every kind of timm encoder, against timm's own `forward_intermediates` where it has one."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.feature_maps import as_feature_map, feature_map_size

MODELS = {  # name: (size of the images, arguments, size of the map)
    "resnet18": (64, {}, (512, 2, 2)),
    "test_convnext": (96, {}, (64, 3, 3)),
    "mobilenetv3_small_050": (64, {}, (288, 2, 2)),
    "test_mambaout": (64, {}, (64, 2, 2)),
    "swin_s3_tiny_224": (112, {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}, (192, 4, 4)),
    "test_vit": (64, {}, (64, 4, 4)),
    "test_vit2": (64, {"reg_tokens": 4}, (64, 4, 4)),
    "test_vit3": (64, {}, (96, 4, 4)),
    "vit_tiny_patch16_224": (32, {"depth": 2, "reg_tokens": 3}, (192, 2, 2)),
    "strided_cnn_tiny": (64, {}, (256, 4, 4)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_the_last_one_that_timm_tells_of(name: str) -> None:
    torch.manual_seed(0)
    image_size, arguments, size = MODELS[name]
    encoder = create_encoder(name, image_size, **arguments).train()
    before = copy.deepcopy(encoder.state_dict())
    assert feature_map_size(encoder, image_size) == size
    assert encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    images = torch.randn(2, 3, image_size, image_size)
    output = encoder.eval().forward_features(images)
    feature_map, features = as_feature_map(encoder, output), encoder(images)
    assert feature_map.shape == (2, *size) and features.shape == (2, encoder.num_features)
    assert torch.equal(encoder.forward_head(output), features)
    if hasattr(encoder, "forward_intermediates"):
        (last,) = encoder.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(feature_map, last)


def test_prefix_tokens_are_no_places_and_the_grid_may_be_oblong() -> None:
    encoder = timm.create_model("test_vit2", num_classes=0, img_size=(32, 64), reg_tokens=2).eval()
    assert encoder.num_prefix_tokens == 2
    tokens = torch.arange(2 + 8.0).view(1, 10, 1)
    assert as_feature_map(encoder, tokens).tolist() == [[[[2, 3, 4, 5], [6, 7, 8, 9]]]]


def test_gradients_flow_through_the_map() -> None:
    encoder = create_encoder("test_vit", 64)
    output = encoder.forward_features(torch.randn(1, 3, 64, 64))
    (gradient,) = torch.autograd.grad(as_feature_map(encoder, output).sum(), output)
    assert not gradient[:, : encoder.num_prefix_tokens].any()
    assert (gradient[:, encoder.num_prefix_tokens :] == 1).all()


class Returns(nn.Module):
    """An encoder whose forward_features returns what it is given here."""

    def __init__(self, output: Tensor | list[Tensor]) -> None:
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.zeros(1))

    def forward_features(self, images: Tensor) -> Tensor | list[Tensor]:
        return self.output


def test_an_encoder_without_a_map_is_named() -> None:
    outputs: dict[str, Tensor | list[Tensor]] = {
        r"returns shape \(2, 64\)": torch.zeros(2, 64),
        "returns a list": [torch.zeros(2, 64, 2, 2)],
        "12 tokens fill neither": torch.zeros(2, 12, 8),
        "1 tokens fill neither": torch.zeros(2, 1, 8),
    }
    for reason, output in outputs.items():
        message = f"Returns gives no feature map .*{reason}.*: choose an encoder that keeps one"
        with pytest.raises(ValueError, match=message):
            feature_map_size(Returns(output), 64)
    with pytest.raises(ValueError, match=r"Linear gives no feature map .it has no forward_features.*such as resnet18"):
        feature_map_size(nn.Linear(2, 2), 64)
