"""Everything that is wrong with a split, listed."""

import re
import shutil
import tarfile
from pathlib import Path

import pytest

from ssl_equi.data.shards.format import scan_image_shard
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage
from tests.data.image_sets import flip


def damages(folder: Path, workers: int = 1) -> list[tuple[str, str | None, str]]:
    return [(found.file.name, found.key, found.what) for found in find_damage(folder, "train", workers=workers)]


def test_whole_splits_have_no_damage(picture_shards: Path, shared_split: Path) -> None:
    names: list[str] = []
    assert list(find_damage(picture_shards, "train", report_shard=names.append)) == []
    assert names == [f"train-00000{number}.tar" for number in range(3)]
    assert list(find_damage(shared_split, "train", workers=3)) == []
    (picture_shards / "train.manifest.json").unlink()
    assert list(find_damage(picture_shards, "train")) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_all_damage_is_listed(picture_shards: Path, workers: int) -> None:
    places = {image.key: image for image in scan_image_shard(picture_shards / "train-000001.tar")}
    for key in ("img_04", "img_06"):
        flip(picture_shards / "train-000001.tar", places[key].offset + 200)
    flip(picture_shards / "train-000002.tar", 512)  # the first record's label: '2' becomes '3'
    (picture_shards / "train-000000.tar").unlink()
    assert damages(picture_shards, workers) == [
        ("train-000000.tar", None, "is missing"),
        ("train-000001.tar", None, "does not match its SHA-256 in the manifest"),
        ("train-000001.tar", "img_04", "does not match its CRC-32C"),
        ("train-000001.tar", "img_06", "does not match its CRC-32C"),
        ("train-000002.tar", None, "does not match its SHA-256 in the manifest"),
        ("train-000002.tar", "img_08", "has label 3, the index 2"),
    ]
    found = list(find_damage(picture_shards, "train"))[2]
    assert found.offset == places["img_04"].offset
    assert found.sentence.startswith(f"'img_04' at byte {found.offset} of ")


def test_a_cut_shard_lists_the_images_that_are_gone(picture_shards: Path) -> None:
    shard = picture_shards / "train-000001.tar"
    last = list(scan_image_shard(shard))[-1]
    shard.write_bytes(shard.read_bytes()[: last.offset + 10])
    first, second = damages(picture_shards)
    assert re.fullmatch(r"has \d+ bytes where the manifest says \d+", first[2])
    assert second == ("train-000001.tar", "img_07", f"is cut (expected {last.size} bytes, found 10)")


def test_damage_of_rendered_objects_is_listed(own_split: Path) -> None:
    dataset = ShardDataset(own_split, "train")
    with tarfile.open(own_split / "train-000001.tar") as tar:
        members = {member.name: member for member in tar}
    key = dataset.keys[6].decode()
    view = members[f"{key}.v02.jpg"]
    flip(own_split / "train-000001.tar", view.offset_data + view.size - 40)
    flip(own_split / "train-000001.tar", members[f"{key}.latents.npy"].offset_data + 128 + 6)  # of the first float64
    flip(own_split / "train-000002.tar", members[f"{key}.cls"].offset)  # the name in a header
    found = damages(own_split)
    assert found[:3] == [
        ("train-000001.tar", None, "does not match its SHA-256 in the manifest"),
        ("train-000001.tar", f"{key}.v02.jpg", "does not match its CRC-32C"),
        ("train-000001.tar", key, "has another label or other latents than the index"),
    ]
    assert found[3][0] == "train-000002.tar" and "has a damaged header after" in found[4][2]


def test_damage_of_manifest_and_index_is_listed(picture_shards: Path, own_split: Path) -> None:
    for folder in (picture_shards, own_split):
        flip(folder / "train.index" / "labels.npy", -1)
        flip(folder / "train-000001.tar", 0)
        found = damages(folder)
        assert found[0][0] == "train.index" and "labels.npy does not match" in found[0][2]
        assert [entry[0] for entry in found[1:]] == ["train-000001.tar"] * 2
        assert "has a damaged header after 'the first member'" in found[2][2]
        (folder / "train.manifest.json").write_text("{")
        assert [entry[0] for entry in damages(folder)] == ["train.manifest.json"]


def test_damage_of_foreign_shards_is_listed(picture_shards: Path) -> None:
    (picture_shards / "train.manifest.json").unlink()
    shutil.rmtree(picture_shards / "train.index")
    offset = next(
        image.offset for image in scan_image_shard(picture_shards / "train-000000.tar") if image.key == "img_02"
    )
    with open(picture_shards / "train-000000.tar", "r+b") as file:
        file.seek(offset)
        file.write(bytes(40))
    shard = picture_shards / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    shutil.copy(picture_shards / "train-000001.tar", picture_shards / "train-000003.tar")
    found = damages(picture_shards)
    assert found[0][:2] == ("train-000000.tar", "img_02") and found[0][2].startswith("does not decode (")
    assert found[1][0] == "train-000002.tar" and found[1][2].startswith("is cut or damaged at byte")
    assert found[2:] == [
        ("train-000003.tar", f"img_0{number}", "has a key that occurs more than once in the split")
        for number in range(4, 8)
    ]
