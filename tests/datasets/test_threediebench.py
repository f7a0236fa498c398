"""The converter of 3DIEBench on a small folder of exactly its layout."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from ssl_equi.data.loading.gpu import encoded_views, gpu_loader
from ssl_equi.data.remote.views import RemoteShards
from ssl_equi.data.shards import convert
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import find_damage
from ssl_equi.data.sources import open_data, open_ood_rotation
from ssl_equi.errors import DataError
from ssl_equi.latents.actions import warning_of_signs
from tests.launched import load_script

SCRIPT = Path(__file__).parents[2] / "datasets" / "threediebench.py"
SYNSETS = ("02691156", "02747177", "03001627")
NUM_VIEWS = 4


@pytest.fixture(scope="module")
def threediebench() -> ModuleType:
    """The script as a module; datasets/ is no package."""
    return load_script(SCRIPT)


def write_archive(folder: Path, latent_size: int = 7) -> None:
    """11 train and 6 val objects: images, float64 latents, lists of '<U43' strings and int64 labels."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 6)):
        names, labels = [], []
        for number in range(count):
            label = number % len(SYNSETS)
            object_id = f"{generator.integers(2**63):032x}"
            directory = folder / SYNSETS[label] / object_id
            directory.mkdir(parents=True)
            for view in range(NUM_VIEWS):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                (directory / f"image_{view}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, colorsubsampling="420"))
                np.save(directory / f"latent_{view}.npy", generator.uniform(-0.5, 0.5, latent_size))
            names.append(f"/{SYNSETS[label]}/{object_id}/")
            labels.append(label)
        np.save(folder / f"{split}_images.npy", np.array(names))
        np.save(folder / f"{split}_labels.npy", np.array(labels))
    assert np.load(folder / "train_images.npy").dtype == np.dtype("<U43")


@pytest.fixture
def archive(tmp_path) -> Path:
    write_archive(tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def config(threediebench, archive, tmp_path):
    return threediebench.Config(
        source=archive, out=tmp_path / "shards", objects_per_shard=4, workers=2, verify=True, source_name="our scans",
        license="CC0-1.0",
    )  # fmt: skip


def _first_train_object(archive: Path) -> Path:
    return archive / str(np.load(archive / "train_images.npy")[0]).strip("/")


def test_round_trip_keeps_every_byte(threediebench, config):
    manifests = threediebench.convert(config)
    for split, manifest in manifests.items():
        dataset = ShardDataset(config.out, split)
        names = np.load(config.source / f"{split}_images.npy")
        labels = np.load(config.source / f"{split}_labels.npy")
        members: dict[str, bytes] = {}
        for entry in manifest.shards:
            with tarfile.open(config.out / entry.name) as shard:
                members |= {member.name: shard.extractfile(member).read() for member in shard}
        assert len(members) == len(names) * (NUM_VIEWS + 2)
        row_of_key = {key.decode(): row for row, key in enumerate(dataset.keys.tolist())}
        for name, label in zip(names, labels, strict=True):
            folder = config.source / name.strip("/")
            key = name.strip("/").replace("/", "_")
            files = [(folder / f"image_{view}.jpg").read_bytes() for view in range(NUM_VIEWS)]
            latents = np.stack([np.load(folder / f"latent_{view}.npy") for view in range(NUM_VIEWS)])
            assert [members[f"{key}.v{view:02d}.jpg"] for view in range(NUM_VIEWS)] == files
            stored = np.load(io.BytesIO(members[f"{key}.latents.npy"]))
            assert stored.dtype == np.float64
            np.testing.assert_array_equal(stored, latents)
            row = row_of_key[key]
            assert dataset.labels[row] == label
            assert dataset.class_names[label] == key[:8]
            np.testing.assert_array_equal(dataset.latents[row], latents.astype(np.float32))
            pixels = np.zeros((1, NUM_VIEWS, 16, 16, 3), dtype=np.uint8)
            dataset.read_views(np.array([row]), np.arange(NUM_VIEWS)[None], pixels)
            for view, file in enumerate(files):
                np.testing.assert_array_equal(pixels[0, view], simplejpeg.decode_jpeg(file))


@pytest.fixture
def published(threediebench, monkeypatch) -> dict[str, None]:
    """The small lists are taken for the published ones; options that say nothing of where they are from."""
    monkeypatch.setattr(threediebench, "PUBLISHED_LISTS", (11, 6, 3, 3, 4))
    return {"source_name": None, "license": None}


def test_the_authors_set_is_recognised_by_its_lists(threediebench, config, published):
    manifest = threediebench.convert(dataclasses.replace(config, **published))["train"]
    assert (manifest.num_objects, manifest.num_views, manifest.image_size) == (11, NUM_VIEWS, (16, 16))
    assert manifest.class_names == SYNSETS
    assert manifest.source.startswith("3DIEBench, Garrido")
    assert manifest.license == "CC-BY-NC-4.0"
    assert (manifest.mean_rgb, manifest.std_rgb) == ((0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969))
    assert manifest.notes == () and manifest.view_format == "jpg"
    assert not {"notes", "view_format"} & json.loads((config.out / "train.manifest.json").read_text()).keys()


@pytest.mark.parametrize("missing", ["source_name", "license"])
def test_other_sets_must_say_whose_they_are(threediebench, config, missing):
    with pytest.raises(DataError, match=r"these are not the lists of 3DIEBench .* 11 and 6 objects: say whose"):
        threediebench.convert(dataclasses.replace(config, **{missing: None}))
    assert not config.out.exists()


def test_statistics_of_other_sets_are_measured_on_stated_views(threediebench, config, monkeypatch):
    manifest = threediebench.convert(config)["val"]
    assert (manifest.source, manifest.license) == ("our scans", "CC0-1.0")
    assert manifest.notes == ("mean and standard deviation of the pixels were measured on 44 training views",)
    files = [path for name in np.load(config.source / "train_images.npy") for path in _views(config.source, name)]
    pixels = np.stack([simplejpeg.decode_jpeg(path.read_bytes()) for path in files]) / 255
    np.testing.assert_allclose(manifest.mean_rgb, pixels.mean(axis=(0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(manifest.std_rgb, pixels.std(axis=(0, 1, 2)), atol=6e-5)
    data = open_data("3diebench", config.out, "val", 16)
    assert data.notes == manifest.notes and data.mean_rgb == manifest.mean_rgb
    monkeypatch.setattr(convert, "MEASURED_VIEWS", 5)
    few = threediebench.convert(dataclasses.replace(config, out=config.out / "few"))["val"]
    assert few.notes == ("mean and standard deviation of the pixels were measured on 5 training views",)
    assert few.mean_rgb != manifest.mean_rgb


def _views(source: Path, name: str) -> list[Path]:
    return sorted((source / name.strip("/")).glob("*.jpg"))


def test_resized_views_are_stored_as_jpeg_and_say_so(threediebench, config):
    manifest = threediebench.convert(dataclasses.replace(config, resize=12))["train"]
    assert manifest.image_size == (12, 12)
    assert manifest.notes[0].startswith("views were resized to 12 x 12 pixels when they were converted and stored as")
    same = threediebench.convert(dataclasses.replace(config, resize=16, out=config.out / "same"))["train"]
    first = threediebench.convert(dataclasses.replace(config, out=config.out / "first"))["train"]
    assert [entry.sha256 for entry in same.shards] == [entry.sha256 for entry in first.shards], "bytes are kept"
    with pytest.raises(DataError, match="holds a train split made with other options"):
        threediebench.convert(config)
    with pytest.raises(DataError, match="--resize is 1: give a side of at least 2 pixels"):
        threediebench.convert(dataclasses.replace(config, resize=1))


def _as_png(source: Path) -> None:
    """The views under other names and as PNG: 07.png for view 7."""
    for path in source.glob("*/*/image_*.jpg"):
        Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes())).save(path.with_name(f"scan-{path.stem[6:]:0>2}.png"))
        path.unlink()


def test_png_of_other_names_are_stored_as_they_are_and_read_everywhere(threediebench, config):
    threediebench.convert(dataclasses.replace(config, out=config.out / "jpeg"))
    _as_png(config.source)
    manifest = threediebench.convert(config)["train"]
    assert manifest.view_format == "png"
    assert list(find_damage(config.out, "train")) == []
    png, jpeg = ShardDataset(config.out, "train"), ShardDataset(config.out / "jpeg", "train")
    streamed = RemoteShards(config.out, "train")
    where = (np.arange(11), np.tile(np.arange(NUM_VIEWS), (11, 1)))
    pixels = [np.zeros((11, NUM_VIEWS, 16, 16, 3), np.uint8) for _ in range(3)]
    for dataset, out in zip((png, jpeg, streamed), pixels):
        dataset.read_views(*where, out)
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])
    batch = next(iter(gpu_loader(
        encoded_views(png), global_batch_size=11, seed=0, device=torch.device("cpu"), decode=lambda encoded: []
    ).batches()))  # fmt: skip
    np.testing.assert_array_equal(batch.images, pixels[0][batch.object_indices[:, None], batch.view_indices])


def test_formats_do_not_mix_and_order_must_be_told(threediebench, config):
    folder = _first_train_object(config.source)
    data = simplejpeg.decode_jpeg((folder / "image_1.jpg").read_bytes())
    Image.fromarray(data).save(folder / "image_1.png")
    with pytest.raises(
        DataError, match=r"holds 'image_1\.jpg' and 'image_1\.png', which leaves the order of its views"
    ):
        threediebench.convert(config)
    (folder / "image_1.jpg").unlink()
    with pytest.raises(DataError, match="is png and not jpg: give all views of a split one format"):
        threediebench.convert(config)
    (folder / "image_1.png").rename(folder / "picture_1.png")
    with pytest.raises(DataError, match=r"holds 'image_0\.jpg' and 'picture_1\.png', which leaves the order"):
        threediebench.convert(config)


@pytest.fixture
def turntable(tmp_path) -> Path:
    """Three objects without lists, each with six views: obj1/obj1__0.png, obj1/latent_0.npy, ..."""
    generator = np.random.default_rng(0)
    for number in (1, 2, 10):
        folder = tmp_path / "turntable" / f"obj{number}"
        folder.mkdir(parents=True)
        for view in range(6):
            pixels = np.full((16, 16), 20 * number + view, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"obj{number}__{view}.png")
            np.save(folder / f"latent_{view}.npy", generator.uniform(-0.5, 0.5, 7))
    return tmp_path / "turntable"


def test_objects_are_classes_and_views_are_split(threediebench, config, turntable):
    by_views = dataclasses.replace(config, source=turntable, val_every_view=3)
    manifests = threediebench.convert(by_views)
    data = open_data("3diebench", config.out, "val", 16)
    assert data.train.class_names == data.evaluation.class_names == ("obj1", "obj2", "obj10")
    assert (data.train.num_views, data.evaluation.num_views) == (4, 2)
    assert data.notes[0] == manifests["val"].notes[0] == threediebench.SPLIT_BY_VIEWS
    for split, views in (("train", (1, 2, 4, 5)), ("val", (0, 3))):
        dataset = ShardDataset(config.out, split)
        pixels = np.zeros((3, len(views), 16, 16, 3), np.uint8)
        dataset.read_views(np.arange(3), np.tile(np.arange(len(views)), (3, 1)), pixels)
        for row, key in enumerate(dataset.keys.tolist()):
            expected = [20 * int(key.decode()[3:]) + view for view in views]
            assert pixels[row, :, 0, 0, 0].tolist() == expected
            assert data.train.class_names[dataset.labels[row]] == key.decode()
    for every in (0, 1):
        with pytest.raises(DataError, match=f"--val-every-view is {every} and objects have 6 views"):
            threediebench.convert(dataclasses.replace(by_views, val_every_view=every))
    with pytest.raises(DataError, match="--lists and --val-every-view are given"):
        threediebench.convert(dataclasses.replace(by_views, lists=turntable))
    (turntable / "obj2" / "latent_4.npy").unlink()
    with pytest.raises(DataError, match=r"obj2 lacks 1 of the 12 files of 6 views, the first of them latent_4\.npy"):
        threediebench.convert(dataclasses.replace(by_views, out=config.out / "other"))


@pytest.fixture
def ood(config, tmp_path) -> Path:
    """Four of the val objects as 3DIEBench-OOD has them: four views from number 2 on, all angles beyond 90 degrees."""
    generator = np.random.default_rng(5)
    for name in np.load(config.source / "val_images.npy")[2:]:
        folder = tmp_path / "ood" / name.strip("/")
        folder.mkdir(parents=True)
        for view in range(2, 6):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (folder / f"image_{view}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
            latent = generator.uniform(0, 0.5, 7)
            latent[:3] = generator.choice([-1, 1], 3) * generator.uniform(np.pi / 2, np.pi, 3)
            np.save(folder / f"latent_{view}.npy", latent)
    return tmp_path / "ood"


def test_rotations_out_of_distribution_are_a_further_split(threediebench, config, published, ood):
    """It may be added to shards that are there, and heads that learn from train can be judged on it."""
    config = dataclasses.replace(config, **published)
    first = threediebench.convert(config)
    manifests = threediebench.convert(dataclasses.replace(config, ood=ood))
    assert {split: manifests[split] for split in first} == first
    manifest = manifests["ood_rotation"]
    assert (manifest.num_objects, manifest.num_views, manifest.class_names) == (4, 4, SYNSETS)
    assert manifest.source.startswith("3DIEBench-OOD, Ghaemi") and manifest.license == "none stated"
    assert list(find_damage(config.out, "ood_rotation")) == []
    judged = open_data("3diebench", config.out, "ood_rotation", 16)
    views = open_ood_rotation(open_data("3diebench", config.out, "val", 12))
    assert views.image_size == (12, 12) and judged.evaluation.split == views.split == "ood_rotation"
    labels = dict(zip(np.load(config.source / "val_images.npy"), np.load(config.source / "val_labels.npy")))
    for row, key in enumerate(views.stored.keys.tolist()):
        name = "/" + key.decode().replace("_", "/") + "/"
        latents = np.stack([np.load(ood / name.strip("/") / f"latent_{view}.npy") for view in range(2, 6)])
        assert views.labels[row] == labels[name]
        np.testing.assert_array_equal(views.latents[row], latents.astype(np.float32))
    assert "no pose is new" in warning_of_signs(views.split, views.schema, views.latents)
    data = open_data("3diebench", config.out, "ood_rotation", 16)
    with pytest.raises(
        DataError, match=r"the judged split is 'ood_rotation', .* shows the objects of 'val': judge 'val'"
    ):
        open_ood_rotation(data)


def test_of_objects_with_different_views_the_first_ones_are_stored(threediebench, config, ood):
    folder = next(path for path in sorted(ood.glob("*/*")))
    for name in ("image_4.jpg", "image_5.jpg", "latent_4.npy", "latent_5.npy"):
        (folder / name).unlink()
    (folder / "image_2.jpg").rename(folder / "image_0.jpg")
    (folder / "latent_2.npy").rename(folder / "latent_0.npy")
    manifest = threediebench.convert(dataclasses.replace(config, ood=ood))["ood_rotation"]
    assert manifest.num_views == 2 and manifest.source == "our scans"
    assert manifest.notes[-1] == "objects have 2 to 4 views, of which the first 2 are stored"
    stored = ShardDataset(config.out, "ood_rotation")
    latents = dict(zip(stored.keys.tolist(), stored.latents))
    for path in ood.glob("*/*"):
        numbers = (0, 3) if path == folder else (2, 3)
        expected = np.stack([np.load(path / f"latent_{number}.npy") for number in numbers]).astype(np.float32)
        np.testing.assert_array_equal(latents[f"{path.parent.name}_{path.name}".encode()], expected)


def _angles_in_the_box(ood: Path, config) -> str:
    latent = np.load(path := sorted(ood.glob("*/*/latent_3.npy"))[0])
    np.save(path, [*np.radians([10, -80, 30]), *latent[3:]])
    return (
        r"view 3 in .* turns by at most 80 degrees about an axis, as trained views do: give --ood renders that turn by"
    )


def _a_train_object(ood: Path, config) -> str:
    shutil.copytree(_first_train_object(config.source), ood / "02691156" / "trained")
    return "holds 1 objects that the val list does not name, the first of them 02691156/trained: pass other renders"


def _one_view(ood: Path, config) -> str:
    folder = next(ood.glob("*/*"))
    for number in (3, 4, 5):
        (folder / f"image_{number}.jpg").unlink()
    return "holds 1 views: give every object at least 2"


def _ten_latents(ood: Path, config) -> str:
    for path in ood.glob("*/*/latent_*.npy"):
        np.save(path, [*np.load(path), 0, 0, 0])
    return "has 10 latents a view and the val split 7: give --ood renders of the same set"


@pytest.mark.parametrize("damage", [_angles_in_the_box, _a_train_object, _one_view, _ten_latents])
def test_what_is_no_split_of_further_rotations_is_refused(threediebench, config, ood, damage):
    with pytest.raises(DataError, match=damage(ood, config)) as caught:
        threediebench.convert(dataclasses.replace(config, ood=ood))
    assert "\n" not in str(caught.value)
    assert not (config.out / "ood_rotation.manifest.json").exists()


def test_shards_without_the_split_say_how_it_is_added(threediebench, config):
    threediebench.convert(config)
    with pytest.raises(
        DataError, match=r"has no split 'ood_rotation': add it with `python datasets/threediebench\.py --"
    ):
        open_ood_rotation(open_data("3diebench", config.out, "val", 16))
    with pytest.raises(DataError, match="--ood and --val-every-view are given"):
        threediebench.convert(dataclasses.replace(config, val_every_view=2, ood=config.source))


def test_objects_are_stored_in_a_seeded_order(threediebench, config):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = config.out / name
        threediebench.convert(dataclasses.replace(config, out=out, seed=seed))
        orders.append(ShardDataset(out, "train").keys.tolist())
    listed = [name.strip("/").replace("/", "_").encode() for name in np.load(config.source / "train_images.npy")]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(listed)
    assert orders[0] != listed


@pytest.fixture
def translated_config(config, tmp_path):
    """Converts an archive of the same layout with ten latents a view."""
    write_archive(tmp_path / "with_translation", latent_size=10)
    return dataclasses.replace(config, source=tmp_path / "with_translation", out=tmp_path / "translated_shards")


def test_ten_latents_make_3diebench_t(threediebench, translated_config, published):
    manifest = threediebench.convert(dataclasses.replace(translated_config, **published))["val"]
    assert manifest.latent_names[7:] == ("translation_x", "translation_y", "translation_z")
    assert manifest.source.startswith("3DIEBench-T, Konstantinou")
    assert "athenacon/3DIEBench-T" in manifest.source
    assert manifest.license == "CC-BY-NC-4.0"
    assert (manifest.mean_rgb, manifest.std_rgb) == ((0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969))


def test_each_set_opens_under_its_own_name_only(threediebench, config, translated_config):
    threediebench.convert(config)
    threediebench.convert(translated_config)
    assert open_data("3diebench", config.out, "val", 16).train.latents.shape == (11, NUM_VIEWS, 7)
    assert open_data("3diebench-t", translated_config.out, "val", 16).evaluation.latents.shape == (6, NUM_VIEWS, 10)
    with pytest.raises(DataError, match=r"translation and 3diebench has .* light_hue: give --dataset 3diebench-t, or"):
        open_data("3diebench", translated_config.out, "val", 16)
    with pytest.raises(DataError, match="light_hue, translation: give --dataset 3diebench, or"):
        open_data("3diebench-t", config.out, "val", 16)
    with pytest.raises(DataError, match="3diebench-t has no shards in an unnamed folder: convert it with"):
        open_data("3diebench-t", None, "val", 16)


def test_one_split_of_the_other_set_is_noticed(threediebench, config, translated_config):
    threediebench.convert(config)
    threediebench.convert(translated_config)
    for file in (file for file in translated_config.out.glob("val*") if file.is_file()):
        shutil.copy(config.out / file.name, file)
    with pytest.raises(DataError, match=r"split 'val' in .* light_hue and 3diebench-t has .*, translation: give"):
        open_data("3diebench-t", translated_config.out, "val", 16)


def _seven_latents_among_ten(archive: Path) -> str:
    np.save(_first_train_object(archive) / "latent_1.npy", np.zeros(7))
    return r"latent_1\.npy holds float64 \(7,\), expected 10 floating point values"


def _nan_translation(archive: Path) -> str:
    latents = np.zeros(10)
    latents[8] = np.nan
    np.save(_first_train_object(archive) / "latent_2.npy", latents)
    return r"latent_2\.npy holds NaN or infinity"


def _object_without_a_view(archive: Path) -> str:
    folder = archive / str(np.load(archive / "train_images.npy")[4]).strip("/")
    for name in ("image_3.jpg", "latent_3.npy"):
        (folder / name).unlink()
    return r"lacks 2 of the 8 files of 4 views, the first of them image_3\.jpg"


@pytest.mark.parametrize("damage", [_seven_latents_among_ten, _nan_translation, _object_without_a_view])
def test_damage_among_ten_latents_is_named_in_one_sentence(threediebench, translated_config, damage):
    message = damage(translated_config.source)
    with pytest.raises(DataError, match=message) as caught:
        threediebench.convert(translated_config)
    assert "\n" not in str(caught.value)
    assert not (translated_config.out / "train.manifest.json").exists()


def test_number_of_workers_does_not_change_the_bytes(threediebench, config):
    manifests = [
        threediebench.convert(dataclasses.replace(config, out=config.out / str(workers), workers=workers))
        for workers in (1, 4)
    ]
    assert manifests[0] == manifests[1]


def test_interrupted_conversion_goes_on_and_reads_finished_objects_no_more(threediebench, config, monkeypatch):
    whole = threediebench.convert(dataclasses.replace(config, out=config.out / "whole"))
    parts = dataclasses.replace(config, out=config.out / "parts", workers=1)
    original = threediebench.read_object
    keys_read: list[str] = []

    def stop_after_nine(source, listed, layout):
        if len(keys_read) == 9:
            raise KeyboardInterrupt
        keys_read.append(listed.key)
        return original(source, listed, layout)

    monkeypatch.setattr(threediebench, "read_object", stop_after_nine)
    with pytest.raises(KeyboardInterrupt):
        threediebench.convert(parts)
    assert len(list(parts.out.glob("train-*.tar"))) == 2
    stored_keys = set(keys_read[:8])

    keys_read.clear()
    monkeypatch.setattr(threediebench, "read_object", lambda *args: keys_read.append(args[1].key) or original(*args))
    assert threediebench.convert(parts) == whole
    assert not stored_keys & set(keys_read)
    assert len(keys_read) == 3 + 6

    keys_read.clear()
    assert threediebench.convert(parts) == whole  # complete: nothing is read again
    assert keys_read == []


def test_complete_split_of_other_options_is_not_touched(threediebench, config):
    threediebench.convert(config)
    with pytest.raises(DataError, match="holds a train split made with other options"):
        threediebench.convert(dataclasses.replace(config, objects_per_shard=5))


def _remove_view(archive: Path) -> str:
    (_first_train_object(archive) / "image_2.jpg").unlink()
    return (
        r"lacks 1 of the 8 files of 4 views, the first of them image_2\.jpg|lacks 1 of the 6 files|beside its 3 views"
    )


def _add_view(archive: Path) -> str:
    folder = archive / str(np.load(archive / "train_images.npy")[5]).strip("/")
    (folder / "image_4.jpg").write_bytes((folder / "image_0.jpg").read_bytes())
    return r"holds 1 files beside its 4 views, the first of them image_4\.jpg"


def _remove_latent(archive: Path) -> str:
    (_first_train_object(archive) / "latent_3.npy").unlink()
    return r"lacks 1 of the 8 files of 4 views, the first of them latent_3\.npy"


def _nine_latents(archive: Path) -> str:
    for path in _first_train_object(archive).glob("latent_*.npy"):
        np.save(path, np.zeros(9))
    return r"latent_0\.npy holds 9 values: expected 7 \(3DIEBench\) or 10"


def _one_longer_latent(archive: Path) -> str:
    np.save(_first_train_object(archive) / "latent_1.npy", np.zeros(10))
    return r"latent_1\.npy holds float64 \(10,\), expected 7 floating point values"


def _integer_latent(archive: Path) -> str:
    np.save(_first_train_object(archive) / "latent_1.npy", np.zeros(7, dtype=np.int64))
    return r"latent_1\.npy holds int64 \(7,\)"


def _nan_latent(archive: Path) -> str:
    np.save(_first_train_object(archive) / "latent_1.npy", np.array([0, 0, 0, np.nan, 0, 0, 0]))
    return r"latent_1\.npy holds NaN or infinity"


def _pickled_latent(archive: Path) -> str:
    np.save(_first_train_object(archive) / "latent_1.npy", np.array([{}]), allow_pickle=True)
    return r"latent_1\.npy is not a plain \.npy array"


def _cut_image(archive: Path) -> str:
    path = _first_train_object(archive) / "image_1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return r"image_1\.jpg does not decode"


def _larger_image(archive: Path) -> str:
    path = _first_train_object(archive) / "image_1.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(np.zeros((32, 16, 3), dtype=np.uint8)))
    return "view 1 of object '.*' is 32x16 pixels"


def _object_folder_gone(archive: Path) -> str:
    folder = archive / str(np.load(archive / "train_images.npy")[7]).strip("/")
    folder.rename(archive / "elsewhere")
    return r"folder .* of a listed object is missing"


def _object_listed_twice(archive: Path) -> str:
    names = np.load(archive / "train_images.npy")
    names[3] = names[0]
    np.save(archive / "train_images.npy", names)
    return "of the train list is already in the train list"


def _keys_that_meet(archive: Path) -> str:
    names = np.load(archive / "train_images.npy").astype("U40")
    names[:2] = "/a_b/c/", "/a/b_c/"
    np.save(archive / "train_images.npy", names)
    return "objects 'a_b/c' and 'a/b_c' would both be stored as 'a_b_c': rename one"


def _object_in_both_splits(archive: Path) -> str:
    names = np.load(archive / "val_images.npy")
    names[0] = np.load(archive / "train_images.npy")[0]
    np.save(archive / "val_images.npy", names)
    return "of the val list is already in the train list"


def _too_few_labels(archive: Path) -> str:
    np.save(archive / "val_labels.npy", np.load(archive / "val_labels.npy")[:-1])
    return r"val_images\.npy lists 6 objects but .*val_labels\.npy 5 labels"


def _labels_of_another_order(archive: Path) -> str:
    np.save(archive / "train_labels.npy", np.load(archive / "train_labels.npy")[::-1].copy())
    return "stands for synsets"


def _labels_with_a_gap(archive: Path) -> str:
    for split in ("train", "val"):
        path = archive / f"{split}_labels.npy"
        np.save(path, np.load(path) * 2)
    return r"labels are \[0, 2, 4\]: number the classes"


def _strings_for_labels(archive: Path) -> str:
    np.save(archive / "train_labels.npy", np.load(archive / "train_images.npy"))
    return r"train_labels\.npy holds <U43 \(11,\), not integer labels"


def _path_out_of_the_archive(archive: Path) -> str:
    names = np.load(archive / "train_images.npy")
    names[2] = "/../secret/"
    np.save(archive / "train_images.npy", names)
    return r"lists '/\.\./secret/': every entry must read '/SYNSET/OBJECT/'"


def _list_missing(archive: Path) -> str:
    (archive / "val_images.npy").unlink()
    return r"split file .*val_images\.npy is missing: download it"


def _list_pickled(archive: Path) -> str:
    names = np.load(archive / "train_images.npy").astype(object)
    np.save(archive / "train_images.npy", names, allow_pickle=True)
    return r"train_images\.npy is not a plain \.npy array"


@pytest.mark.parametrize(
    "damage",
    [
        _remove_view, _add_view, _remove_latent, _nine_latents, _one_longer_latent, _integer_latent, _nan_latent,
        _pickled_latent, _cut_image, _larger_image, _object_folder_gone, _object_listed_twice,
        _object_in_both_splits, _keys_that_meet,
        _too_few_labels, _labels_of_another_order, _labels_with_a_gap, _strings_for_labels, _path_out_of_the_archive,
        _list_missing, _list_pickled,
    ],
)  # fmt: skip
def test_damaged_archives_are_refused_by_name(threediebench, config, damage):
    message = damage(config.source)
    with pytest.raises(DataError, match=message):
        threediebench.convert(config)
    assert not (config.out / "train.manifest.json").exists()


def test_command_line_converts(archive, tmp_path):
    command = [
        sys.executable, str(SCRIPT), "--source", str(archive), "--out", str(tmp_path / "shards"), "--verify",
        "--source-name", "our scans", "--license", "CC0-1.0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 11 objects x 4 views in 1 shards" in done.stdout


def test_command_line_reports_errors_in_one_line(threediebench, archive, tmp_path, monkeypatch, capsys):
    (archive / "val_labels.npy").unlink()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--source", str(archive), "--out", str(tmp_path / "shards")])
    with pytest.raises(SystemExit) as stop:
        threediebench.main()
    assert stop.value.code == 1
    assert re.fullmatch(r"error: split file .*val_labels\.npy is missing: [^\n]*\n", capsys.readouterr().err)
