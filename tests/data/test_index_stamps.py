import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import ssl_equi.data.index as index_module
import ssl_equi.data.index_stamps as stamps_module
from ssl_equi.data.damage import find_damage
from ssl_equi.data.image_shards import ImageShards
from ssl_equi.data.index_stamps import stamp_folder
from ssl_equi.data.manifest import read_manifest
from ssl_equi.data.reader import ShardDataset
from ssl_equi.errors import DataError
from tests.data.image_sets import flip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, in which small and fresh indexes are stamped too."""
    folder = tmp_path / "cache" / "stamps"
    monkeypatch.setattr(stamps_module, "stamp_folder", lambda: folder)
    monkeypatch.setattr(stamps_module, "_SMALLEST_BYTES", 0)
    monkeypatch.setattr(stamps_module, "_SETTLED_NS", 0)
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the arrays that were hashed since."""
    names: list[str] = []
    real = index_module.sha256_of_file

    def noting(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(index_module, "sha256_of_file", noting)
    return names


@pytest.mark.parametrize(
    ("split_fixture", "open_split", "arrays"),
    [("own_split", ShardDataset, 8), ("picture_shards", ImageShards, 9)],
)
def test_only_the_first_opening_verifies(request, cache, hashed, split_fixture, open_split, arrays):
    folder = request.getfixturevalue(split_fixture)
    hashed.clear()  # writing the split hashes too
    first = open_split(folder, "train")
    assert len(hashed) == arrays
    second = open_split(folder, "train")
    assert len(hashed) == arrays
    np.testing.assert_array_equal(second.labels, first.labels)
    assert len(list(cache.iterdir())) == 1


def test_link_to_the_folder_has_the_same_stamp(own_split, tmp_path, cache, hashed):
    ShardDataset(own_split, "train")
    (tmp_path / "link").symlink_to(own_split)
    hashed.clear()
    ShardDataset(tmp_path / "link", "train")
    assert not hashed


def _flip_a_byte_and_hide_it(path: Path) -> None:
    before = path.stat()
    flip(path, before.st_size - 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("name", ["labels", "latents", "offsets"])
def test_changed_byte_is_found_though_size_and_modification_time_are_the_same(own_split, cache, name):
    ShardDataset(own_split, "train")
    _flip_a_byte_and_hide_it(own_split / "train.index" / f"{name}.npy")
    with pytest.raises(DataError, match=rf"sidecar .*{name}.npy does not match the SHA-256"):
        ShardDataset(own_split, "train")


def test_changed_byte_of_an_image_index_is_found(picture_shards, cache):
    ImageShards(picture_shards, "train")
    _flip_a_byte_and_hide_it(picture_shards / "train.index" / "labels.npy")
    with pytest.raises(DataError, match=r"sidecar .*labels.npy does not match the SHA-256"):
        ImageShards(picture_shards, "train")


def _replace_by_an_equal_file(folder: Path) -> None:
    path = folder / "train.index" / "labels.npy"
    shutil.copy2(path, path.with_suffix(".copy"))
    os.replace(path.with_suffix(".copy"), path)


def _touch(folder: Path) -> None:
    os.utime(folder / "train.index" / "labels.npy")


def _change_the_manifest(folder: Path) -> None:
    manifest = read_manifest(folder, "train")
    content = json.loads((folder / "train.manifest.json").read_text())
    assert content["license"] == manifest.license
    type(manifest)(**{**_fields(manifest), "license": "another"}).write(folder)


def _fields(manifest) -> dict:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


@pytest.mark.parametrize("change", [_replace_by_an_equal_file, _touch, _change_the_manifest])
def test_files_that_may_have_changed_are_verified_again_and_then_known(own_split, cache, hashed, change):
    ShardDataset(own_split, "train")
    change(own_split)
    hashed.clear()
    ShardDataset(own_split, "train")
    assert len(hashed) == 8
    ShardDataset(own_split, "train")
    assert len(hashed) == 8


def test_missing_array_is_missed_though_it_was_known(own_split, cache):
    ShardDataset(own_split, "train")
    (own_split / "train.index" / "latents.npy").unlink()
    with pytest.raises(DataError, match=r"sidecar .*latents.npy is missing"):
        ShardDataset(own_split, "train")


def test_damaged_index_is_not_stamped(own_split, cache):
    flip(own_split / "train.index" / "labels.npy", 130)
    for _ in range(2):
        with pytest.raises(DataError, match=r"labels.npy does not match"):
            ShardDataset(own_split, "train")
    assert not cache.exists()


def _damage_stamp(cache: Path, content: bytes) -> None:
    (path,) = cache.iterdir()
    path.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1}'])
def test_damaged_stamp_counts_as_none(own_split, cache, hashed, content):
    ShardDataset(own_split, "train")
    _damage_stamp(cache, content)
    hashed.clear()
    ShardDataset(own_split, "train")
    assert len(hashed) == 8
    ShardDataset(own_split, "train")
    assert len(hashed) == 8


def _file_in_place_of_the_folder(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"")


def _folder_in_place_of_each_stamp(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)


@pytest.mark.parametrize("spoil", [_file_in_place_of_the_folder, _folder_in_place_of_each_stamp])
def test_without_a_usable_cache_it_is_verified_each_time(own_split, cache, hashed, spoil, monkeypatch):
    spoil(cache)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.geteuid() == 0:  # whom no mode keeps from writing
        monkeypatch.setattr(stamps_module, "replace_file", refused)
    for opening in (1, 2):
        ShardDataset(own_split, "train")
        assert len(hashed) == 8 * opening


def test_fresh_and_small_indexes_are_not_stamped(own_split, cache, monkeypatch):
    monkeypatch.setattr(stamps_module, "_SETTLED_NS", 10**12)
    ShardDataset(own_split, "train")
    monkeypatch.setattr(stamps_module, "_SETTLED_NS", 0)
    monkeypatch.setattr(stamps_module, "_SMALLEST_BYTES", 10**9)
    ShardDataset(own_split, "train")
    assert not cache.exists()


def test_index_that_changes_while_it_is_verified_is_not_stamped(own_split, cache, monkeypatch):
    real = index_module.sha256_of_file

    def hash_then_touch(path: Path) -> str:
        found = real(path)
        os.utime(path)
        return found

    monkeypatch.setattr(index_module, "sha256_of_file", hash_then_touch)
    ShardDataset(own_split, "train")
    assert not cache.exists()


@pytest.mark.parametrize("split_fixture", ["own_split", "picture_shards"])
def test_looking_for_damage_trusts_no_stamp(request, cache, monkeypatch, split_fixture):
    folder = request.getfixturevalue(split_fixture)
    monkeypatch.setattr(stamps_module.IndexStamp, "is_known", lambda stamp: True)
    flip(folder / "train.index" / "keys.npy", 140)
    assert any("keys.npy does not match" in found.what for found in find_damage(folder, "train"))
    assert not cache.exists()


def test_stamps_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stamp_folder() == tmp_path / "ssl_equi" / "verified-indexes"
