"""The script around all importers: files that are no checkpoints, misplaced options, and the folders it makes."""

import argparse
import os
import random
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import UserError
from ssl_equi.export.encoder import load_encoder, parts_of, read_encoder_config
from ssl_equi.export.importing import EncoderOptions, import_encoder
from ssl_equi.export.predictor import load_predictor
from ssl_equi.export.tensors import named_tensors
from tests.export.checkpoints import State, assert_same_features, below

RESNET = {"layout": "timm", "architecture": "resnet10t"}

# ---------------------------------------------------------------- files


class Malicious:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


class Commanding:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


RUNNING_CODE = "can't be opened without running code from it ("
NO_CHECKPOINTS = [
    (None, "there is no file file.pth"),
    (b"no checkpoint\n", f"file.pth {RUNNING_CODE}it is no checkpoint or damaged)"),
    (b"", "file.pth is damaged or no checkpoint"),
    ("cut", "file.pth is damaged or no checkpoint"),
    ({"model": Malicious()}, f"file.pth {RUNNING_CODE}"),
    ({"args": argparse.Namespace(lr=Malicious())}, f"file.pth {RUNNING_CODE}"),
    ({"model": Commanding()}, f"file.pth {RUNNING_CODE}"),
    ([torch.zeros(2)], "file.pth holds a list"),
    ({"model": {"agg_token": 3}}, "file.pth holds no named tensors"),
    (nn.Linear(2, 2), "file.pth holds a torch.nn.modules.linear.Linear as a whole: save its state_dict() instead"),
]


@pytest.mark.parametrize("layout", ["seq_jepa", "sie"])
@pytest.mark.parametrize(("content", "sentence"), NO_CHECKPOINTS)
def test_files_that_hold_no_checkpoint_are_refused(
    error_of: Callable[..., str], content: object, sentence: str, layout: str
) -> None:
    file = Path("file.pth")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert error_of("file.pth", layout=layout).startswith(sentence)
    assert not Path("ran").exists()


def test_a_text_is_no_safetensors_file(error_of: Callable[..., str]) -> None:
    Path("text.safetensors").write_text("no checkpoint\n")
    assert error_of("text.safetensors").startswith("text.safetensors is damaged or no checkpoint")


def test_an_archive_that_unpacks_to_much_more_than_it_holds_is_refused(error_of: Callable[..., str]) -> None:
    torch.save(torch.zeros(2**20), "stored.pth")
    with zipfile.ZipFile("stored.pth") as stored, zipfile.ZipFile("packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.namelist():
            packed.writestr(entry, stored.read(entry))
    assert error_of("packed.pth", layout="timm").startswith("packed.pth says that it holds 4,1")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_end_in_a_sentence(tool: ModuleType, tmp_path: Path, suffix: str) -> None:
    """Random mutations: bytes changed, inserted, taken out, or cut off, most of them in what describes the file."""
    generator = random.Random(0)
    whole, damaged = tmp_path / f"whole.{suffix}", tmp_path / f"damaged.{suffix}"
    state = create_encoder("strided_cnn_pooled", 32).state_dict()
    if suffix == "pth":
        torch.save({"state_dict": state, "best": np.float64(3)}, whole)
    else:
        safetensors.torch.save_file(state, whole)
    clean = whole.read_bytes()
    described = clean.index(b"storage") if suffix == "pth" else 0
    outcomes = []
    for number in range(100):
        content = bytearray(clean)
        place = described + generator.randrange(3000) if number % 4 else generator.randrange(len(content))
        for _ in range(generator.choice((1, 3))):
            content[place] = generator.randrange(256)
        if number % 5 == 0:
            content[place : place + generator.randrange(9)] = generator.randbytes(generator.randrange(9))
        if number % 11 == 0:
            del content[place:]
        damaged.write_bytes(content)
        try:
            opened, _ = tool.open_file(damaged)
            tensors = named_tensors(opened, "damaged")
            imported = import_encoder(tensors, EncoderOptions("timm", image_size=32, architecture="strided_cnn_pooled"))
            if suffix == "pth":  # whose checksums tell of changed weights; safetensors have none
                assert all(torch.equal(imported.module.state_dict()[name], value) for name, value in state.items())
        except UserError as error:
            outcomes.append(str(error))
            assert "\n" not in str(error)
    assert len(outcomes) > 20


# ---------------------------------------------------------------- what lies in them


def small_state() -> State:
    return timm.create_model("resnet10t", num_classes=0).state_dict()


class OwnOptions:
    """Of a class that nobody else has."""

    def __init__(self) -> None:
        self.rate = 1e-3


@pytest.mark.parametrize(
    "extra",
    [
        np.float64(71.2), np.arange(3), argparse.Namespace(out=Path("runs")), OwnOptions(), OwnOptions,
        defaultdict(list, losses=[1.0]), {1, 2}, [[]] * 3, np.random.default_rng(0).bit_generator.state,
    ],
    ids=lambda extra: type(extra).__name__,
)  # fmt: skip
def test_what_lies_beside_the_weights_closes_no_file(
    imported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: object
) -> None:
    """Nor do counts of batches that are missing, which are 0 then."""
    state = {name: value for name, value in small_state().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": state, "extra": extra, "best": 3.0}, tmp_path / "saved.pth")
    opened = load_encoder(imported(tmp_path / "saved.pth", **RESNET) / "encoder").state_dict()
    assert all(torch.equal(opened[name], value) for name, value in state.items())
    assert opened["bn1.num_batches_tracked"] == 0
    said = capsys.readouterr().out
    assert "best" in said
    if isinstance(extra, OwnOptions | np.generic):
        assert f"not read: objects of {type(extra).__module__.split('.')[0]}" in said


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torch.zeros(64, device="meta"), "has a shape but no values (a meta tensor)"),
        (lambda: torch.ones(64).to_sparse(), "is not dense (torch.sparse_coo)"),
        (lambda: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: torch.zeros(64, dtype=torch.complex64), "holds complex numbers"),
        (lambda: torch.full((64,), torch.nan), "holds values that are not finite"),
        (lambda: torch.zeros(1).expand(10**13), "has shape (10000000000000,), 40,000,000,000,000 bytes, of"),
    ],
    ids=["meta", "sparse", "quantised", "complex", "nan", "expanded"],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates quantised tensors
def test_tensors_without_ordinary_values_are_named(
    error_of: Callable[..., str], make: Callable[[], torch.Tensor], sentence: str
) -> None:
    torch.save(small_state() | {"bn1.bias": make()}, "saved.pth")
    assert error_of("saved.pth", **RESNET).startswith(f"'bn1.bias' {sentence}")


# ---------------------------------------------------------------- options


NOTHING = "says nothing to layout"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layout": "dino", "actions": "rotation"}, f"--actions {NOTHING} dino"),
        ({"layout": "sie", "heads": 4}, f"--heads {NOTHING} sie"),
        ({"layout": "sie", "encoder_prefix": "net"}, f"--encoder-prefix {NOTHING} sie"),
        ({"layout": "care", "action_sign": -1}, f"--action-sign {NOTHING} care"),
        ({"data": "stl10"}, f"--data {NOTHING} seq_jepa"),
        ({"leave_out": ("fc",)}, f"--leave-out {NOTHING} seq_jepa"),
        ({"layout": "moco", "equivariant_features": 3}, f"--equivariant-features {NOTHING} moco"),
        ({"mean": (0.5, 0.5, 127.0)}, "--mean is (0.5, 0.5, 127.0): give three numbers"),
        ({"std": (0.0, 0.2, 0.2)}, "--std is (0.0, 0.2, 0.2): give three numbers"),
        ({"image_size": 0}, "--image-size is 0: give a side of at least 1 pixel"),
    ],
)
def test_options_of_other_layouts_are_refused(error_of: Callable[..., str], options: dict, sentence: str) -> None:
    assert error_of("any.pth", **options).startswith(sentence)


def test_a_folder_that_is_there_is_never_replaced(imported: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        imported(tmp_path / "official.pth", ".")


def test_a_wrong_layout_ends_with_the_right_one(error_of: Callable[..., str]) -> None:
    tiny = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    state = below("backbone.", tiny.state_dict())
    torch.save({"teacher": state, "student": state, "args": argparse.Namespace(arch="vit_tiny")}, "dino.pth")
    advice = "all of it fits layout dino, so give --layout dino\n"
    assert error_of("dino.pth") == f"the checkpoint lacks 'encoder.conv1.weight': {advice}"
    assert error_of("dino.pth", layout="moco").endswith(advice)
    torch.save({"model": {"action_proj.0.weight": torch.zeros(128, 4)}}, "seq.pth")
    assert error_of("seq.pth", layout="dino").endswith("its names are those of seq-JEPA, so give --layout seq_jepa\n")
    torch.save({"model": {"weight": torch.zeros(3)}}, "unknown.pth")
    assert error_of("unknown.pth", layout="sie").endswith("give one with the whole encoder\n")


@pytest.mark.parametrize("given", [{"mean": (0.1, 0.2, 0.3)}, {"std": (0.4, 0.5, 0.6)}, {"image_size": 96}])
def test_what_the_user_says_of_the_images_holds(imported: Callable[..., Path], tmp_path: Path, given: dict) -> None:
    torch.save(small_state(), tmp_path / "saved.pth")
    config = read_encoder_config(imported(tmp_path / "saved.pth", **RESNET, **given) / "encoder")["pretrained_cfg"]
    timms = timm.get_pretrained_cfg("resnet10t")
    assert config["mean"] == list(given.get("mean", timms.mean))
    assert config["std"] == list(given.get("std", timms.std))
    assert config["input_size"] == [3, *[given.get("image_size", timms.input_size[-1])] * 2]
    assert (config["crop_pct"], config["interpolation"]) == (timms.crop_pct, timms.interpolation)


# ---------------------------------------------------------------- folders


def test_safetensors_of_a_timm_model_open_in_timm_again(imported: Callable[..., Path], tmp_path: Path) -> None:
    tiny = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    safetensors.torch.save_file(tiny.state_dict(), tmp_path / "tiny.safetensors")
    folder = imported(tmp_path / "tiny.safetensors", layout="timm", architecture="vit_tiny_patch16_224") / "encoder"
    assert_same_features(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), tiny, 32)
    assert_same_features(load_encoder(folder), tiny, 32)
    config = read_encoder_config(folder)
    assert config["pretrained_cfg"]["mean"] == config["pretrained_cfg"]["std"] == [0.5, 0.5, 0.5]
    assert config["pretrained_cfg"]["license"] == "other"
    assert config["ssl_equi"]["objective"] == "unknown"
    assert "tiny.safetensors, SHA-256 " in config["ssl_equi"]["trained_on"]


def sie_file(file: Path, predictor_rows: int | None = 36) -> nn.Module:
    """A small stand-in for the heads, the whole encoder, and training options beside them; gives the encoder."""
    encoder = create_encoder("sie_resnet18", 64).eval()
    state = below("module.backbone.", encoder.state_dict())
    if predictor_rows is not None:
        state["module.projector_equi.0.weight"] = torch.randn(6, 256)
        state["module.predictor.weight"] = torch.randn(predictor_rows, 4)
    torch.save({"epoch": 2000, "model": state, "args": argparse.Namespace(equi=256, lr=1e-3)}, file)
    return encoder


def equivariant_columns(folder: Path) -> slice:
    return parts_of(read_encoder_config(folder / "encoder"))["equi"]


def test_sie_leaves_an_encoder_and_a_predictor_of_the_old_sign(
    imported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = sie_file(tmp_path / "model.pth")
    folders = [imported(tmp_path / "model.pth", f"sign{sign}", layout="sie", action_sign=sign) for sign in (1, -1)]
    said = capsys.readouterr().out
    for sentence in (
        "sie_resnet18 for images of 256 pixels, 3diebench", "with a predictor that is told rotation",
        "not in the encoder: predictors, 1 tensors (predictor.weight)", "under the terms of their authors",
    ):  # fmt: skip
        assert sentence in said
    assert_same_features(load_encoder(folders[0] / "encoder"), encoder)
    new, old = (load_predictor(folder / "predictor") for folder in folders)
    features, actions = torch.randn(2, 512), torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(new.predict(features, -actions), old.predict(features, actions))
        assert new.predict(features, actions).abs().max() > 0
    assert equivariant_columns(folders[0]) == slice(256, 512)


def test_sie_without_a_predictor(imported: Callable[..., Path], error_of: Callable[..., str]) -> None:
    file = Path("model.pth")
    sentence = "--action-sign is -1, but no predictor of model.pth is imported: leave it out"
    sie_file(file)
    assert error_of("model.pth", layout="sie", action_sign=-1, predictor=False).startswith(sentence)
    sie_file(file, predictor_rows=None)
    assert error_of("model.pth", layout="sie", action_sign=-1).startswith(sentence)
    wide = imported(file, "wide", layout="sie", equivariant_features=128)
    assert equivariant_columns(wide) == slice(384, 512) and not (wide / "predictor").exists()
    sie_file(file, predictor_rows=48)  # which is no reason for another layout
    error = error_of("model.pth", layout="sie")
    assert error.endswith("leave the predictor out with --no-predictor\n")
    assert "(48, 4) are not a hypernetwork for 6 numbers, which makes 36 or 42" in error
