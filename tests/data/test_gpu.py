"""Batches that a device decodes: torchvision's decoder on the CPU stands in for nvJPEG, with the same interface."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import Canvas, CenterCrop
from ssl_equi.data.loading.gpu import (
    encoded_views,
    gpu_loader,
    is_for_device,
    nvjpeg_decoder,
    place_on_canvas,
)
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from tests.data.test_loader_promise import decode_on_cpu

TENSORS = ("images", "latents", "quat_xyzw", "labels", "object_indices", "view_indices", "content_sizes")


def loader_of(collection: ViewCollection, decode: Callable | None = None, **options: Any) -> Loader:
    sizes = {"global_batch_size": 8, "seed": 1, "device": torch.device("cpu"), "decode": decode or decode_on_cpu}
    return gpu_loader(encoded_views(collection), **(sizes | options))


def take(collection: ViewCollection, count: int, start_step: int = 0, **options: Any) -> list[ViewBatch]:
    with loader_of(collection, **options) as loader:
        return list(itertools.islice(loader.batches(start_step), count))


def assert_equal(mine: ViewBatch, theirs: ViewBatch) -> None:
    for name in TENSORS:
        expected, found = getattr(theirs, name), getattr(mine, name)
        assert (found is None) == (expected is None), name
        assert expected is None or (torch.equal(found, expected) and found.dtype == expected.dtype), name


class Counting:
    """Decodes, and remembers how many images it was given at a time."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, encoded: list[Tensor]) -> list[Tensor]:
        self.counts.append(len(encoded))
        return decode_on_cpu(encoded)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_a_batch_is_decoded_at_once(shared_split: Path, prefetch: int, keep: bool) -> None:
    dataset, decoder = ShardDataset(shared_split, "train"), Counting()
    options = {"prefetch": prefetch, "keep_incomplete_batch": keep}
    mine = take(dataset, 6, decode=decoder, views=3, **options)
    with stored_loader(dataset, global_batch_size=8, seed=1, views=3, keep_incomplete_batch=keep) as loader:
        for batch, expected in zip(mine, loader.batches()):
            assert_equal(batch, expected)
    assert decoder.counts == ([24, 24, 21] * 2 if keep else [24] * 6)


def test_ordinary_images_lie_on_canvases_and_the_cpu_decodes_what_the_device_does_not(picture_shards: Path) -> None:
    """Eleven images of different sizes, of which one is in CMYK and one a PNG."""
    canvases = SingleViews(ImageShards(picture_shards, "train"), Canvas(32))
    decoder = Counting()
    (batch,) = take(canvases, 1, decode=decoder, views=1, global_batch_size=11)
    with stored_loader(canvases, global_batch_size=11, views=1, seed=1) as loader:
        assert_equal(batch, next(loader.batches()))
    assert decoder.counts == [9]


def test_pictures_larger_than_the_canvas_shrink_as_pillow_shrinks_them(picture_shards: Path) -> None:
    canvases = SingleViews(ImageShards(picture_shards, "train"), Canvas(17))
    (batch,) = take(canvases, 1, views=1, global_batch_size=11)
    with stored_loader(canvases, global_batch_size=11, views=1, seed=1) as loader:
        expected = next(loader.batches())
    assert batch.content_sizes is not None and expected.content_sizes is not None
    assert torch.equal(batch.content_sizes, expected.content_sizes)
    assert (batch.images.int() - expected.images.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(100, 37), (20, 90), (31, 31), (300, 2)])
def test_place_on_canvas_is_that_of_the_cpu(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, found = np.zeros((48, 48, 3), dtype=np.uint8), torch.zeros(48, 48, 3, dtype=torch.uint8)
    assert place_on_canvas(torch.from_numpy(image).permute(2, 0, 1), found) == Canvas(48).place(image, expected)
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1


def test_only_usual_jpegs_are_for_the_device(image_bytes: Callable[..., bytes]) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    for subsampling in ("444", "422", "420", "440", "411", "Gray"):
        data = simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling)
        assert is_for_device(data, None) and is_for_device(data, (16, 16)) and not is_for_device(data, (16, 17))
    assert is_for_device(image_bytes(0, "JPEG", "L"), None)
    for others in (image_bytes(0, "JPEG", "CMYK"), image_bytes(0, "PNG"), b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0cut"):
        assert not is_for_device(others, None)


def test_an_image_that_no_decoder_takes_is_named(
    tmp_path: Path, random_records: Callable, write_train_split: Callable
) -> None:
    """Damaged before it came into the shard, so that its CRC-32C is right."""
    records = random_records()
    records[7].images[3] = records[7].images[3][:-40]
    write_train_split(tmp_path / "split", records)

    damaged = torch.frombuffer(bytearray(records[7].images[3]), dtype=torch.uint8)

    def refuse(encoded: list[Tensor]) -> list[Tensor]:
        if any(torch.equal(data, damaged) for data in encoded):
            raise RuntimeError("nvjpegDecodeBatched failed: 5")
        return decode_on_cpu(encoded)

    dataset, options = (
        ShardDataset(tmp_path / "split", "train"),
        {"decode": refuse, "views": 6, "global_batch_size": 23},
    )
    with pytest.raises(DataError, match=r"'object_007\.v03\.jpg' .* does not decode"):
        take(dataset, 1, **options)
    with loader_of(dataset, on_bad_record="skip", **options) as loader:
        batch = next(loader.batches())
    assert batch.records_skipped == loader.skipped == 1 and 7 not in batch.object_indices
    pixels = dataset.images(batch.object_indices.numpy(), batch.view_indices.numpy())
    np.testing.assert_array_equal(batch.images.numpy(), pixels)


def test_a_decoder_that_fails_on_good_images_says_so(shared_split: Path) -> None:
    def refuse(encoded: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("no such chip")

    with pytest.raises(DataError, match=r"the GPU can't decode a batch that the CPU can \(no such chip\): leave"):
        take(ShardDataset(shared_split, "train"), 1, decode=refuse)


def test_data_without_checksums_or_in_another_form_are_refused(mixed_folder: Path, picture_shards: Path) -> None:
    cropped = SingleViews(ImageShards(picture_shards, "train"), CenterCrop(16, 16))
    (picture_shards / "train.manifest.json").unlink()
    others = [
        cropped,
        SingleViews(ImageFolder(mixed_folder, "train"), Canvas(32)),
        SingleViews(ImageShards(picture_shards, "train"), Canvas(32)),
    ]
    for other in others:
        with pytest.raises(DataError, match="which needs shards with checksums: convert the images"):
            encoded_views(other)


@pytest.mark.cuda
def test_nvjpeg_gives_nearly_the_same_pixels(tiny_data: Path) -> None:
    dataset, cuda = ShardDataset(tiny_data, "train"), torch.device("cuda")
    mine = take(dataset, 4, device=cuda, decode=nvjpeg_decoder(cuda))
    for batch, expected in zip(mine, take(dataset, 4), strict=True):
        assert batch.images.device.type == "cuda"
        assert (batch.images.cpu().int() - expected.images.int()).abs().float().mean() < 2
        assert torch.equal(batch.latents, expected.latents)
