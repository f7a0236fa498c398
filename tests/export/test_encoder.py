"""Exported encoders in timm: the same features wherever they are opened, and our own labels on them."""

from pathlib import Path

import pytest
import timm
import torch

from ssl_equi import load_encoder
from ssl_equi.encoders import create_encoder
from ssl_equi.export.encoder import EncoderCard, normalization_of, parts_of, read_encoder_config, save_encoder
from tests.fakes import with_other_values


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("strided_cnn_tiny", {}),
        ("resnet10t", {}),
        ("test_vit", {"img_size": 64}),
        ("coat_lite_tiny", {"img_size": 64}),  # its layers share weights
    ],
)
def test_timm_and_we_open_the_folder_and_find_the_same_features(tmp_path: Path, name: str, model_args: dict) -> None:
    """timm's own exporter would write the labels of its pretrained weights."""
    folder = tmp_path / "encoder"
    encoder = with_other_values(create_encoder(name, image_size=64))
    parts = {"all": (0, 512), "inv": (0, 256), "equi": (256, 512)}
    mean, std = (0.41, 0.42, 0.43), (0.11, 0.12, 0.13)
    card = EncoderCard(name, 64, mean, std, parts, "sie", "3DIEBench-P train 0123", "apache-2.0", "ours", model_args)
    save_encoder(encoder, folder, card)
    ours = load_encoder(folder)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(images)
        assert torch.equal(ours(images), expected)
        assert torch.equal(theirs(images), expected)
    assert ours.num_features == expected.shape[1]
    labels = theirs.pretrained_cfg
    assert (labels["mean"], labels["license"], labels["tag"]) == ([*mean], "apache-2.0", "ours")
    config = read_encoder_config(folder)
    assert parts_of(config) == {"all": slice(0, 512), "inv": slice(0, 256), "equi": slice(256, 512)}
    assert [values.tolist() for values in normalization_of(config)] == [pytest.approx(mean), pytest.approx(std)]
