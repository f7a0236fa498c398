import io
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import simplejpeg
import webdataset
from PIL import Image
from scipy.spatial.transform import Rotation

import ssl_equi.data.shards.files as shard_files_module
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from tests.data.image_sets import edit_manifest


def _read(dataset: ShardDataset, objects: list[int], views: list[list[int]]) -> np.ndarray:
    out = np.zeros((*np.shape(views), *dataset.image_size, 3), dtype=np.uint8)
    dataset.read_views(np.array(objects), np.array(views), out)
    return out


def _read_all(dataset: ShardDataset) -> np.ndarray:
    return _read(dataset, list(range(len(dataset))), [list(range(dataset.num_views))] * len(dataset))


def _pillow_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_attributes_are_those_of_the_records(shared_split, records):
    dataset = ShardDataset(shared_split, "train")
    assert len(dataset) == dataset.num_objects == 23
    assert dataset.num_views == 6
    assert dataset.image_size == (24, 32)
    assert dataset.class_names == ("bottle", "chair", "lamp")
    assert dataset.labels.tolist() == [record.label for record in records]
    assert [key.decode() for key in dataset.keys.tolist()] == [record.key for record in records]
    assert dataset.labels.dtype == np.int64
    assert dataset.fingerprint == dataset.manifest.fingerprint
    latents = np.stack([record.latents for record in records])
    np.testing.assert_array_equal(dataset.latents, latents.astype(np.float32))
    rotations = Rotation.from_euler("xyz", latents[..., :3].reshape(-1, 3)).as_quat().reshape(23, 6, 4)
    np.testing.assert_allclose(dataset.quats_xyzw, rotations, atol=1e-6)
    assert (dataset.quats_xyzw[..., 3] > 0).all()


def test_pixels_are_pillows(shared_split, records):
    pixels = _read_all(ShardDataset(shared_split, "train"))
    for record, views in zip(records, pixels):
        for image, found in zip(record.images, views):
            np.testing.assert_array_equal(found, _pillow_pixels(image))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440"])
def test_unusual_jpegs_decode_as_pillow_does(tmp_path, write_train_split, subsampling):
    generator = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((32, 24)))
    gray = smooth[..., :1].copy()
    progressive = io.BytesIO()
    Image.fromarray(smooth).save(progressive, "JPEG", progressive=True, quality=80)
    images = [
        simplejpeg.encode_jpeg(smooth, colorsubsampling=subsampling),
        simplejpeg.encode_jpeg(gray, colorspace="GRAY", colorsubsampling="Gray"),
        progressive.getvalue(),
    ]
    write_train_split(tmp_path, [ObjectRecord("odd", 0, np.zeros((3, 7)), images)])
    pixels = _read_all(ShardDataset(tmp_path, "train"))[0]
    for found, image in zip(pixels, images):
        np.testing.assert_array_equal(found, _pillow_pixels(image))


def test_plain_webdataset_reads_the_shards(shared_split, records):
    samples = [
        sample
        for number in range(5)
        for sample in webdataset.WebDataset(str(shared_split / f"train-{number:06d}.tar"), shardshuffle=False)
    ]
    assert [sample["__key__"] for sample in samples] == [record.key for record in records]
    for sample, record in zip(samples, records):
        assert int(sample["cls"]) == record.label
        stored = np.load(io.BytesIO(sample["latents.npy"]), allow_pickle=False)
        assert stored.dtype == np.float64
        np.testing.assert_array_equal(stored, record.latents)
        assert [sample[f"v{view:02d}.jpg"] for view in range(6)] == record.images


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same_pixels_at_the_same_time(shared_split, method):
    dataset = ShardDataset(shared_split, "train")
    expected = _read_all(dataset)  # this process's descriptors are open when the other starts
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        theirs = [pool.submit(_read_all, dataset) for _ in range(5)]
        for _ in range(5):
            np.testing.assert_array_equal(_read_all(dataset), expected)
        for pixels in theirs:
            np.testing.assert_array_equal(pixels.result(), expected)


def test_forked_process_opens_descriptors_of_its_own(shared_split):
    dataset = ShardDataset(shared_split, "train")
    expected = _read(dataset, [0], [[0]])
    inherited = set(dataset._files.descriptors.values())
    receiver, sender = multiprocessing.get_context("fork").Pipe()

    def read_in_child() -> None:
        pixels = _read(dataset, [0], [[0]])
        own = {descriptor for (process, _), descriptor in dataset._files.descriptors.items() if process == os.getpid()}
        sender.send((np.array_equal(pixels, expected), bool(own) and not own & inherited))

    child = multiprocessing.get_context("fork").Process(target=read_in_child)
    child.start()
    assert receiver.recv() == (True, True)
    child.join()
    assert child.exitcode == 0


def test_reading_goes_on_after_close(shared_split):
    dataset = ShardDataset(shared_split, "train")
    expected = _read(dataset, [7], [[2, 3]])
    dataset.close()
    assert not dataset._files.descriptors
    np.testing.assert_array_equal(_read(dataset, [7], [[2, 3]]), expected)


def test_of_many_shards_only_some_stay_open(shared_split, monkeypatch):
    expected = _read_all(ShardDataset(shared_split, "train"))
    monkeypatch.setattr(shard_files_module, "_MOST_DESCRIPTORS", 2)
    dataset = ShardDataset(shared_split, "train")
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        np.testing.assert_array_equal(_read_all(dataset), expected)
    assert len(dataset._files.descriptors) == 2 < len(dataset.manifest.shards)
    assert len(os.listdir("/proc/self/fd")) == open_before + 2


def test_descriptors_are_closed_with_the_dataset(shared_split):
    dataset = ShardDataset(shared_split, "train")
    _read(dataset, [7], [[2]])
    (descriptor,) = dataset._files.descriptors.values()
    assert os.fstat(descriptor).st_size == dataset.manifest.shards[1].bytes
    del dataset
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# What was damaged after writing.


def _byte_of_view(dataset: ShardDataset, object_index: int, view: int) -> int:
    return int(dataset._index.offsets[object_index, view])


def _overwrite(path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def test_flipped_bits_are_an_error_naming_shard_member_and_offset(own_split):
    dataset = ShardDataset(own_split, "train")
    offset = _byte_of_view(dataset, 7, 3)
    _overwrite(own_split / "train-000001.tar", offset + 300, b"\x12\x34")
    message = rf"'object_007\.v03\.jpg' at byte {offset} of shard .*train-000001\.tar does not match its CRC-32C"
    with pytest.raises(DataError, match=message):
        _read(dataset, [7], [[3]])
    assert _read(dataset, [7], [[2]]).any()  # its neighbours are read


def test_shard_cut_while_open_is_an_error_and_not_a_dead_process(own_split):
    dataset = ShardDataset(own_split, "train")
    _read(dataset, [5], [[0]])
    os.truncate(own_split / "train-000001.tar", _byte_of_view(dataset, 5, 0) + 10)
    with pytest.raises(DataError, match=r"'object_005\.v00\.jpg' .* is cut \(expected \d+ bytes, found 10\)"):
        _read(dataset, [5], [[0]])


def test_shard_that_vanished_is_read_while_open_and_an_error_afterwards(own_split):
    dataset = ShardDataset(own_split, "train")
    expected = _read(dataset, [0], [[0]])
    (own_split / "train-000000.tar").unlink()
    (own_split / "train-000001.tar").unlink()
    np.testing.assert_array_equal(_read(dataset, [0], [[0]]), expected)
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be opened any more"):
        _read(dataset, [5], [[0]])


def test_damaged_jpeg_with_a_right_checksum_is_an_error(own_split, monkeypatch):
    # The checksum is computed from the damaged bytes: decoding itself has to notice.
    dataset = ShardDataset(own_split, "train")
    size = int(dataset._index.sizes[0, 0])
    _overwrite(own_split / "train-000000.tar", _byte_of_view(dataset, 0, 0) + size // 2, bytes(size - size // 2))
    monkeypatch.setattr("google_crc32c.value", lambda data: int(dataset._index.crc32c[0, 0]))
    with pytest.raises(DataError, match=r"'object_000\.v00\.jpg' .* does not decode"):
        _read(dataset, [0], [[0]])


# Manifest and sidecars.


def test_fingerprint_identifies_the_content(tmp_path, random_records, write_train_split):
    fingerprints = [
        write_train_split(tmp_path / str(number), random_records(num_objects=4, seed=seed)).fingerprint
        for number, seed in enumerate((0, 0, 1))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert ShardDataset(tmp_path / "0", "train").fingerprint == fingerprints[0]


def _replace_sidecar(folder, name: str, array: np.ndarray) -> None:
    import hashlib

    path = folder / "train.index" / f"{name}.npy"
    np.save(path, array)
    sidecars = json.loads((folder / "train.manifest.json").read_text())["sidecars"]
    edit_manifest(folder, sidecars=sidecars | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def test_sidecar_with_objects_is_never_unpickled(own_split):
    path = own_split / "train.index" / "labels.npy"
    np.save(path, np.array([_WritesFileWhenUnpickled(str(own_split / "executed"))]), allow_pickle=True)
    with pytest.raises(DataError, match=r"labels\.npy is not a plain \.npy array"):
        ShardDataset(own_split, "train")
    assert not (own_split / "executed").exists()


class _WritesFileWhenUnpickled:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "latents",
            lambda a: a[:, :, :6].copy(),
            r"latents\.npy holds float32 \(23, 6, 6\), expected float32 \(23, 6, 7\)",
        ),
        ("labels", lambda a: a.astype(np.int32), r"labels\.npy holds int32 \(23,\), expected int64 \(23,\)"),
        ("labels", lambda a: a + 1, r"labels\.npy holds a label outside 0\.\.2"),
        ("latents", lambda a: np.where(a == a.flat[9], np.nan, a), "holds NaN or infinity"),
        ("quats_xyzw", lambda a: np.where(a == a.flat[9], np.inf, a), "holds NaN or infinity"),
        ("offsets", lambda a: a + 10**9, r"offsets\.npy points outside a shard"),
        ("sizes", lambda a: -a, r"offsets\.npy points outside a shard"),
        ("shard_numbers", lambda a: a[::-1].copy(), r"shard_numbers\.npy contradicts the manifest"),
    ],
)
def test_incoherent_sidecar_is_refused_even_with_a_fitting_manifest(own_split, name, change, message):
    _replace_sidecar(own_split, name, change(np.load(own_split / "train.index" / f"{name}.npy")))
    with pytest.raises(DataError, match=message):
        ShardDataset(own_split, "train")
