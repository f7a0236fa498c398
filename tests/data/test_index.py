"""What opening a split checks of its index, and what only looking for damage does."""

import os
from pathlib import Path

import numpy as np
import pytest

from ssl_equi.data.shards import index as index_module
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage, verify_split
from ssl_equi.errors import DataError
from tests.data.image_sets import flip

SPLITS = [
    ("own_split", ShardDataset, ("labels", "latents", "offsets")),
    ("picture_shards", ImageShards, ("labels", "kinds", "offsets")),
]


@pytest.mark.parametrize(("split_fixture", "open_split", "names"), SPLITS)
def test_a_changed_byte_of_a_small_index_is_found_when_it_is_opened(request, split_fixture, open_split, names) -> None:
    folder = request.getfixturevalue(split_fixture)
    for name in names:
        path = folder / "train.index" / f"{name}.npy"
        flip(path, path.stat().st_size - 1)
        with pytest.raises(DataError, match=rf"sidecar .*{name}.npy does not match the SHA-256"):
            open_split(folder, "train")
        flip(path, path.stat().st_size - 1)
    open_split(folder, "train")


@pytest.mark.parametrize(("split_fixture", "open_split", "names"), SPLITS)
def test_a_large_index_is_hashed_only_to_look_for_damage(
    request, monkeypatch: pytest.MonkeyPatch, split_fixture, open_split, names
) -> None:
    folder: Path = request.getfixturevalue(split_fixture)
    monkeypatch.setattr(index_module, "MOST_BYTES_CHECKED", 0)
    flip(folder / "train.index" / "keys.npy", 140)
    assert len(open_split(folder, "train").labels) > 0
    assert any("keys.npy does not match" in found.what for found in find_damage(folder, "train"))
    if open_split is ShardDataset:
        with pytest.raises(DataError, match=r"keys.npy does not match the SHA-256"):
            verify_split(folder, "train")
    labels = folder / "train.index" / "labels.npy"
    np.save(labels, np.load(labels)[1:])
    with pytest.raises(DataError, match=r"sidecar .*labels.npy holds int64 \(\d+,\), expected"):
        open_split(folder, "train")
    labels.unlink()
    with pytest.raises(DataError, match=r"sidecar .*labels.npy is missing"):
        open_split(folder, "train")


@pytest.mark.parametrize(("split_fixture", "open_split", "names"), SPLITS)
def test_shards_that_are_not_the_manifests_are_named(request, split_fixture, open_split, names) -> None:
    folder = request.getfixturevalue(split_fixture)
    shard = folder / "train-000001.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    with pytest.raises(DataError, match=r"train-000001\.tar has \d+ bytes where the manifest says"):
        open_split(folder, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        open_split(folder, "train")
