"""What all exported folders promise: two files, opened as saved, and anything else is named in a sentence."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.export.encoder import EncoderCard, load_encoder, save_encoder
from ssl_equi.export.predictor import PredictorCard, load_predictor, save_predictor
from ssl_equi.export.sequence_model import load_sequence_model, save_sequence_model
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from tests.fakes import ExtraState

CARD = EncoderCard(
    "test_vit", 64, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), {"all": (0, 64)}, "toy", "3diebench-p 0123", "apache-2.0", "toy",
    {"img_size": 64},
)  # fmt: skip
SEQUENCES = {"source": "rendered", "actions": "rotation", "observed_views": 3}


def write_encoder(folder: Path) -> None:
    save_encoder(create_encoder("test_vit", 64), folder, CARD)


def write_predictor(folder: Path) -> None:
    objective = SIE(create_encoder("strided_cnn_tiny", 32), SIEConfig(projector=(48, 48, 32)))
    save_predictor(objective.latent_predictor(), folder, PredictorCard("sie", ToldActions.of("rotation"), ""))


def write_sequence_model(folder: Path) -> None:
    sizes = SeqJEPAConfig(action_width=8, layers=1, feedforward_width=32, predictor_hidden_width=16)
    save_sequence_model(SeqJEPA(create_encoder("test_vit", 64), sizes), folder, CARD, SEQUENCES)


Files = dict[str, bytes]
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "encoder": (write_encoder, load_encoder),
    "predictor": (write_predictor, load_predictor),
    "sequence model": (write_sequence_model, load_sequence_model),
}


@functools.cache
def written(kind: str) -> Files:
    """The files of one folder of this kind."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        KINDS[kind][0](folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(kind: str, folder: Path, files: Files) -> str:
    """The sentence with which a folder of these files is refused."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        KINDS[kind][1](folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(files: Files, changes: dict[str, Any]) -> Files:
    """The files with entries of the config changed, or taken out for "gone"."""
    config = {name: value for name, value in (json.loads(files["config.json"]) | changes).items() if value != "gone"}
    return files | {"config.json": json.dumps(config).encode()}


@pytest.mark.parametrize("kind", KINDS)
def test_only_safetensors_and_json_are_written(kind: str) -> None:
    assert sorted(written(kind)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(kind: str, tmp_path: Path) -> None:
    files = written(kind)
    weights = files["model.safetensors"]
    assert "holds no exported" in refused(kind, tmp_path, {})
    assert "(there is no such folder)" in refused(kind, tmp_path / "nothing", {})
    assert "is missing" in refused(kind, tmp_path, {"config.json": files["config.json"]})
    for damaged in (weights[: len(weights) // 2], weights[:-1] + bytes([weights[-1] ^ 1]), b"no tensors"):
        assert "is damaged" in refused(kind, tmp_path, files | {"model.safetensors": damaged})
    assert "is not valid JSON" in refused(kind, tmp_path, files | {"config.json": b"{"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_an_earlier_version_is_opened_without_checksum(kind: str, tmp_path: Path) -> None:
    for name, content in edited(written(kind), {"weights_sha256": "gone"}).items():
        (tmp_path / name).write_bytes(content)
    opened = KINDS[kind][1](tmp_path)
    assert not getattr(opened, "objective", opened).training


IMAGES = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [1, 1, 1]}
WIDER = {"kind": "hypernetwork", "dim": 20, "action_dim": 4}
DEEPER = {"action_width": 8, "layers": 2, "feedforward_width": 32, "predictor_hidden_width": 16}
MALFORMED = [
    ("encoder", {"model_args": {"img_size": 10**9}}, "a size of 1,000,000,000, and 16,384 is the most"),
    ("encoder", {"model_args": {"embed_dim": 16000, "depth": 40}}, "holds another architecture"),
    ("encoder", {"model_args": {"embed_dim": "wide"}}, "describes no encoder (TypeError"),
    ("encoder", {"model_args": {"checkpoint_path": "weights.pth"}}, "arguments hold 'checkpoint_path'"),
    ("encoder", {"model_args": []}, "model_args is []"),
    ("encoder", {"num_features": -1}, "num_features is -1"),
    ("encoder", {"architecture": 5}, "architecture is 5"),
    ("encoder", {"architecture": "resnet_of_tomorrow"}, "resnet_of_tomorrow, which this timm doesn't know"),
    ("encoder", {"architecture": "gone"}, "pass it as encoder="),
    ("encoder", {"pretrained_cfg": IMAGES | {"std": [0, 1, 1]}}, "std is [0, 1, 1]"),
    ("encoder", {"pretrained_cfg": IMAGES | {"mean": "grey"}}, "mean is 'grey'"),
    ("encoder", {"pretrained_cfg": IMAGES | {"input_size": [3, 64]}}, "input_size is [3, 64]"),
    ("encoder", {"ssl_equi": {"parts": {"all": [64, 0]}}}, "part 'all' is [64, 0]"),
    ("encoder", {"ssl_equi": None}, "ssl_equi.parts is None"),
    ("predictor", {"kind": "guess"}, "kind is 'guess'"),
    ("predictor", {"kind": "gone"}, "holds no exported predictor"),
    ("predictor", {"actions": "gone"}, "KeyError: 'actions'"),
    ("predictor", {"actions": "rotation_color"}, "takes actions of 4 columns, but 'rotation floor_hue_"),
    ("predictor", {"actions": "somersault"}, "action 'somersault' is none of this data's: choose from rotation"),
    ("predictor", {"actions": {"names": ["rotation"]}}, "give equally long lists of names, kinds, widths"),
    ("predictor", {"action_sign": 2}, "action_sign is 2"),
    ("predictor", {"features_from": "elsewhere"}, "features_from is 'elsewhere'"),
    ("predictor", {"columns": [500, 700]}, "columns 500 to 700 are not among 512 features"),
    ("predictor", {"projector": {"kind": "new"}}, "the projector's kind is 'new'"),
    ("predictor", {"predictor": WIDER}, "predictor.matrices is (4, 16, 16) there and (4, 20, 20) here"),
    ("predictor", {"predictor": WIDER | {"wings": 2}}, "unexpected keyword argument 'wings'"),
    ("predictor", {"predictor": None}, "describes no predictor"),
    ("sequence model", {"seq_jepa": "gone"}, "an encoder without an aggregator: give the sequence_model/ of a run"),
    ("sequence model", {"seq_jepa": DEEPER}, "aggregator.transformer.layers.1"),
    ("sequence model", {"seq_jepa": DEEPER | {"wings": 2}}, "describes no seq-JEPA"),
    ("sequence model", {"sequences": {"source": "dreamt"}}, "describes no seq-JEPA (sequences are {'source': 'dreamt'"),
    ("sequence model", {"ssl_equi": {"parts": {"all": [0, 64]}}}, "describes no seq-JEPA"),
]


@pytest.mark.parametrize(("malformed", "changes", "sentence"), MALFORMED)
def test_a_config_that_describes_nothing_is_refused_without_taking_memory(
    tmp_path: Path, malformed: str, changes: dict, sentence: str
) -> None:
    assert sentence in refused(malformed, tmp_path, edited(written(malformed), changes))


def test_the_folder_of_a_run_is_answered_with_the_one_within(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run that has exported no encoder yet.*: let it go on, with --resume"):
        load_encoder(run)
    (run / "encoder").mkdir()
    (run / "encoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run is the folder of a run: give .*run/encoder$"):
        load_encoder(run)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (ExtraState(2, 5), r"_extra_state of the ExtraState is a dict: export a module of dense"),
        (ExtraState(2, 5, device="meta"), "weight of the ExtraState is a tensor without values: export a module of"),
    ],
)
def test_a_state_that_is_no_dense_tensor_is_named(module: nn.Module, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        save_encoder(module, tmp_path / "encoder", CARD)


def test_a_module_of_ones_own_is_filled(tmp_path: Path) -> None:
    """Its layers share memory: two a weight, and a buffer is a part of another one."""

    class Custom(nn.Module):
        num_features = 8

        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.third.weight = self.second.weight
            self.last = nn.Linear(8, width)
            self.register_buffer("table", torch.arange(6.0))
            self.register_buffer("start_of_table", self.table[:3])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.third(self.second(self.first(images.mean((2, 3))))))

    encoder = Custom().eval()
    card = EncoderCard(None, 64, (0.5,) * 3, (0.5,) * 3, {"all": (0, 8)}, "sie", "", "other", "x")
    save_encoder(encoder, tmp_path / "encoder", card)
    images = torch.randn(2, 3, 4, 4)
    filled = load_encoder(tmp_path / "encoder", encoder=Custom())
    assert torch.equal(filled(images), encoder(images))
    assert filled.third.weight is filled.second.weight
    with pytest.raises(CheckpointError, match="holds another architecture"):
        load_encoder(tmp_path / "encoder", encoder=Custom(width=6))
