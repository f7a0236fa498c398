"""Ordinary images that are streamed or downloaded."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_equi.data.images import Canvas, imagenet_center_crop
from ssl_equi.data.remote.download import download_split
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.remote.views import RemoteImages, RemoteShards
from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.records import ImageSplitSettings
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from tests.data.faulty_server import FaultyServer

FITS = {"canvas": Canvas(40), "crop": imagenet_center_crop(20)}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@pytest.fixture
def folder(tmp_path: Path, image_bytes: Callable[..., bytes]) -> Path:
    """13 images of different sizes and formats in shards of 4, one of them without a label."""
    settings = ImageSplitSettings(
        split="train", class_names=("cat", "dog"), source="pictures of the tests", source_version="1",
        license="CC0-1.0", seed=0, images_per_shard=4,
    )  # fmt: skip
    with SplitWriter(tmp_path / "images", settings) as writer:
        for number in range(13):
            data = image_bytes(number, FORMATS[number % 4], size=(30 + number, 50 - number))
            writer.add(ImageRecord(f"image_{number:02d}", number % 3 - 1, data))
        writer.finish()
    return tmp_path / "images"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FaultyServer(folder)
    yield server
    server.close()


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_collection_is_the_indexed_one(server, folder, fit):
    expected = SingleViews(ImageShards(folder, "train"), fit)
    found = RemoteImages(server.url, "train", fit)
    for name in ("num_objects", "num_views", "class_names", "image_size", "fills_image", "mean_rgb", "std_rgb",
                 "source", "fingerprint", "quats_xyzw"):  # fmt: skip
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.latents, expected.latents)
    objects, views = np.arange(13)[::-1].copy(), np.zeros((13, 1), dtype=np.int64)
    pixels, expected_pixels = (np.ones((13, 1, *fit.image_size, 3), dtype=np.uint8) for _ in range(2))
    sizes, expected_sizes = (np.zeros((13, 1, 2), dtype=np.int64) for _ in range(2))
    found.read_views(objects, views, pixels, sizes)
    expected.read_views(objects, views, expected_pixels, expected_sizes)
    np.testing.assert_array_equal(pixels, expected_pixels)
    np.testing.assert_array_equal(sizes, expected_sizes)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_streamed_batches_hold_every_image_once(server, folder, fit):
    indexed = SingleViews(ImageShards(folder, "train"), fit)
    seen: list[int] = []
    for rank in range(2):
        with streamed_loader(
            server.url,
            "train",
            fit=fit,
            views=1,
            global_batch_size=4,
            seed=0,
            rank=rank,
            world_size=2,
            shuffle_buffer=5,
        ) as loader:
            for batch in itertools.islice(loader.batches(), loader.steps_per_epoch):
                objects = batch.object_indices.numpy()
                pixels, sizes = np.zeros(batch.images.shape, dtype=np.uint8), np.zeros((2, 1, 2), dtype=np.int64)
                indexed.read_views(objects, np.zeros((2, 1), dtype=np.int64), pixels, sizes)
                np.testing.assert_array_equal(batch.images.numpy(), pixels)
                if fit.fills_image:
                    assert batch.content_sizes is None
                else:
                    np.testing.assert_array_equal(batch.content_sizes.numpy(), sizes)
                np.testing.assert_array_equal(batch.labels.numpy(), indexed.labels[objects])
                seen += objects.tolist()
    assert len(seen) == len(set(seen)) == 12


def _damage(folder: Path, number: int) -> None:
    index = folder / "train.index"
    shard = int(np.load(index / "shard_numbers.npy")[number])
    with open(folder / f"train-{shard:06d}.tar", "r+b") as file:
        file.seek(int(np.load(index / "offsets.npy")[number]) + 100)
        file.write(b"damaged bytes")


def test_a_damaged_image_is_named_or_skipped(server, folder):
    def batches(on_bad_record: str) -> list[dict[str, torch.Tensor]]:
        with streamed_loader(
            server.url, "train", fit=Canvas(40), views=1, global_batch_size=13, seed=0, on_bad_record=on_bad_record
        ) as loader:
            batch = next(loader.batches())
            return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}

    expected = batches("raise")
    _damage(folder, 6)
    with pytest.raises(DataError, match=rf"'image_06\.webp' at byte \d+ of shard {server.url}/train-000001\.tar "):
        batches("raise")
    bad = expected["object_indices"].tolist().index(6)
    sources = [(row + 1) % 13 if row == bad else row for row in range(13)]
    for name, tensor in batches("skip").items():
        assert torch.equal(tensor, expected[name][sources]), name


def test_downloaded_images_are_the_same(server, folder, tmp_path):
    copy = tmp_path / "copy"
    manifest = download_split(server.url, "train", copy, max_bytes=10**7)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (copy / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert ImageShards(copy, "train").fingerprint == manifest.fingerprint


def test_rendered_objects_and_images_are_not_mistaken_for_each_other(server, shared_split):
    with pytest.raises(DataError, match=r"train\.manifest\.json"):
        RemoteShards(server.url, "train")
    with pytest.raises(DataError, match=r"train\.manifest\.json"):
        RemoteImages(shared_split, "train", Canvas(40))


def test_what_is_no_manifest_is_refused(server, folder, tmp_path):
    (folder / "train.manifest.json").write_text("{")
    with pytest.raises(DataError, match=rf"{server.url}/train\.manifest\.json is not valid JSON"):
        download_split(server.url, "train", tmp_path / "copy", max_bytes=10**7)
