"""Views decoded once: the same pixels, made once, never half, and damage is an error that says what to do."""

import gc
import itertools
import os
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_equi.data import cache
from ssl_equi.data.cache import CachedViews, DecodedInMemory
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import DerivedViews, TurnedViews
from ssl_equi.data.images import Canvas, CenterCrop
from ssl_equi.data.loading import device
from ssl_equi.data.loading.device import DecodedOnDevice
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sets.image_folder import ImageFolder
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from tests.data.image_sets import flip

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def stored(shared_split: Path) -> ShardDataset:
    return ShardDataset(shared_split, "train")


def batches_of(collection: ViewCollection, count: int = 4, **options: Any) -> list[dict[str, torch.Tensor]]:
    with stored_loader(collection, **({"global_batch_size": 8, "seed": 1} | options)) as loader:
        return [
            {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            for batch in itertools.islice(loader.batches(), count)
        ]


def assert_same_batches(one: ViewCollection, other: ViewCollection, **options: Any) -> None:
    for mine, theirs in zip(batches_of(one, **options), batches_of(other, **options), strict=True):
        assert set(mine) == set(theirs)
        for name, tensor in theirs.items():
            assert torch.equal(mine[name], tensor), name


class Refusing(DerivedViews):
    """A collection whose views must not be read."""

    def read_views(self, *arguments: Any) -> None:
        raise AssertionError("a view was decoded again")


def test_batches_are_identical_and_nothing_is_decoded_twice(stored: ShardDataset, tmp_path: Path) -> None:
    assert_same_batches(CachedViews(stored, tmp_path), stored, views=3)
    again = CachedViews(Refusing(stored), tmp_path)
    assert_same_batches(again, stored)
    assert_same_batches(pickle.loads(pickle.dumps(CachedViews(stored, tmp_path))), stored)
    for name in ("split", "folder", "source", "fingerprint", "plan_sha256", "class_names", "mean_rgb", "std_rgb"):
        assert getattr(again, name) == getattr(stored, name), name
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [again.cache_folder.name]


def test_worker_processes_share_what_is_in_memory_and_it_goes_with_the_views(stored: ShardDataset) -> None:
    def is_held() -> bool:
        return any(
            "ssl_equi_views" in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
        )

    in_memory = DecodedInMemory(stored)
    with stored_loader(in_memory, global_batch_size=8, seed=1, workers=2) as loader:
        for mine, theirs in zip(itertools.islice(loader.batches(), 3), batches_of(stored, 3), strict=True):
            assert torch.equal(mine.images, theirs["images"])
    with pytest.raises(ValueError, match="read-only"):
        in_memory._pixels[0] = 0
    pickled = pickle.dumps(in_memory)
    again = pickle.loads(pickled)
    del in_memory, loader
    gc.collect()
    with pytest.raises(DataError, match=r"can't be shared with a worker process \(.*\): give --loader-workers 0"):
        pickle.loads(pickled)
    assert_same_batches(again, stored)
    assert is_held()
    del again
    gc.collect()
    assert not is_held()


def test_the_memory_is_stated_before_and_refused_if_it_is_too_small(
    stored: ShardDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = 23 * 6 * 24 * 32 * 3

    def refused(sentence: str) -> None:
        with pytest.raises(DataError, match=sentence):
            DecodedInMemory(stored)

    monkeypatch.setattr(cache, "free_memory", lambda: needed)
    DecodedInMemory(stored, show_progress=True)
    assert capsys.readouterr().out == "decoding 138 views once into memory: 0.3 MiB\n"
    refused_size = r"'train' need 0\.3 MiB of memory{} and 0\.3 MiB are free: give --cache-in disk"
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        refused(refused_size.format(" in each of 2 processes"))
    with monkeypatch.context() as patch:  # others were faster
        patch.setattr(os, "posix_fallocate", lambda *place: (_ for _ in ()).throw(OSError(28, "No space left")))
        refused(refused_size.format(""))
    monkeypatch.setattr(cache, "free_memory", lambda: needed - 1)
    refused(refused_size.format(""))
    monkeypatch.setattr(cache, "free_memory", lambda: None)
    refused("are kept in memory on Linux only: give --cache-in disk")


def test_the_memory_of_a_device_is_stated_too(
    stored: ShardDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = 23 * 6 * 24 * 32 * 3
    monkeypatch.setattr(device, "free_memory", lambda: needed)
    DecodedOnDevice(stored, "cpu", show_progress=True)
    assert capsys.readouterr().out == "decoding 138 views once into the memory of cpu: 0.3 MiB\n"
    monkeypatch.setattr(device, "free_memory", lambda: needed - 1)
    with pytest.raises(DataError, match=r"need 0\.3 MiB of the memory of cpu and 0\.3 MiB are free: give --cache-in"):
        DecodedOnDevice(stored, "cpu")


def test_pictures_of_different_sizes_keep_theirs(mixed_folder: Path, tmp_path: Path) -> None:
    canvases = SingleViews(ImageFolder(mixed_folder, "train"), Canvas(64))
    for cached in (CachedViews(canvases, tmp_path), DecodedInMemory(canvases), DecodedOnDevice(canvases, "cpu")):
        assert_same_batches(cached, canvases, views=1, global_batch_size=6)
        sizes, out = np.empty((12, 1, 2), dtype=np.int64), np.empty((12, 1, 64, 64, 3), np.uint8)
        cached.read_views(np.arange(12), np.zeros((12, 1), dtype=np.int64), out, sizes)
        assert len(np.unique(sizes.reshape(12, 2), axis=0)) > 2


def test_whatever_changes_the_pixels_has_a_cache_of_its_own(
    stored: ShardDataset, mixed_folder: Path, tmp_path: Path, random_records: Callable, write_train_split: Callable
) -> None:
    store = ImageFolder(mixed_folder, "train")
    write_train_split(tmp_path / "other", random_records(seed=1))
    views: list[ViewCollection] = [
        stored, ShardDataset(tmp_path / "other", "train"),
        SingleViews(store, Canvas(32)), SingleViews(store, Canvas(48)),
        SingleViews(store, CenterCrop(16, 16)), SingleViews(store, CenterCrop(16, 20)),
        TurnedViews(SingleViews(store, CenterCrop(16, 16))),
    ]  # fmt: skip
    caches = [CachedViews(view, tmp_path / "caches").cache_folder for view in views]
    assert len(set(caches)) == len(caches)
    for cached, view in zip(caches, views, strict=True):
        per_view = view.image_size[0] * view.image_size[1] * 3
        assert (cached / "pixels.bin").stat().st_size == view.num_objects * view.num_views * per_view


def test_the_size_is_stated_before_and_refused_if_the_disk_is_too_small(
    stored: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = 23 * 6 * 24 * 32 * 3
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: DiskUsage(2 * free, free, free))
        if fits:
            CachedViews(stored, tmp_path, show_progress=True)
        else:
            with pytest.raises(DataError, match=r"need 0\.3 MiB in .* and 0\.3 MiB are free: free some space"):
                CachedViews(stored, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("decoding 138 views once into ") and printed.rstrip().endswith(": 0.3 MiB")


def test_a_view_that_does_not_decode_leaves_no_cache_behind(own_split: Path, tmp_path: Path) -> None:
    stored = ShardDataset(own_split, "train")
    flip(own_split / "train-000001.tar", int(stored._index.offsets[7, 3]) + 300)
    with pytest.raises(DataError, match=r"image 'object_007\.v03\.jpg' .* does not match its CRC-32C"):
        CachedViews(stored, tmp_path / "caches")
    assert [path.name for path in (tmp_path / "caches").iterdir() if path.suffix != ".lock"] == []


def test_bad_views_are_noted_until_they_can_be_read_again(own_split: Path, tmp_path: Path) -> None:
    stored = ShardDataset(own_split, "train")
    expected, place = stored.images(np.array([7]), np.array([[2, 3]])), int(stored._index.offsets[7, 3]) + 300
    flip(own_split / "train-000001.tar", place)
    for _ in range(2):  # made, and opened again
        cached = CachedViews(stored, tmp_path / "caches", keep_bad_views=True)
        np.testing.assert_array_equal(cached.images(np.array([7]), np.array([[2]])), expected[:, :1])
        with pytest.raises(DataError, match=r"image 'object_007\.v03\.jpg' .* does not match its CRC-32C"):
            cached.images(np.array([7]), np.array([[3]]))
    with pytest.raises(DataError, match=r"image 'object_007\.v03\.jpg' .* does not match its CRC-32C"):
        CachedViews(stored, tmp_path / "caches")
    flip(own_split / "train-000001.tar", place)  # restored
    for keep_bad_views in (True, False):
        cached = CachedViews(stored, tmp_path / "caches", keep_bad_views=keep_bad_views)
        np.testing.assert_array_equal(cached.images(np.array([7]), np.array([[2, 3]])), expected)
    (cached.cache_folder / "bad_views.json").write_text('{"views": [[1]]}')
    with pytest.raises(DataError, match=r"bad_views\.json is no list of bad views .*: delete this folder"):
        CachedViews(stored, tmp_path / "caches")


def test_leftovers_of_a_killed_build_are_replaced(stored: ShardDataset, tmp_path: Path) -> None:
    name = CachedViews(stored, tmp_path / "elsewhere").cache_folder.name
    leftover = tmp_path / "caches" / f".building-{name}"
    leftover.mkdir(parents=True)
    (leftover / "pixels.bin").write_bytes(b"half")
    assert_same_batches(CachedViews(stored, tmp_path / "caches"), stored)
    assert not leftover.exists()


def test_of_two_that_want_the_same_one_decodes(
    stored: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = cache._build
    monkeypatch.setattr(cache, "_build", lambda *arguments: (built.append(1), build(*arguments)))
    with ThreadPoolExecutor(3) as pool:
        for cached in pool.map(lambda _: CachedViews(stored, tmp_path), range(3)):
            assert_same_batches(cached, stored)
    assert built == [1]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: os.truncate(folder / "pixels.bin", 5000), "has 5000 bytes of pixels where 317952 belong"),
        (lambda folder: (folder / "pixels.bin").unlink(), "has 0 bytes of pixels"),
        (lambda folder: (folder / "crc32c.npy").unlink(), r"crc32c\.npy in the cache of decoded views .* is missing"),
        (lambda folder: os.truncate(folder / "crc32c.npy", 200), r"crc32c\.npy in .* has 200 bytes where"),
        (
            lambda folder: np.save(folder / "crc32c.npy", np.zeros((2, 2), np.uint32)),
            r"crc32c\.npy in .* holds uint32 \(2, 2\), expected",
        ),
        (lambda folder: flip(folder / "pixels.bin", 100), "does not match the CRC-32C of view 0 of object 0"),
        (lambda folder: flip(folder / "crc32c.npy", 128), "does not match the CRC-32C of view 0 of object 0"),
    ],
)
def test_a_damaged_cache_is_an_error_that_says_what_to_delete(
    damage: Callable[[Path], object], problem: str, stored: ShardDataset, tmp_path: Path
) -> None:
    damage(CachedViews(stored, tmp_path).cache_folder)
    with pytest.raises(DataError, match=rf"{problem}.*: delete this folder, it is made anew"):
        batches_of(CachedViews(stored, tmp_path), 1, global_batch_size=23, views=6)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_signal(stored: ShardDataset, tmp_path: Path) -> None:
    cached = CachedViews(stored, tmp_path)
    batches_of(cached, 1)
    os.truncate(cached.cache_folder / "pixels.bin", 3000)
    with pytest.raises(DataError, match="ends within view 1 of object 0"):
        cached.read_views(np.array([0]), np.array([[1]]), np.empty((1, 1, 24, 32, 3), dtype=np.uint8))


def test_a_wrong_picture_size_is_noticed(mixed_folder: Path, tmp_path: Path) -> None:
    canvases = SingleViews(ImageFolder(mixed_folder, "train"), Canvas(32))
    cached = CachedViews(canvases, tmp_path)
    flip(cached.cache_folder / "content_sizes.npy", 128)
    with pytest.raises(DataError, match="does not match the CRC-32C of view 0 of object 0"):
        batches_of(CachedViews(canvases, tmp_path), 1, views=1, global_batch_size=12)
