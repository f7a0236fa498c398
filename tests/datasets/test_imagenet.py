"""The converter of ImageNet, on small trees and archives of exactly the official layouts."""

import dataclasses
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import webdataset
from PIL import Image

from ssl_equi.data.shards.convert import ConversionOptions
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import read_image_manifest
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from tests.launched import load_script

SCRIPT = Path(__file__).parents[2] / "datasets" / "imagenet.py"
WNIDS = ("n01440764", "n01739381", "n02105855")
DEVKIT_IDS = {"n01440764": 449, "n01739381": 61, "n02105855": 5}  # not in the order of the WordNet ids
VAL_CLASSES = (2, 0, 1, 1, 2)  # of the images 1 to 5


@pytest.fixture(scope="module")
def imagenet() -> ModuleType:
    """The script as a module; datasets/ is no package."""
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def train_files(image_bytes: Callable[..., bytes]) -> dict[str, bytes]:
    """Four images of each class, one in CMYK and one PNG named .JPEG, as in the real set."""
    files = {}
    for label, wnid in enumerate(WNIDS):
        for number in range(4):
            kind = {(1, 0): ("JPEG", "CMYK"), (2, 3): ("PNG", "RGB")}.get((label, number), ("JPEG", "RGB"))
            size = (40 + 10 * number, 30 + 7 * label)
            files[f"{wnid}/{wnid}_{13 * number + 7}.JPEG"] = image_bytes(number + 5 * label, *kind, size=size)
    return files


@pytest.fixture(scope="module")
def val_files(image_bytes: Callable[..., bytes]) -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number:08d}.JPEG": image_bytes(20 + number) for number in range(1, 6)}


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar as GNU tar writes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname = len(content), 1339000000, 1000, "imagenet"
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def class_tar(files: dict[str, bytes], wnid: str) -> bytes:
    return tar_of([(name.partition("/")[2], data) for name, data in files.items() if name.startswith(wnid)])


@pytest.fixture
def folders(tmp_path: Path, train_files: dict[str, bytes], val_files: dict[str, bytes]) -> Path:
    """train/ and val/ with class folders."""
    source = tmp_path / "folders"
    placed = {f"train/{name}": data for name, data in train_files.items()}
    for (name, data), label in zip(val_files.items(), VAL_CLASSES):
        placed[f"val/{WNIDS[label]}/{name}"] = data
    for name, data in placed.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return source


@pytest.fixture
def archives(tmp_path: Path, train_files: dict[str, bytes], val_files: dict[str, bytes]) -> Path:
    """The two official archives and the two text files; classes stand in the archive in another order."""
    source = tmp_path / "archives"
    source.mkdir()
    inner = [(f"{wnid}.tar", class_tar(train_files, wnid)) for wnid in reversed(WNIDS)]
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (source / "ILSVRC2012_img_val.tar").write_bytes(tar_of(list(reversed(val_files.items()))))
    ids = "".join(f"{DEVKIT_IDS[WNIDS[label]]}\n" for label in VAL_CLASSES)
    (source / "ILSVRC2012_validation_ground_truth.txt").write_text(ids)
    (source / "synset_ids.txt").write_text("".join(f"{DEVKIT_IDS[wnid]} {wnid} some words\n" for wnid in WNIDS))
    return source


def config(imagenet: ModuleType, source: Path, out: Path, **options: object):
    wanted = {"images_per_shard": 5, "workers": 2, "verify": True, **options}
    return imagenet.Config(source, ConversionOptions(out=out, **wanted), source_name="three classes", license="none")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images_by_key(folder: Path, split: str) -> dict[str, tuple[bytes, int]]:
    urls = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    return {sample["__key__"]: (sample.get("jpg") or sample["png"], int(sample["cls"])) for sample in samples}


def test_folders_and_archives_give_the_same_shards_with_every_byte_kept(
    imagenet: ModuleType, folders: Path, archives: Path, tmp_path: Path, train_files, val_files, capsys
) -> None:
    for source in (folders, archives):
        imagenet.main(config(imagenet, source, tmp_path / f"from_{source.name}"))
    out = tmp_path / "from_folders"
    assert files_of(out) == files_of(tmp_path / "from_archives")
    expected = {name[10:-5]: (data, WNIDS.index(name[:9])) for name, data in train_files.items()}
    assert images_by_key(out, "train") == expected
    labels = {f"ILSVRC2012_val_{number:08d}": label for number, label in enumerate(VAL_CLASSES, 1)}
    assert images_by_key(out, "val") == {name[:-5]: (data, labels[name[:-5]]) for name, data in val_files.items()}
    printed = " ".join(capsys.readouterr().out.split())
    assert "train: 12 images of 3 classes in 3 shards" in printed


def test_only_as_many_images_as_imagenet_has_are_stamped_as_imagenet(
    imagenet: ModuleType, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = config(imagenet, folders, tmp_path / "named")
    unnamed = dataclasses.replace(named, source_name=None, license=None)
    with pytest.raises(
        DataError, match=r"holds 12 train and 5 val images, and ImageNet has 1,281,167 and 50,000: .*say"
    ):
        imagenet.main(unnamed)
    imagenet.main(named)
    manifest = read_image_manifest(tmp_path / "named", "train")
    assert (manifest.source, manifest.license, manifest.source_version) == ("three classes", "none", "unversioned")
    monkeypatch.setattr(imagenet, "OFFICIAL_COUNTS", {"train": 12, "val": 5})
    imagenet.main(dataclasses.replace(unnamed, options=dataclasses.replace(named.options, out=tmp_path / "official")))
    manifest = read_image_manifest(tmp_path / "official", "train")
    assert manifest.source.startswith("ImageNet-1k") and manifest.source_version == "ILSVRC2012"
    assert "non-commercial" in manifest.license


def test_pixels_are_those_of_pillow_also_in_cmyk_and_in_a_png(
    imagenet: ModuleType, archives: Path, tmp_path: Path, train_files: dict[str, bytes]
) -> None:
    imagenet.main(config(imagenet, archives, tmp_path / "out"))
    train = ImageShards(tmp_path / "out", "train")
    manifest = read_image_manifest(tmp_path / "out", "train")
    assert manifest.kinds == {"JPEG": 10, "JPEG in CMYK": 1, "PNG": 1}
    assert (manifest.class_names, manifest.source_version, manifest.reencoding) == (WNIDS, "unversioned", None)
    assert manifest.mean_rgb == (0.485, 0.456, 0.406)
    for row, key in enumerate(train._index.keys.tolist()):
        source = train_files[f"{key.decode()[:9]}/{key.decode()}.JPEG"]
        np.testing.assert_array_equal(train.read_image(row), Image.open(io.BytesIO(source)).convert("RGB"))
    data = open_data("imagenet", tmp_path / "out", "val", 16)
    assert (data.train.num_objects, data.evaluation.num_objects) == (12, 5)


def test_images_are_stored_in_a_seeded_order(imagenet: ModuleType, folders: Path, tmp_path: Path) -> None:
    orders = []
    for name, seed, workers in (("a", 0, 1), ("b", 0, 3), ("c", 1, 2)):
        imagenet.main(config(imagenet, folders, tmp_path / name, seed=seed, workers=workers))
        orders.append(list(images_by_key(tmp_path / name, "train")))
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) != orders[0]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("stopped_after", [0, 5, 9, 10, 14])
def test_interrupted_conversion_goes_on_and_reads_finished_images_no_more(
    imagenet: ModuleType, archives: Path, tmp_path: Path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = config(imagenet, archives, tmp_path / "whole"), config(imagenet, archives, tmp_path / "parts")
    imagenet.main(whole)
    parts = dataclasses.replace(parts, options=dataclasses.replace(parts.options, workers=1))
    original = imagenet.ArchivedImages.read
    read: list[str] = []

    def stop(images, row: int) -> bytes:
        if len(read) == stopped_after:
            raise KeyboardInterrupt
        read.append(images.names[row])
        return original(images, row)

    monkeypatch.setattr(imagenet.ArchivedImages, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        imagenet.main(parts)
    kept = 5 * len(list((tmp_path / "parts").glob("*.finished.json")))
    if (tmp_path / "parts" / "train.manifest.json").exists():
        kept = 12
    kept_names = set(read[:kept])

    read.clear()
    monkeypatch.setattr(
        imagenet.ArchivedImages, "read", lambda images, row: read.append(images.names[row]) or original(images, row)
    )
    imagenet.main(parts)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert not kept_names & set(read) and len(read) == 12 + 5 - kept


def test_shorter_sides_are_resized_and_the_manifest_says_so(
    imagenet: ModuleType, folders: Path, tmp_path: Path, train_files: dict[str, bytes]
) -> None:
    imagenet.main(config(imagenet, folders, tmp_path / "out", resize_shorter_side=32))
    manifest = read_image_manifest(tmp_path / "out", "train")
    assert "shorter side of 32 pixels" in manifest.reencoding and "quality 90" in manifest.reencoding
    for key, (data, label) in images_by_key(tmp_path / "out", "train").items():
        source = train_files[f"{WNIDS[label]}/{key}.JPEG"]
        before, after = Image.open(io.BytesIO(source)).convert("RGB"), Image.open(io.BytesIO(data))
        if min(before.size) <= 32:
            assert data == source
            continue
        shorter = min(before.size)
        expected = before.resize(tuple(32 * side // shorter for side in before.size), Image.Resampling.BILINEAR)
        assert (after.size, after.format) == (expected.size, "JPEG")
        difference = np.abs(np.asarray(after, np.int64) - np.asarray(expected, np.int64))
        assert difference.mean() < 4
    with pytest.raises(DataError, match="holds a train split made with other options"):
        imagenet.main(config(imagenet, folders, tmp_path / "out"))
    with pytest.raises(DataError, match="--resize-shorter-side is 1"):
        imagenet.main(config(imagenet, folders, tmp_path / "other", resize_shorter_side=1))


def test_ground_truth_may_name_wordnet_ids(imagenet: ModuleType, archives: Path, tmp_path: Path) -> None:
    (archives / "synset_ids.txt").unlink()
    (archives / "labels.txt").write_text("\n".join(WNIDS[label] for label in VAL_CLASSES))
    wanted = dataclasses.replace(config(imagenet, archives, tmp_path / "out"), ground_truth=Path("labels.txt"))
    imagenet.main(wanted)
    assert [label for _, (_, label) in sorted(images_by_key(tmp_path / "out", "val").items())] == list(VAL_CLASSES)


def test_folders_to_train_on_and_an_archive_to_judge_on(
    imagenet: ModuleType, folders: Path, archives: Path, tmp_path: Path
) -> None:
    imagenet.main(config(imagenet, archives, tmp_path / "whole"))
    (folders / "val").rename(tmp_path / "elsewhere")
    for path in archives.glob("*val*"):
        path.rename(folders / path.name)
    (archives / "synset_ids.txt").rename(folders / "synset_ids.txt")
    imagenet.main(config(imagenet, folders, tmp_path / "out"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def _cut_train(source: Path, files: dict[str, bytes]) -> str:
    path = source / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20000])
    return r"archive .*ILSVRC2012_img_train\.tar is cut or damaged at byte"


def _cut_val(source: Path, files: dict[str, bytes]) -> str:
    path = source / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes()[:3000])
    return r"archive .*ILSVRC2012_img_val\.tar is cut or damaged at byte"


def _cut_class(source: Path, files: dict[str, bytes]) -> str:
    inner = [(f"{wnid}.tar", class_tar(files, wnid)) for wnid in WNIDS]
    inner[1] = (inner[1][0], inner[1][1][:2500])
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    return r"'n01739381\.tar' in archive .* is cut or damaged at byte"


def _empty_class(source: Path, files: dict[str, bytes]) -> str:
    inner = [(f"{wnid}.tar", class_tar(files, wnid)) for wnid in WNIDS]
    inner[2] = (inner[2][0], tar_of([]))
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    return r"class archive 'n02105855\.tar' in .* holds no image"


def _no_class(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of([]))
    return "holds no class"


def _pickle_among_classes(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of([("evil.pkl", b"\x80\x04.")]))
    return r"holds 'evil\.pkl' where only nXXXXXXXX\.tar are due"


def _pickle_among_images(source: Path, files: dict[str, bytes]) -> str:
    inner = tar_of([("n01440764_7.JPEG", files["n01440764/n01440764_7.JPEG"]), ("evil.pkl", b"\x80\x04.")])
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of([("n01440764.tar", inner)]))
    return r"holds 'evil\.pkl' where only n01440764_NUMBER\.JPEG are due"


def _doubled_image(source: Path, files: dict[str, bytes]) -> str:
    data = files["n01440764/n01440764_7.JPEG"]
    _replace_first_class(source, files, [("n01440764_7.JPEG", data), ("n01440764_7.JPEG", data)])
    return "key 'n01440764_7' stands for 'n01440764_7.JPEG' in .* and for"


def _unreadable_image(source: Path, files: dict[str, bytes]) -> str:
    data = files["n01440764/n01440764_7.JPEG"]
    _replace_first_class(source, files, [("n01440764_7.JPEG", data), ("n01440764_8.JPEG", data[:-60])])
    return r"image 'n01440764_8\.JPEG' in .*train\.tar does not decode"


def _replace_first_class(source: Path, files: dict[str, bytes], members: Sequence[tuple[str, bytes]]) -> None:
    inner = [(f"{wnid}.tar", class_tar(files, wnid)) for wnid in WNIDS]
    inner[0] = (inner[0][0], tar_of(members))
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))


def _no_train(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_img_train.tar").unlink()
    return r"holds neither train/ nor ILSVRC2012_img_train\.tar: download the archive"


def _no_val(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_img_val.tar").unlink()
    return r"holds neither val/ nor ILSVRC2012_img_val\.tar: download the archive"


def _val_folders_alone(source: Path, files: dict[str, bytes]) -> str:
    (source / "val").mkdir()
    return "holds val/ but no train/: unpack"


def _missing_val_image(source: Path, files: dict[str, bytes]) -> str:
    path = source / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text(path.read_text() + "5\n")
    return r"holds 5 images but .*ground_truth\.txt 6 labels"


def _foreign_val_image(source: Path, files: dict[str, bytes]) -> str:
    images = [(f"ILSVRC2012_val_{number:08d}.JPEG", b"x") for number in (1, 2, 3, 4, 6)]
    (source / "ILSVRC2012_img_val.tar").write_bytes(tar_of(images))
    return r"holds 'ILSVRC2012_val_00000006\.JPEG' where ILSVRC2012_val_00000001\.JPEG to 00000005 are due"


def _no_ground_truth(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_validation_ground_truth.txt").unlink()
    return r"ground_truth\.txt is missing: put the devkit's .* or name it with --ground-truth"


def _no_synset_ids(source: Path, files: dict[str, bytes]) -> str:
    (source / "synset_ids.txt").unlink()
    return r"synset_ids\.txt is missing: put lines 'ID WNID'"


def _binary_synset_ids(source: Path, files: dict[str, bytes]) -> str:
    (source / "synset_ids.txt").write_bytes(b"MATLAB 5.0 \xff\xfe\x80")
    return r"synset_ids\.txt is no readable text file"


def _empty_synset_ids(source: Path, files: dict[str, bytes]) -> str:
    (source / "synset_ids.txt").write_text("\n\n")
    return r"synset_ids\.txt is empty"


def _odd_synset_line(source: Path, files: dict[str, bytes]) -> str:
    (source / "synset_ids.txt").write_text("n01440764 tench\n")
    return "has the line 'n01440764 tench': every line must read like '1 n02119789'"


def _doubled_synset_id(source: Path, files: dict[str, bytes]) -> str:
    (source / "synset_ids.txt").write_text("5 n01440764\n5 n02105855\n")
    return r"synset_ids\.txt lists id 5 twice"


def _unknown_id(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_validation_ground_truth.txt").write_text("5\n449\n61\n1000\n5\n")
    return r"line 4 of .*ground_truth\.txt is '1000', an id that .*synset_ids\.txt doesn't have"


def _class_without_training_images(source: Path, files: dict[str, bytes]) -> str:
    (source / "ILSVRC2012_validation_ground_truth.txt").write_text("n01440764\n" * 4 + "n09999999\n")
    return "gives 'ILSVRC2012_val_00000005.JPEG' the class n09999999, which the train split doesn't have"


@pytest.mark.parametrize(
    "damage",
    [
        _cut_train, _cut_val, _cut_class, _empty_class, _no_class, _pickle_among_classes, _pickle_among_images,
        _doubled_image, _unreadable_image, _no_train, _no_val, _val_folders_alone, _missing_val_image,
        _foreign_val_image, _no_ground_truth, _no_synset_ids, _binary_synset_ids, _empty_synset_ids, _odd_synset_line,
        _doubled_synset_id, _unknown_id, _class_without_training_images,
    ],
)  # fmt: skip
def test_malformed_archives_are_named_in_one_sentence(
    imagenet: ModuleType, archives: Path, tmp_path: Path, train_files: dict[str, bytes], damage: Callable
) -> None:
    expected = damage(archives, train_files)
    with pytest.raises(DataError, match=expected) as caught:
        imagenet.main(config(imagenet, archives, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "train.manifest.json").exists()


def test_malformed_folders_are_named(imagenet: ModuleType, folders: Path, tmp_path: Path) -> None:
    wanted = config(imagenet, folders, tmp_path / "out")
    (folders / "train" / "n03000000").mkdir()
    with pytest.raises(DataError, match=r"class folder .*n03000000 holds no image"):
        imagenet.main(wanted)
    (folders / "train" / "n03000000").rename(folders / "train" / "tench")
    (folders / "train" / "tench" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(DataError, match=r"class folder .*tench isn't named by a WordNet id such as n01440764"):
        imagenet.main(wanted)


def test_a_file_that_vanishes_while_converting_is_named(
    imagenet: ModuleType, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = imagenet.images_of_folders(folders, "train")
    (folders / "train" / "n01440764" / "n01440764_7.JPEG").unlink()
    monkeypatch.setattr(imagenet, "train_images", lambda config: listed)
    with pytest.raises(DataError, match=r"image .*n01440764_7\.JPEG cannot be read \(No such file"):
        imagenet.main(config(imagenet, folders, tmp_path / "out"))
