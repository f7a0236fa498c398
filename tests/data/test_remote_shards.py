import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ssl_equi.data.remote.download import download_split
from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.shards.manifest import read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from tests.data.faulty_server import PATIENT, FaultyServer, impatient

SHARD = "train-000001.tar"  # objects 5 to 9


@pytest.fixture
def server(own_split: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Serves a split that the test may damage."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FaultyServer(own_split)
    yield server
    server.close()


def _views(shards: RemoteShards, objects: list[int], views: list[list[int]]):
    return shards.records.fetch(np.array(objects), np.array(views))


def test_collection_is_the_indexed_one(server, own_split):
    expected = ShardDataset(own_split, "train")
    for location in (own_split, str(own_split), server.url):
        shards = RemoteShards(location, "train")
        for name in ("num_objects", "num_views", "class_names", "image_size", "source", "fingerprint", "plan_sha256"):
            assert getattr(shards, name) == getattr(expected, name)
        for name in ("labels", "latents", "quats_xyzw", "keys"):
            np.testing.assert_array_equal(getattr(shards, name), getattr(expected, name))
        objects, views = np.array([22, 0, 7]), np.array([[0, 5], [3, 2], [1, 4]])
        found, wanted = (np.zeros((3, 2, 24, 32, 3), dtype=np.uint8) for _ in range(2))
        sizes = np.zeros((3, 2, 2), dtype=np.int64)
        shards.read_views(objects, views, found, sizes)
        expected.read_views(objects, views, wanted)
        np.testing.assert_array_equal(found, wanted)
        assert (sizes == (24, 32)).all()


def test_bytes_are_those_that_webdataset_reads(server, own_split):
    shards = RemoteShards(server.url, "train")
    samples = list(webdataset.WebDataset(str(own_split / SHARD), shardshuffle=False))
    rows = _views(shards, [5, 6, 7, 8, 9], [[0, 1, 2, 3, 4, 5]] * 5)
    assert rows == [[sample[f"v{view:02d}.jpg"] for view in range(6)] for sample in samples]
    assert server.requests[SHARD] == 1  # what lies close together comes in one request


def test_only_what_is_wanted_is_fetched_where_gaps_are_large(server, own_split):
    shards = RemoteShards(server.url, "train")
    shards.records.remote.max_gap_bytes = 0
    everything = _views(shards, [5, 9], [[0, 1, 2, 3, 4, 5]] * 2)
    server.requests.clear()
    server.bytes_asked.clear()
    assert _views(shards, [9, 5], [[5, 0], [3, 2]]) == [
        [everything[1][5], everything[1][0]],
        [everything[0][3], everything[0][2]],
    ]
    assert server.requests[SHARD] == 4
    wanted = (everything[1][5], everything[1][0], everything[0][3], everything[0][2])
    assert server.bytes_asked[SHARD] == sum(len(view) + 512 for view in wanted)


# Damaged shards. A row is an error, its neighbours are not.


def _member(own_split: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(own_split / SHARD) as tar:
        return tar.getmember(name)


def _overwrite(own_split: Path, offset: int, content: bytes) -> None:
    with open(own_split / SHARD, "r+b") as file:
        file.seek(offset)
        file.write(content)


def _rename(own_split: Path, old: str, new: str, **changes) -> None:
    member = _member(own_split, old)
    member.name = new
    for name, value in changes.items():
        setattr(member, name, value)
    _overwrite(own_split, member.offset, member.tobuf(tarfile.USTAR_FORMAT))


def _flip_bytes(own_split: Path) -> None:
    _overwrite(own_split, _member(own_split, "object_007.v03.jpg").offset_data + 300, b"\x12\x34")


def _damage_header(own_split: Path) -> None:
    _overwrite(own_split, _member(own_split, "object_007.v03.jpg").offset + 148, b"999999")


DAMAGES = {
    "flipped bytes": (_flip_bytes, "does not match its CRC-32C"),
    "damaged header": (_damage_header, "has a damaged tar header"),
    "pickle member": (
        lambda folder: _rename(folder, "object_007.v03.jpg", "object_007.pkl"),
        r"has the tar header of 'object_007\.pkl'",
    ),
    "missing member": (
        lambda folder: _rename(folder, "object_007.v03.jpg", "object_007.v04.jpg"),
        r"has the tar header of 'object_007\.v04\.jpg'",
    ),
    "duplicate key": (
        lambda folder: _rename(folder, "object_007.v03.jpg", "object_006.v03.jpg"),
        r"has the tar header of 'object_006\.v03\.jpg'",
    ),
    "link": (
        lambda folder: _rename(folder, "object_007.v03.jpg", "object_007.v03.jpg", type=tarfile.SYMTYPE),
        "has the tar header of",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_record_is_an_error_naming_shard_member_and_offset(server, own_split, damage, message):
    offset = _member(own_split, "object_007.v03.jpg").offset_data
    damage(own_split)
    for location in (server.url, own_split):
        shards = RemoteShards(location, "train")
        before, row, after = _views(shards, [6, 7, 8], [[3, 0], [0, 3], [3, 0]])
        assert isinstance(before, list) and isinstance(after, list) and isinstance(row, DataError)
        where = rf"image 'object_007\.v03\.jpg' at byte {offset} of shard {location}/{SHARD} "
        with pytest.raises(DataError, match=where + message):
            raise row
        with pytest.raises(DataError, match=where + message):
            shards.read_views(np.array([7]), np.array([[3]]), np.zeros((1, 1, 24, 32, 3), dtype=np.uint8))


def test_a_view_that_does_not_decode_is_an_error(own_split, monkeypatch):
    shards = RemoteShards(own_split, "train")
    size = int(shards.records._sizes[7, 3])
    _overwrite(own_split, int(shards.records._offsets[7, 3]) + size // 2, bytes(size - size // 2))
    monkeypatch.setattr("google_crc32c.value", lambda data: int(shards.records._crc32c[7, 3]))
    with pytest.raises(DataError, match=r"'object_007\.v03\.jpg' at byte \d+ of shard .* does not decode"):
        shards.read_views(np.array([7]), np.array([[3]]), np.zeros((1, 1, 24, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("length", [0, 5000, -512])
def test_a_cut_shard_is_an_error_with_the_key(server, own_split, length):
    size = (own_split / SHARD).stat().st_size
    cut = length if length >= 0 else size + length
    shards = [RemoteShards(location, "train", PATIENT) for location in (server.url, own_split)]
    os.truncate(own_split / SHARD, cut)
    for one in shards:
        with pytest.raises(DataError, match=rf"views of 'object_007' are not to be had: .*/{SHARD} .*{cut} bytes"):
            _views(one, [7], [[3, 0]])


def test_a_server_that_fails_is_an_error_with_shard_and_keys(server):
    shards = RemoteShards(server.url, "train", impatient())
    server.fail(SHARD, "stall")
    message = rf"views of 'object_005', 'object_006', 'object_007' and 2 more are not .*/{SHARD} .*stalls; 2 attempts"
    with pytest.raises(DataError, match=message):
        _views(shards, [5, 6, 7, 8, 9], [[0]] * 5)


# Manifest and index.


def test_unfinished_split_is_refused(server, own_split):
    (own_split / "train.manifest.json").unlink()
    for location in (server.url, own_split):
        with pytest.raises(DataError, match=r"/train\.manifest\.json cannot be read"):
            RemoteShards(location, "train", PATIENT)
    with pytest.raises(DataError, match=r"split name '\.\./train' is not usable"):
        RemoteShards(server.url, "../train")


def test_damaged_index_is_refused_with_its_address(server, own_split):
    path = own_split / "train.index" / "labels.npy"
    np.save(path, np.load(path)[::-1].copy())
    with pytest.raises(DataError, match=rf"sidecar {server.url}/train\.index/labels\.npy does not match the SHA-256"):
        RemoteShards(server.url, "train")


def _forge(folder: Path, name: str, array: np.ndarray) -> None:
    """Replace an array of the index and make the manifest fit it."""
    path = folder / "train.index" / f"{name}.npy"
    np.save(path, array)
    manifest = read_manifest(folder, "train")
    sidecars = manifest.sidecars | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    dataclasses.replace(manifest, sidecars=sidecars).write(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latents", lambda a: np.where(a == a.flat[9], np.nan, a), "holds NaN or infinity"),
        ("latents", lambda a: a[:, :, :6].copy(), r"expected float32 \(23, 6, 7\)"),
        ("keys", lambda a: np.where(a == a[3], a[4], a), "key 'object_004' occurs twice in the shards of http"),
        ("offsets", lambda a: a + 10**9, "points outside a shard"),
    ],
)
def test_inconsistent_index_is_refused_even_with_a_fitting_manifest(server, own_split, name, change, message):
    _forge(own_split, name, change(np.load(own_split / "train.index" / f"{name}.npy")))
    with pytest.raises(DataError, match=message):
        RemoteShards(server.url, "train")


class _WritesFileWhenUnpickled:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_index_with_objects_is_never_unpickled(server, own_split):
    content = io.BytesIO()
    np.save(content, np.array([_WritesFileWhenUnpickled(str(own_split / "executed"))]), allow_pickle=True)
    (own_split / "train.index" / "labels.npy").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"labels\.npy is not a plain \.npy array"):
        RemoteShards(server.url, "train")
    assert not (own_split / "executed").exists()


# Downloading.


def test_downloaded_split_is_the_same(server, own_split, tmp_path):
    seen: list[str] = []
    copy = tmp_path / "a" / "copy"
    manifest = download_split(server.url, "train", copy, max_bytes=10**7, report_shard=seen.append)
    assert seen == [f"train-{number:06d}.tar" for number in range(5)]
    for path in own_split.rglob("*"):
        if path.is_file():
            assert (copy / path.relative_to(own_split)).read_bytes() == path.read_bytes()
    assert ShardDataset(copy, "train").fingerprint == manifest.fingerprint
    assert not list(copy.glob(".fetching-*"))


def test_interrupted_download_goes_on(server, tmp_path):
    server.fail("train-000003.tar", 404, times=1)
    copy = tmp_path / "copy"
    with pytest.raises(DataError, match=r"train-000003\.tar cannot be read \(the server answers 404"):
        download_split(server.url, "train", copy, max_bytes=10**7)
    assert not (copy / "train.manifest.json").exists() and not list(copy.glob(".fetching-*"))
    (copy / "train-000001.tar").write_bytes(b"damaged")
    server.requests.clear()
    download_split(server.url, "train", copy, max_bytes=10**7)
    assert {name for name in server.requests if name.endswith(".tar")} == {
        "train-000001.tar", "train-000003.tar", "train-000004.tar",
    }  # fmt: skip
    ShardDataset(copy, "train")


def test_shard_with_another_checksum_is_not_kept(server, own_split, tmp_path):
    _flip_bytes(own_split)
    copy = tmp_path / "copy"
    with pytest.raises(DataError, match=rf"shard {server.url}/{SHARD} does not match its SHA-256"):
        download_split(server.url, "train", copy, max_bytes=10**7)
    assert not (copy / SHARD).exists()


def test_too_large_a_split_is_refused_before_a_shard_is_fetched(server, tmp_path):
    with pytest.raises(DataError, match=r"have [\d,]+ bytes together and max_bytes is 1,000: allow more, or stream"):
        download_split(server.url, "train", tmp_path / "copy", max_bytes=1000)
    assert not any(name.endswith(".tar") for name in server.requests)


def test_manifest_that_is_far_too_large_is_refused(server, monkeypatch):
    monkeypatch.setattr("ssl_equi.data.remote.views._MAX_MANIFEST_BYTES", 10)
    with pytest.raises(DataError, match="larger than any manifest"):
        RemoteShards(server.url, "train")


def test_manifest_cannot_name_a_file_elsewhere(server, own_split):
    content = json.loads((own_split / "train.manifest.json").read_text())
    content["shards"][0]["name"] = "../elsewhere.tar"
    (own_split / "train.manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not match its fingerprint"):
        RemoteShards(server.url, "train")
