"""Tar shards with one image a record, written by hand and by WebDataset."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ssl_equi.data.images import Canvas, decode_image
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards import foreign
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def members(image_bytes: Callable[..., bytes]) -> list[tuple[str, bytes]]:
    """8 records of 3 classes."""
    return [
        member
        for number in range(8)
        for member in (
            (f"n0144/img_{number}.jpg", image_bytes(number, size=(20 + number, 30))),
            (f"n0144/img_{number}.cls", str(number % 3).encode()),
        )
    ]


@pytest.fixture
def shards(tmp_path: Path, members: list[tuple[str, bytes]]) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(folder / "train-000000.tar", members[:10])
    write_tar(folder / "train-000001.tar", members[10:])
    write_tar(folder / "val-000000.tar", members[:6])
    return folder


def fails(folder: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        ImageShards(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_and_labels_are_those_of_the_members(shards: Path, members: list[tuple[str, bytes]]) -> None:
    train = ImageShards(shards, "train")
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and train.labels.dtype == np.int64
    assert train.class_names == ("0", "1", "2")
    for index in (7, 0, 5, 4):  # in any order, over both shards
        np.testing.assert_array_equal(train.read_image(index), decode_image(members[2 * index][1], "a"))
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy.read_image(6), train.read_image(6))
    assert copy.fingerprint == train.fingerprint


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_dialect_of_tar_is_read(tmp_path: Path, members: list[tuple[str, bytes]], tar_format: int) -> None:
    long_name = "x" * (90 if tar_format == tarfile.USTAR_FORMAT else 150)
    renamed = [(f"{long_name}_{name.rpartition('_')[2]}", content) for name, content in members]
    write_tar(tmp_path / "train-0.tar", renamed, tar_format)
    train = ImageShards(tmp_path, "train")
    np.testing.assert_array_equal(train.read_image(3), decode_image(members[6][1], "a"))


def test_shards_that_webdataset_wrote(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        for number in range(4):
            data = image_bytes(number, "PNG")
            writer.write({"__key__": f"sample{number:03d}", "png": data, "cls": number, "json": {"width": 40}})
    train = ImageShards(tmp_path, "train")
    assert train.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(train.read_image(2), decode_image(image_bytes(2, "PNG"), "a"))


def test_names_of_the_classes(shards: Path) -> None:
    (shards / "classes.txt").write_text("cat\ndog\nfrog\nhorse\n", encoding="utf-8")
    assert ImageShards(shards, "val").class_names == ("cat", "dog", "frog", "horse")
    (shards / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert "has label 2 and" in fails(shards) and "classes.txt names 2 classes" in fails(shards)


def test_the_walk_is_made_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageShards(shards, "train")
    assert (shards / "train.images.npz").is_file()

    def walk(shards: Sequence[Path]) -> None:
        raise AssertionError("walked again")

    monkeypatch.setattr(foreign, "_scan", walk)
    second = ImageShards(shards, "train")
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.read_image(7), first.read_image(7))
    os.utime(shards / "train-000001.tar", (1, 1))
    with pytest.raises(AssertionError, match="walked again"):
        ImageShards(shards, "train")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_damaged_index_is_made_anew(shards: Path, content: bytes) -> None:
    expected = ImageShards(shards, "train").fingerprint
    (shards / "train.images.npz").write_bytes(content)
    assert ImageShards(shards, "train").fingerprint == expected


def test_an_index_that_cannot_be_kept_is_no_hindrance(shards: Path) -> None:
    (shards / "train.images.npz").mkdir()  # stands for a folder without the right to write, which root always has
    assert ImageShards(shards, "train").labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_whole_source(shards: Path) -> None:
    data = open_data("imagenet", shards, "val", 16)
    assert data.evaluation.num_objects == 3 and data.train.class_names == data.evaluation.class_names
    assert data.train.image_size == (32, 32) and data.probe_train.image_size == (16, 16)
    with stored_loader(data.train, global_batch_size=8, views=1, seed=0, threads=3) as loader:
        batch = next(loader.batches())
    assert sorted(batch.object_indices.tolist()) == list(range(8))
    assert batch.content_sizes is not None and (batch.content_sizes[..., 0] <= 30).all()


def test_missing_folders_and_splits_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        open_data("imagenet", tmp_path / "nowhere", "val", 16)
    with pytest.raises(DataError, match=r"has no shards test-\*\.tar but train, val: choose a split"):
        open_data("imagenet", shards, "test", 16)
    with pytest.raises(DataError, match=r"but no shards: .*--dataset folder"):
        open_data("imagenet", tmp_path, "val", 16)


def test_a_class_that_train_lacks_is_named(shards: Path, members: list[tuple[str, bytes]]) -> None:
    write_tar(shards / "val-000000.tar", [members[0], ("n0144/img_0.cls", b"3")])
    with pytest.raises(DataError, match=r"split 'val' .* has label 3 and the train split has 3 classes"):
        open_data("imagenet", shards, "val", 16)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({3: None}, "key 'n0144/img_1' of shard {shard} has no .cls member"),
        ({15: None}, "key 'n0144/img_7' of shard {shard} has no .cls member"),
        ({2: None}, "key 'n0144/img_1' of shard {shard} has no image member"),
        ({3: ("n0144/img_1.cls", b"cat")}, "'n0144/img_1.cls' of shard {shard} is b'cat', not a class number"),
        ({3: ("n0144/img_1.cls", b"-1")}, "not a class number"),
        ({3: ("n0144/img_1.cls", b"")}, "not a class number"),
        ({2: ("n0144/img_1.cls", b"1")}, "key 'n0144/img_1' of shard {shard} has two labels"),
        ({3: ("n0144/img_1.png", b"x")}, "key 'n0144/img_1' of shard {shard} has two images"),
        ({4: ("n0144/img_0.jpg", b"x"), 5: ("n0144/img_0.cls", b"0")}, "key 'n0144/img_0' occurs more than once"),
    ],
)
def test_malformed_records_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], changes: dict[int, tuple[str, bytes] | None], expected: str
) -> None:
    shard = tmp_path / "train-0.tar"
    changed = [changes.get(place, member) for place, member in enumerate(members)]
    write_tar(shard, [member for member in changed if member is not None])
    assert expected.format(shard=shard) in fails(tmp_path)
    assert not (tmp_path / "train.images.npz").exists()


def test_a_label_may_end_with_a_line_break(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    write_tar(tmp_path / "train-0.tar", [members[0], (members[1][0], b"2\n")])
    assert ImageShards(tmp_path, "train").labels.tolist() == [2]


def test_a_cut_shard_is_named_wherever_it_is_cut(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    shard = tmp_path / "train-0.tar"
    write_tar(shard, members)
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        boundaries = [member.offset for member in tar]
    end = boundaries[-1] + 1024
    for length in (0, 100, 512, *boundaries[1:5], boundaries[4] + 512, boundaries[4] + 700, end - 100, end):
        shard.write_bytes(content[:length])
        text = fails(tmp_path)
        assert str(shard) in text and "again" in text, length
    shard.write_bytes(content[: end + 512])  # one block of zeros ends a tar
    assert len(ImageShards(tmp_path, "train").labels) == 8


def test_damaged_headers_and_empty_shards_are_named(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    shard = tmp_path / "train-0.tar"
    write_tar(shard, [])
    assert "holds no image" in fails(tmp_path)
    shard.write_bytes(b"no tar at all" * 100)
    assert "no readable tar file" in fails(tmp_path)
    write_tar(shard, members)
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[4].offset
    content[place : place + 20] = b"\xff" * 20
    shard.write_bytes(content)
    assert f"is cut or damaged at byte {place}" in fails(tmp_path)


def test_damage_after_the_walk_is_named_when_the_image_is_read(shards: Path) -> None:
    train = ImageShards(shards, "train")
    offset = int(train._index.offsets[6])
    with open(shards / "train-000001.tar", "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 50)
    with pytest.raises(DataError, match=r"image 'n0144/img_6' in shard .*train-000001\.tar does not decode"):
        train.read_image(6)
    os.truncate(shards / "train-000001.tar", offset + 10)
    with pytest.raises(DataError, match=r"image 'n0144/img_6' in shard .* is cut \(expected \d+ bytes, found 10\)"):
        SingleViews(train, Canvas(8)).read_views(np.array([6]), np.array([[0]]), np.zeros((1, 1, 8, 8, 3), np.uint8))
    (shards / "train-000000.tar").unlink()
    with pytest.raises(DataError, match="cannot be opened any more"):
        train.read_image(0)
