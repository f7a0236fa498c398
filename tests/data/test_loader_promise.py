"""What the loader promises, whatever brings the images: one table of sources, each held to the same tests."""

import functools
import itertools
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.cache import CachedViews, DecodedInMemory
from ssl_equi.data.loading.device import DecodedOnDevice, device_loader
from ssl_equi.data.loading.gpu import encoded_views, gpu_loader
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.order import BatchOrder
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError, LostShardError
from tests.data.image_sets import flip
from tests.data.numbered_objects import NumberedObjects
from tests.data.uneven_objects import COUNTS

OBJECTS, VIEWS = 24, 4  # of the tiny set
TENSORS = ("images", "latents", "quat_xyzw", "labels", "object_indices", "view_indices")


def decode_on_cpu(encoded: list[Tensor]) -> list[Tensor]:
    """What `nvjpeg_decoder` gives, on the CPU."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return decode_jpeg(encoded, mode=ImageReadMode.RGB)


def _cached(folder: Path, **options: Any) -> Loader:
    skips = options.get("on_bad_record") == "skip"
    return stored_loader(CachedViews(ShardDataset(folder, "train"), folder / "cache", keep_bad_views=skips), **options)


def _in_memory(folder: Path, **options: Any) -> Loader:
    skips = options.get("on_bad_record") == "skip"
    return stored_loader(DecodedInMemory(ShardDataset(folder, "train"), keep_bad_views=skips), **options)


def _kept_on_a_device(folder: Path, **options: Any) -> Loader:
    skips = options.get("on_bad_record") == "skip"
    return device_loader(DecodedOnDevice(ShardDataset(folder, "train"), "cpu", keep_bad_views=skips), **options)


def _on_a_device(folder: Path, **options: Any) -> Loader:
    encoded = encoded_views(ShardDataset(folder, "train"))
    return gpu_loader(encoded, device=torch.device("cpu"), decode=decode_on_cpu, **options)


@functools.cache
def _rendered_views(folder: Path) -> RenderedViews:
    return RenderedViews(config_of_stored(ShardDataset(folder, "train")), "train")


SOURCES: dict[str, Callable[..., Loader]] = {
    "threads": lambda folder, **options: stored_loader(ShardDataset(folder, "train"), **options),
    "processes": lambda folder, **options: stored_loader(ShardDataset(folder, "train"), workers=2, **options),
    "cached": _cached,
    "in memory": _in_memory,
    "kept on a device": _kept_on_a_device,
    "streamed": lambda folder, **options: streamed_loader(folder, "train", shuffle_buffer=6, **options),
    "a device": _on_a_device,
    "rendered": lambda folder, **options: rendered_loader(_rendered_views(folder), **options),
}
WITHOUT_THREADS = "kept on a device"
READING = [name for name in SOURCES if name != "rendered"]
INDEXED = [name for name in SOURCES if name != "streamed"]


@pytest.fixture(scope="module")
def folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that holds a cache too."""
    return Path(shutil.copytree(tiny_data, tmp_path_factory.mktemp("promise") / "set"))


@pytest.fixture(scope="module")
def uneven_folder(uneven_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same objects with 3 to 6 views."""
    return Path(shutil.copytree(uneven_data, tmp_path_factory.mktemp("promise") / "uneven"))


UNEVEN = [*((source, "folder") for source in SOURCES), *((source, "uneven_folder") for source in READING)]


def open_loader(source: str, folder: Path, **options: Any) -> Loader:
    return SOURCES[source](folder, **({"global_batch_size": 8, "seed": 1} | options))


def take(source: str, folder: Path, count: int, start_step: int = 0, **options: Any) -> list[dict[str, Tensor]]:
    """Copies of the tensors of `count` batches."""
    with open_loader(source, folder, **options) as loader:
        return [tensors_of(batch) for batch in itertools.islice(loader.batches(start_step), count)]


def tensors_of(batch: ViewBatch) -> dict[str, Tensor]:
    return {name: getattr(batch, name).clone() for name in TENSORS}


def assert_equal(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for found_batch, expected_batch in zip(found, expected, strict=True):
        for name, tensor in expected_batch.items():
            assert torch.equal(found_batch[name], tensor), name


@pytest.mark.parametrize(("source", "folder_fixture"), UNEVEN)
def test_a_batch_holds_what_the_split_says_of_its_rows(source: str, folder_fixture: str, request: Any) -> None:
    folder = request.getfixturevalue(folder_fixture)
    split = ShardDataset(folder, "train")
    for batch in take(source, folder, 4, views=3):
        objects, views = batch["object_indices"].numpy(), batch["view_indices"].numpy()
        np.testing.assert_array_equal(batch["latents"].numpy(), split.latents[objects[:, None], views])
        np.testing.assert_array_equal(batch["quat_xyzw"].numpy(), split.quats_xyzw[objects[:, None], views])
        np.testing.assert_array_equal(batch["labels"].numpy(), split.labels[objects])
        pixels = split.images(objects, views)
        if source == "rendered":  # before they became JPEG; see test_rendered.py
            assert np.abs(batch["images"].numpy().astype(int) - pixels).mean() < 3
        else:
            np.testing.assert_array_equal(batch["images"].numpy(), pixels)
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            "images": torch.uint8, "latents": torch.float32, "quat_xyzw": torch.float32, "labels": torch.int64,
            "object_indices": torch.int64, "view_indices": torch.int64,
        }  # fmt: skip


@pytest.mark.parametrize(("source", "folder_fixture"), [each for each in UNEVEN if each[0] in INDEXED])
def test_sources_read_by_index_have_one_order(source: str, folder_fixture: str, request: Any) -> None:
    folder = request.getfixturevalue(folder_fixture)
    counts = np.resize(COUNTS, OBJECTS) if folder_fixture == "uneven_folder" else VIEWS
    order = BatchOrder(num_objects=OBJECTS, num_views=counts, global_batch_size=10, views=2, seed=1)
    for step, batch in enumerate(take(source, folder, 5, global_batch_size=10)):
        objects, views = order.batch(step)
        np.testing.assert_array_equal(batch["object_indices"].numpy(), objects)
        np.testing.assert_array_equal(batch["view_indices"].numpy(), views)


@pytest.mark.parametrize(("source", "folder_fixture"), UNEVEN)
def test_batches_depend_neither_on_threads_nor_on_where_a_run_goes_on(
    source: str, folder_fixture: str, request: Any
) -> None:
    folder = request.getfixturevalue(folder_fixture)
    whole = take(source, folder, 6, threads=1)
    assert_equal(take(source, folder, 6, threads=3), whole)
    for start_step in (1, 3, 5):  # within the first epoch, at its end, within the second
        assert_equal(take(source, folder, 6 - start_step, start_step), whole[start_step:])
    assert not torch.equal(whole[0]["object_indices"], take(source, folder, 1, seed=2)[0]["object_indices"])


@pytest.mark.parametrize("source", ["threads", "streamed"])
def test_views_of_an_epoch_are_distinct_ones_of_the_objects_own(source: str, uneven_folder: Path) -> None:
    """Each object once an epoch, with pairs of two of its views, and with all of these over some epochs."""
    counts, steps, epochs = np.resize(COUNTS, OBJECTS), 3, 20
    batches = take(source, uneven_folder, epochs * steps)
    objects = torch.cat([batch["object_indices"] for batch in batches])
    pairs = torch.cat([batch["view_indices"] for batch in batches])
    assert torch.equal(objects.view(epochs, -1).sort(dim=1).values, torch.arange(OBJECTS).expand(epochs, -1))
    assert (pairs[:, 0] != pairs[:, 1]).all() and (pairs.amax(dim=1).numpy() < counts[objects]).all()
    for number, count in enumerate(counts.tolist()):
        assert sorted(pairs[objects == number].unique().tolist()) == list(range(count))


@pytest.mark.parametrize("source", READING)
def test_longer_sequences_than_an_object_has_views_name_the_object(source: str, uneven_folder: Path) -> None:
    key = ShardDataset(uneven_folder, "train").keys[1].decode()
    message = f"cannot draw 4 distinct views of each object of split 'train', since object 1 '{key}' has 3: draw 3"
    with pytest.raises(ValueError, match=message):
        open_loader(source, uneven_folder, views=4)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("keep", [False, True])
def test_ranks_share_an_epoch_in_which_each_object_comes_once(source: str, keep: bool, folder: Path) -> None:
    sizes = [5, 5, 2] if keep else [5, 5]
    options = {"global_batch_size": 10, "world_size": 2, "keep_incomplete_batch": keep}
    ranks = [take(source, folder, len(sizes) + 1, rank=rank, **options) for rank in range(2)]
    for batches in ranks:
        assert [len(batch["images"]) for batch in batches] == [*sizes, 5]
    seen = torch.cat([batch["object_indices"] for batches in ranks for batch in batches[:-1]]).tolist()
    assert len(seen) == len(set(seen)) == 2 * sum(sizes)
    if source != "streamed":
        whole = take(source, folder, 1, global_batch_size=10)[0]
        for name, tensor in whole.items():
            joined = torch.cat([batches[0][name] for batches in ranks])
            if (source, name) == ("rendered", "images"):  # other company in a batch may change a level
                assert (joined.int() - tensor.int()).abs().max() <= 1
            else:
                assert torch.equal(joined, tensor), name


@pytest.mark.parametrize("source", SOURCES)
def test_a_new_iterator_ends_the_earlier_one_and_closing_ends_everything(source: str, folder: Path) -> None:
    expected = take(source, folder, 4)
    before = threading.active_count()
    loader = open_loader(source, folder)
    earlier = loader.batches()
    next(earlier)
    later = loader.batches(start_step=3)
    assert list(earlier) == []
    assert_equal([tensors_of(next(later))], expected[3:])
    assert (threading.active_count() > before) == (source != WITHOUT_THREADS)
    loader.close()
    loader.close()
    assert threading.active_count() == before and list(later) == []
    with pytest.raises(ValueError, match="was closed"):
        loader.batches()


@pytest.mark.parametrize("source", SOURCES)
def test_wrong_sizes_are_refused(source: str, folder: Path) -> None:
    for options, message in (
        ({"global_batch_size": 25}, "does not fit a split of 24 objects"),
        ({"world_size": 3}, "not divisible by 3"),
        ({"views": 5}, "cannot draw 5 distinct views"),
        *([] if source == WITHOUT_THREADS else [({"threads": 0}, "at least 1 thread")]),
        ({"on_bad_record": "ignore"}, "give 'raise' or 'skip'"),
        ({"max_skipped": -1}, "give 'raise' or 'skip', and at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            open_loader(source, folder, **options)
    with open_loader(source, folder) as loader, pytest.raises(ValueError, match="start_step is -1"):
        loader.batches(-1)


# ---------------------------------------------------------------- bad records


@pytest.fixture
def own_folder(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "own"))


def damage_objects(folder: Path, *numbers: int) -> None:
    """Change one byte of each view of some objects."""
    split = ShardDataset(folder, "train")
    for number in numbers:
        shard = folder / split.manifest.shards[int(split._index.shard_numbers[number])].name
        for offset in split._index.offsets[number].tolist():
            flip(shard, offset + 300)


@pytest.mark.parametrize("source", READING)
def test_bad_records_raise_or_are_replaced_by_the_next_good_ones(source: str, own_folder: Path, caplog: Any) -> None:
    options = {"keep_incomplete_batch": True, "global_batch_size": 9, "views": 2}
    expected = take(source, own_folder, 3, **options)
    shutil.rmtree(own_folder / "cache", ignore_errors=True)
    assert [len(batch["images"]) for batch in expected] == [9, 9, 6]
    bad = {0: (2, 3, 8), 2: (5,)}  # rows by step; the last of a smaller batch among them
    damage_objects(own_folder, *(int(expected[step]["object_indices"][row]) for step in bad for row in bad[step]))
    with pytest.raises(DataError, match=r"image '\w+\.v0\d\.jpg' at byte \d+ of shard .* does not match"):
        take(source, own_folder, 3, **options)
    sources = {0: [0, 1, 4, 4, 4, 5, 6, 7, 0], 2: [0, 1, 2, 3, 4, 0]}
    with open_loader(source, own_folder, on_bad_record="skip", max_skipped=4, **options) as loader:
        for step, batch in enumerate(itertools.islice(loader.batches(), 3)):
            rows = sources.get(step, list(range(9)))
            assert_equal([tensors_of(batch)], [{name: tensor[rows] for name, tensor in expected[step].items()}])
            assert batch.records_skipped == len(bad.get(step, ()))
        assert loader.skipped == 4
    assert "skipped a record (4 so far on rank 0): image '" in caplog.messages[3]
    with (
        open_loader(source, own_folder, on_bad_record="skip", max_skipped=2, **options) as loader,
        pytest.raises(DataError, match="3 bad records were skipped on rank 0, more than max_skipped = 2"),
    ):
        next(loader.batches())


@pytest.mark.parametrize("source", READING)
def test_a_batch_without_a_good_record_raises(source: str, own_folder: Path) -> None:
    damage_objects(own_folder, *range(OBJECTS))
    with (
        open_loader(source, own_folder, on_bad_record="skip") as loader,
        pytest.raises(DataError, match="none of the 8 records of step 0 on rank 0 is good"),
    ):
        next(loader.batches())


@pytest.mark.parametrize("source", ["threads", "processes", "streamed", "a device"])
def test_a_shard_that_is_gone_is_never_skipped(source: str, own_folder: Path) -> None:
    with open_loader(source, own_folder, on_bad_record="skip", prefetch=0, global_batch_size=24) as loader:
        if source == "processes":
            loader.fetcher.decoder._workers[0].check_dataset(loader.collection.fingerprint)
            loader.fetcher.decoder._workers[1].check_dataset(loader.collection.fingerprint)
        (own_folder / "train-000001.tar").unlink()
        with pytest.raises(LostShardError, match=r"train-000001\.tar"):
            next(loader.batches())


# ---------------------------------------------------------------- an epoch, counted

SEED, BATCH_SIZE = 7, 8
CASES = [
    *itertools.product([{"threads": 1}, {"threads": 2}, {"threads": 4}], [80, 83]),
    *itertools.product([{"workers": 2}, {"workers": 4}], [83]),
]


def _keys(loader: Loader, start_step: int, count: int) -> list[np.ndarray]:
    """Object and two views of each row of `count` batches, [b, 3]; the pixels must bear them."""
    keys = []
    for batch in itertools.islice(loader.batches(start_step), count):
        key = torch.column_stack([batch.object_indices, batch.view_indices])
        assert torch.equal(batch.images[:, :, 0, 0, 0].long(), key[:, :1].expand(-1, 2))
        assert torch.equal(batch.images[:, :, 0, 0, 1].long(), key[:, 1:])
        keys.append(key.numpy())
    return keys


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("decoding", "num_objects"), CASES, ids=str)
def test_epoch_over_all_ranks_is_the_data_set_but_for_the_remainder(world_size, decoding, num_objects) -> None:
    steps = num_objects // BATCH_SIZE
    of_ranks = []
    for rank in range(world_size):
        with stored_loader(
            NumberedObjects(num_objects), global_batch_size=BATCH_SIZE, seed=SEED, rank=rank, world_size=world_size,
            prefetch=2, **decoding,
        ) as loader:  # fmt: skip
            of_ranks.append(np.stack(_keys(loader, 0, 3 * steps)))
            for resumed_at in (1, steps - 1, steps, 2 * steps + 3):  # within an epoch, at its ends
                np.testing.assert_array_equal(_keys(loader, resumed_at, 4), of_ranks[-1][resumed_at:][:4])
    seen = np.concatenate(of_ranks, axis=1)
    order = BatchOrder(num_objects=num_objects, num_views=5, global_batch_size=BATCH_SIZE, views=2, seed=SEED)
    np.testing.assert_array_equal(seen, [np.column_stack(order.batch(step)) for step in range(3 * steps)])
    dropped = []
    for objects in seen[..., 0].reshape(3, -1):
        assert len(np.unique(objects)) == len(objects) == steps * BATCH_SIZE
        dropped.append(frozenset(range(num_objects)) - frozenset(objects.tolist()))
        assert len(dropped[-1]) == num_objects % BATCH_SIZE
    assert len(set(dropped)) == (1 if num_objects % BATCH_SIZE == 0 else 3)
    assert not np.array_equal(seen[:steps], seen[steps : 2 * steps])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("decoding", [{"threads": 1}, {"threads": 4}, {"workers": 2}], ids=str)
def test_an_epoch_may_end_with_a_smaller_batch(world_size, decoding) -> None:
    """After it, and after resuming before or behind it, the buffers of whole batches are used as ever."""
    sizes, steps = {"num_objects": 83, "global_batch_size": BATCH_SIZE, "seed": SEED}, 11
    for rank in range(world_size):
        process = {"rank": rank, "world_size": world_size, "keep_incomplete_batch": True}
        order = BatchOrder(num_views=5, views=2, **sizes, **process)
        expected = [np.column_stack(order.batch(step)) for step in range(3 * steps)]
        assert [len(batch) for batch in expected[:steps]] == [8 // world_size] * 10 + [3 // world_size]
        with stored_loader(
            NumberedObjects(83), global_batch_size=BATCH_SIZE, seed=SEED, prefetch=2, **process, **decoding
        ) as loader:
            assert loader.steps_per_epoch == steps
            for start in (0, 5, steps - 1, steps, 2 * steps - 1):
                for found, wanted in zip(_keys(loader, start, 12), expected[start : start + 12], strict=True):
                    np.testing.assert_array_equal(found, wanted)
