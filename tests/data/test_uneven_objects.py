"""Splits whose objects have different numbers of views: what is written, and what is drawn of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.data.derived import ViewSubset, spread_views
from ssl_equi.data.order import BatchOrder, distinct_views, epoch_views, random_words, views_of_objects
from ssl_equi.data.remote.download import download_split
from ssl_equi.data.remote.streaming_order import StreamedOrder
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.data.shards.verify import find_damage, verify_split
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.data.view_counts import NO_VIEW, shuffled_views
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file
from tests.data.image_sets import flip
from tests.data.uneven_objects import with_views

COUNTS = [2, 6, 3, 3, 2, 4, 4, 5, 2, 3, 4, 5]  # at most 6, 5 and 5 in the three shards


@pytest.fixture(scope="module")
def records(random_records: Callable[..., list[ObjectRecord]]) -> list[ObjectRecord]:
    return [with_views(record, count) for record, count in zip(random_records(len(COUNTS)), COUNTS, strict=True)]


@pytest.fixture(scope="module")
def uneven(records, write_train_split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    write_train_split(folder, records)
    return folder


@pytest.fixture
def own_uneven(uneven: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(uneven, tmp_path / "own"))


# ---------------------------------------------------------------- shards and index


def test_each_object_has_what_was_written_of_it_and_zeros_behind(uneven: Path, records: list[ObjectRecord]) -> None:
    split = ShardDataset(uneven, "train")
    assert split.view_counts.tolist() == COUNTS and split.view_counts.dtype == np.int32
    assert (split.num_views, split.fewest_views, split.num_images) == (6, 2, sum(COUNTS))
    index = split._index
    for row, (record, count) in enumerate(zip(records, COUNTS, strict=True)):
        np.testing.assert_array_equal(split.latents[row, :count], record.latents.astype(np.float32))
        assert [split.read_encoded(row, view) for view in range(count)] == record.images
        for name in ("latents", "quats_xyzw", "offsets", "sizes", "crc32c"):
            assert not getattr(index, name)[row, count:].any(), name
    found = split.manifest.latent_ranges
    all_latents = np.concatenate([record.latents for record in records]).astype(np.float32)
    for column, name in enumerate(split.manifest.latent_names):
        assert found[name] == (float(all_latents[:, column].min()), float(all_latents[:, column].max()))
    assert min(low for low, _ in found.values()) < 0 < min(high for _, high in found.values())
    assert found["floor_hue"][0] > 0, "zeros of places without a view are none of the latents"


def test_members_are_numbered_as_in_a_split_of_objects_with_as_many_views(
    uneven: Path, records: list[ObjectRecord], write_train_split, tmp_path: Path
) -> None:
    write_train_split(tmp_path, [records[0]])
    alone = (tmp_path / "train-000000.tar").read_bytes()
    stored = alone[: alone.rindex(records[0].images[-1])]
    assert (uneven / "train-000000.tar").read_bytes().startswith(stored)


def test_only_such_splits_have_counts(uneven: Path, random_records, write_train_split, tmp_path: Path) -> None:
    manifest = write_train_split(tmp_path, random_records(7))
    stored = json.loads((tmp_path / "train.manifest.json").read_text())
    assert manifest.fewest_views is None and "fewest_views" not in stored
    assert "view_counts.npy" not in stored["sidecars"] and not (tmp_path / "train.index/view_counts.npy").exists()
    assert ShardDataset(tmp_path, "train").view_counts is None
    stored = json.loads((uneven / "train.manifest.json").read_text())
    assert (stored["fewest_views"], stored["num_views"]) == (2, 6)
    assert stored["sidecars"]["view_counts.npy"] == sha256_of_file(uneven / "train.index/view_counts.npy")


def test_a_writer_that_goes_on_writes_the_same(uneven: Path, records: list[ObjectRecord], tmp_path: Path) -> None:
    manifest = read_manifest(uneven, "train")
    settings = SplitSettings(
        "train", manifest.class_names, manifest.source, manifest.license, manifest.seed, objects_per_shard=5,
        mean_rgb=manifest.mean_rgb, std_rgb=manifest.std_rgb,
    )  # fmt: skip
    with SplitWriter[ObjectRecord](tmp_path, settings) as writer:
        for record in records[:7]:
            writer.add(record)
    with SplitWriter[ObjectRecord](tmp_path, settings, resume=True) as writer:
        for record in records[writer.num_records :]:
            writer.add(record)
        assert writer.finish() == manifest


@pytest.mark.parametrize(("counts", "message"), [
    ((3, 1), "object 'object_001' has 1 view and others have more: a pair takes two"),
    ((1, 3), "an object before object 'object_001' has 1 view: a pair takes two"),
])  # fmt: skip
def test_an_object_with_one_view_has_no_place_among_others(counts, message, random_records, tmp_path: Path) -> None:
    records = [with_views(record, count) for record, count in zip(random_records(2), counts)]
    with SplitWriter(tmp_path, SplitSettings("train", ("a", "b"), "tests", "CC0-1.0", 0)) as writer:
        writer.add(records[0])
        with pytest.raises(DataError, match=message):
            writer.add(records[1])
        writer.add(replace(records[0], key="another"))


@pytest.mark.parametrize(("name", "place", "value", "message"), [
    ("view_counts", 7, 4, "view_counts.npy contradicts the places of views"),
    ("view_counts", 4, 3, "offsets.npy points outside a shard"),
    ("view_counts", 1, 5, "view_counts.npy contradicts the manifest's numbers of views"),
    ("view_counts", 0, 1, "view_counts.npy contradicts the manifest's numbers of views"),
    ("sizes", (0, 1), 0, "offsets.npy points outside a shard"),
    ("sizes", (0, 2), 9, "view_counts.npy contradicts the places of views"),
    ("offsets", (4, 5), 9, "view_counts.npy contradicts the places of views"),
])  # fmt: skip
def test_an_index_that_contradicts_its_counts_is_refused(name, place, value, message, own_uneven: Path) -> None:
    path = own_uneven / "train.index" / f"{name}.npy"
    array = np.load(path)
    array[place] = value
    np.save(path, array)
    manifest = read_manifest(own_uneven, "train")
    replace(manifest, sidecars=manifest.sidecars | {path.name: sha256_of_file(path)}).write(own_uneven)
    with pytest.raises(DataError, match=message):
        ShardDataset(own_uneven, "train")


@pytest.mark.parametrize("fewest", [0, 1, 6, 7])
def test_forged_numbers_of_views_are_refused(fewest: int, own_uneven: Path) -> None:
    replace(read_manifest(own_uneven, "train"), fewest_views=fewest).write(own_uneven)
    with pytest.raises(DataError, match=f"states {fewest} to 6 views per object"):
        read_manifest(own_uneven, "train")


def test_a_missing_array_of_counts_is_named(own_uneven: Path) -> None:
    (own_uneven / "train.index/view_counts.npy").unlink()
    with pytest.raises(DataError, match=r"view_counts\.npy is missing"):
        ShardDataset(own_uneven, "train")


def test_damage_is_found_and_named_by_the_members_name(own_uneven: Path, records: list[ObjectRecord]) -> None:
    verify_split(own_uneven, "train")
    assert list(find_damage(own_uneven, "train")) == []
    split = ShardDataset(own_uneven, "train")
    flip(own_uneven / "train-000001.tar", int(split._index.offsets[7, 4]) + 300)
    (whole, view) = find_damage(own_uneven, "train")
    assert "SHA-256" in whole.what and view.key == "object_007.v04.jpg"
    with pytest.raises(DataError, match=r"image 'object_007\.v04\.jpg'"):
        split.images(np.array([7]), np.array([[4]]))


def test_member_names_grow_with_an_objects_own_views(random_records, write_train_split, tmp_path: Path) -> None:
    many, few = random_records(2, num_views=101)
    write_train_split(tmp_path, [many, with_views(few, 3)])
    split = ShardDataset(tmp_path, "train")
    for row, view, member in ((0, 100, "object_000.v100.jpg"), (0, 0, "object_000.v000.jpg"), (1, 2, "object_001.v02")):
        flip(tmp_path / "train-000000.tar", int(split._index.offsets[row, view]) + 300)
        with pytest.raises(DataError, match=f"image '{member}"):
            split.images(np.array([row]), np.array([[view]]))


def test_a_copy_from_elsewhere_is_the_same_split(uneven: Path, tmp_path: Path) -> None:
    download_split(uneven, "train", tmp_path, max_bytes=1 << 30)
    copy = ShardDataset(tmp_path, "train")
    assert copy.fingerprint == ShardDataset(uneven, "train").fingerprint and copy.view_counts.tolist() == COUNTS


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("views", [1, 2, 3])
def test_drawn_views_are_those_of_a_split_of_objects_with_as_many(views: int) -> None:
    """An object's draw depends on its place and its own number of views only."""
    counts = np.random.default_rng(0).integers(3, 71, 400)
    found = epoch_views(400, counts, views, seed=5, epoch=2)
    for count in np.unique(counts).tolist():
        expected = epoch_views(400, count, views, seed=5, epoch=2)
        np.testing.assert_array_equal(found[counts == count], expected[counts == count])
    some = np.random.default_rng(1).permutation(400)[:50]
    np.testing.assert_array_equal(views_of_objects(some, counts, views, seed=5, epoch=2), found[some])
    words = random_words(400 * views, 5, 2, 1)
    np.testing.assert_array_equal(distinct_views(words, np.full(400, 9), views), distinct_views(words, 9, views))


def test_pairs_of_each_object_are_uniform() -> None:
    counts = np.array([2, 3, 5])
    seen = np.zeros((3, 5, 5))
    for epoch in range(3000):
        first, second = epoch_views(3, counts, 2, seed=1, epoch=epoch).T
        seen[np.arange(3), first, second] += 1
    for row, count in enumerate(counts.tolist()):
        of_object = seen[row, :count, :count]
        assert of_object.sum() == 3000 and not of_object.diagonal().any()
        expected = 3000 / (count * (count - 1))
        assert np.abs(of_object[~np.eye(count, dtype=bool)] - expected).max() < 5 * expected**0.5


def test_orders_give_out_an_objects_own_views() -> None:
    counts = np.resize([2, 7, 3], 50)
    options = {"num_views": counts, "global_batch_size": 10, "views": 2, "seed": 0}
    orders = [BatchOrder(num_objects=50, **options)]
    orders += [StreamedOrder(shard_counts=(20, 20, 10), mode=mode, **options) for mode in ("exact", "resampled")]
    for order in orders:
        batches = [order.batch(step) for step in range(10 * order.steps_per_epoch)]
        objects, views = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        assert (views[:, 0] != views[:, 1]).all() and (views.max(axis=1) < counts[objects]).all()
        assert views[counts[objects] == 7].max() == 6
    # Two orders that differ in the counts alone keep draws of their own.
    others = BatchOrder(num_objects=50, **(options | {"num_views": counts[::-1].copy()}))
    assert not np.array_equal(others.batch(0)[1], orders[0].batch(0)[1])
    with pytest.raises(ValueError, match="cannot draw 3 distinct views of objects that have 2"):
        BatchOrder(num_objects=50, **(options | {"views": 3}))


def test_shuffled_views_are_all_of_an_objects_own_and_then_none() -> None:
    counts = np.array([2, 5, 3])
    for shuffled in islice(shuffled_views(3, counts, np.random.default_rng(0), rounds=4).transpose(1, 0, 2), 4):
        for row, count in zip(shuffled.tolist(), counts.tolist()):
            assert sorted(row[:count]) == list(range(count)) and row[count:] == [NO_VIEW] * (5 - count)
    np.testing.assert_array_equal(
        shuffled_views(3, np.full(3, 5), np.random.default_rng(7)), shuffled_views(3, 5, np.random.default_rng(7))
    )


def test_views_that_stand_for_a_split_are_equally_many_of_each_object() -> None:
    counts = np.resize([4, 9, 6], 30)
    for max_images, shape in ((1000, (30, 4)), (90, (30, 3)), (40, (20, 2))):
        objects, views = spread_views(30, counts, max_images, seed=3)
        assert views.shape == shape and (np.diff(views, axis=1) > 0).all()
        assert (views.max(axis=1) < counts[objects]).all() and views.max() > 4
    for found, expected in zip(spread_views(30, np.full(30, 7), 50, seed=1), spread_views(30, 7, 50, seed=1)):
        np.testing.assert_array_equal(found, expected)


def test_a_subset_holds_views_that_there_are(uneven: Path) -> None:
    split = ShardDataset(uneven, "train")
    subset = ViewSubset(split, np.array([1, 5]), np.array([[5, 0, 2], [3, 1, 0]]))
    assert subset.view_counts is None and subset.keys.tolist() == [b"object_001", b"object_005"]
    np.testing.assert_array_equal(subset.images(np.array([1]), np.array([[0]])), split.images(
        np.array([5]), np.array([[3]])
    ))  # fmt: skip
    with pytest.raises(ValueError, match="hold views that an object of split 'train' lacks"):
        ViewSubset(split, np.array([1, 5]), np.array([[5, 0, 2], [4, 1, 0]]))
