"""Image shards that others wrote: what is a record, what is passed over and counted, and what is named as wrong."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ssl_equi.data.images import decode_image
from ssl_equi.data.shards import foreign
from ssl_equi.data.shards.foreign import records_of_shard
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.verify import find_damage
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError

Members = Sequence[tuple[str, bytes]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Members], Path]:
    """write(members): a folder whose only shard holds them."""

    def write_shard(members: Members) -> Path:
        with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return tmp_path

    return write_shard


def error_of(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        ImageShards(folder, "train")
    assert "\n" not in str(caught.value) and str(folder / "train-000000.tar") in str(caught.value)
    *_, found = find_damage(folder, "train")
    assert found.file.name == "train-000000.tar"
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "image_format"), [
    ("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("gif", "GIF"),
    ("tif", "TIFF"), ("tiff", "TIFF"), ("ppm", "PPM"),
])  # fmt: skip
def test_every_kind_of_image_that_is_decoded_is_found(
    suffix: str, image_format: str, write: Callable[[Members], Path], image_bytes: Callable[..., bytes]
) -> None:
    data = image_bytes(3, image_format)
    shards = ImageShards(write([(f"a/b.{suffix}", data), ("a/b.cls", b"0")]), "train")
    np.testing.assert_array_equal(shards.read_image(0), decode_image(data, "a"))
    assert shards.passed_over == {}


def test_other_members_are_passed_over_counted_and_said(
    write: Callable[[Members], Path], image_bytes: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    members = [("README", b"x"), ("._a.jpg", b"x"), ("meta.json", b"{}")]
    for number in range(3):
        members += [
            (f"{number}.jpg", image_bytes(number)),
            (f"{number}.cls", b"0"),
            (f"{number}.json", b'{"label": 7}'),
        ]
        members += [(f"{number}.tif", b"x"), (f"{number}.seg.png", b"x"), (f"{number}.coarse.cls", b"x")]
    folder = write(members)
    expected = {"hidden or without a suffix": 2, ".json": 4, ".tif": 3, ".png": 3, ".cls": 3}
    for _ in range(2):  # walked, and kept
        shards = ImageShards(folder, "train")
        assert shards.labels.tolist() == [0, 0, 0] and shards.passed_over == expected
    (folder / "val-000000.tar").write_bytes((folder / "train-000000.tar").read_bytes())
    open_data("shards", folder, "val", 16)
    said = "4 .json, 3 .cls, 3 .png, 3 .tif, 2 hidden or without a suffix"
    assert capsys.readouterr().out.splitlines() == [
        f"passed over in split {split!r} of {folder}: {said}" for split in ("train", "val")
    ]


def test_keys_are_those_that_webdataset_finds(
    write: Callable[[Members], Path], image_bytes: Callable[..., bytes]
) -> None:
    names = ["a", "folder.v2/b", "./c", "d-e_f", "folder/.hidden", "\u00e4"]
    folder = write([member for n in names for member in ((f"{n}.jpg", image_bytes(1)), (f"{n}.cls", b"0"))])
    samples = webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False, empty_check=False)
    expected = [sample["__key__"] for sample in samples if "jpg" in sample]
    assert [record.key for record in records_of_shard(folder / "train-000000.tar")] == expected
    assert len(expected) == 5


@pytest.mark.parametrize("label", [0, 1])
def test_a_label_may_stand_in_the_json(
    label: int, write: Callable[[Members], Path], image_bytes: Callable[..., bytes]
) -> None:
    content = json.dumps({"label": label, "caption": "a cat"}).encode()
    shards = ImageShards(write([("a.json", content), ("a.jpg", image_bytes(1))]), "train")
    assert shards.labels.tolist() == [label] and shards.passed_over == {}


JPG = b"a file of which only the header is looked at"
DOTS = "a key ends at the first dot of a file's name, so write the members as KEY.jpg and KEY.cls, KEY without a dot"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["a.jpg", "a.cls", "IMG.2024.jpg", "IMG.2024.cls"], f"key 'IMG' of shard {{shard}} has the members "
         f"'IMG.2024.jpg', 'IMG.2024.cls': {DOTS}"),
        (["0.1.jpg", "0.1.cls", "0.2.jpg", "0.2.cls"], DOTS),
        (["a.jpg", "a.cls", "a.1.jpg", "a.1.cls"], DOTS),
        (["a.0.jpg", "a.1.jpg", "a.cls"], DOTS),
        (["a.heic", "a.cls"], "has no image member beside its .cls, but .heic: write its image as KEY.jpg (or another"),
        (["a.cls"], "but nothing else: write its image as KEY.jpg"),
        (["a.jpg", "a.json"], 'no .json with an integer "label": write its class number as KEY.cls'),
        (["a.jpg"], "has no .cls member beside its image"),
        (["a.jpg", "b.cls"], "key 'a' of shard {shard} has no .cls member"),
        (["a.webp", "a.gif", "a.cls"], "key 'a' of shard {shard} has two images"),
        (["a.jpg", "a.txt", "a.jpg", "a.cls"], "has two images"),
        (["a.txt", "b.json"], "holds no image with a class: write images as KEY.jpg"),
        ([], "holds no image with a class"),
    ],
)  # fmt: skip
def test_records_that_would_be_lost_are_named(
    members: list[str], expected: str, write: Callable[[Members], Path]
) -> None:
    contents = {"cls": b"0", "json": b"{}"}
    folder = write([(name, contents.get(name.rpartition(".")[2], JPG)) for name in members])
    assert expected.format(shard=folder / "train-000000.tar") in error_of(folder)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (("a.cls", b"1" * 100), "member 'a.cls' of shard {shard} has 100 bytes, more than any label"),
        (("a.cls", b"\xff"), "is b'\\xff', not a class number in decimal digits: number the classes from 0"),
        (("a.json", b"[" * 100_000), "member 'a.json' of shard {shard} is nested over 100 levels deep"),
        (("a.json", b"[3]"), "member 'a.json' of shard {shard} holds a JSON array, not an object"),
        (("a.json", b'{"label": "3"}'), 'no .json with an integer "label"'),
        (("a.json", b'{"label": true}'), 'no .json with an integer "label"'),
        (("a.json", b'{"label": -1}'), 'no .json with an integer "label"'),
        (("a.json", b" " * (1 << 20) + b"{}"), "bytes, more than any label"),
    ],
)
def test_labels_that_are_none_are_named(
    label: tuple[str, bytes], expected: str, write: Callable[[Members], Path]
) -> None:
    folder = write([("a.jpg", JPG), label])
    assert expected.format(shard=folder / "train-000000.tar") in error_of(folder)


def test_a_large_label_makes_no_classes(write: Callable[[Members], Path]) -> None:
    members = [("a.jpg", JPG), ("a.cls", b"0"), ("b.jpg", JPG), ("b.cls", b"5000000")]
    folder = write(members)
    shard = folder / "train-000000.tar"
    with pytest.raises(DataError) as caught:
        ImageShards(folder, "train")
    assert str(caught.value) == (
        f"label 5000000 of 'b' in shard {shard} would make 5,000,001 classes for 2 images, where at most 25,000 go "
        f"without names: number the classes from 0, or name them in {folder / 'classes.txt'}"
    )
    write([*members[:3], ("b.cls", b"24999")])
    assert len(ImageShards(folder, "train").class_names) == 25_000
    (folder / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"classes\.txt is no readable text file .*: write a class name a line"):
        ImageShards(folder, "train")


def test_links_and_sparse_files_are_named(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
        with tarfile.open(tmp_path / "train-000000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            folder, member = tarfile.TarInfo("folder"), tarfile.TarInfo("folder/a.jpg")
            folder.type, member.type, member.linkname = tarfile.DIRTYPE, kind, "b.jpg"
            tar.addfile(folder)
            tar.addfile(member)
        assert "member 'folder/a.jpg' of shard" in (found := error_of(tmp_path)) and "a link or another" in found


def test_names_that_are_no_text_are_no_hindrance(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("\udcff\n.jpg", image_bytes(1)), ("\udcff\n.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    shards = ImageShards(tmp_path, "train")
    assert shards.name_of(0).isprintable() and shards.read_image(0).shape == (30, 40, 3)
    assert ImageShards(tmp_path, "train").fingerprint == shards.fingerprint


def test_a_header_of_zeros_is_no_end(write: Callable[[Members], Path], image_bytes: Callable[..., bytes]) -> None:
    members = [member for n in range(4) for member in ((f"{n}.jpg", image_bytes(n)), (f"{n}.cls", b"0"))]
    shard = write(members) / "train-000000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[4].offset
    shard.write_bytes(whole[:place] + bytes(512) + whole[place + 512 :])
    assert f"goes on behind its end marker at byte {place}, where a header was" in error_of(shard.parent)
    shard.write_bytes(whole + whole)
    assert "or another tar appended" in error_of(shard.parent)


def test_shards_that_are_written_anew_are_walked_anew(
    write: Callable[[Members], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageShards(write([("a.jpg", JPG), ("a.cls", b"0")]), "train")
    again = ImageShards(first.folder, "train")
    assert again.content_key == first.content_key
    folder = write([("a.jpg", JPG[::-1]), ("a.cls", b"0")])
    other = ImageShards(folder, "train")
    assert other.fingerprint == first.fingerprint and other.content_key != first.content_key
    walked = Counter[str]()
    monkeypatch.setattr(foreign, "_scan", lambda shards: walked.update(["x"]))
    write([("a.jpg", JPG), ("a.cls", b"1")])
    with pytest.raises(AttributeError):
        ImageShards(folder, "train")
    assert walked == {"x": 1}
