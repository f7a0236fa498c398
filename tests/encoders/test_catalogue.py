"""Encoders by name, and the small one of our own."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssl_equi.encoders import EncoderError, create_encoder
from ssl_equi.encoders.backbones import RESERVED
from ssl_equi.encoders.compiling import compile_encoder
from ssl_equi.encoders.square.convolutions import bake, group_size
from ssl_equi.encoders.strided_cnn import PooledStridedCNN, StridedCNN
from ssl_equi.errors import UserError
from ssl_equi.export.encoder import build_encoder
from ssl_equi.export.folder import module_tensors


def test_what_timm_cannot_make_is_named() -> None:
    with pytest.raises(EncoderError, match=r"no model named 'resnet81': did you mean resnet18"):
        create_encoder("resnet81", image_size=64)
    with pytest.raises(EncoderError, match=r"'resnet10t' can't be made .*colour_blind"):
        create_encoder("resnet10t", image_size=64, colour_blind=True)


def test_arguments_that_are_no_part_of_an_architecture_are_refused() -> None:
    for name in RESERVED:
        sentence = rf"the encoder's arguments hold '{name}' \(.*\): leave it out"
        with pytest.raises(UserError, match=sentence):
            create_encoder("resnet10t", image_size=64, **{name: 1})
        if name not in ("num_classes", "in_chans"):  # which timm writes into every folder
            with pytest.raises(UserError, match=sentence):
                build_encoder({"architecture": "resnet10t", "model_args": {name: 1}}, Path("folder"))


def test_the_side_of_the_images_is_stated_once() -> None:
    with pytest.raises(UserError, match="'img_size' 48 and the images have 64 pixels: leave it out, and give --image"):
        create_encoder("test_vit", image_size=64, img_size=48)
    create_encoder("test_vit", image_size=64, img_size=64)


SIZES = {  # image size, features, parameters
    "strided_cnn_tiny": (64, 512, 2_634_784),
    "strided_cnn_pooled": (64, 512, 387_936 + 2 * 480),
    "strided_cnn_nano": (32, 256, 323_344),
    "strided_cnn_nano_pooled": (32, 256, 60_688),
    "resnet18_small_images": (32, 512, 11_168_832),
    "resnet50_small_images": (32, 2048, 23_500_352),
    "sie_resnet18": (256, 512, 11_180_736),
    "c4_resnet18": (224, 512, 3_094_560),
    "d4_resnet18": (64, 512, 1_547_280),
    "c4_resnet10_small_images": (64, 256, 382_032),
    "d4_resnet10_small_images": (64, 256, 191_016),
    "c8_resnet18": (224, 512, 1_090_904),
    "so2_resnet18": (224, 448, 878_424),
    "c8_resnet10_small_images": (64, 256, 120_508),
    "so2_resnet10_small_images": (64, 224, 97_308),
}


@pytest.mark.parametrize("name", SIZES)
def test_encoders_by_name_have_the_stated_sizes(name: str) -> None:
    image_size, features, parameters = SIZES[name]
    encoder = create_encoder(name, image_size)
    assert encoder.num_features == features
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    # The basis of steerable kernels is made anew, and no part of the weights; statistics of batch norms are.
    assert sum(tensor.numel() for tensor in module_tensors(encoder).values()) < 1.12 * parameters
    if name.startswith(("c4", "d4")):  # a field has one number for each element of the group
        plain = sum(parameter.numel() for parameter in bake(encoder.eval()).parameters())
        assert plain == parameters * group_size(name[:2])


def test_the_small_encoder_is_registered_with_timm_and_takes_other_sizes() -> None:
    encoder = timm.create_model("strided_cnn_tiny", num_classes=0).eval()
    assert isinstance(encoder, StridedCNN)
    for size in (32, 64, 96, 128):
        assert encoder(torch.randn(2, 3, size, size)).shape == (2, 512)


@pytest.mark.parametrize("name", ["resnet18_small_images", "resnet50_small_images"])
def test_resnets_for_small_images_keep_the_resolution_in_their_stem(name: str) -> None:
    encoder = create_encoder(name, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    assert encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(images)))).shape[-2:] == (32, 32)
    assert encoder.forward_features(images).shape[-2:] == (4, 4)


@pytest.mark.parametrize(("stem_init", "std"), [("he_fan_out", 0.059), ("pytorch", 0.111)])
def test_stems_for_small_images_start_as_timms_or_as_pytorchs(stem_init: str, std: float) -> None:
    encoder = create_encoder("resnet18_small_images", image_size=32, stem_init=stem_init)
    assert encoder.conv1.weight.std().item() == pytest.approx(std, rel=0.06)
    with pytest.raises(EncoderError, match="stem_init is 'zero': choose 'he_fan_out' or 'pytorch'"):
        create_encoder("resnet18_small_images", image_size=32, stem_init="zero")


def test_the_pooled_small_encoder_has_no_weights_behind_its_map() -> None:
    encoder = create_encoder("strided_cnn_pooled", image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    feature_map = encoder.forward_features(images)
    assert feature_map.shape == (2, 128, 4, 4)
    means = torch.stack([feature_map[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], dim=-1)
    torch.testing.assert_close(encoder(images), means.flatten(1))
    assert encoder(torch.randn(2, 3, 96, 96)).shape == (2, 512)


@pytest.mark.parametrize(
    "name", ["strided_cnn_tiny", "strided_cnn_pooled", "strided_cnn_nano", "strided_cnn_nano_pooled"]
)
def test_the_small_encoders_keep_where_things_are(name: str) -> None:
    """A shifted pattern gives other features: global pooling would make them nearly equal."""
    torch.manual_seed(0)
    encoder = create_encoder(name, image_size=64).eval()
    image = torch.zeros(1, 3, 64, 64)
    image[..., 8:24, 8:24] = 1
    shifted = image.roll((32, 32), dims=(2, 3))
    difference = (encoder(image) - encoder(shifted)).norm() / encoder(image).norm()
    assert difference > 0.3


def test_a_classifier_is_refused() -> None:
    for encoder_class in (StridedCNN, PooledStridedCNN):
        with pytest.raises(ValueError, match="num_classes is 10"):
            encoder_class(num_classes=10)


def test_vision_transformers_are_compiled_block_by_block_and_others_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    transformer = create_encoder("octic_vit_tiny_patch16_224", image_size=32, embed_dim=64, depth=3, num_heads=2)
    standard = create_encoder("vit_tiny_patch16_224", image_size=32, embed_dim=64, depth=2, num_heads=2)
    convolutional = create_encoder("strided_cnn_tiny", image_size=64)
    for encoder in (transformer, standard, convolutional):
        compile_encoder(encoder)
    assert compiled == [*transformer.blocks, *standard.blocks, convolutional]
