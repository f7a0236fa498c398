"""Writing shards of ordinary images, and reading them through their manifest."""

import dataclasses
import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from ssl_equi.data.shards.format import ImageRecord, scan_image_shard
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import read_image_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.records import mean_and_std, pixel_moments
from ssl_equi.data.shards.verify import kind_of_split
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from tests.data.image_sets import SETTINGS, flip, write_pictures


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_images_and_labels_are_those_written(picture_shards: Path, pictures: list[ImageRecord]) -> None:
    train = ImageShards(picture_shards, "train")
    assert train.labels.tolist() == [record.label for record in pictures] and train.labels.dtype == np.int64
    for index in (10, 3, 0, 5, 7):  # in any order, over all shards; CMYK and PNG among them
        pixels = np.asarray(Image.open(io.BytesIO(pictures[index].data)).convert("RGB"))
        np.testing.assert_array_equal(train.read_image(index), pixels)
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again.read_image(6), train.read_image(6))
    assert again.fingerprint == train.fingerprint


def test_bytes_are_kept_and_webdataset_reads_them(picture_shards: Path, pictures: list[ImageRecord]) -> None:
    urls = [str(path) for path in sorted(picture_shards.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [record.key for record in pictures]
    assert [int(sample["cls"]) for sample in samples] == [record.label for record in pictures]
    assert [sample["png" if row == 5 else "jpg"] for row, sample in enumerate(samples)] == [r.data for r in pictures]


def test_manifest_says_what_is_there(picture_shards: Path, pictures: list[ImageRecord]) -> None:
    manifest = read_image_manifest(picture_shards, "train")
    assert (manifest.num_objects, manifest.num_unlabelled, manifest.images_per_class) == (11, 0, (4, 4, 3))
    assert manifest.kinds == {"JPEG": 9, "JPEG in CMYK": 1, "PNG": 1}
    assert (manifest.height_range, manifest.width_range) == ((30, 30), (20, 30))
    assert [entry.count for entry in manifest.shards] == [4, 4, 3]
    assert (manifest.source, manifest.source_version, manifest.license) == ("pictures of the tests", "1", "CC0-1.0")
    assert manifest.reencoding is None and manifest.seed == 0
    levels = [
        np.asarray(Image.open(io.BytesIO(record.data)).convert("RGB")).reshape(-1, 3) / 255 for record in pictures
    ]
    mean = np.mean([image.mean(0) for image in levels], axis=0)
    std = np.sqrt(np.mean([(image**2).mean(0) for image in levels], axis=0) - mean**2)
    np.testing.assert_allclose(manifest.measured_mean_rgb, mean, atol=1e-6)
    np.testing.assert_allclose(manifest.measured_std_rgb, std, atol=1e-6)
    assert manifest.mean_rgb == manifest.measured_mean_rgb == ImageShards(picture_shards, "train").mean_rgb


def test_statistics_of_known_images() -> None:
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((7, 5, 3), 255, np.uint8)
    assert mean_and_std([pixel_moments(black), pixel_moments(white)]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    grey = np.full((4, 4, 3), 51, np.uint8)
    assert mean_and_std([pixel_moments(grey)]) == ((0.2, 0.2, 0.2), (0.0, 0.0, 0.0))


def test_stated_normalisation_is_what_training_uses(tmp_path: Path, pictures: list[ImageRecord]) -> None:
    settings = dataclasses.replace(SETTINGS, mean_rgb=(0.1, 0.2, 0.3), std_rgb=(0.4, 0.5, 0.6))
    manifest = write_pictures(tmp_path, pictures, settings)
    assert ImageShards(tmp_path, "train").mean_rgb == (0.1, 0.2, 0.3) != manifest.measured_mean_rgb


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"key": "img_00"}, "key 'img_00' was given twice"),
        ({"key": "a.b"}, r"key 'a\.b' of image 'a\.b' has forbidden characters"),
        ({"key": "k" * 100}, "has 100 characters: use at most 88"),
        ({"label": 3}, r"label 3 of image 'new' has no class name: give one of 0\.\.2"),
        ({"label": -2}, "label -2 of image 'new' has no class name"),
        ({"data": b""}, r"image 'new' is empty \(0 bytes\)"),
        ({"data": b"\x80\x04K\x01."}, "image 'new' does not decode"),
    ],
)
def test_malformed_records_are_named(
    tmp_path: Path, pictures: list[ImageRecord], change: dict[str, object], expected: str
) -> None:
    with SplitWriter(tmp_path, SETTINGS, resume=True) as writer:
        writer.add(pictures[0])
        with pytest.raises(DataError, match=expected) as caught:
            writer.add(dataclasses.replace(ImageRecord("new", 0, pictures[1].data), **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda members: members[:3], "'img_01.cls' and then 'the end of the file' where a KEY.cls and its image"),
        (lambda members: [members[0], *members[2:]], "'img_00.cls' and then 'img_01.cls'"),
        (lambda members: members[1:], "'img_00.jpg' and then 'img_01.cls'"),
        (lambda members: [*members, *members[:2]], "key 'img_00' occurs twice"),
        (lambda members: [*members, ("evil.pkl", b"\x80")], "'evil.pkl' of shard .* is of a type that shards may not"),
        (
            lambda members: [("img_00.cls", b"cat"), *members[1:]],
            "label of 'img_00' .* is b'cat', not a decimal",
        ),
        (lambda members: [members[0], ("img_00.png", members[1][1])], "image 'img_00.png' .* is a JPEG"),
        (lambda members: [members[0], ("img_00.jpg", b"x")], "image 'img_00.jpg' in shard .* does not decode"),
        (lambda members: [], "holds no image"),
    ],
)
def test_malformed_shards_are_named(
    tmp_path: Path, pictures: list[ImageRecord], change: Callable[[list], list], expected: str
) -> None:
    members = [
        member
        for record in pictures[:2]
        for member in ((f"{record.key}.cls", str(record.label).encode()), (f"{record.key}.jpg", record.data))
    ]
    write_tar(tmp_path / "train-000000.tar", change(members))
    with pytest.raises(DataError, match=expected) as caught:
        list(scan_image_shard(tmp_path / "train-000000.tar"))
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_named_when_the_image_is_read(picture_shards: Path) -> None:
    train = ImageShards(picture_shards, "train")
    offset = next(
        image.offset for image in scan_image_shard(picture_shards / "train-000001.tar") if image.key == "img_06"
    )
    flip(picture_shards / "train-000001.tar", offset + 300)
    expected = rf"image 'img_06' at byte {offset} of shard .*train-000001\.tar does not match its CRC-32C: download"
    with pytest.raises(DataError, match=expected):
        train.read_image(6)
    train.read_image(5)


def test_a_sidecar_with_objects_is_never_unpickled(picture_shards: Path) -> None:
    np.save(picture_shards / "train.index" / "labels.npy", np.array([{}] * 11), allow_pickle=True)
    with pytest.raises(DataError, match=r"labels\.npy (is not a plain|does not match)"):
        ImageShards(picture_shards, "train")


def test_manifests_of_other_kinds_are_refused(picture_shards: Path, shared_split: Path) -> None:
    with pytest.raises(DataError, match="is not a manifest of 'ssl-equi-image-shards'"):
        ImageShards(shared_split, "train")
    with pytest.raises(DataError, match="is not a manifest of 'ssl-equi-shards'"):
        ShardDataset(picture_shards, "train")


def test_without_the_manifest_the_same_shards_are_read_as_foreign_ones(
    picture_shards: Path, pictures: list[ImageRecord]
) -> None:
    expected = ImageShards(picture_shards, "train").read_image(9)
    (picture_shards / "train.manifest.json").unlink()
    foreign = ImageShards(picture_shards, "train")
    np.testing.assert_array_equal(foreign.read_image(9), expected)
    assert foreign.class_names == ("0", "1", "2") and kind_of_split(picture_shards, "train") == "foreign images"


def test_the_whole_source_with_unlabelled_images(tmp_path: Path, pictures: list[ImageRecord]) -> None:
    unlabelled = [dataclasses.replace(r, label=-1) if row % 2 else r for row, r in enumerate(pictures)]
    manifest = write_pictures(tmp_path, unlabelled)
    write_pictures(tmp_path, pictures[:4], dataclasses.replace(SETTINGS, split="val"))
    assert manifest.num_unlabelled == 5 and sum(manifest.images_per_class) == 6
    data = open_data("shards", tmp_path, "val", 16)
    assert (data.train.num_objects, data.probe_train.num_objects, data.evaluation.num_objects) == (11, 6, 4)
    assert data.probe_train.labels.tolist() == [pictures[row].label for row in range(0, 11, 2)]
    assert data.probe_train.fingerprint != data.train.fingerprint
    out = np.empty((1, 1, 16, 16, 3), np.uint8)
    data.probe_train.read_views(np.array([5]), np.array([[0]]), out)
    expected = np.empty_like(out)
    data.evaluation.fit.place(ImageShards(tmp_path, "train").read_image(10), expected[0, 0])
    np.testing.assert_array_equal(out, expected)
    copied = pickle.loads(pickle.dumps(data.probe_train.store))
    assert len(copied.labels) == 6


def test_splits_of_different_classes_are_refused(tmp_path: Path, pictures: list[ImageRecord]) -> None:
    write_pictures(tmp_path, pictures)
    write_pictures(tmp_path, pictures, dataclasses.replace(SETTINGS, split="val", class_names=("cat", "dog", "horse")))
    with pytest.raises(DataError, match=r"splits 'train' and 'val' in .* have different classes"):
        open_data("imagenet", tmp_path, "val", 16)
