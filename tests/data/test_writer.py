import dataclasses
import errno
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.shards import verify
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.manifest import read_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.records import SplitSettings
from ssl_equi.data.shards.verify import verify_split
from ssl_equi.data.shards.writer import SplitWriter, write_split
from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import LATENT_NAMES
from ssl_equi.latents.schema import THREEDIEBENCH_T, LatentSchema
from tests.data.image_sets import SETTINGS, flip


def _settings(**changes) -> SplitSettings:
    settings = SplitSettings(
        split="train", class_names=("bottle", "chair", "lamp"), source="tests", license="CC0-1.0", seed=0,
        objects_per_shard=5,
    )  # fmt: skip
    return dataclasses.replace(settings, **changes)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Kind(NamedTuple):
    """Settings and records of one of the two formats."""

    settings: Any
    records: list[Any]

    @property
    def per_shard(self) -> int:
        return self.settings.records_per_shard

    def write(self, folder: Path, count: int | None = None) -> Any:
        """Go on to the end, or stop after so many records as a killed process would: nothing is finished."""
        writer = SplitWriter(folder, self.settings, resume=True)
        for record in self.records[writer.num_records : count]:
            writer.add(record)
        return None if count is not None else writer.finish()


@pytest.fixture(params=["objects", "images"])
def kind(request, records, pictures) -> Kind:
    return Kind(_settings(), records) if request.param == "objects" else Kind(SETTINGS, pictures)


def _write_some(folder: Path, records: list[ObjectRecord], count: int, **options) -> None:
    """Write the first records and stop, as a killed process would: nothing is finished or tidied up."""
    writer = SplitWriter(folder, _settings(), **options)
    for record in records[writer.num_records : count]:
        writer.add(record)


def test_split_consists_of_shards_index_and_manifest(tmp_path, records, write_train_split):
    manifest = write_train_split(tmp_path, records)
    shards = [f"train-{number:06d}.tar" for number in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, "train.index", "train.manifest.json"]
    assert [(entry.name, entry.first, entry.count) for entry in manifest.shards] == [
        (name, 5 * number, 3 if number == 4 else 5) for number, name in enumerate(shards)
    ]
    assert manifest == read_manifest(tmp_path, "train")
    assert manifest.latent_names == LATENT_NAMES[:7]
    latents = np.stack([record.latents for record in records]).astype(np.float32)
    assert manifest.latent_ranges["floor_hue"] == (latents[..., 3].min(), latents[..., 3].max())


def test_ten_latents_and_shard_boundaries(tmp_path, random_records):
    records = [
        dataclasses.replace(record, latents=np.hstack([record.latents, np.zeros((6, 3))]).astype(np.float32))
        for record in random_records(num_objects=10)
    ]
    settings = _settings(schema=THREEDIEBENCH_T)
    with SplitWriter(tmp_path, settings) as writer:
        for record in records:
            writer.add(record)
        manifest = writer.finish()
    assert [entry.count for entry in manifest.shards] == [5, 5]  # no empty third shard
    assert ShardDataset(tmp_path, "train").latents.shape == (10, 6, 10)


def test_records_are_consumed_one_at_a_time(tmp_path, records, write_train_split):
    written_when_asked = []

    def watched():
        for record in records:
            written_when_asked.append(len(list(tmp_path.glob("*.tar"))))
            yield record

    write_train_split(tmp_path, watched())
    assert written_when_asked == [number // 5 for number in range(23)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "forbidden characters"),
        ({"key": "a/b"}, "forbidden characters"),
        ({"key": ""}, "forbidden characters"),
        ({"key": "k" * 89}, "has 89 characters: use at most 88"),
        ({"key": "object_000"}, "key 'object_000' was given twice"),
        ({"label": 3}, r"label 3 of object 'new' has no class name: give one of 0\.\.2"),
        ({"label": -1}, "label -1"),
        ({"latents": np.zeros((5, 7))}, r"has 6 views and latents of shape \(5, 7\)"),
        ({"latents": np.zeros((6, 10))}, r"latents of shape \(6, 10\): give 6 views and latents of shape \(6, 7\)"),
        ({"latents": np.full((6, 7), np.nan)}, "hold NaN or infinity in view 0"),
        ({"latents": np.zeros((6, 7), dtype=object)}, "type object"),
        ({"images": []}, "has 0 views"),
        ({"images": [b"no jpeg"] * 6}, "view 0 of object 'new' is not a readable JPEG"),
    ],
)
def test_malformed_records_are_refused(tmp_path, records, change, message):
    new = dataclasses.replace(records[1], **({"key": "new"} | change))
    with SplitWriter(tmp_path, _settings()) as writer:
        writer.add(records[0])
        with pytest.raises(DataError, match=message):
            writer.add(new)


def test_images_of_another_size_are_refused(tmp_path, records):
    import simplejpeg

    wide = simplejpeg.encode_jpeg(np.zeros((24, 48, 3), dtype=np.uint8))
    new = dataclasses.replace(records[1], images=[*records[1].images[:5], wide])
    with SplitWriter(tmp_path, _settings()) as writer:
        writer.add(records[0])
        with pytest.raises(DataError, match="view 5 of object 'object_001' is 24x48 pixels"):
            writer.add(new)


MIXED = LatentSchema.from_json(
    {
        "latents": [
            {"name": "azimuth", "kind": "angle", "columns": [0, 1]},
            {"name": "wind", "kind": "direction", "columns": [1, 4], "storage": "xyz"},
        ]
    }
)


@pytest.mark.parametrize(
    "extra", [(), ({"name": "pose", "kind": "rotation", "columns": [4, 8], "storage": "quat_xyzw"},)]
)
def test_latents_of_any_schema(tmp_path, random_records, extra):
    """The manifest states the schema, and there are quaternions if it has a pose."""
    content = MIXED.as_json()
    schema = LatentSchema.from_json({"latents": [*content["latents"], *extra]})
    records = [
        dataclasses.replace(record, latents=np.hstack([record.latents, record.latents])[:, : schema.num_columns] + 0.25)
        for record in random_records(num_objects=7)
    ]
    manifest = write_split(
        tmp_path, "train", records, ("a", "b", "c"), source="tests", seed=0, license="x", schema=schema
    )
    dataset = ShardDataset(tmp_path, "train")
    assert dataset.schema == read_manifest(tmp_path, "train").schema == schema
    names = ("azimuth", "wind_x", "wind_y", "wind_z", "pose_x", "pose_y", "pose_z", "pose_w")
    assert manifest.latent_names == names[: schema.num_columns]
    np.testing.assert_array_equal(dataset.latents, np.stack([record.latents for record in records]).astype(np.float32))
    if extra:
        expected = np.stack([record.latents[:, 4:].astype(np.float32) for record in records])
        np.testing.assert_array_equal(np.abs(dataset.quats_xyzw), np.abs(expected))
        assert (dataset.quats_xyzw[..., 3] >= 0).all()
    else:
        assert dataset.quats_xyzw is None and not (tmp_path / "train.index" / "quats_xyzw.npy").exists()
    verify_split(tmp_path, "train")
    remote = RemoteShards(tmp_path, "train")
    assert remote.schema == schema and (remote.quats_xyzw is None) == (not extra)


def test_a_schema_of_other_columns_is_refused(tmp_path, random_records):
    manifest = write_split(
        tmp_path, "train", random_records(num_objects=3), ("a", "b", "c"), source="tests", seed=0, license="x"
    )
    dataclasses.replace(manifest, latent_schema=MIXED.as_json()).write(tmp_path)
    with pytest.raises(DataError, match="states no usable schema"):
        read_manifest(tmp_path, "train")


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(DataError, match="objects_per_shard is 0"):
        _settings(objects_per_shard=0)
    with pytest.raises(DataError, match="split name 'a/b' is not usable"):
        SplitWriter(tmp_path, _settings(split="a/b"))
    with pytest.raises(DataError, match="got no object"):
        write_split(tmp_path, "train", [], ["a"], source="", seed=0, license="")


# Both formats, and interruption.


def test_equal_records_give_equal_bytes(tmp_path, kind):
    manifests = [kind.write(tmp_path / name) for name in ("first", "second")]
    assert manifests[0] == manifests[1] and _files(tmp_path / "first") == _files(tmp_path / "second")
    with tarfile.open(tmp_path / "first" / "train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_complete_split_is_not_overwritten(tmp_path, kind):
    kind.write(tmp_path)
    before = _files(tmp_path)
    with pytest.raises(DataError, match="already describes a complete split"):
        kind.write(tmp_path)
    assert _files(tmp_path) == before
    with pytest.raises(DataError, match=r"got no (object|image): give at least one"):
        kind._replace(records=[]).write(tmp_path / "empty")


def test_resumed_split_equals_an_uninterrupted_one(tmp_path, kind):
    whole, count = kind.write(tmp_path / "whole"), len(kind.records)
    for interrupted_at in (0, 1, kind.per_shard, 2 * kind.per_shard + 1, count - 1, count):
        folder = tmp_path / f"stopped after {interrupted_at}"
        kind.write(folder, interrupted_at)
        assert len(list(folder.glob("*.tar"))) == interrupted_at // kind.per_shard
        with pytest.raises(DataError, match="there is no manifest"):
            read_manifest(folder, "train")
        assert kind.write(folder) == whole
        assert _files(folder) == _files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["size", "content", "absent", "note"])
def test_resuming_rewrites_from_the_first_shard_that_is_not_intact(tmp_path, kind, damage):
    kind.write(tmp_path / "whole")
    kind.write(tmp_path / "parts", len(kind.records))
    second = tmp_path / "parts" / "train-000001.tar"
    if damage == "size":
        os.truncate(second, 1000)
    elif damage == "content":
        flip(second, 1600)
    elif damage == "absent":
        second.unlink()
    else:
        (tmp_path / "parts" / "train-000001.tar.finished.json").write_text("{")
    assert SplitWriter(tmp_path / "parts", kind.settings, resume=True).num_records == kind.per_shard
    kind.write(tmp_path / "parts")
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


def test_resuming_refuses_shards_of_other_settings_and_keys_that_are_kept(tmp_path, kind):
    kind.write(tmp_path, 2 * kind.per_shard)
    before = _files(tmp_path)
    with pytest.raises(DataError, match=r"train-000000\.tar was begun with other settings"):
        SplitWriter(tmp_path, dataclasses.replace(kind.settings, plan="another list"), resume=True)
    assert _files(tmp_path) == before
    writer = SplitWriter(tmp_path, kind.settings, resume=True)
    with pytest.raises(DataError, match=f"key '{kind.records[2].key}' was given twice"):
        writer.add(kind.records[2])


def test_starting_anew_removes_what_an_interrupted_writer_left_and_nothing_else(tmp_path, records, write_train_split):
    _write_some(tmp_path, records, 23)
    others = ("val-000000.tar", "train-000000.tar.txt", "notes.md", "train-extra-000000.tar")
    for name in others:
        (tmp_path / name).write_text("mine")
    write_train_split(tmp_path, records[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*others, "train-000000.tar", "train.index", "train.manifest.json"]
    )


def test_failing_source_of_records_leaves_the_finished_shards(tmp_path, records, write_train_split):
    def failing():
        yield from records[:7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_train_split(tmp_path, failing())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.tar", "train-000000.tar.finished.json"]


# Full disks.


@pytest.mark.parametrize("fails_at", [0, 2, 6, 9])
def test_full_disk_is_one_sentence_and_earlier_shards_stay(tmp_path, records, monkeypatch, fails_at):
    calls = []
    real_fsync = os.fsync

    def fsync_on_a_disk_that_fills(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync_on_a_disk_that_fills)
        with (
            pytest.raises(DataError, match=r"cannot write .*train-.* \(No space left on device\): free some space"),
            SplitWriter(tmp_path, _settings()) as writer,
        ):
            for record in records:
                writer.add(record)
    assert not (tmp_path / "train.manifest.json").exists()
    assert not list(tmp_path.rglob("*.partial"))
    with SplitWriter(tmp_path, _settings(), resume=True) as writer:  # once there is space again
        for record in records[writer.num_records :]:
            writer.add(record)
        writer.finish()
    verify_split(tmp_path, "train")
    assert len(read_manifest(tmp_path, "train").shards) == 5


def test_real_limit_of_file_size_while_writing_a_shard(tmp_path):
    """A limit set on the process makes the kernel itself refuse to write, as a full disk does."""
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np, simplejpeg
        from ssl_equi.data import DataError, ObjectRecord, write_split

        image = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

        def records():
            for number in range(20):
                padding = bytes(0 if number < 5 else 20_000)  # the sixth shard passes the limit
                yield ObjectRecord(f"k{number}", 0, np.zeros((4, 7)), [image + padding] * 4)

        try:
            folder = Path(sys.argv[1])
            write_split(folder, "train", records(), ["a"], source="", seed=0, license="", objects_per_shard=1)
        except DataError as error:
            print(error)
        """
    )
    outcome = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert outcome.stdout.startswith(f"cannot write {tmp_path}/train-000005.tar (File too large): free some space")
    assert len(list(tmp_path.glob("*.tar"))) == 5
    assert not list(tmp_path.glob("*.partial"))


def test_folder_that_cannot_be_made_is_named(tmp_path, records, write_train_split):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/split \(Not a directory\)"):
        write_train_split(tmp_path / "file" / "split", records)


# Verification.


def test_verification_reads_every_shard_and_decodes_every_image(shared_split, monkeypatch):
    seen: list[str] = []
    decoded: list[int] = []
    decode = verify.decode_view
    monkeypatch.setattr(verify, "decode_view", lambda data, *to: (decoded.append(len(data)), decode(data, *to))[1])
    verify_split(shared_split, "train", report_shard=seen.append)
    assert seen == [f"train-{number:06d}.tar" for number in range(5)]
    assert len(decoded) == 23 * 6


def test_verification_finds_a_single_bit(own_split):
    flip(own_split / "train-000003.tar", 700)  # inside the latents, which reading images never touches
    with pytest.raises(DataError, match=r"train-000003\.tar does not match its SHA-256"):
        verify_split(own_split, "train")
