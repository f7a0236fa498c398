"""Images in folders, and what the loader makes of them."""

import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_equi.data.cache import CachedViews
from ssl_equi.data.derived import ViewSubset
from ssl_equi.data.images import Canvas, CenterCrop, decode_image
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.single_views import SingleViews
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from ssl_equi.views.saliency import computed_saliency

FIFTH = (2**32 // 5).to_bytes(4, "big")


def test_classes_and_files_are_sorted(mixed_folder: Path) -> None:
    (mixed_folder / "train" / "cat" / "deeper").mkdir()
    (mixed_folder / "train" / "cat" / "deeper" / "6.JPG").write_bytes(
        (mixed_folder / "train" / "cat" / "0.jpg").read_bytes()
    )
    for passed_over in ("._0.jpg", "notes.txt", "Thumbs.db"):
        (mixed_folder / "train" / "cat" / passed_over).write_bytes(b"")
    train = ImageFolder(mixed_folder, "train")
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0] * 7 + [1] * 6 and train.labels.dtype == np.int64
    names = ["0.jpg", "1.jpeg", "2.png", "3.png", "4.webp", "5.bmp", "deeper/6.JPG"]
    for index, name in enumerate(names):
        expected = decode_image((mixed_folder / "train" / "cat" / name).read_bytes(), name)
        np.testing.assert_array_equal(train.read_image(index), expected)


def test_a_class_may_be_absent_from_the_evaluated_split(mixed_folder: Path) -> None:
    (mixed_folder / "train" / "ape").mkdir()
    (mixed_folder / "train" / "ape" / "0.jpg").write_bytes((mixed_folder / "train" / "cat" / "0.jpg").read_bytes())
    evaluated = ImageFolder(mixed_folder, "val")
    assert evaluated.class_names == ("ape", "cat", "dog")
    assert evaluated.labels.tolist() == [1, 1, 2, 2]


def test_the_fingerprint_follows_names_and_sizes_not_places(mixed_folder: Path, tmp_path: Path) -> None:
    first = ImageFolder(mixed_folder, "train").fingerprint
    moved = mixed_folder.rename(tmp_path / "elsewhere")
    assert ImageFolder(moved, "train").fingerprint == first
    (moved / "train" / "cat" / "0.jpg").rename(moved / "train" / "cat" / "00.jpg")
    renamed = ImageFolder(moved, "train").fingerprint
    (moved / "train" / "dog" / "0.jpg").write_bytes(b"other")
    assert len({first, renamed, ImageFolder(moved, "train").fingerprint}) == 3


def test_the_loader_reports_each_pictures_size_on_the_canvas(mixed_folder: Path) -> None:
    views = SingleViews(ImageFolder(mixed_folder, "train"), Canvas(64))
    with stored_loader(views, global_batch_size=6, views=1, seed=0, threads=2) as loader:
        assert loader.steps_per_epoch == 2
        batches = list(itertools.islice(loader.batches(), 2))
        seen = []
        for batch in batches:
            assert batch.images.shape == (6, 1, 64, 64, 3)
            assert batch.latents.shape == (6, 1, 0)
            assert batch.quat_xyzw is None
            assert batch.content_sizes is not None and batch.content_sizes.dtype == torch.int64
            assert batch.to("cpu").content_sizes is not None
            for index, image, (height, width) in zip(
                batch.object_indices.tolist(), batch.images[:, 0].numpy(), batch.content_sizes[:, 0].tolist()
            ):
                expected = np.zeros((64, 64, 3), np.uint8)
                assert (height, width) == Canvas(64).place(views.store.read_image(index), expected)
                np.testing.assert_array_equal(image, expected)
                assert max(height, width) <= 64
                seen.append(index)
        assert sorted(seen) == list(range(12))


def test_two_views_cannot_be_drawn_of_objects_that_have_one(mixed_folder: Path) -> None:
    views = SingleViews(ImageFolder(mixed_folder, "train"), Canvas(64))
    with pytest.raises(ValueError, match="cannot draw 2 distinct views of objects that have 1"):
        stored_loader(views, global_batch_size=6, views=2, seed=0)


def test_the_probes_see_square_images(mixed_folder: Path) -> None:
    data = open_data("folder", mixed_folder, "val", 32)
    assert not data.has_poses
    assert data.train.image_size == (64, 64) and not data.train.fills_image
    assert data.probe_train.image_size == data.evaluation.image_size == (32, 32)
    assert data.probe_train.fills_image and data.probe_train.num_objects == data.train.num_objects == 12
    assert data.train.plan_sha256 == data.probe_train.plan_sha256 != data.evaluation.plan_sha256
    assert data.mean_rgb == (0.485, 0.456, 0.406)
    out = np.zeros((4, 1, 32, 32, 3), np.uint8)
    sizes = np.zeros((4, 1, 2), np.int64)
    data.evaluation.read_views(np.arange(4), np.zeros((4, 1), int), out, sizes)
    assert (sizes == 32).all() and (out.reshape(4, -1).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"a shopping list", "does not decode"), (None, "cannot be read")],
)
def test_a_file_that_is_no_image_is_named_when_it_is_read(
    mixed_folder: Path, content: bytes | None, expected: str
) -> None:
    path = mixed_folder / "train" / "dog" / "0.jpg"
    if content is not None:
        path.write_bytes(content)
    views = SingleViews(ImageFolder(mixed_folder, "train"), Canvas(64))
    if content is None:
        path.unlink()
    with (
        stored_loader(views, global_batch_size=12, views=1, seed=0) as loader,
        pytest.raises(DataError, match=expected) as caught,
    ):
        next(loader.batches())
    assert str(path) in str(caught.value)


def test_wrong_layouts_are_named(mixed_folder: Path, image_bytes: Callable[..., bytes]) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        open_data("folder", mixed_folder / "nowhere", "val", 32)
    with pytest.raises(DataError, match="give its folder as --data-dir"):
        open_data("folder", None, "val", 32)
    with pytest.raises(DataError, match=r"has no split 'test' but train, val"):
        open_data("folder", mixed_folder, "test", 32)
    with pytest.raises(DataError, match="never trained on"):
        open_data("folder", mixed_folder, "train", 32)
    with pytest.raises(DataError, match="--image-size is 0"):
        open_data("folder", mixed_folder, "val", 0)
    (mixed_folder / "val" / "emu").mkdir()
    with pytest.raises(DataError, match=r"class 'emu' of .*val is unknown to .*train, which has 2 classes"):
        open_data("folder", mixed_folder, "val", 32)
    (mixed_folder / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"class folder .*emu holds no image"):
        open_data("folder", mixed_folder, "val", 32)
    flat = mixed_folder / "flat"
    (flat / "train").mkdir(parents=True)
    (flat / "train" / "0.jpg").write_bytes(image_bytes(0))
    with pytest.raises(DataError, match="holds no class folders"):
        open_data("folder", flat, "val", 32)


def test_what_is_no_image_is_counted_and_said(
    mixed_folder: Path, image_bytes: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    train = mixed_folder / "train"
    for name in ("notes.txt", "cat/Thumbs.db", "cat/a.HEIC", "cat/b.heic", "dog/LICENSE", "dog/._0.jpg"):
        (train / name).write_bytes(b"x")
    (train / ".git").mkdir()
    (train / "cat" / "lists.txt").symlink_to("/nowhere/at/all")
    assert ImageFolder(mixed_folder, "train").passed_over == {
        "outside of the class folders": 1, ".db": 1, ".heic": 2, "without a suffix": 1, "hidden": 2, ".txt": 1,
    }  # fmt: skip
    open_data("folder", mixed_folder, "val", 32)
    assert capsys.readouterr().out == (
        f"passed over in split 'train' of {mixed_folder}: 2 .heic, 2 hidden, 1 .db, 1 .txt, 1 outside of the class "
        "folders, 1 without a suffix\n"
    )


def test_links_are_followed_and_those_to_nowhere_named(mixed_folder: Path) -> None:
    cat, dog = mixed_folder / "train" / "cat", mixed_folder / "train" / "dog"
    (cat / "more").symlink_to(dog)
    (cat / "linked.png").symlink_to(dog / "2.png")
    assert len(ImageFolder(mixed_folder, "train").labels) == 12 + 6 + 1
    (cat / "7.png").symlink_to("/nowhere/7.png")
    with pytest.raises(DataError, match=r"cat/7\.png is a link to /nowhere/7\.png, where no file is: restore that"):
        open_data("folder", mixed_folder, "val", 32)
    (cat / "7.png").unlink()
    os.mkfifo(cat / "pipe.png")
    with pytest.raises(DataError, match=r"cat/pipe\.png is neither a file nor a link to one"):
        ImageFolder(mixed_folder, "train")
    (cat / "pipe.png").unlink()
    (dog / "deep").mkdir()
    (dog / "deep" / "round").symlink_to(dog)
    with pytest.raises(DataError, match=r"deep/round is a link to a folder that contains it: remove the link"):
        ImageFolder(mixed_folder, "train")


@pytest.mark.parametrize("locked", ["train", "train/cat", "train/cat/deep"])
def test_a_folder_without_permission_is_named(locked: str, mixed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mixed_folder / "train/cat/deep").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:  # root may read everything
        if Path(path) == mixed_folder / locked:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=rf"folder .*{locked} can't be read \(Permission denied\): allow it"):
        open_data("folder", mixed_folder, "val", 32)


def test_the_content_key_follows_files_that_are_written_anew(mixed_folder: Path) -> None:
    first = ImageFolder(mixed_folder, "train")
    assert ImageFolder(mixed_folder, "train").content_key == first.content_key
    path = mixed_folder / "train" / "dog" / "0.jpg"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-3] + b"abc")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = ImageFolder(mixed_folder, "train")
    assert changed.fingerprint == first.fingerprint and changed.content_key != first.content_key
    views = [SingleViews(store, Canvas(64)) for store in (first, changed)]
    subsets = [ViewSubset(each, np.arange(3), np.zeros((3, 1), int)) for each in views]
    assert len({each.content_key for each in (*views, *subsets)}) == 4
    assert len({each.fingerprint for each in (*views, *subsets)}) == 2


def test_pictures_that_are_written_anew_meet_no_old_cache(mixed_folder: Path, tmp_path: Path) -> None:
    pixels, maps = [], []
    for level in (40, 200):
        picture = np.full((32, 32, 3), 255 - level, np.uint8)
        picture[8:16, 8 + level // 20 : 20] = level
        for path in sorted((mixed_folder / "train").rglob("*.*")):
            Image.fromarray(picture).save(path, "BMP")
        views = SingleViews(ImageFolder(mixed_folder, "train"), CenterCrop(32, 32))
        out = np.empty((1, 1, 32, 32, 3), np.uint8)
        CachedViews(views, tmp_path / "decoded").read_views(np.array([3]), np.array([[0]]), out)
        np.testing.assert_array_equal(out[0, 0], picture)
        pixels.append(out.tobytes())
        maps.append(computed_saliency(views, "spectral_residual", tmp_path).read(torch.tensor([3]), torch.tensor([0])))
    assert pixels[0] != pixels[1] and not torch.equal(*maps)


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_without_splits_is_split_by_the_hashes_of_its_paths(flat_folder: Path, nested: bool) -> None:
    if nested:
        for path in list(flat_folder.iterdir()):
            target = flat_folder / ("even" if int(path.stem) % 2 == 0 else "odd/deeper") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    train, val = (ImageFolder(flat_folder, split) for split in ("train", "val"))
    names = [{store.path_in_split(row).as_posix() for row in range(len(store.labels))} for store in (train, val)]
    held_out = {name for name in names[0] | names[1] if hashlib.sha256(name.encode()).digest()[:4] < FIFTH}
    assert train.splits_itself and names[1] == held_out and names[0].isdisjoint(held_out)
    assert len(names[0]) + len(names[1]) == 30
    assert train.class_names == val.class_names == (("even", "odd") if nested else ("photographs",))
    (flat_folder / "another.jpg").write_bytes((flat_folder / names[0].pop()).read_bytes())
    more = ImageFolder(flat_folder, "val")
    assert names[1] <= {more.path_in_split(row).as_posix() for row in range(len(more.labels))}


@pytest.mark.parametrize(
    ("split", "kept", "sentence"),
    [
        ("test", 30, "without splits it has but train and val"),
        ("val", 3, "holds 3 images"),
        ("val", 0, "holds 0 images"),
    ],
)
def test_a_folder_that_cannot_be_split_says_so(flat_folder: Path, split: str, kept: int, sentence: str) -> None:
    for path in sorted(flat_folder.iterdir())[kept:]:
        path.unlink()
    with pytest.raises(DataError, match=sentence):
        ImageFolder(flat_folder, split)
