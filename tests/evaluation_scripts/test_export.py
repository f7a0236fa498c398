"""The export script, from a run's folder to each format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from evaluation import export
from ssl_equi import load_encoder
from ssl_equi.cli import parse_command_line
from ssl_equi.evaluation.results import append_records
from ssl_equi.export.encoder import normalization_of, read_encoder_config
from tests.fakes import RECORD, export_small_encoder, refused


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    append_records(tmp_path / "sie" / "results.json", [RECORD])
    return tmp_path / "sie", export_small_encoder(tmp_path / "sie" / "encoder")


def call(*arguments: object) -> None:
    export.main(parse_command_line(export.Config, export.__doc__, arguments=[str(each) for each in arguments]))


def expected_features(folder: Path, images: torch.Tensor) -> torch.Tensor:
    mean, std = (values.view(3, 1, 1) for values in normalization_of(read_encoder_config(folder)))
    with torch.no_grad():
        return load_encoder(folder)((images - mean) / std)


def test_onnxruntime_finds_the_features_of_each_part(
    run: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    call(folder, "--to", "onnx")
    assert capsys.readouterr().out.startswith(f"wrote {folder / 'encoder.onnx'}. Its features differ from the encoder")
    images = torch.rand(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    every, invariant, equivariant = session.run(["all", "inv", "equi"], {"images": images.numpy()})
    features = expected_features(folder / "encoder", images)
    assert np.allclose(every, features, atol=1e-5)
    assert np.allclose(invariant, features[:, :128], atol=1e-5)
    assert np.allclose(equivariant, features[:, 128:], atol=1e-5)


def test_a_torch_program_goes_where_it_is_told(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, _ = run
    call(folder / "encoder", "--to", "torch", "--out", tmp_path / "programs" / "sie.pt2")
    images = torch.rand(3, 3, 32, 32)
    found = torch.export.load(tmp_path / "programs" / "sie.pt2").module()(images)
    assert torch.allclose(found["equi"], expected_features(folder / "encoder", images)[:, 128:], atol=1e-5)
    assert not (folder / "encoder.pt2").exists()


def test_timm_gets_a_folder_with_a_card(run: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    folder, encoder = run
    call(folder, "--to", "timm")
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {folder / 'encoder-timm'}. timm opens it after `import ssl_equi.encoders.strided")
    card = (folder / "encoder-timm" / "README.md").read_text()
    assert 'timm.create_model("local-dir:encoder-timm"' in card and "23.5°" in card
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_encoder(folder / "encoder-timm")(images), encoder(images))


def test_the_hub_gets_the_same_folder(
    run: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = {}

    def push(repository: str, files: dict[str, bytes], *, private: bool, message: str) -> str:
        pushed[repository] = (files, private)
        return f"https://hub/{repository}"

    monkeypatch.setattr(export, "push_files", push)
    call(run[0], "--to", "hub", "--repo", "owner/name", "--private")
    files, private = pushed["owner/name"]
    assert private and set(files) == {"config.json", "model.safetensors", "README.md"}
    assert b'timm.create_model("hf-hub:owner/name"' in files["README.md"]
    assert files["model.safetensors"] == (run[0] / "encoder" / "model.safetensors").read_bytes()
    assert capsys.readouterr().out.startswith("pushed to https://hub/owner/name. timm opens it after")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "hub"], "--to hub needs a repository: give --repo OWNER/NAME"),
        (["--to", "onnx", "--repo", "a/b"], "--repo is a/b and has no effect: give --to hub, or leave it out"),
        (["--to", "torch", "--private"], "--private is given and has no effect: give --to hub, or leave it out"),
        (["--to", "hub", "--repo", "a/b", "--out", "c"], "--out is c and has no effect: give another --to, or leave"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    export_small_encoder(tmp_path / "encoder")
    assert refused(lambda: call(tmp_path, *options), capsys).startswith(message)


def test_a_folder_without_an_encoder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(lambda: call(tmp_path / "none", "--to", "torch"), capsys)
    assert said == f"{tmp_path / 'none'} holds no exported encoder (there is no such folder): give a run's encoder/"


@pytest.mark.parametrize("target", ["torch", "onnx", "timm", "hub"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet9000"}, "holds a resnet9000, which this timm doesn't know: update timm"),
        ({"architecture": None}, "holds an encoder that timm doesn't know: build the module and pass it as encoder="),
        ({"pretrained_cfg": {}, "ssl_equi": None}, "says nothing of images' size and normalisation: export the"),
    ],
)
def test_what_cannot_be_opened_is_named_whatever_the_format(
    run: tuple[Path, nn.Module],
    capsys: pytest.CaptureFixture[str],
    target: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder, _ = run
    config = read_encoder_config(folder / "encoder") | changes
    written = {name: value for name, value in config.items() if name != "ssl_equi" or value is not None}
    (folder / "encoder" / "config.json").write_text(json.dumps(written))
    before = sorted(folder.rglob("*"))
    options = ["--repo", "owner/name"] if target == "hub" else []
    assert message in refused(lambda: call(folder, "--to", target, *options), capsys)
    assert sorted(folder.rglob("*")) == before
