"""Exported encoders: the same features wherever they are opened, our own labels on them, strict loading."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssl_equi import load_encoder
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.export.encoder import EncoderCard, normalization_of, parts_of, read_encoder_config, save_encoder


def card(architecture: str | None, **changes: object) -> EncoderCard:
    fields: dict = {
        "architecture": architecture,
        "image_size": 64,
        "mean_rgb": (0.41, 0.42, 0.43),
        "std_rgb": (0.11, 0.12, 0.13),
        "parts": {"all": (0, 512), "inv": (0, 256), "equi": (256, 512)},
        "objective": "sie",
        "trained_on": "3DIEBench-P train 0123",
        "license": "apache-2.0",
        "tag": "sie_3diebench_p",
    }
    return EncoderCard(**(fields | changes))


def trained(encoder: nn.Module) -> nn.Module:
    """Gives batch norms statistics and every parameter a value that no initialisation has."""
    torch.manual_seed(1)
    encoder.train()
    for _ in range(3):
        encoder(torch.randn(8, 3, 64, 64))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.mark.parametrize(
    ("name", "model_args"),
    [("strided_cnn_tiny", {}), ("resnet10t", {}), ("test_vit", {"img_size": 64})],
)
def test_timm_and_we_open_the_folder_and_find_the_same_features(tmp_path: Path, name: str, model_args: dict) -> None:
    encoder = trained(create_encoder(name, image_size=64))
    save_encoder(encoder, tmp_path / "encoder", card(name, model_args=model_args))
    images = torch.randn(4, 3, 64, 64)
    expected = encoder(images)
    ours = load_encoder(tmp_path / "encoder")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=0).eval()
    assert (ours(images) - expected).abs().max() <= 1e-6
    assert (theirs(images) - expected).abs().max() <= 1e-6
    assert ours.num_features == expected.shape[1]


def test_our_own_labels_are_on_the_weights(tmp_path: Path) -> None:
    """timm's own exporter would write the labels of its pretrained weights."""
    save_encoder(create_encoder("resnet10t", 64), tmp_path / "encoder", card("resnet10t"))
    model = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=0)
    assert list(model.pretrained_cfg["mean"]) == [0.41, 0.42, 0.43]
    assert model.pretrained_cfg["license"] == "apache-2.0"
    assert model.pretrained_cfg["tag"] == "sie_3diebench_p"
    config = read_encoder_config(tmp_path / "encoder")
    assert parts_of(config) == {"all": slice(0, 512), "inv": slice(0, 256), "equi": slice(256, 512)}
    mean, std = normalization_of(config)
    assert mean.tolist() == pytest.approx([0.41, 0.42, 0.43])
    assert std.tolist() == pytest.approx([0.11, 0.12, 0.13])


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    save_encoder(create_encoder("resnet10t", 64), tmp_path / "encoder", card("resnet10t"))
    assert sorted(file.name for file in (tmp_path / "encoder").iterdir()) == ["config.json", "model.safetensors"]


class Custom(nn.Module):
    num_features = 5

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(12, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def test_a_module_of_ones_own_goes_through_encoder(tmp_path: Path) -> None:
    encoder = Custom().eval()
    save_encoder(encoder, tmp_path / "encoder", card(None))
    with pytest.raises(CheckpointError, match="pass it as encoder="):
        load_encoder(tmp_path / "encoder")
    images = torch.randn(2, 3, 2, 2)
    assert torch.equal(load_encoder(tmp_path / "encoder", encoder=Custom())(images), encoder(images))
    with pytest.raises(CheckpointError, match="holds another architecture"):
        load_encoder(tmp_path / "encoder", encoder=Custom(width=6))


class Tied(nn.Module):
    """Two layers share a weight, and a buffer is a part of another one."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.register_buffer("table", torch.arange(6.0))
        self.register_buffer("start_of_table", self.table[:3])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(images.mean((2, 3)))))


def test_layers_that_share_their_weights_are_exported_and_tied_again(tmp_path: Path) -> None:
    encoder = Tied().eval()
    save_encoder(encoder, tmp_path / "encoder", card(None))
    again = load_encoder(tmp_path / "encoder", encoder=Tied())
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(images), encoder(images))
    assert again.third.weight is again.second.weight


def test_timm_opens_an_encoder_whose_layers_share_their_weights(tmp_path: Path) -> None:
    encoder = create_encoder("coat_lite_tiny", 32).eval()
    save_encoder(encoder, tmp_path / "encoder", card("coat_lite_tiny", model_args={"img_size": 32}))
    images = torch.randn(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=0).eval()
    assert torch.equal(theirs(images), encoder(images))
    assert torch.equal(load_encoder(tmp_path / "encoder")(images), encoder(images))


class Stateful(Custom):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def test_a_module_with_a_state_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"_extra_state of the Stateful is a dict: export a module of dense"):
        save_encoder(Stateful(), tmp_path / "encoder", card(None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"img_size": 10**9}}, r"a size of 1,000,000,000, and 16,384 is the most"),
        ({"model_args": {"embed_dim": 16000, "depth": 40}}, r"holds another architecture"),
        ({"model_args": {"embed_dim": "wide"}}, r"describes no encoder \(TypeError"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, r"arguments hold 'checkpoint_path'"),
        ({"model_args": []}, r"model_args is \[\]"),
        ({"num_features": -1}, r"num_features is -1"),
        ({"architecture": 5}, r"architecture is 5"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0, 1, 1]}}, r"std is \[0, 1, 1\]"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": "grey", "std": [1, 1, 1]}}, r"mean is 'grey'"),
        ({"pretrained_cfg": {"input_size": [3, 64], "mean": [0.5] * 3, "std": [1, 1, 1]}}, r"input_size is \[3, 64\]"),
        ({"ssl_equi": {"parts": {"all": [64, 0]}}}, r"part 'all' is \[64, 0\]"),
        ({"ssl_equi": None}, r"ssl_equi\.parts is None"),
    ],
)
def test_a_config_that_describes_no_encoder_is_refused_without_taking_memory(
    tmp_path: Path, changes: dict, message: str
) -> None:
    folder = tmp_path / "encoder"
    save_encoder(create_encoder("test_vit", 64), folder, card("test_vit", model_args={"img_size": 64}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def test_an_encoder_of_an_earlier_version_is_opened_without_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    save_encoder(create_encoder("resnet10t", 64), folder, card("resnet10t"))
    config = json.loads((folder / "config.json").read_text())
    del config["weights_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(folder).num_features == 512


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        load_encoder(folder)
    save_encoder(create_encoder("resnet10t", 64), folder, card("resnet10t"))
    weights = (folder / "model.safetensors").read_bytes()
    flipped = bytearray(weights)
    flipped[-1] ^= 1
    for damaged in (weights[: len(weights) // 2], flipped):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_encoder(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "resnet_of_tomorrow"}))
    with pytest.raises(CheckpointError, match="resnet_of_tomorrow, which this timm doesn't know"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_encoder(folder)


def test_the_folder_of_a_run_is_answered_with_the_one_within(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"run holds no exported encoder \(there is no such folder\)"):
        load_encoder(run)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run that has exported no encoder yet.*: let it go on, with --resume"):
        load_encoder(run)
    (run / "encoder").mkdir()
    (run / "encoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run is the folder of a run: give .*run/encoder$"):
        load_encoder(run)
