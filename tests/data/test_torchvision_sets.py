"""CIFAR and STL-10 in torchvision's own files, small ones, with their real MD5 in place of the published."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from ssl_equi.data.sets.torchvision_sets import open_torchvision
from ssl_equi.data.sources import DatasetName, open_data
from ssl_equi.errors import DataError


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(folder: Path, kind: type, label_key: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch file of a CIFAR set with 6 images each, as its authors pickled them."""
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(kind, attribute):
            data = generator.integers(0, 256, (6, 3 * 32 * 32), dtype=np.uint8)
            labels = [index % len(names) for index in range(6)]
            (base / name).write_bytes(pickle.dumps({"data": data, label_key: labels}))
            sums.append([name, md5(base / name)])
        monkeypatch.setattr(kind, attribute, sums)
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(base / kind.meta["filename"])})


def write_stl10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 labelled, 7 unlabelled and 3 test images."""
    base = folder / "stl10_binary"
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("unlabeled", 7), ("test", 3)):
        generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(base / f"{split}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(base / f"{split}_y.bin")
    (base / "class_names.txt").write_text("\n".join(f"thing {label}" for label in range(10)))
    for attribute in ("train_list", "test_list"):
        files = [[name, md5(base / name)] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, files)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_cifar(tmp_path, datasets.CIFAR10, "labels", ["cat", "dog", "frog"], monkeypatch)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "label_key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar_is_read_as_torchvision_reads_it(
    name: DatasetName, kind: type, label_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, kind, label_key, ["cat", "dog", "frog"], monkeypatch)
    data = open_data(name, tmp_path, "test", 32)
    reference = kind(tmp_path, train=True)
    count = 6 * len(kind.train_list)
    assert data.train.num_objects == data.probe_train.num_objects == count and data.evaluation.num_objects == 6
    assert data.train.class_names == ("cat", "dog", "frog")
    assert data.train.fills_image and data.train.image_size == (32, 32) and data.train.num_views == 1
    assert not data.has_poses and data.train.split == "train"
    pixels = np.zeros((count, 1, 32, 32, 3), np.uint8)
    data.train.read_views(np.arange(count), np.zeros((count, 1), int), pixels)
    for index, (image, label) in enumerate(reference):
        np.testing.assert_array_equal(pixels[index, 0], np.asarray(image))
        assert data.train.labels[index] == label
    assert len({data.train.fingerprint, data.evaluation.fingerprint}) == 2
    assert data.mean_rgb[0] == {"cifar10": 0.4914, "cifar100": 0.5071}[name]


def test_a_smaller_size_shrinks_whole_images_for_the_probes_only(cifar10: Path) -> None:
    data = open_data("cifar10", cifar10, "test", 16)
    assert data.train.image_size == (32, 32)
    assert data.probe_train.image_size == data.evaluation.image_size == (16, 16)
    stored, small = np.zeros((6, 1, 32, 32, 3), np.uint8), np.zeros((6, 1, 16, 16, 3), np.uint8)
    data.train.read_views(np.arange(6), np.zeros((6, 1), int), stored)
    data.probe_train.read_views(np.arange(6), np.zeros((6, 1), int), small)
    np.testing.assert_allclose(small.mean(axis=(2, 3)), stored.mean(axis=(2, 3)), atol=3)


def test_stl10_trains_on_unlabelled_images_too_and_is_probed_on_labelled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stl10(tmp_path, monkeypatch)
    data = open_data("stl10", tmp_path, "test", 96)
    assert data.train.labels.tolist() == [0, 1, 2, 3] + [-1] * 7
    assert data.probe_train.labels.tolist() == [0, 1, 2, 3]
    assert data.evaluation.labels.tolist() == [0, 1, 2]
    assert data.train.class_names[3] == "thing 3" and data.train.labels.dtype == np.int64
    assert data.train.fingerprint != data.probe_train.fingerprint
    reference = datasets.STL10(tmp_path, split="unlabeled")
    pixels = np.zeros((1, 1, 96, 96, 3), np.uint8)
    data.train.read_views(np.array([6]), np.array([[0]]), pixels)
    np.testing.assert_array_equal(pixels[0, 0], np.asarray(reference[2][0]))
    (tmp_path / "stl10_binary" / "class_names.txt").unlink()
    assert open_torchvision("stl10", tmp_path).train.class_names[3] == "3"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_an_absent_set_is_named_with_its_files(name: DatasetName, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_data(name, tmp_path, "test", 32)
    text = str(caught.value)
    first_file = {"cifar10": "data_batch_1", "cifar100": "train", "stl10": "train_X.bin"}[name]
    assert f"{name} is not complete in {tmp_path}, and nothing is downloaded" in text and first_file in text


def test_a_changed_file_is_never_unpickled(cifar10: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (cifar10 / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="holds the published"):
        open_data("cifar10", cifar10, "test", 32)
    assert not (tmp_path / "sprung").exists()


def test_a_larger_size_enlarges_whole_images_for_the_probes_and_says_so(cifar10: Path) -> None:
    data = open_data("cifar10", cifar10, "test", 64)
    assert data.train.image_size == (32, 32) and data.evaluation.image_size == (64, 64)
    assert data.notes == (
        "the stored images of cifar10 have 32 x 32 pixels and are enlarged, which adds no detail, to 64 x 64",
    )
    assert open_data("cifar10", cifar10, "test", 16).notes == ()


def test_splits_that_do_not_exist_are_refused(cifar10: Path) -> None:
    with pytest.raises(DataError, match="--evaluation-split is 'val': choose from test"):
        open_data("cifar10", cifar10, "val", 32)
    with pytest.raises(DataError, match="give its folder as --data-dir"):
        open_data("cifar10", None, "test", 32)
