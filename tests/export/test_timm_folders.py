"""Folders for timm: what timm finds in them, what it keeps when it saves them again, and what they may replace."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ssl_equi import load_encoder
from ssl_equi.errors import CheckpointError, EncoderError
from ssl_equi.evaluation.encoders import open_encoder
from ssl_equi.export.encoder import parts_of, read_encoder_config
from ssl_equi.export.timm_folders import how_timm_opens, timm_files, timm_model_config, write_timm_folder
from tests.fakes import export_small_encoder

SMALL_VIT = {"embed_dim": 48, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("architecture", "arguments", "sentence"),
    [
        ("resnet10t", {}, "Plain timm opens it."),
        ("strided_cnn_nano", {}, "timm opens it after `import ssl_equi.encoders.strided_cnn`, which"),
        (
            "group_averaged",
            {"backbone": "strided_cnn_pooled"},
            "timm opens it after `import ssl_equi.encoders.wrappers, ssl_equi.encoders.strided_cnn`, which",
        ),
        ("capsule_network", {"backbone": "resnet10t"}, "timm opens it after `import ssl_equi.encoders.capsules."),
    ],
)
def test_the_folder_has_the_same_features_for_timm(
    tmp_path: Path, architecture: str, arguments: dict[str, Any], sentence: str
) -> None:
    encoder = export_small_encoder(tmp_path / "encoder", architecture, **arguments)
    write_timm_folder(timm_files(tmp_path / "encoder", "# A card"), tmp_path / "out")
    write_timm_folder(timm_files(tmp_path / "encoder", "# A card"), tmp_path / "out")  # again
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert how_timm_opens(read_encoder_config(tmp_path / "out")).startswith(sentence)
    images = torch.randn(2, 3, 32, 32)
    opened = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(opened(images), encoder(images))


@pytest.mark.parametrize(("architecture", "arguments"), [("strided_cnn_nano", {}), ("vit_tiny_patch16_224", SMALL_VIT)])
def test_timm_saves_the_parts_if_it_is_told_them(tmp_path: Path, architecture: str, arguments: dict[str, Any]) -> None:
    encoder = export_small_encoder(tmp_path / "encoder", architecture, **arguments)
    loaded = load_encoder(tmp_path / "encoder")
    timm.models.save_for_hf(loaded, tmp_path / "forgotten", safe_serialization=True)
    assert "ssl_equi" not in read_encoder_config(tmp_path / "forgotten")
    kept = timm_model_config(tmp_path / "encoder")
    timm.models.save_for_hf(loaded, tmp_path / "saved", model_config=kept, safe_serialization=True)
    before, after = (read_encoder_config(tmp_path / name) for name in ("encoder", "saved"))
    assert parts_of(after) == parts_of(before) and after["ssl_equi"] == before["ssl_equi"]
    for name in ("mean", "std", "input_size", "license", "tag"):
        assert after["pretrained_cfg"][name] == before["pretrained_cfg"][name], name
    source = open_encoder(str(tmp_path / "saved"))
    assert source.mean_rgb == pytest.approx((0.41, 0.42, 0.43)) and source.image_size == 32
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source.module(images), encoder(images))
        assert torch.equal(load_encoder(tmp_path / "saved")(images), encoder(images))


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    export_small_encoder(tmp_path / "encoder")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("words")
    with pytest.raises(CheckpointError, match="out is there and holds no exported encoder: give another --out"):
        write_timm_folder(timm_files(tmp_path / "encoder", ""), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "words"


def test_features_that_timm_does_not_find_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_small_encoder(tmp_path / "encoder")
    create = timm.create_model

    def without_weights(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        return create("strided_cnn_nano" if pretrained else name, **options)

    monkeypatch.setattr(timm, "create_model", without_weights)
    with pytest.raises(EncoderError, match=r"^timm finds other features of strided_cnn_nano in .*encoder: update timm"):
        timm_files(tmp_path / "encoder", "")
