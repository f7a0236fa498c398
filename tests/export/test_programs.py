"""Encoders as programs: the features of each part by name, from images in [0, 1], in any number."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.models.twins import LocallyGroupedAttn
from torch import Tensor, nn

from ssl_equi.errors import CheckpointError, EncoderError, UserError
from ssl_equi.export import programs
from ssl_equi.export.encoder import read_encoder_config
from ssl_equi.export.folder import CONFIG_FILE
from ssl_equi.export.programs import (
    DESCRIPTION_FILE,
    ProgramFormat,
    ProgrammedEncoder,
    compared_program,
    open_programmed,
    write_program,
)
from tests.fakes import export_small_encoder

PARTS = {"all": slice(0, 256), "inv": slice(0, 128), "equi": slice(128, 256)}
CONFIG = {"architecture": "odd", "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.0] * 3, "std": [1.0] * 3}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("run") / "encoder"
    return folder, export_small_encoder(folder)


def run_torch(file: Path, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    notes = {DESCRIPTION_FILE: ""}
    program = torch.export.load(file, extra_files=notes)
    return program.module()(images), json.loads(notes[DESCRIPTION_FILE])


def run_onnx(file: Path, images: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    session = onnxruntime.InferenceSession(file)
    assert [each.name for each in session.get_inputs()] == ["images"]
    names = [each.name for each in session.get_outputs()]
    values = session.run(None, {"images": images.numpy()})
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    notes = {key.removeprefix("ssl_equi."): text for key, text in metadata.items() if key.startswith("ssl_equi.")}
    return dict(zip(names, map(torch.from_numpy, values), strict=True)), notes


@torch.no_grad()
@pytest.mark.parametrize(("program_format", "run"), [("torch", run_torch), ("onnx", run_onnx)])
def test_a_program_gives_the_features_of_each_part(
    exported: tuple[Path, nn.Module], tmp_path: Path, program_format: ProgramFormat, run: Callable
) -> None:
    folder, encoder = exported
    file = tmp_path / "new" / "program"
    assert write_program(folder, file, program_format) < 1e-5
    for count in (1, 3):
        images = torch.rand(count, 3, 32, 32)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.41, 0.42, 0.43), (0.11, 0.12, 0.13)))
        expected = encoder((images - mean) / std)
        found, notes = run(file, images)
        assert list(found) == list(PARTS)
        for part, columns in PARTS.items():
            assert torch.allclose(found[part], expected[:, columns], atol=1e-5), part
    assert notes["architecture"] == "strided_cnn_nano" and notes["objective"] == "sie"
    assert (notes["license"], notes["trained_on"]) == ("apache-2.0", "3diebench-p 0123456789abcdef")
    assert json.loads(notes["parts"]) == {"all": [0, 256], "inv": [0, 128], "equi": [128, 256]}
    assert json.loads(notes["mean_rgb"]) == [0.41, 0.42, 0.43] and notes["image_size"] == "32"
    assert [path.name for path in file.parent.iterdir()] == ["program"]


class Windows(nn.Module):
    """Attention within windows, as the Twins of timm have it: ONNX knows no fused attention of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = LocallyGroupedAttn(3, num_heads=1, ws=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.attention(images.flatten(2).transpose(1, 2), (8, 8)).flatten(1)


def test_attention_within_windows_is_exported_to_onnx() -> None:
    encoder = Windows()
    assert compared_program(ProgrammedEncoder(encoder, {"all": slice(0, 192)}, CONFIG), "onnx")[1] < 1e-5
    assert encoder.attention.fused_attn


class Branching(nn.Module):
    """What it computes depends on a value."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class Undefined(nn.Module):
    """Its features are no numbers."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * torch.nan


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), r"^odd can't be exported to torch \(\w+: Could not guard .*\): choose another format"),
        (
            Undefined(),
            r"^odd gives other features once exported to torch \(they differ by nan, and 1e-04 is the most\)",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        compared_program(ProgrammedEncoder(module, {"all": slice(0, 8)}, CONFIG), "torch")


def test_a_program_with_other_features_leaves_no_file(
    exported: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = programs.onnx_runner

    def inexact(content: bytes, input_name: str) -> Callable[[Tensor], dict[str, Tensor]]:
        run = runner(content, input_name)
        return lambda images: {name: values + 2e-4 * (name == "equi") for name, values in run(images).items()}

    monkeypatch.setattr(programs, "onnx_runner", inexact)
    with pytest.raises(EncoderError, match=r"^strided_cnn_nano gives other features once exported to onnx .* 2\.0e-04"):
        write_program(exported[0], tmp_path / "sie.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_needs_its_extra_and_torch_does_not(
    exported: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^ONNX needs onnxruntime: pip install 'ssl-equi\[onnx\]'"):
        write_program(exported[0], tmp_path / "sie.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
    write_program(exported[0], tmp_path / "sie.pt2", "torch")


def test_a_folder_that_timm_saved_has_one_part_and_must_say_its_normalisation(tmp_path: Path) -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()  # its head widens the features
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    assert open_programmed(tmp_path / "saved").parts == {"all": slice(0, 1024)}
    config = read_encoder_config(tmp_path / "saved")
    (tmp_path / "saved" / CONFIG_FILE).write_text(json.dumps(config | {"pretrained_cfg": {}}))
    with pytest.raises(CheckpointError, match="says nothing of images' size and normalisation: export the encoder"):
        open_programmed(tmp_path / "saved")


def test_parts_beyond_the_features_are_refused(tmp_path: Path) -> None:
    export_small_encoder(tmp_path / "encoder")
    config = read_encoder_config(tmp_path / "encoder")
    config["ssl_equi"]["parts"]["equi"] = [128, 257]
    (tmp_path / "encoder" / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"part 'equi' of .*encoder ends at column 257, .* has 256 features"):
        open_programmed(tmp_path / "encoder")
