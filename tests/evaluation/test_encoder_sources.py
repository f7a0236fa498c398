"""Any encoder by one line of text, with its parts, its normalisation, and errors that say what to do."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from ssl_equi import create_encoder
from ssl_equi.errors import CheckpointError, EncoderError
from ssl_equi.evaluation.encoders import RANDOM_ENCODER_SEED, open_encoder
from ssl_equi.export.encoder import EncoderCard, save_encoder
from ssl_equi.export.predictor import PredictorCard, save_predictor
from ssl_equi.latents.actions import ToldActions
from ssl_equi.objectives.parts.predictors import MLPPredictor, ProjectedPredictor
from ssl_equi.runtime.frozen import state_sha256

SMALL_VIT = {"depth": 1, "embed_dim": 48, "num_heads": 2}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


def export(folder: Path, **changes: object) -> torch.nn.Module:
    card = {
        "architecture": "strided_cnn_pooled", "image_size": 64, "mean_rgb": (0.5, 0.25, 0.125),
        "std_rgb": (0.25, 0.5, 0.75), "parts": {"all": (0, 512), "equi": (256, 512)}, "objective": "sie",
        "trained_on": "test", "license": "apache-2.0", "tag": "test",
    } | changes  # fmt: skip
    torch.manual_seed(3)
    encoder = create_encoder(card["architecture"], card["image_size"]).eval()
    save_encoder(encoder, folder, EncoderCard(**card))
    return encoder


def save_as_timm_does(folder: Path, model: torch.nn.Module) -> Path:
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder / "model.safetensors"


def test_a_run_its_encoder_folder_and_a_copy_are_the_same_encoder(tmp_path: Path) -> None:
    encoder = export(tmp_path / "runs" / "sie" / "encoder")
    sources = [open_encoder(str(tmp_path / "runs" / "sie" / folder)) for folder in ("", "encoder")]
    for source in sources:
        assert source.name == "sie" and source.out_folder == tmp_path / "runs" / "sie"
        assert source.predictor is None
        assert source.parts == {"all": slice(0, 512), "equi": slice(256, 512)}
        assert source.image_size == 64 and not source.module.training and source.notes == ()
        assert source.mean_rgb == (0.5, 0.25, 0.125) and source.std_rgb == (0.25, 0.5, 0.75)
        assert source.state_sha256 == state_sha256(encoder)
        assert torch.equal(source.module(IMAGES), encoder(IMAGES))
    untrained = sources[0].untrained()
    assert state_sha256(untrained) == state_sha256(sources[1].untrained()) != sources[0].state_sha256


def test_random_weights_are_those_that_every_comparison_uses() -> None:
    torch.manual_seed(17)
    before = torch.random.get_rng_state()
    source = open_encoder("random:resnet10t")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(RANDOM_ENCODER_SEED)
    assert source.state_sha256 == state_sha256(create_encoder("resnet10t", 64))
    assert source.untrained() is None and source.mean_rgb is None and source.std_rgb is None
    assert (source.name, source.parts, source.image_size) == ("random-resnet10t", {"all": slice(0, 512)}, 64)
    assert open_encoder("random:d4_resnet10_small_images", image_size=32).parts.keys() >= {"all"}


def test_timm_weights_in_a_local_file_are_loaded_without_their_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    file = save_as_timm_does(tmp_path / "saved", model)
    by_name = open_encoder("timm:resnet10t", weights=file, image_size=64)
    by_folder = open_encoder(str(tmp_path / "saved"), image_size=64)
    expected = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
    for source in (by_name, by_folder):
        assert torch.equal(source.module(IMAGES), expected)
        assert source.parts == {"all": slice(0, 512)}
        assert source.mean_rgb == pytest.approx((0.485, 0.456, 0.406))
        assert (
            len(source.notes) == 1 and "trained on images of 176 x 176 pixels and is given 64 x 64" in source.notes[0]
        )
    assert by_name.name == "timm-resnet10t" and by_folder.name == "saved"
    assert by_name.untrained() is not None and state_sha256(by_name.untrained()) != by_name.state_sha256


def test_position_embeddings_are_fitted_to_the_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL_VIT)
    file = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    source = open_encoder("timm:vit_tiny_patch16_224", weights=file, image_size=64, arguments=SMALL_VIT)
    assert source.module.pos_embed.shape == (1, 17, 48) and source.module(IMAGES).shape == (2, 48)
    assert torch.equal(source.module.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(EncoderError, match=r"can't be loaded into vit_tiny_patch16_224|another architecture"):
        open_encoder("timm:vit_tiny_patch16_224", weights=file, arguments=SMALL_VIT | {"embed_dim": 96})
    with pytest.raises(EncoderError, match=r"vit\.safetensors holds another architecture than resnet10t"):
        open_encoder("timm:resnet10t", weights=file)


def test_encoders_of_fixed_size_name_the_option(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **SMALL_VIT)
    folder = tmp_path / "run" / "encoder"
    card = EncoderCard(
        architecture="vit_tiny_patch16_224", model_args={"img_size": 32} | SMALL_VIT, image_size=32,
        mean_rgb=(0.5,) * 3, std_rgb=(0.5,) * 3, parts={"all": (0, 48)}, objective="simclr", trained_on="test",
        license="apache-2.0", tag="test",
    )  # fmt: skip
    save_encoder(model, folder, card)
    assert open_encoder(str(folder)).image_size == 32
    assert open_encoder(str(folder), stored_size=64).image_size == 32
    with pytest.raises(EncoderError, match=r"run can't take images of 64 x 64 pixels .*give another --image-size 32"):
        open_encoder(str(folder), image_size=64)


def test_hub_repositories_are_opened_as_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = export(tmp_path / "snapshot")
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, sorted(allow_patterns)))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_encoder("hub:owner/name@v2")
    assert asked == [("owner/name", "v2", ["config.json", "model.safetensors"])]
    assert source.name == "hub-owner-name-v2" and source.out_folder == Path("runs/hub-owner-name-v2")
    assert torch.equal(source.module(IMAGES), encoder(IMAGES)) and source.parts["equi"] == slice(256, 512)
    (tmp_path / "snapshot" / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"hub:owner/name has no model\.safetensors: choose a repository"):
        open_encoder("hub:owner/name")


def test_downloads_that_fail_end_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(EncoderError, match=r"hub:a/b can't be downloaded \(OSError: Name or service not known\)"):
        open_encoder("hub:a/b")
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(EncoderError, match=r"'resnet10t' can't be downloaded .*give a local safetensors file"):
        open_encoder("timm:resnet10t", image_size=64)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("timm:resnet11", {}, "timm has no model named 'resnet11'"),
        ("random:resnet11", {}, "timm has no model named 'resnet11'"),
        ("timm:strided_cnn_tiny", {}, "no pretrained weights of 'strided_cnn_tiny': .*random:strided_cnn_tiny"),
        ("timm:resnet10t", {"weights": Path("weights.pth")}, r"weights\.pth is not a safetensors file"),
        ("random:resnet10t", {"weights": Path("w.safetensors")}, "only timm:NAME takes a file of weights"),
        ("runs/sie", {"arguments": {"depth": 3}}, "which states its own: leave them out"),
    ],
)
def test_what_cannot_be_opened_is_said(text: str, options: dict, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder(text, **options)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        open_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(EncoderError, match=r"config\.json describes no encoder as timm does"):
        open_encoder(str(tmp_path))
    export(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        open_encoder(str(tmp_path / "encoder"))


@pytest.mark.parametrize("features_from", ["encoder", "capsule_network"])
def test_a_predictor_comes_with_the_encoder_whose_features_it_reads(tmp_path: Path, features_from: str) -> None:
    export(tmp_path / "run" / "encoder")
    module = ProjectedPredictor(512, slice(256, 512), None, MLPPredictor(256, 4), features_from)
    save_predictor(module, tmp_path / "run" / "predictor", PredictorCard("sie", ToldActions.of("rotation"), "test"))
    predictor = open_encoder(str(tmp_path / "run")).predictor
    assert (predictor is None) == (features_from == "capsule_network")
    if predictor is not None:
        assert predictor.actions.names == ("rotation",) and predictor.num_features == 512
