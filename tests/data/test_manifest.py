"""Manifests of both kinds that were damaged, edited, mixed up or forged with a fingerprint that fits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_equi.data.shards.manifest import manifest_path, read_image_manifest, read_manifest, shard_name
from ssl_equi.errors import DataError
from tests.data.image_sets import ABSENT, edit_manifest

Read = Callable[[Path, str], Any]


@pytest.fixture(params=["objects", "images"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Read]:
    """The folder of a copied manifest, and what reads it."""
    is_of_objects = request.param == "objects"
    whole = request.getfixturevalue("shared_split" if is_of_objects else "picture_shards")
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(manifest_path(whole, "train"), folder)
    return folder, read_manifest if is_of_objects else read_image_manifest


def shard(**changes: Any) -> list[dict[str, Any]]:
    entry = {"name": shard_name("train", 0), "bytes": 1 << 20, "sha256": "0", "first": 0, "count": 23}
    return [entry | changes]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": "val"}, "is of split 'val', it was copied or renamed: download or rebuild split 'train' again"),
        ({"format_version": 2}, "has format version 2"),
        ({"shards": ABSENT}, r"is malformed \(its fields: \['shards'\] is absent or unknown\)"),
        ({"unknown": 1}, r"is malformed \(its fields: \['unknown'\] is absent or unknown\)"),
        ({"shards": [{}]}, r"is malformed \(shards: \['bytes', .* is absent or unknown"),
        ({"shards": shard(first="0")}, "'first' holds str '0'"),
        ({"shards": shard(count=None)}, "'count' holds NoneType 'None'"),
        ({"shards": {}}, "'shards' holds dict"),
        ({"num_objects": 23.0}, "'num_objects' holds float"),
        ({"num_objects": True}, "'num_objects' holds bool"),
        ({"class_names": ["cat", 3]}, "'class_names' holds int '3'"),
        ({"class_names": "cat"}, "'class_names' holds str 'cat'"),
        ({"mean_rgb": [0.5, 0.5]}, "'mean_rgb' holds list"),
        ({"sidecars": {"labels.npy": 5}}, "'sidecars' holds int '5'"),
        ({"shards": shard(count=23, bytes=23 * 2048 - 1)}, "with 23 objects in 47103 bytes: rebuild"),
        ({"shards": shard(count=-23)}, "with -23 objects in 1048576 bytes"),
        ({"shards": [], "num_objects": 0}, "counts 0 objects but its shards hold 0"),
        ({"num_objects": 24}, r"counts 24 objects but its shards hold (23|11)"),
    ],
)  # fmt: skip
def test_forged_manifests_are_one_sentence(changes: dict[str, Any], expected: str, manifest: tuple[Path, Read]) -> None:
    folder, read = manifest
    edit_manifest(folder, **changes)
    with pytest.raises(DataError, match=expected) as caught:
        read(folder, "train")
    assert str(folder / "train.manifest.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_views": 0}, "states 0 views of 24 x 32 pixels"),
        ({"image_size": [1 << 20, 1 << 20]}, "states 6 views of 1048576 x 1048576 pixels"),
        ({"latent_ranges": {}}, "states ranges of other latents than it names"),
    ],
)
def test_forged_sizes_of_objects_are_refused(changes: dict[str, Any], expected: str, own_split: Path) -> None:
    edit_manifest(own_split, **changes)
    with pytest.raises(DataError, match=expected):
        read_manifest(own_split, "train")


def test_edited_manifests_are_refused_whatever_was_edited(manifest: tuple[Path, Read]) -> None:
    folder, read = manifest
    names = json.loads((folder / "train.manifest.json").read_text())
    for name in names:
        content = json.dumps(names | {name: names[name] + 1 if isinstance(names[name], int) else "other"})
        (folder / "train.manifest.json").write_text(content)
        expected = "has format version|is not a manifest" if name.startswith("format") else "does not match its finger"
        with pytest.raises(DataError, match=expected):
            read(folder, "train")


def test_a_manifest_over_that_of_another_split_is_refused(manifest: tuple[Path, Read]) -> None:
    folder, read = manifest
    read(folder, "train")
    shutil.copy(folder / "train.manifest.json", folder / "val.manifest.json")
    with pytest.raises(DataError, match=r"val\.manifest\.json is of split 'train', it was copied or renamed"):
        read(folder, "val")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "another"}', "\x00\xff"])
def test_files_that_are_no_manifests_are_refused(text: str, manifest: tuple[Path, Read]) -> None:
    folder, read = manifest
    (folder / "train.manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"is not valid JSON|JSON array|UTF-8|is not a manifest of 'ssl-equi-"):
        read(folder, "train")


def test_an_unfinished_split_and_names_that_leave_the_folder_are_refused(manifest: tuple[Path, Read]) -> None:
    folder, read = manifest
    shards = json.loads((folder / "train.manifest.json").read_text())["shards"]
    edit_manifest(folder, shards=[shards[0] | {"name": "../elsewhere.tar"}, *shards[1:]])
    with pytest.raises(DataError, match=r"lists shard '\.\./elsewhere\.tar' out of place"):
        read(folder, "train")
    with pytest.raises(DataError, match=r"split name '\.\./train' is not usable"):
        read(folder, "../train")
    (folder / "train.manifest.json").unlink()
    with pytest.raises(DataError, match=r"there is no manifest .*train\.manifest\.json: build this data set"):
        read(folder, "train")
