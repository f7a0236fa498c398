"""Shards behind a web address: fetched and read by index, or streamed while the run trains."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import sie
from ssl_equi.cli import parse_command_line
from ssl_equi.data.remote import download as fetched
from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from ssl_equi.training.config import PretrainingConfig
from tests.data.faulty_server import FaultyServer
from tests.data.image_sets import SETTINGS, write_pictures
from tests.fakes import SmallConfig, event_lines, train_only

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture
def server(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """The tiny set behind http, and a cache of the test's own."""
    monkeypatch.setattr(fetched, "user_cache_path", lambda *_: tmp_path / "cache")
    serving = FaultyServer(tiny_data)
    yield serving
    serving.close()


def shards_asked_for(server: FaultyServer) -> set[str]:
    return {name for name in server.requests if name.endswith(".tar")}


def test_fetched_shards_train_to_the_bit_as_local_ones_and_are_fetched_once(
    small_config: SmallConfig, server: FaultyServer, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("train-000002.tar", "drop", times=1)
    train_only(sie, small_config(sie, out=tmp_path / "local"))
    train_only(sie, small_config(sie, out=tmp_path / "fetched", data_dir=server.url))
    assert event_lines(tmp_path / "fetched") == event_lines(tmp_path / "local")
    folder = fetched.cache_folder_of(server.url)
    assert f"fetching split 'train' of {server.url} to {folder}" in capsys.readouterr().out
    files = {path.name for path in tiny_data.glob("*.tar") if not path.name.startswith("val")}
    assert {path.name for path in folder.glob("*.tar")} == files == shards_asked_for(server)
    assert not folder.is_relative_to(tiny_data)

    server.requests.clear()
    train_only(sie, small_config(sie, out=tmp_path / "again", data_dir=server.url + "/", steps=1))
    assert shards_asked_for(server) == set()


def test_a_streamed_run_ends_as_every_run_does_and_resumes_exactly(
    small_config: SmallConfig, server: FaultyServer, tmp_path: Path
) -> None:
    streamed = {"reading": "streamed", "shuffle_buffer": 8, "compare_with_random": False}
    config = small_config(sie, out=tmp_path / "streamed", data_dir=server.url, **streamed)
    train_only(sie, dataclasses.replace(config, steps=4))
    assert not list(fetched.cache_folder_of(server.url).glob("train*"))
    sie.main(dataclasses.replace(config, resume=True))
    train_only(sie, small_config(sie, out=tmp_path / "local", **streamed))
    assert event_lines(tmp_path / "streamed") == event_lines(tmp_path / "local")
    assert (tmp_path / "streamed" / "report.html").is_file()
    train_only(sie, small_config(sie, out=tmp_path / "indexed"))
    assert event_lines(tmp_path / "streamed") != event_lines(tmp_path / "indexed")


@pytest.mark.parametrize("reading", ["indexed", "streamed"])
def test_ordinary_images_come_from_an_address_too(
    server: FaultyServer, image_bytes: Callable[..., bytes], tmp_path: Path, reading: Any
) -> None:
    records = [ImageRecord(f"img_{row:02d}", row % 3, image_bytes(row, size=(20 + row, 30))) for row in range(9)]
    server.folder = tmp_path / "shards"
    write_pictures(server.folder, records)
    write_pictures(server.folder, records[:3], dataclasses.replace(SETTINGS, split="val"))
    local = open_data("shards", server.folder, "val", 16)
    elsewhere = open_data("shards", server.url, "val", 16, reading)
    assert (elsewhere.mean_rgb, elsewhere.std_rgb) == (local.mean_rgb, local.std_rgb)
    for split in ("train", "probe_train", "evaluation"):
        here, there = getattr(local, split), getattr(elsewhere, split)
        assert there.fingerprint == here.fingerprint and there.class_names == here.class_names
        shape = (here.num_objects, 1)
        sizes = [np.zeros((*shape, 2), np.int64) for _ in range(2)]
        pixels = [np.zeros((*shape, *here.image_size, 3), np.uint8) for _ in range(2)]
        for collection, out, sizes_out in zip((here, there), pixels, sizes):
            collection.read_views(np.arange(shape[0]), np.zeros(shape, np.int64), out, sizes_out)
        np.testing.assert_array_equal(*pixels)
        np.testing.assert_array_equal(*sizes)


def test_streaming_refuses_images_without_labels(
    server: FaultyServer, image_bytes: Callable[..., bytes], tmp_path: Path
) -> None:
    server.folder = tmp_path / "shards"
    records = [ImageRecord(f"img_{row}", row % 3 if row else -1, image_bytes(row)) for row in range(4)]
    write_pictures(server.folder, records)
    write_pictures(server.folder, records[1:], dataclasses.replace(SETTINGS, split="val"))
    with pytest.raises(DataError, match=r"holds images without a label.* give --reading indexed"):
        open_data("shards", server.url, "val", 16, "streamed")
    assert open_data("shards", server.url, "val", 16).probe_train.num_objects == 3


def test_addresses_that_cannot_be_are_refused(server: FaultyServer, tmp_path: Path) -> None:
    for address in ("pipe:touch executed", "file:///etc", "http://user:secret@host/x"):
        with pytest.raises(DataError, match="is refused: give the path of a local folder, or a plain http"):
            open_data("3diebench-p", address, "test", 32)
    with pytest.raises(DataError, match="--dataset folder is read from a local folder only"):
        open_data("folder", server.url, "val", 32)
    with pytest.raises(DataError, match="--dataset cifar10 is read from a local folder only"):
        open_data("cifar10", tmp_path, "test", 32, "streamed")
    with pytest.raises(DataError, match=f"{server.url}/ood.manifest.json"):
        open_data("3diebench", server.url, "ood", 32)


def test_the_command_line_keeps_an_address_as_it_is() -> None:
    for address in ("https://example.org/a//b", "s3://bucket/shards"):
        assert parse_command_line(PretrainingConfig, "", arguments=["--data-dir", address]).data_dir == address
    local = parse_command_line(PretrainingConfig, "", arguments=["--data-dir", "data/shards"]).data_dir
    assert Path(local) == Path("data/shards")
