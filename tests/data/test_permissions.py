"""Folders and files that nobody may read or write: one sentence, wherever they are met. Root may, so calls refuse."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import has_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage
from ssl_equi.errors import DataError
from ssl_equi.files import working_alone

Refuse = Callable[[Any, str, Path], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """refuse(module, name, path): that function is denied for this path."""

    def refuse_calls(module: Any, name: str, denied: Path) -> None:
        allowed = getattr(module, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if Path(path) == denied:
                raise PermissionError(13, "Permission denied", str(path))
            return allowed(path, *arguments, **options)

        monkeypatch.setattr(module, name, call)

    return refuse_calls


def test_a_missing_split_of_a_folder_that_is_read_only_is_named(
    tiny_data: Path, tiny_config: ProceduralConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_procedural(tiny_data, tiny_config, ("train", "test"))  # all there: nothing is written

    def acquire(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(DataError) as caught:
        build_procedural(tiny_data, tiny_config, ("train", "ood_rotation"))
    assert str(caught.value) == (
        f"building ood_rotation in {tiny_data} is needed and {tiny_data} can't be written to (Permission denied): "
        f"allow it, or choose another folder"
    )


def test_a_lock_where_none_can_be_made_is_named() -> None:
    with (
        pytest.raises(DataError, match=r"a trial is needed and /proc can't be written to"),
        working_alone(Path("/proc/lock"), "a trial"),
    ):
        pass


def test_shards_that_cannot_be_read_are_named(picture_shards: Path, own_split: Path, refuse: Refuse) -> None:
    for folder, kind in ((picture_shards, ImageShards), (own_split, ShardDataset)):
        opened = kind(folder, "train")
        shard = folder / "train-000001.tar"
        refuse(os, "open", shard)
        with pytest.raises(DataError, match=r"cannot be opened any more \(Permission denied\): allow reading it"):
            opened.read_encoded(6) if kind is ImageShards else opened.read_encoded(6, 0)


def test_unreadable_folders_are_not_taken_for_empty_ones(picture_shards: Path, refuse: Refuse) -> None:
    (picture_shards / "train.manifest.json").unlink()
    refuse(os, "scandir", picture_shards)
    with pytest.raises(DataError, match=r"folder .* can't be read \(Permission denied\): allow it"):
        ImageShards(picture_shards, "train")
    refuse(os, "stat", picture_shards / "train.manifest.json")
    with pytest.raises(DataError, match=r"train\.manifest\.json can't be looked for \(Permission denied\)"):
        has_manifest(picture_shards, "train")


def test_a_manifest_that_cannot_be_read_is_not_to_be_rebuilt(own_split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(DataError, match=r"train\.manifest\.json can't be read \(Permission denied\): allow reading it"):
        ShardDataset(own_split, "train")


def test_damage_lists_what_cannot_be_read(
    picture_shards: Path, own_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ssl_equi.data.shards.verify.sha256_of_file", refused)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for folder in (picture_shards, own_split):
        assert {found.what for found in find_damage(folder, "train")} == {"can't be read (Permission denied)"}
