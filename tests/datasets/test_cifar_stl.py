"""The converter of CIFAR and STL-10: pixels without loss, labels, unlabelled images."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ssl_equi.data.sets.torchvision_sets import ImagesInMemory, TorchvisionName, TorchvisionSet
from ssl_equi.data.shards.convert import ConversionOptions
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import read_image_manifest
from ssl_equi.data.sources import DATASETS, open_data
from tests.launched import load_script

SCRIPT = Path(__file__).parents[2] / "datasets" / "cifar_stl.py"


@pytest.fixture(scope="module")
def cifar_stl() -> ModuleType:
    """The script as a module; datasets/ is no package."""
    return load_script(SCRIPT)


def random_set(name: TorchvisionName, folder: Path) -> TorchvisionSet:
    """What `open_torchvision` gives, of 9 training images, every third unlabelled in STL-10, and 4 test images."""
    generator = np.random.default_rng(0)
    side = DATASETS[name].side

    def images(split: str, labels: np.ndarray) -> ImagesInMemory:
        pixels = generator.integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
        classes = tuple(f"class {label}" for label in range(3))
        return ImagesInMemory(pixels, labels, classes, split, folder, name, "none", (0.5,) * 3, (0.2,) * 3)

    labels = np.arange(9) % 3
    if name == "stl10":
        labels[::3] = -1
    train = images("train", labels)
    return TorchvisionSet(train, train, images("test", np.arange(4) % 3))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_pixels_and_labels_are_kept(
    cifar_stl: ModuleType, name: TorchvisionName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = random_set(name, tmp_path)
    monkeypatch.setattr(cifar_stl, "open_torchvision", lambda name, folder: opened)
    options = ConversionOptions(out=tmp_path / "out", images_per_shard=4, workers=2, verify=True)
    cifar_stl.main(cifar_stl.Config(name, tmp_path, options))
    for images in (opened.train, opened.test):
        shards = ImageShards(tmp_path / "out", images.split)
        assert len(shards.labels) == len(images.labels) and shards.class_names == images.class_names
        for row, key in enumerate(shards._index.keys.tolist()):
            source = int(key.decode().rpartition("_")[2])
            np.testing.assert_array_equal(shards.read_image(row), images.images[source])
            assert shards.labels[row] == images.labels[source]
    manifest = read_image_manifest(tmp_path / "out", "train")
    assert manifest.kinds == {"PNG": 9} and manifest.mean_rgb == cifar_stl.MEAN_STD_RGB[name][0]
    assert manifest.num_unlabelled == (3 if name == "stl10" else 0)
    data = open_data("shards", tmp_path / "out", "test", 16)
    assert (data.train.num_objects, data.evaluation.num_objects) == (9, 4)
    assert data.probe_train.num_objects == (6 if name == "stl10" else 9)
