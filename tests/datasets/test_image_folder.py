"""The converter of class folders: the same pixels, resumed, verified, and what it refuses."""

import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import webdataset
from PIL import Image

from ssl_equi.data.images import decode_image
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards import convert
from ssl_equi.data.shards.convert import ConversionOptions
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.index import KINDS
from ssl_equi.data.shards.manifest import read_image_manifest
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from tests.launched import load_script

SCRIPT = Path(__file__).parents[2] / "datasets" / "image_folder.py"


@pytest.fixture(scope="module")
def image_folder() -> ModuleType:
    """The script as a module; datasets/ is no package."""
    return load_script(SCRIPT)


def config(image_folder: ModuleType, source: Path, out: Path, **options: object):
    own = {name: options.pop(name) for name in ("splits", "normalisation") if name in options}
    wanted = {"images_per_shard": 5, "workers": 2, "verify": True, **options}
    return image_folder.Config(source, ConversionOptions(out=out, **wanted), license="CC-BY-4.0", **own)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_shards_hold_the_bytes_and_pixels_of_the_folder(
    image_folder: ModuleType, mixed_folder: Path, tmp_path: Path
) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))
    for split, count in (("train", 12), ("val", 4)):
        folder, shards = ImageFolder(mixed_folder, split), ImageShards(tmp_path / "out", split)
        assert len(shards.labels) == count and shards.class_names == folder.class_names == ("cat", "dog")
        assert (shards.mean_rgb, shards.std_rgb) == (folder.mean_rgb, folder.std_rgb)
        row_of_key = {key.decode(): row for row, key in enumerate(shards._index.keys.tolist())}
        for row in range(count):
            path = folder.path(row)
            stored = row_of_key[f"{path.parent.name}_{path.stem}"]
            assert shards.labels[stored] == folder.labels[row]
            np.testing.assert_array_equal(shards.read_image(stored), folder.read_image(row))
    manifest = read_image_manifest(tmp_path / "out", "train")
    assert manifest.kinds == {"JPEG": 4, "PNG": 4, "WEBP": 2, "BMP": 2} and set(manifest.kinds) <= set(KINDS)
    assert (manifest.source, manifest.source_version, manifest.license) == ("pictures", "unversioned", "CC-BY-4.0")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    stored = {value for sample in webdataset.WebDataset(urls, shardshuffle=False) for value in sample.values()}
    assert {path.read_bytes() for path in (mixed_folder / "train").rglob("*.*")} <= stored


def test_the_whole_source(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))
    shards, folder = (
        open_data(name, path, "val", 16) for name, path in (("shards", tmp_path / "out"), ("folder", mixed_folder))
    )
    assert shards.train.num_objects == folder.train.num_objects and shards.mean_rgb == folder.mean_rgb


def test_normalisation_may_be_the_measured_one(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out", normalisation="measured", splits=("train",)))
    manifest = read_image_manifest(tmp_path / "out", "train")
    assert manifest.mean_rgb == manifest.measured_mean_rgb and manifest.measured_images == 12
    assert not (tmp_path / "out" / "val.manifest.json").exists()


@pytest.mark.parametrize("stopped_after", [0, 4, 5, 11, 13])
def test_interrupted_conversion_gives_the_same_bytes(
    image_folder: ModuleType, mixed_folder: Path, tmp_path: Path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "whole", workers=1))
    parts = config(image_folder, mixed_folder, tmp_path / "parts", workers=1)
    original, calls = convert.prepare_image, []

    def stop(data: bytes, name: str, options: ConversionOptions) -> bytes:
        if len(calls) == stopped_after:
            raise KeyboardInterrupt
        calls.append(name)
        return original(data, name, options)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "prepare_image", stop)
        with pytest.raises(KeyboardInterrupt):
            image_folder.main(parts)
    image_folder.main(parts)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    with monkeypatch.context() as patch:  # complete: nothing is read again
        patch.setattr(ImageFolder, "read_file", None)
        image_folder.main(parts)


def test_keys_are_made_of_any_names(image_folder: ModuleType) -> None:
    keys = image_folder.keys_of_paths(
        [
            "cat/1.jpg", "cat/1.png", "cat/a b.jpg", "cat/a_b.jpg", "cat/a.b.jpg", "Kätzchen/ü.jpg", "cat/sub/1.jpg",
            "cat/" + "x" * 200 + ".jpg", "cat/" + "x" * 201 + ".jpg",
        ]
    )  # fmt: skip
    assert keys[0] == keys[1] == "cat_1"  # two files of one name are refused when they are listed
    assert keys[3] == "cat_a_b"
    assert len(set(keys[1:])) == 8
    assert all(len(key) <= 88 and key.replace("-", "").replace("_", "").isalnum() and key.isascii() for key in keys)


def test_keys_that_would_meet_are_told_apart(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (mixed_folder / split / "cat").rename(mixed_folder / split / "maple")
        (mixed_folder / split / "dog").rename(mixed_folder / split / "maple_tree")
    (mixed_folder / "train" / "maple" / "1.jpeg").rename(mixed_folder / "train" / "maple" / "tree_0.jpeg")
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))
    shards = ImageShards(tmp_path / "out", "train")
    keys = {key.decode(): int(label) for key, label in zip(shards._index.keys, shards.labels)}
    meeting = [key for key in keys if re.fullmatch(r"maple_tree_0-[0-9a-f]{10}", key)]
    assert sorted(keys[key] for key in meeting) == [0, 1] and len(keys) == 12
    assert {"maple_0", "maple_tree_1"} <= set(keys)


def damaged_jpeg(data: bytes) -> bytes:
    """Bytes that Pillow decodes without a word and strict decoding refuses: junk before the end marker."""
    return data[:-2] + bytes(20) + data[-2:]


def test_a_damaged_image_is_an_error_unless_it_is_to_be_repaired(
    image_folder: ModuleType, mixed_folder: Path, tmp_path: Path
) -> None:
    path = mixed_folder / "train" / "dog" / "0.jpg"
    path.write_bytes(damaged_jpeg(path.read_bytes()))
    pixels = np.asarray(Image.open(path))
    with pytest.raises(DataError, match=r"dog/0\.jpg does not decode .* or pass --repair-damaged") as caught:
        image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "repaired", repair_damaged=True))
    manifest = read_image_manifest(tmp_path / "repaired", "train")
    assert manifest.kinds["repaired PNG"] == 1 and manifest.num_objects == 12
    shards = ImageShards(tmp_path / "repaired", "train")
    np.testing.assert_array_equal(shards.read_image(shards._index.keys.tolist().index(b"dog_0")), pixels)


def _cut(source: Path) -> str:
    path = source / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return r"image .*cat/0\.jpg does not decode"


def _pickle(source: Path) -> str:
    (source / "train" / "cat" / "1.jpeg").write_bytes(b"\x80\x04K\x01.")
    return r"image .*cat/1\.jpeg does not decode"


def _empty_file(source: Path) -> str:
    (source / "train" / "cat" / "1.jpeg").write_bytes(b"")
    return r"image .*cat/1\.jpeg is empty"


def _tiny(source: Path) -> str:
    Image.new("RGB", (1, 5)).save(source / "train" / "cat" / "2.png")
    return r"image .*cat/2\.png has 5 x 1 pixels, the smallest side allowed is 2"


def _two_of_one_name(source: Path) -> str:
    (source / "train" / "cat" / "0.png").write_bytes((source / "train" / "cat" / "2.png").read_bytes())
    return r"key 'cat_0' stands for .*cat/0\.jpg and for .*cat/0\.png: give every image a name of its own"


def _empty_class(source: Path) -> str:
    (source / "train" / "horse").mkdir()
    return r"class folder .*train/horse holds no image"


def _class_that_train_lacks(source: Path) -> str:
    (source / "val" / "dog").rename(source / "val" / "horse")
    return r"class 'horse' of .*val is unknown to .*train"


def _no_val(source: Path) -> str:
    (source / "val").rename(source / "judge")
    return r"has no split 'val' but judge, train"


@pytest.mark.parametrize(
    "damage", [_cut, _pickle, _empty_file, _tiny, _two_of_one_name, _empty_class, _class_that_train_lacks, _no_val]
)
@pytest.mark.parametrize("repair_damaged", [False, True])
def test_malformed_folders_are_named_in_one_sentence(
    image_folder: ModuleType, mixed_folder: Path, tmp_path: Path, damage: Callable[[Path], str], repair_damaged: bool
) -> None:
    expected = damage(mixed_folder)
    with pytest.raises(DataError, match=expected) as caught:
        image_folder.main(config(image_folder, mixed_folder, tmp_path / "out", repair_damaged=repair_damaged))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "train.manifest.json").exists()


def test_damage_on_the_disk_is_found_by_verify(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))
    shard = tmp_path / "out" / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[1536] ^= 1  # within the first image
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000001\.tar does not match its SHA-256 in the manifest: rebuild"):
        image_folder.main(config(image_folder, mixed_folder, tmp_path / "out"))


def test_options_that_cannot_be(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images_per_shard is 0: give at least 1"):
        image_folder.main(config(image_folder, mixed_folder, tmp_path / "out", images_per_shard=0))


def test_larger_images_are_shrunk(image_folder: ModuleType, mixed_folder: Path, tmp_path: Path) -> None:
    image_folder.main(config(image_folder, mixed_folder, tmp_path / "out", resize_shorter_side=24))
    shards = ImageShards(tmp_path / "out", "train")
    shorter = [min(shards.read_image(row).shape[:2]) for row in range(12)]
    assert max(shorter) == 24 and min(shorter) == 20


def test_pngs_keep_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    data = convert.encode_png(pixels)
    assert data == convert.encode_png(pixels.copy())
    np.testing.assert_array_equal(decode_image(data, "a"), pixels)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_command_line_converts(
    mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--source": mixed_folder, "--out": tmp_path / "out", "--license": "CC0-1.0", "--splits": "train"}
    monkeypatch.setattr(sys, "argv", ["image_folder.py", *(str(word) for pair in options.items() for word in pair)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "train: 12 images of 2 classes in 1 shards" in " ".join(capsys.readouterr().out.split())
    (mixed_folder / "train" / "cat" / "0.jpg").unlink()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().err
    assert end.value.code == 1 and printed.startswith("error: ") and printed.count("\n") == 1
    assert "made with other options or from other images" in printed
