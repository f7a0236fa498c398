"""What the inspector of shards prints, draws and finds."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simplejpeg

from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.records import ImageSplitSettings
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.errors import DataError

SCRIPT = Path(__file__).parents[2] / "tools" / "inspect_shards.py"


@pytest.fixture(scope="module")
def inspect_shards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_inspect_shards", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image_shards(tmp_path: Path, image_bytes: Callable[..., bytes]) -> Path:
    """Splits train (30 images of 20 classes, two without a class, one in CMYK) and val (4 images)."""
    for split, count in (("val", 4), ("train", 30)):
        settings = ImageSplitSettings(
            split=split, class_names=tuple(f"class {label}" for label in range(20)), source="pictures of the tests",
            source_version="7", license="CC0-1.0", seed=0, images_per_shard=2,
        )  # fmt: skip
        with SplitWriter(tmp_path / "images", settings) as writer:
            for number in range(count):
                kind = ("JPEG", "CMYK" if number == 5 else "RGB")
                label = -1 if number in (7, 8) else number % 19
                data = image_bytes(number, *kind, size=(40 + number, 30))
                writer.add(ImageRecord(f"img_{number:02d}", label, data))
            writer.finish()
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(inspect_shards: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path, **options: object) -> str:
    """What is printed, every run of blanks as one."""
    inspect_shards.main(inspect_shards.Config(folder, workers=2, **options))
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    return " ".join(printed.split())


def fails(inspect_shards: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path, **options: object) -> str:
    with pytest.raises(SystemExit) as end:
        inspect_shards.main(inspect_shards.Config(folder, verify=True, workers=2, **options))
    assert end.value.code == 1
    return " ".join(capsys.readouterr().out.split())


def test_rendered_objects(inspect_shards: ModuleType, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(inspect_shards, capsys, tiny_data, split="train", verify=True)
    assert "split train: whole, every byte read and every image decoded" in text
    assert "objects 24 x 4 views of 32 x 32 pixels" in text and "licence CC0-1.0" in text
    assert "7 latents" in text and "rotation rotation rotation_x" in text and "floor_hue angle floor_hue 0." in text
    assert "3 classes, 8 each" in text and "chair 8" in text
    assert "5 shards" in text and "train-000004.tar 4" in text and "normalisation mean 0." in text


def test_objects_that_move(
    inspect_shards: ModuleType, tiny_moving_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(inspect_shards, capsys, tiny_moving_data, split="val")
    assert "10 latents" in text and "translation translation translation_x" in text
    assert "rigid motions: pose_base, pose_object" in text


def test_images(inspect_shards: ModuleType, image_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(inspect_shards, capsys, image_shards, verify=True)
    assert text.index("split train source") < text.index("split val source")
    assert "source pictures of the tests (7)" in text and "pixels changed no" in text
    assert "images 30, 2 of them without a class" in text and "kinds 29 JPEG, 1 JPEG in CMYK" in text
    assert "width 40 to 69 pixels" in text and "height 30 pixels" in text
    assert "20 classes, 0 to 2 each, 1 without any" in text
    assert "9 left out; --all shows them" in text and "class 12" not in text and "class 19 0" in text
    assert "train-000014.tar 2" in text and "(30 images)" in text
    everything = shown(inspect_shards, capsys, image_shards, split="train", all=True)
    assert "left out" not in everything and "12 class 12 1" in everything and "split val" not in everything


def test_shards_that_others_wrote(
    inspect_shards: ModuleType, image_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_shards / "val.manifest.json").unlink()
    text = shown(inspect_shards, capsys, image_shards, split="val", verify=True)
    assert "made by others: no manifest, no checksums" in text and "4 classes, 1 each" in text
    assert "2 shards" in text and "val-000001.tar 2" in text and "passed over nothing" in text


@pytest.mark.parametrize("foreign", [False, True])
def test_a_contact_sheet_of_images(
    inspect_shards: ModuleType, image_shards: Path, tmp_path: Path, foreign: bool
) -> None:
    if foreign:
        (image_shards / "val.manifest.json").unlink()
    sizes = {"sheet_rows": 2, "sheet_columns": 3, "sheet_image_side": 16}
    sheet = tmp_path / "sheet.jpg"
    inspect_shards.main(inspect_shards.Config(image_shards, split="val", contact_sheet=sheet, **sizes))
    pixels = simplejpeg.decode_jpeg(sheet.read_bytes())
    assert pixels.shape == (32, 48, 3)
    assert pixels[:16].std() > 5 and pixels[16:, 17:].max() < 30  # four images and two empty places


def test_a_contact_sheet_of_objects(inspect_shards: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.jpg"
    inspect_shards.main(
        inspect_shards.Config(tiny_data, split="val", contact_sheet=sheet, sheet_rows=3, sheet_image_side=32)
    )
    assert simplejpeg.decode_jpeg(sheet.read_bytes()).shape == (3 * 32, 4 * 32, 3)


def test_objects_with_different_numbers_of_views(
    inspect_shards: ModuleType, uneven_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = shown(inspect_shards, capsys, uneven_data, split="train", verify=True)
    assert "objects 24 x 3 to 6 views of 32 x 32 pixels" in text and "split train: whole" in text
    split = ShardDataset(uneven_data, "train")
    of_an_image = sum(entry.bytes for entry in split.manifest.shards) / split.view_counts.sum()
    assert f"({of_an_image / 1000:.1f} kB an image)" in text
    options = {"contact_sheet": tmp_path / "sheet.jpg", "sheet_rows": 24, "sheet_image_side": 32}
    inspect_shards.main(inspect_shards.Config(uneven_data, split="train", **options))
    pixels = simplejpeg.decode_jpeg((tmp_path / "sheet.jpg").read_bytes())
    assert pixels.shape == (24 * 32, 6 * 32, 3)
    places = pixels.reshape(24, 32, 6, 32, 3).mean(axis=(1, 3, 4))
    assert sorted((places > 20).sum(axis=1)) == sorted(split.view_counts), "black where there is no view"


def flip(path: Path, offsets: Sequence[int]) -> None:
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 1
    path.write_bytes(content)


def test_every_damaged_record_is_listed(
    inspect_shards: ModuleType, image_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offsets = np.load(image_shards / "train.index" / "offsets.npy")
    flip(image_shards / "train-000003.tar", offsets[6:8] + 100)
    text = fails(inspect_shards, capsys, image_shards)
    assert "split train: 3 damaged" in text and "split val: whole" in text
    assert f"train-000003.tar img_06 {offsets[6]:,} does not match its CRC-32C" in text
    assert f"train-000003.tar img_07 {offsets[7]:,} does not match its CRC-32C" in text
    assert "images 30" in text  # the rest is shown all the same


def test_long_lists_of_damage_are_cut_unless_all_is_asked_for(
    inspect_shards: ModuleType, image_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in sorted(image_shards.glob("train-*.tar"))[:14]:
        shard.unlink()
    text = fails(inspect_shards, capsys, image_shards, split="train")
    assert "14 damaged" in text and "train-000011.tar is missing" in text and "train-000012.tar is" not in text
    assert "2 left out; --all shows them" in text and "not shown: shard" in text
    assert "train-000013.tar is missing" in fails(inspect_shards, capsys, image_shards, split="train", all=True)


def test_damaged_objects_are_listed(
    inspect_shards: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_data, folder)
    offset = int(np.load(folder / "val.index" / "offsets.npy")[1, 2])
    flip(folder / "val-000000.tar", [offset + 700])
    text = fails(inspect_shards, capsys, folder, split="val")
    assert "v02.jpg" in text and f"{offset:,} does not match its CRC-32C" in text


def test_what_cannot_be_shown_is_named(inspect_shards: ModuleType, image_shards: Path, tmp_path: Path) -> None:
    for folder, options, expected in (
        (tmp_path / "nowhere", {}, "there is no folder"),
        (tmp_path / "empty", {}, r"holds neither a manifest nor shards SPLIT-\*\.tar"),
        (image_shards, {"split": "test"}, r"has no shards test-\*\.tar but train, val"),
        (image_shards, {"split": "test", "verify": True}, r"has no shards test-\*\.tar"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=expected):
            inspect_shards.main(inspect_shards.Config(folder, **options))
