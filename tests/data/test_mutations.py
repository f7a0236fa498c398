"""Damaged files of a data set, drawn at random: each is named as an error, or changes nothing that is read.

Shards that others wrote have no checksums, so what lies within a member may change unnoticed: a label of another digit,
an image that still decodes. No record is lost or mixed up there either.
"""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_equi.data.cache import CachedViews
from ssl_equi.data.shards.format import ImageRecord, ObjectRecord
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import Manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage
from ssl_equi.errors import DataError
from tests.data.image_sets import write_pictures
from tests.mutations import Mutation, forged_headers, json_mutations, mutations

TIMES = 200
Contents = dict[str, tuple[bytes, int, bytes]]  # by key: pixels, label, latents


@dataclass(frozen=True)
class Kind:
    """A folder, one of whose files is damaged again and again, and what reads the whole of it."""

    folder: Path
    files: list[str]
    read: Callable[[Path], Contents]
    mutate: Mutation = mutations
    checksums: bool = True


def read_objects(folder: Path) -> Contents:
    dataset = ShardDataset(folder, "train")
    return _contents_of(dataset, dataset.keys)


def read_decoded(folder: Path) -> Contents:
    stored = ShardDataset(folder.parent / "objects", "train")
    return _contents_of(CachedViews(stored, folder), stored.keys)


def _contents_of(dataset: Any, keys: np.ndarray) -> Contents:
    n, views = dataset.num_objects, dataset.num_views
    pixels = np.empty((n, views, *dataset.image_size, 3), np.uint8)
    dataset.read_views(np.arange(n), np.tile(np.arange(views), (n, 1)), pixels)
    return {
        key.decode(): (pixels[row].tobytes(), int(dataset.labels[row]), dataset.latents[row].tobytes())
        for row, key in enumerate(keys)
    }


def read_images(folder: Path) -> Contents:
    shards = ImageShards(folder, "train")
    rows = range(len(shards.labels))
    keys = [key.decode() for key in shards._index.keys]
    return {keys[row]: (shards.read_image(row).tobytes(), int(shards.labels[row]), b"") for row in rows}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    random_records: Callable[..., list[ObjectRecord]],
    write_train_split: Callable[..., Manifest],
    pictures: list[ImageRecord],
) -> Path:
    """objects/, images/ and foreign/, each with few records in two or three shards; decoded/ of the objects."""
    root = tmp_path_factory.mktemp("whole")
    write_train_split(root / "objects", random_records(num_objects=5, num_views=2), objects_per_shard=3)
    write_pictures(root / "images", pictures)
    shutil.copytree(root / "images", root / "foreign", ignore=shutil.ignore_patterns("*.json", "*.index"))
    for number, (tar_format, long) in enumerate(
        ((tarfile.PAX_FORMAT, "\u00e4" * 120), (tarfile.GNU_FORMAT, "x" * 150))
    ):
        _rewrite(root / "foreign" / f"train-00000{number}.tar", tar_format, long)
    CachedViews(ShardDataset(root / "objects", "train"), root / "decoded")
    return root


def _rewrite(shard: Path, tar_format: int, long: str) -> None:
    """In another dialect, with names that need a header of their own."""
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w", format=tar_format) as tar:
        for member, content in members:
            member.name = f"{long}_{member.name}"
            tar.addfile(member, io.BytesIO(content))


def _sidecars(folder: Path) -> list[str]:
    return sorted(f"train.index/{path.name}" for path in (folder / "train.index").iterdir())


def kind_called(name: str, root: Path) -> Kind:
    folder = root / name.partition(" ")[0]
    shards = sorted(path.name for path in folder.glob("*.tar"))
    read = {"objects": read_objects, "decoded": read_decoded}.get(folder.name, read_images)
    match name.partition(" ")[2]:
        case "shards":
            return Kind(folder, shards, read, checksums=folder.name != "foreign")
        case "shards forged":
            return Kind(folder, shards, read, mutate=forged_headers, checksums=folder.name != "foreign")
        case "sidecars":
            return Kind(folder, _sidecars(folder), read)
        case "manifest":
            return Kind(folder, ["train.manifest.json"], read)
        case "manifest edited":
            return Kind(folder, ["train.manifest.json"], read, mutate=json_mutations)
        case "index":
            read(folder)  # leaves it
            return Kind(folder, ["train.images.npz"], read, checksums=False)
        case _:
            return Kind(folder, [str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file()
                                 and not path.name.startswith(".")], read)  # fmt: skip


def damaged(kind: Kind, root: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Each time a file of a copy is damaged, the name of that file and the folder of the copy."""
    rng = np.random.default_rng([seed, TIMES])
    shutil.copytree(root, root.with_name("copies"))
    folder = root.with_name("copies") / kind.folder.name
    for _ in range(TIMES):
        name = kind.files[int(rng.integers(len(kind.files)))]
        whole = (kind.folder / name).read_bytes()
        content = kind.mutate(whole, rng)
        if rng.integers(10) == 0 and len(kind.files) > 1:  # a mix-up
            content = (kind.folder / kind.files[int(rng.integers(len(kind.files)))]).read_bytes()
        if content != whole:
            (folder / name).write_bytes(content)
            yield name, folder
            (folder / name).write_bytes(whole)


KINDS = [
    "objects shards", "objects sidecars", "objects manifest", "objects manifest edited", "images shards",
    "images sidecars", "images manifest", "images manifest edited", "foreign shards", "foreign index", "decoded views",
    "objects shards forged", "images shards forged", "foreign shards forged",
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_named_or_changes_nothing(name: str, whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "whole"
    shutil.copytree(whole, root)
    kind = kind_called(name, root)
    expected, named = kind.read(kind.folder), 0
    for file, folder in damaged(kind, root, KINDS.index(name)):
        if name.startswith("foreign shards"):
            (folder / "train.images.npz").unlink(missing_ok=True)
        try:
            found = kind.read(folder)
        except DataError as error:
            found, named = None, named + 1
            assert "\n" not in str(error) and str(folder) in str(error)
        else:
            if name == "foreign shards":
                assert found.keys() == expected.keys(), "a record was lost or invented"
            elif name != "foreign shards forged":
                assert found == expected, f"{file} changed what is read without a word"
        if name not in ("decoded views", "foreign index"):
            listed = list(find_damage(folder, "train"))
            assert listed or not kind.checksums or (found == expected and "manifest" in name)
    assert named > TIMES // 3 or name == "foreign index" or "forged" in name, "most damages matter"


@pytest.mark.parametrize("kind", ["objects", "images"])
def test_a_split_under_the_name_of_another_is_refused(kind: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / kind
    shutil.copytree(whole / kind, folder)
    for path in list(folder.iterdir()):
        shutil.move(path, folder / path.name.replace("train", "val"))
    with pytest.raises(DataError, match="is of split 'train', it was copied or renamed"):
        ShardDataset(folder, "val") if kind == "objects" else ImageShards(folder, "val")
