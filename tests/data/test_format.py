"""Malformed shards: each is an error that names the shard and the member."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ssl_equi.data.shards.format import ObjectRecord, object_members, scan_shard, view_suffix
from ssl_equi.data.shards.tar import ShardWriter
from ssl_equi.errors import DataError


@pytest.fixture
def shard(tmp_path, random_records) -> Path:
    """Three objects of two views."""
    path = tmp_path / "train-000000.tar"
    writer = ShardWriter(path)
    for record in random_records(num_objects=3, num_views=2):
        writer.add(record.key, object_members(record))
    writer.finish()
    return path


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def _write_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _replace(path: Path, name: str, content: bytes) -> None:
    _write_members(path, list((_members(path) | {name: content}).items()))


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def _scan_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(scan_shard(path))
    message = str(caught.value)
    assert str(path) in message
    assert ": " in message  # the cure comes after the thing
    return message


def test_scan_finds_every_byte_that_was_written(shard, random_records):
    content = shard.read_bytes()
    for found, record in zip(scan_shard(shard), random_records(num_objects=3, num_views=2), strict=True):
        assert (found.key, found.label, found.image_size) == (record.key, record.label, (24, 32))
        np.testing.assert_array_equal(found.latents, record.latents)
        for offset, size, image in zip(found.offsets, found.sizes, record.images, strict=True):
            assert content[offset : offset + size] == image


def test_small_members_come_first_and_nothing_tells_who_wrote_it(shard):
    with tarfile.open(shard) as archive:
        infos = archive.getmembers()
    assert [info.name for info in infos[:4]] == [
        f"object_000.{suffix}" for suffix in ("latents.npy", "cls", "v00.jpg", "v01.jpg")
    ]
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in infos} == {(0, 0, 0, "", "")}
    assert shard.read_bytes()[257:263] == b"ustar\x00"


def test_view_suffixes_sort_like_the_views():
    assert view_suffix(3, 50) == "v03.jpg"
    assert view_suffix(3, 100) == "v03.jpg"
    assert view_suffix(3, 101) == "v003.jpg"


@pytest.mark.parametrize("missing_bytes", [1, 100, 600])
def test_shard_cut_inside_a_member(shard, missing_bytes):
    last_object = list(scan_shard(shard))[-1]
    end = last_object.offsets[-1] + last_object.sizes[-1]
    shard.write_bytes(shard.read_bytes()[: end - missing_bytes])
    assert "ends inside member 'object_002.v01.jpg'" in _scan_error(shard)


def test_shard_cut_at_a_member_boundary(shard):
    second_object = list(scan_shard(shard))[1]
    first_view_end = second_object.offsets[1] - tarfile.BLOCKSIZE
    shard.write_bytes(shard.read_bytes()[:first_view_end])
    assert "ends after 'object_001.v00.jpg'" in _scan_error(shard)


def test_shard_cut_at_an_object_boundary(shard):
    second_object = list(scan_shard(shard))[1]
    start = second_object.offsets[0] - 5 * tarfile.BLOCKSIZE  # 3 headers, latents in 1 block, class in 1
    content = shard.read_bytes()[:start]
    shard.write_bytes(content)
    assert "ends after 'object_000.v01.jpg'" in _scan_error(shard)


def test_shard_without_its_second_end_block(shard):
    content = shard.read_bytes().rstrip(b"\0")
    padded = content + bytes(-len(content) % tarfile.BLOCKSIZE) + bytes(tarfile.BLOCKSIZE)
    shard.write_bytes(padded)
    assert "is damaged after 'object_002.v01.jpg'" in _scan_error(shard)


def test_empty_files(shard):
    shard.write_bytes(b"")
    assert "ends after 'the first member'" in _scan_error(shard)
    _write_members(shard, [])
    assert "holds no object" in _scan_error(shard)


def test_damaged_header(shard):
    content = bytearray(shard.read_bytes())
    content[5] ^= 0xFF
    shard.write_bytes(content)
    assert "has a damaged header after 'the first member'" in _scan_error(shard)


@pytest.mark.parametrize(
    "name", ["object_001.v01.jpg", "object_001.cls", "object_001.latents.npy", "object_002.v01.jpg"]
)
def test_missing_member(shard, name):
    _write_members(shard, [member for member in _members(shard).items() if member[0] != name])
    message = _scan_error(shard)
    assert f"'{name}' is due" in message


def test_one_view_too_many(shard):
    members = list(_members(shard).items())
    _write_members(shard, [*members[:4], ("object_000.v02.jpg", members[3][1]), *members[4:]])
    assert "has 'object_000.v02.jpg' where" in _scan_error(shard)


def test_doubled_member(shard):
    members = list(_members(shard).items())
    _write_members(shard, [*members[:3], members[2], *members[3:]])
    assert "has 'object_000.v00.jpg' where 'object_000.v01.jpg' is due" in _scan_error(shard)


def test_views_of_two_formats(shard):
    members = list(_members(shard).items())
    _write_members(shard, [*members[:2], ("object_000.v00.png", members[2][1]), *members[3:]])
    assert "image 'object_000.v00.png' in shard" in _scan_error(shard)
    assert "is jpg and not png: give all views of a split one format" in _scan_error(shard)
    _write_members(shard, [*members[:3], ("object_000.v01.png", members[3][1]), *members[4:]])
    assert "has 'object_000.v01.png' where 'object_000.v01.jpg' is due" in _scan_error(shard)


def test_members_of_two_objects_interleaved(shard):
    members = list(_members(shard).items())
    _write_members(shard, [*members[:3], members[4], members[3], *members[5:]])
    assert "has 'object_001.latents.npy' where 'object_000.v01.jpg' is due" in _scan_error(shard)


def test_doubled_key(shard):
    members = list(_members(shard).items())
    _write_members(shard, [*members, *members[:4]])
    assert "key 'object_000' occurs twice" in _scan_error(shard)


@pytest.mark.parametrize("suffix", ["pickle", "pkl", "pth", "pt", "pyd", "json", "latents.npz", "v00.exe", "vXX.jpg"])
def test_member_outside_the_allowlist(shard, suffix):
    members = list(_members(shard).items())
    _write_members(shard, [*members[:4], (f"object_000.{suffix}", b"cos\nsystem\n."), *members[4:]])
    assert f"member 'object_000.{suffix}' of shard {shard} is of a type that shards may not hold" in _scan_error(shard)


def test_link_member(shard):
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("object_000.latents.npy")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    assert "is not a plain file" in _scan_error(shard)


@pytest.mark.parametrize("key", ["../object", "a/b", "a b", "é"])
def test_keys_that_are_paths_or_odd(shard, key):
    _write_members(shard, [(f"{key}.latents.npy", _npy(np.zeros((2, 7))))])
    with pytest.raises(DataError):
        list(scan_shard(shard))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros(7), "have shape (7,)"),
        (np.zeros((2, 7), dtype=np.int64), "type int64"),
        (np.zeros((0, 7)), "have shape (0, 7)"),
        (np.array([[0.0] * 7, [0, 0, np.nan, 0, 0, 0, 0]]), "hold NaN or infinity in view 1"),
        (np.full((2, 7), np.inf), "hold NaN or infinity in view 0"),
        (np.zeros((3, 7)), "'object_001.v02.jpg' is due"),
        (np.zeros((1, 7)), "has 'object_001.v01.jpg' where"),
        (np.array([{"a": 1}]), "is not a plain .npy array"),
    ],
)
def test_wrong_latents(shard, latents, message):
    _replace(shard, "object_001.latents.npy", _npy(latents))
    found = _scan_error(shard)
    assert "object_001" in found
    assert message in found


def test_latents_that_are_no_npy_file(shard):
    archive = io.BytesIO()
    np.savez(archive, np.zeros((2, 7)))
    for content in (b"", b"\x93NUMPY", b"\x80\x04.", archive.getvalue(), _npy(np.zeros((2, 7)))[:-8]):
        _replace(shard, "object_001.latents.npy", content)
        assert "latents of 'object_001' in shard" in _scan_error(shard)


@pytest.mark.parametrize("content", [b"", b"-1", b"1.5", b"chair", b"1\n"])
def test_label_that_is_no_number(shard, content):
    _replace(shard, "object_001.cls", content)
    assert "label of 'object_001'" in _scan_error(shard)


def test_view_that_is_no_usable_jpeg(shard):
    pixels = np.zeros((24, 32, 4), dtype=np.uint8)
    cmyk = simplejpeg.encode_jpeg(pixels, colorspace="CMYK")
    small = simplejpeg.encode_jpeg(pixels[:16, :, :3].copy())
    for content, message in (
        (b"GIF89a", "is not a readable JPEG"),
        (cmyk, "is a JPEG in YCCK"),
        (small, "is 16x32 pixels"),
    ):
        _replace(shard, "object_001.v01.jpg", content)
        found = _scan_error(shard)
        assert "'object_001.v01.jpg'" in found
        assert message in found


def test_unfinished_shard_has_no_final_name(tmp_path):
    writer = ShardWriter(tmp_path / "train-000000.tar")
    image = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8))
    writer.add("a", object_members(ObjectRecord("a", 0, np.zeros((1, 7)), [image])))
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar.partial"]
    writer.abort()
    assert list(tmp_path.iterdir()) == []
