"""Photographs of real objects through the converter of posed views: ETH-80 with lists, COIL-20 split by views."""

import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import open_data
from tests.launched import load_script
from tests.real_data import shared_data

ROOT = Path(__file__).parents[2]
COIL_OBJECTS, COIL_VIEWS = ("obj2", "obj10"), 72


@pytest.fixture(scope="module")
def threediebench() -> ModuleType:
    return load_script(ROOT / "datasets" / "threediebench.py")


def test_eth80_is_read_in_any_size(threediebench: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(shared_data("eth80") / "eth80_128.tar.gz") as archive:
        archive.extractall(tmp_path / "eth80", filter="data")
    config = threediebench.Config(
        source=tmp_path / "eth80", out=tmp_path / "shards", source_name="ETH-80, Leibe and Schiele, CVPR 2003",
        license="none stated", workers=1,
    )  # fmt: skip
    manifests = threediebench.convert(config)
    assert [(each.num_objects, each.num_views) for each in manifests.values()] == [(64, 41), (16, 41)]
    # What its own description says of 500 pictures of both splits.
    np.testing.assert_allclose(manifests["train"].mean_rgb, (0.387, 0.413, 0.609), atol=0.01)
    np.testing.assert_allclose(manifests["train"].std_rgb, (0.207, 0.180, 0.170), atol=0.01)
    data = open_data("3diebench", tmp_path / "shards", "val", 64)
    assert data.train.image_size == (64, 64) and data.notes[-1].endswith("128 x 128 pixels and are shrunk to 64 x 64")
    assert data.train.class_names == ("apple", "car", "cow", "cup", "dog", "horse", "pear", "tomato")


def test_coil20_is_split_by_views(threediebench: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "coil20"
    with tarfile.open(shared_data("coil20") / "coil20.tar") as archive:
        for member in archive.getmembers():
            file = Path(member.name)
            name, _, view = file.stem.partition("__")
            if name in COIL_OBJECTS:
                (source / name).mkdir(parents=True, exist_ok=True)
                (source / name / file.name).write_bytes(archive.extractfile(member).read())
                latents = np.zeros(7)
                latents[2] = np.deg2rad(5 * int(view))
                np.save(source / name / f"latent_{view}.npy", latents)
    config = threediebench.Config(
        source=source, out=tmp_path / "shards", source_name="COIL-20", license="none stated", val_every_view=4
    )
    manifests = threediebench.convert(config)
    assert {each.view_format for each in manifests.values()} == {"png"}
    assert manifests["train"].notes[0] == threediebench.SPLIT_BY_VIEWS
    assert manifests["train"].class_names == COIL_OBJECTS
    val = ShardDataset(config.out, "val")
    assert (val.num_objects, val.num_views, val.image_size) == (2, COIL_VIEWS // 4, (128, 128))
    turned_deg = np.rad2deg(val.latents[..., 2])
    np.testing.assert_allclose(turned_deg, np.tile(np.arange(0, 360, 20), (2, 1)), atol=1e-3)
    data = val.read_encoded(0, 3)
    assert data == (source / val.keys[0].decode() / f"{val.keys[0].decode()}__12.png").read_bytes()
