"""Every way in which a shard goes bad, under every reader of shards: an error that names it, or no harm.

What a single reader, walk, writer or converter says of a fault stands in its own tests. This table holds each fault to
what they all promise, from the reader up to the batches of a loader:

- no reader gives other pixels, labels or latents than those that were written, without an error;
- the error is a DataError that names the shard, and the record if one record is meant;
- with on_bad_record="skip" a bad record is replaced and counted, and a lost shard still ends the run;
- what a reader by index can live with, the listing of all damage finds.
"""

import io
import itertools
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from ssl_equi.data.images import Canvas
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.shards.format import ImageRecord
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import manifest_path
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from tests.data.image_sets import write_pictures

Members = list[tuple[str, bytes]]
SHARD = "train-000001.tar"  # objects 5 to 9 of 23, images 4 to 7 of 11


# ---------------------------------------------------------------- readers


class Reader(NamedTuple):
    """How batches are made, and the key of the second record of the damaged shard."""

    rendered: bool
    open: Callable[[Path, str], Loader]
    key: str


def _rendered_by_index(folder: Path, on_bad_record: Any) -> Loader:
    dataset = ShardDataset(folder, "train")
    return stored_loader(dataset, global_batch_size=23, views=6, seed=0, prefetch=0, on_bad_record=on_bad_record)


def _rendered_streamed(folder: Path, on_bad_record: Any) -> Loader:
    return streamed_loader(folder, "train", global_batch_size=23, views=6, seed=0, prefetch=0, shuffle_buffer=23,
                          on_bad_record=on_bad_record)  # fmt: skip


def _images_by_index(folder: Path, on_bad_record: Any) -> Loader:
    images = SingleViews(ImageShards(folder, "train"), Canvas(32))
    return stored_loader(
        images, global_batch_size=images.num_objects, views=1, seed=0, prefetch=0, on_bad_record=on_bad_record
    )


def _images_without_manifest(folder: Path, on_bad_record: Any) -> Loader:
    manifest_path(folder, "train").unlink(missing_ok=True)
    return _images_by_index(folder, on_bad_record)


def _images_streamed(folder: Path, on_bad_record: Any) -> Loader:
    return streamed_loader(folder, "train", fit=Canvas(32), global_batch_size=11, views=1, seed=0, prefetch=0,
                          shuffle_buffer=11, on_bad_record=on_bad_record)  # fmt: skip


READERS = {
    "rendered, by index": Reader(True, _rendered_by_index, "object_006"),
    "rendered, streamed": Reader(True, _rendered_streamed, "object_006"),
    "images, by index": Reader(False, _images_by_index, "img_05"),
    "images, without a manifest": Reader(False, _images_without_manifest, "img_05"),
    "images, streamed": Reader(False, _images_streamed, "img_05"),
}
SHORT_BUT_WHOLE = "cut after a record, with an end marker"


def _epoch(reader: Reader, folder: Path, on_bad_record: Literal["raise", "skip"] = "raise") -> tuple[dict, int]:
    """What one epoch holds of each object, and how many bad records were replaced."""
    with reader.open(folder, on_bad_record) as loader:
        (batch,) = itertools.islice(loader.batches(), 1)
        found = {}
        for row, number in enumerate(batch.object_indices.tolist()):
            order = np.argsort(batch.view_indices[row].numpy())
            found[number] = (
                batch.images[row].numpy()[order].tobytes(), batch.latents[row].numpy()[order].tobytes(),
                int(batch.labels[row]),
            )  # fmt: skip
        return found, loader.skipped


# ---------------------------------------------------------------- faults


def _members(shard: Path) -> Members:
    with tarfile.open(shard) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def _write(shard: Path, members: Members) -> None:
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _rewritten(change: Callable[[Members, str], Members]) -> Callable[[Path, str], None]:
    return lambda shard, key: _write(shard, change(_members(shard), key))


def _place(members: Members, key: str, suffix: str) -> int:
    return next(place for place, (name, _) in enumerate(members) if name.startswith(key) and name.endswith(suffix))


def _first_image(tar: tarfile.TarFile, key: str) -> tarfile.TarInfo:
    return next(member for member in tar if member.name.startswith(key) and member.name.endswith(("jpg", "png")))


def _image_changed(change: Callable[[bytes], bytes]) -> Callable[[Path, str], None]:
    """A change of the first image of a record; the file stays as long as it was, and so does its member."""

    def damage(shard: Path, key: str) -> None:
        with tarfile.open(shard) as tar:
            member = _first_image(tar, key)
        content = bytearray(shard.read_bytes())
        place = slice(member.offset_data, member.offset_data + member.size)
        content[place] = change(bytes(content[place])).ljust(member.size, b"\0")
        shard.write_bytes(content)

    return damage


def _flipped(image: bytes) -> bytes:
    middle = len(image) // 2
    return image[:middle] + bytes(255 - byte for byte in image[middle : middle + 40]) + image[middle + 40 :]


def _cut_at(share: float) -> Callable[[Path, str], None]:
    return lambda shard, key: shard.write_bytes(shard.read_bytes()[: int(share * shard.stat().st_size)])


def _cut_before(shard: Path, key: str) -> None:
    """At a member's boundary, where Python's tarfile takes the file for complete."""
    with tarfile.open(shard) as tar:
        end = next(member.offset for member in tar if member.name.startswith(key))
    shard.write_bytes(shard.read_bytes()[:end])


def _damaged_header(shard: Path, key: str) -> None:
    """Of the record's first image."""
    with tarfile.open(shard) as tar:
        place = _first_image(tar, key).offset
    content = shard.read_bytes()
    shard.write_bytes(content[:place] + b"\xff" * 4 + content[place + 4 :])


def _npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


class _Executed:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


def _interleaved(members: Members, key: str) -> Members:
    """The members of two keys by turns, as no writer leaves them."""
    first, others = members[: len(members) // 4], members[len(members) // 4 :]
    return [member for pair in itertools.zip_longest(first, others) for member in pair if member is not None]


RECORD_FAULTS = {
    "flipped bytes in an image": _image_changed(_flipped),
    "an image cut in half": _image_changed(lambda image: image[: len(image) // 2]),
    "an image of zeros": _image_changed(lambda image: b""),
}
SHARD_FAULTS = {
    "cut inside a member": _cut_at(0.3),
    "cut at a member's boundary": _cut_before,
    "an empty file": _cut_at(0),
    "a vanished file": lambda shard, key: shard.unlink(),
    "a tar without members": _rewritten(lambda members, key: []),
    SHORT_BUT_WHOLE: _rewritten(lambda members, key: members[: _place(members, key, "")]),
    "a record without its image": _rewritten(
        lambda members, key: [member for member in members if member[0] not in (f"{key}.v00.jpg", f"{key}.png")]
    ),
    "a record without its label": _rewritten(
        lambda members, key: [member for member in members if member[0] != f"{key}.cls"]
    ),
    "a member twice": _rewritten(
        lambda members, key: [*members[: _place(members, key, "") + 1], *members[_place(members, key, "") :]]
    ),
    "a record twice": _rewritten(
        lambda members, key: [*members, *(member for member in members if member[0].startswith(f"{key}."))]
    ),
    "members of two keys by turns": _rewritten(_interleaved),
    "a pickle among the members": _rewritten(
        lambda members, key: [(f"{key}.pkl", pickle.dumps(_Executed())), *members]
    ),
    "a damaged tar header": _damaged_header,
}
LATENTS_FAULTS = {
    "no latents": None,
    "latents of another shape": _npy(np.zeros((6, 6))),
    "latents with NaN": _npy(np.full((6, 7), np.nan)),
    "latents that are objects": _npy(np.array([_Executed()]), allow_pickle=True),
}


def _latents_fault(content: bytes | None) -> Callable[[Path, str], None]:
    def change(members: Members, key: str) -> Members:
        place = _place(members, key, "latents.npy")
        changed = [] if content is None else [(members[place][0], content)]
        return [*members[:place], *changed, *members[place + 1 :]]

    return _rewritten(change)


# What a reader goes on with, giving nothing but what was written: a reader with an index goes by its word for where an
# image lies and for latents, and passes over what was added at the end; who reads others' shards passes over what is no
# image and no label. Without a manifest nobody counted shards and records.
NOBODY_COUNTED = ("a vanished file", SHORT_BUT_WHOLE)
IN_THE_INDEX = ("latents of another shape", "latents with NaN", "latents that are objects")
HARMLESS = {
    "rendered, by index": ("a damaged tar header", *IN_THE_INDEX),
    "rendered, streamed": IN_THE_INDEX,
    "images, by index": ("a damaged tar header", "a record twice"),
    "images, streamed": ("a record twice",),
    "images, without a manifest": ("a pickle among the members", *NOBODY_COUNTED),
}


# ---------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def sound_splits(
    shared_split: Path, pictures: list[ImageRecord], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict]]:
    """Of each reader: the split that it reads, and what an epoch of it holds."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, pictures)
    foreign = Path(shutil.copytree(folder, tmp_path_factory.mktemp("foreign") / "pictures"))
    splits = {}
    for name, reader in READERS.items():
        split = shared_split if reader.rendered else foreign if "without" in name else folder
        splits[name] = (split, _epoch(reader, split)[0])
    return splits


def _outcome(reader: Reader, folder: Path, on_bad_record: Literal["raise", "skip"]) -> tuple[dict | str, int]:
    try:
        return _epoch(reader, folder, on_bad_record)
    except DataError as error:
        assert "\n" not in str(error)
        return str(error), 0


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_a_bad_record_is_named_or_skipped(
    sound_splits: dict[str, tuple[Path, dict]], tmp_path: Path, name: str, fault: str
) -> None:
    reader = READERS[name]
    sound, intact = sound_splits[name]
    folder = Path(shutil.copytree(sound, tmp_path / "damaged"))
    RECORD_FAULTS[fault](folder / SHARD, reader.key)
    message, _ = _outcome(reader, folder, "raise")
    assert isinstance(message, str) and f"'{reader.key}" in message and SHARD in message
    found, skipped = _outcome(reader, folder, "skip")
    assert isinstance(found, dict) and skipped == 1 and len(found) == len(intact) - 1
    assert all(intact[number] == content for number, content in found.items())
    assert any(SHARD in damage.sentence and reader.key in damage.sentence for damage in find_damage(folder, "train"))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (name, fault)
        for name, reader in READERS.items()
        for fault in [*SHARD_FAULTS, *(LATENTS_FAULTS if reader.rendered else [])]
    ],
)
def test_a_bad_shard_is_named_unless_it_does_no_harm(
    sound_splits: dict[str, tuple[Path, dict]], tmp_path: Path, name: str, fault: str
) -> None:
    reader = READERS[name]
    sound, intact = sound_splits[name]
    folder = Path(shutil.copytree(sound, tmp_path / "damaged"))
    damage = SHARD_FAULTS[fault] if fault in SHARD_FAULTS else _latents_fault(LATENTS_FAULTS[fault])
    damage(folder / SHARD, reader.key)
    found, skipped = _outcome(reader, folder, "raise")
    if fault in HARMLESS[name]:
        assert isinstance(found, dict) and skipped == 0
        assert set(found.values()) <= set(intact.values())
        assert len(found) == len(intact) or fault in NOBODY_COUNTED
    else:
        assert isinstance(found, str) and (SHARD in found or f"key '{reader.key}' occurs more than once" in found)
        # A member that was moved is a bad record to a reader that goes by the index; a shard of another size is lost.
        found, skipped = _outcome(reader, folder, "skip")
        if isinstance(found, dict):
            assert skipped > 0 and all(intact[number] == content for number, content in found.items())
    if not (name == "images, without a manifest" and fault in HARMLESS[name]):
        listed = [damage.sentence for damage in find_damage(folder, "train")]
        assert any(SHARD in sentence for sentence in listed)


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("on_bad_record", ["raise", "skip"])
@pytest.mark.parametrize("error", [MemoryError("no memory"), SystemExit("the thread ends")])
def test_a_thread_of_the_indexed_loader_that_dies_ends_the_run_with_its_message(
    shared_split: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, on_bad_record: Any
) -> None:
    calls = itertools.count()
    original = ShardDataset.read_views

    def die(self: ShardDataset, *arguments: Any) -> Any:
        if next(calls) == 3:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(ShardDataset, "read_views", die)
    before = threading.active_count()
    loader = stored_loader(
        ShardDataset(shared_split, "train"), global_batch_size=4, seed=0, on_bad_record=on_bad_record
    )
    with loader, pytest.raises(type(error), match=str(error)):
        list(itertools.islice(loader.batches(), 5))
    assert threading.active_count() == before
