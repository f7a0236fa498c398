"""Repositories on the hub, against a server that answers as the hub does."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

from ssl_equi import load_encoder
from ssl_equi.errors import UserError
from ssl_equi.export.encoder import parts_of, read_encoder_config
from ssl_equi.export.hub import push_files
from ssl_equi.export.timm_folders import timm_files, timm_model_config
from tests.export.fake_hub import TOKEN_OF_A_READER, FakeHub
from tests.fakes import export_small_encoder

FILES = {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"}


@pytest.mark.parametrize("private", [False, True])
def test_what_is_pushed_is_an_exported_encoder(hub: FakeHub, tmp_path: Path, private: bool) -> None:
    encoder = export_small_encoder(tmp_path / "encoder")
    address = push_files("owner/name", timm_files(tmp_path / "encoder", "card"), private=private, message="An encoder")
    assert address == f"{hub.address}/owner/name"
    assert hub.private == {"owner/name": private} and hub.messages == ["An encoder"]
    folder = hub.write_to(tmp_path / "repository", "owner/name")
    assert (folder / "README.md").read_text() == "card"
    assert read_encoder_config(folder) == read_encoder_config(tmp_path / "encoder")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(folder)(images), encoder(images))


def test_without_a_token_nothing_is_asked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"^owner/name can't be written without a token .*: log in with "):
        push_files("owner/name", FILES, private=False, message="An encoder")
    assert hub.private == {}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_unknown", r"^the Hugging Face hub does not accept the token: log in with `hf auth login`"),
        (TOKEN_OF_A_READER, r"^the token may not write to owner/name on the Hugging Face hub: "),
    ],
)
def test_a_token_that_may_not_write_is_named(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        push_files("owner/name", FILES, private=False, message="An encoder")
    assert hub.files == {}


def test_a_card_that_the_hub_refuses_is_named(hub: FakeHub) -> None:
    with pytest.raises(UserError, match=r'^the Hugging Face hub refuses .* owner/name \(.*"license" must be one of'):
        push_files("owner/name", {"README.md": b"---\nlicense: nonsense\n---\n"}, private=False, message="An encoder")
    assert hub.files == {}


@pytest.mark.usefixtures("hub")
def test_without_a_network_a_local_folder_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^the Hugging Face hub can't be reached \(.*\): connect .* --to timm"):
        push_files("owner/name", FILES, private=False, message="An encoder")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("repository", ["name", "/name", "owner/", "owner/name/more", "owner/na me"])
def test_a_name_that_is_none_is_refused(repository: str) -> None:
    with pytest.raises(UserError, match=rf"^--repo is '{repository}'.*: give OWNER/NAME$"):
        push_files(repository, FILES, private=False, message="An encoder")


def test_timm_pushes_the_parts_if_it_is_told_them(hub: FakeHub, tmp_path: Path) -> None:
    encoder = export_small_encoder(tmp_path / "encoder")
    kept = timm_model_config(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    timm.models.push_to_hf_hub(loaded, "owner/name", model_config=kept, safe_serialization=True)
    folder = hub.write_to(tmp_path / "repository", "owner/name")
    assert json.loads(hub.files["owner/name"]["config.json"])["ssl_equi"] == kept["ssl_equi"]
    assert parts_of(read_encoder_config(folder))["equi"] == slice(128, 256)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(folder)(images), encoder(images))
