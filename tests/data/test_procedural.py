"""3DIEBench-P: the same objects everywhere, splits that don't overlap, builds that resume and don't collide."""

import dataclasses
import importlib.util
import multiprocessing
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simplejpeg

from ssl_equi.data.loading.rendered import config_of_stored
from ssl_equi.data.rendering import procedural
from ssl_equi.data.rendering import splits as rendering
from ssl_equi.data.rendering.procedural import (
    PIXEL_MEAN_RGB,
    PIXEL_STD_RGB,
    TRANSLATED_PIXEL_MEAN_RGB,
    TRANSLATED_PIXEL_STD_RGB,
    ProceduralConfig,
    build_procedural,
    default_folder,
    plan_objects,
    render_objects,
    split_plans,
)
from ssl_equi.data.sets import rendered
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError, UserError
from ssl_equi.latents.translation import Translation
from tests.launched import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent.parent


def all_views(dataset: ShardDataset) -> np.ndarray:
    views = np.tile(np.arange(dataset.num_views), (dataset.num_objects, 1))
    images = np.zeros((*views.shape, *dataset.image_size, 3), np.uint8)
    dataset.read_views(np.arange(dataset.num_objects), views, images)
    return images


def test_the_default_is_the_embedded_set() -> None:
    counts = {split: len(plan_objects(ProceduralConfig(), split)) for split in split_plans(ProceduralConfig())}
    assert counts == {"train": 1008, "val": 144, "test": 288, "ood_rotation": 288, "ood_family": 96}
    assert len(ProceduralConfig().families) == 24


def test_the_default_is_the_set_that_is_already_in_caches_and_results() -> None:
    """A new option must leave the hashes of the old settings alone: they name cache folders, and data in results."""
    assert ProceduralConfig().fingerprint == "250633f4"
    assert ProceduralConfig(image_size=128).fingerprint == "ecf2ae23"
    assert ProceduralConfig(translation=0.5).fingerprint == "f3f9c7ff"
    assert ProceduralConfig(translation=0.2).fingerprint == "4772392b"
    assert default_folder(ProceduralConfig()).name == "3diebench-p-64px-250633f4"
    assert default_folder(ProceduralConfig(translation=0.5)).name == "3diebench-pt-64px-f3f9c7ff"
    settings = procedural.split_settings(ProceduralConfig(), "train")
    assert settings.plan_sha256 == "dfb59cc2769cac60fc8f25df751329115ed8d0aab63dcddf7f832d65110fba6f"


def test_no_object_is_in_two_splits_but_for_the_ones_shown_in_new_poses(tiny_config: ProceduralConfig) -> None:
    objects = {
        split: {(planned.family, planned.object_seed) for planned in plan_objects(tiny_config, split)}
        for split in split_plans(tiny_config)
    }
    assert not objects["train"] & (objects["val"] | objects["test"] | objects["ood_family"])
    assert not objects["val"] & objects["test"]
    assert objects["ood_rotation"] == objects["test"]
    seeds = [
        {planned.latents_seed for planned in plan_objects(tiny_config, split)} for split in split_plans(tiny_config)
    ]
    assert len(set.union(*seeds)) == sum(len(split_seeds) for split_seeds in seeds)


def test_another_seed_draws_other_objects(tiny_config: ProceduralConfig) -> None:
    other = dataclasses.replace(tiny_config, seed=1)
    mine = {planned.object_seed for split in ("train", "test") for planned in plan_objects(tiny_config, split)}
    theirs = {planned.object_seed for split in ("train", "test") for planned in plan_objects(other, split)}
    assert not mine & theirs


def test_two_builds_are_equal_to_the_byte(tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    build_procedural(tmp_path, tiny_config, ("train",), workers=1, show_progress=False)
    for file in sorted(tmp_path.glob("train*")):
        if file.is_file():
            assert file.read_bytes() == (tiny_data / file.name).read_bytes(), file.name
    assert ShardDataset(tmp_path, "train").fingerprint == ShardDataset(tiny_data, "train").fingerprint


def test_worker_processes_render_the_same_bytes(
    tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SMALL_BUILD_IMAGES", 0)
    script, main = tmp_path / "recipe.py", ModuleType("__main__")
    script.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    build_procedural(tmp_path, tiny_config, ("train", "val"), workers=2, show_progress=False)
    for split in ("train", "val"):
        assert np.array_equal(all_views(ShardDataset(tmp_path, split)), all_views(ShardDataset(tiny_data, split)))
    assert not (tmp_path / "imported").exists(), "a process imported the script, whose libraries take seconds"
    assert main.__file__ == str(script)


def test_an_interrupted_build_goes_on_where_it_stopped(
    tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    real = procedural.render_objects

    def counting(objects, **arguments):
        rendered.extend(planned.key for planned in objects)
        if len(rendered) > 12:
            raise KeyboardInterrupt
        return real(objects, **arguments)

    monkeypatch.setattr(procedural, "render_objects", counting)
    with pytest.raises(KeyboardInterrupt):
        build_procedural(tmp_path, tiny_config, ("train",), workers=1, show_progress=False)
    assert not (tmp_path / "train.manifest.json").exists()
    monkeypatch.setattr(procedural, "render_objects", real)
    again = []
    monkeypatch.setattr(
        procedural, "render_objects", lambda objects, **rest: (again.extend(objects), real(objects, **rest))[1]
    )
    build_procedural(tmp_path, tiny_config, ("train",), workers=1, show_progress=False)
    assert len(again) == 24 - 10, "the two finished shards of five objects were rendered again"
    assert np.array_equal(all_views(ShardDataset(tmp_path, "train")), all_views(ShardDataset(tiny_data, "train")))


def test_two_processes_at_once_build_one_set(tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments, options = (tmp_path, tiny_config, ("train", "val")), {"workers": 1, "show_progress": False}
    processes = [context.Process(target=build_procedural, args=arguments, kwargs=options) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0]
    for split in ("train", "val"):
        assert ShardDataset(tmp_path, split).fingerprint == ShardDataset(tiny_data, split).fingerprint


def test_splits_of_other_settings_are_not_mixed_in(tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    build_procedural(tmp_path, tiny_config, ("val",), workers=1, show_progress=False)
    other = dataclasses.replace(tiny_config, views=6)
    with pytest.raises(DataError, match="holds a split 'val' of other settings"):
        build_procedural(tmp_path, other, ("test",), workers=1, show_progress=False)


def test_held_out_rotations_and_families(tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    build_procedural(tmp_path, tiny_config, ("test", "ood_rotation", "ood_family"), workers=1, show_progress=False)
    inside, outside = ShardDataset(tmp_path, "test"), ShardDataset(tmp_path, "ood_rotation")
    assert (np.abs(inside.latents[..., :3]) <= np.pi / 2).all()
    assert (np.abs(outside.latents[..., :3]).max(axis=-1) > np.pi / 2).all()
    assert ShardDataset(tmp_path, "ood_family").class_names == ("mug",)


def test_translation_gives_ten_latents(tiny_config: ProceduralConfig) -> None:
    config = dataclasses.replace(tiny_config, translation=0.5)
    records = render_objects(plan_objects(config, "val")[:1], config, "euler_box")
    assert records[0].latents.shape == (4, 10)
    assert np.abs(records[0].latents[:, 7:]).max() <= 0.5


@pytest.mark.parametrize("translation", [-0.1, 0.6, True])
def test_objects_that_would_leave_the_picture_are_refused(translation: float) -> None:
    with pytest.raises(DataError, match=r"translation is .*: choose from 0 to 0\.5"):
        ProceduralConfig(translation=translation)


def test_the_translated_set_shows_the_same_objects_moved(tiny_config: ProceduralConfig) -> None:
    translated = dataclasses.replace(tiny_config, translation=0.5)
    assert plan_objects(translated, "test") == plan_objects(tiny_config, "test")
    assert translated.title == "3DIEBench-PT"


def test_embedded_sets_open_under_their_own_name_only(
    tiny_data: Path, tiny_config: ProceduralConfig, tmp_path: Path
) -> None:
    translated = dataclasses.replace(tiny_config, translation=0.5)
    build_procedural(tmp_path, translated, ("train", "val", "test"), workers=1, show_progress=False)
    data = open_data("3diebench-pt", tmp_path, "test", 32)
    assert data.train.latents.shape == (24, 4, 10)
    assert data.mean_rgb == TRANSLATED_PIXEL_MEAN_RGB
    assert data.train.source.startswith("3DIEBench-PT, ")
    with pytest.raises(DataError, match=r"translation and 3diebench-p has .* give --dataset 3diebench-pt, or"):
        open_data("3diebench-p", tmp_path, "test", 32)
    with pytest.raises(DataError, match="translation: give --dataset 3diebench-p, or"):
        open_data("3diebench-pt", tiny_data, "test", 32)


def test_a_set_that_moves_less_opens_as_the_embedded_one_that_moves(
    tiny_config: ProceduralConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, translation=0.2)
    build_procedural(tmp_path, config, ("train", "test"), workers=1, show_progress=False)
    data = open_data("3diebench-pt", tmp_path, "test", 32)
    place = data.train.manifest.schema.by_name["translation"]
    assert place.kind == Translation(((-0.2, 0.2),) * 3)
    assert 0.15 < np.abs(data.train.latents[..., 7:]).max() <= 0.2
    assert config_of_stored(data.train).translation == 0.2
    with pytest.raises(DataError, match="give --dataset 3diebench-pt, or"):
        open_data("3diebench-p", tmp_path, "test", 32)


def test_the_translated_set_renders_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = []

    def note(folder: Path, config: ProceduralConfig, splits: tuple[str, ...]) -> None:
        built.append((folder.name, config, splits))
        raise DataError("nothing is rendered in this test")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rendered, "build_procedural", note)
    with pytest.raises(DataError, match="nothing is rendered"):
        open_data("3diebench-pt", None, "ood_rotation", 64)
    expected = ProceduralConfig(translation=0.5)
    assert built == [(default_folder(expected).name, expected, ("train", "ood_rotation"))]


@pytest.mark.parametrize(
    ("translation", "mean", "std"),
    [
        (0.0, PIXEL_MEAN_RGB, PIXEL_STD_RGB),
        (0.2, TRANSLATED_PIXEL_MEAN_RGB, TRANSLATED_PIXEL_STD_RGB),
        (0.5, TRANSLATED_PIXEL_MEAN_RGB, TRANSLATED_PIXEL_STD_RGB),
    ],
)
def test_stated_pixel_statistics_are_those_of_the_pixels(
    translation: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    config = ProceduralConfig(train_objects=2, views=8, translation=translation)
    images = np.stack(
        [
            decoded(image)
            for record in render_objects(plan_objects(config, "train"), config, "euler_box")
            for image in record.images
        ]
    )
    pixels = images.reshape(-1, 3) / 255
    assert pixels.mean(axis=0) == pytest.approx(mean, abs=0.012)
    assert pixels.std(axis=0) == pytest.approx(std, abs=0.008)


def decoded(image: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(image, colorspace="RGB")


def test_the_cache_follows_xdg_and_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = default_folder(ProceduralConfig()), default_folder(ProceduralConfig(seed=1))
    assert first != second
    assert first.parent == second.parent
    if sys.platform == "linux":
        assert first.parent == tmp_path / "ssl_equi"


def test_impossible_settings_are_named() -> None:
    with pytest.raises(DataError, match="no split 'trian': choose from train, val"):
        plan_objects(ProceduralConfig(), "trian")
    with pytest.raises(DataError, match="views is 1"):
        ProceduralConfig(views=1)
    with pytest.raises(DataError, match="family 'chair' is both"):
        ProceduralConfig(held_out_families=("chair",))


def load_script(name: str):
    specification = importlib.util.spec_from_file_location(f"datasets_{name}", ROOT / "datasets" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def stored_views(folder: Path, split: str) -> dict[str, bytes]:
    """The encoded pictures of a split's shards by the name they are stored under."""
    pictures = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as shard:
            members = (member for member in shard if member.name.endswith(".jpg"))
            pictures |= {member.name: shard.extractfile(member).read() for member in members}
    return pictures


def test_files_of_objects_that_move_less_are_refused(tiny_config: ProceduralConfig, tmp_path: Path) -> None:
    script = load_script("procedural")
    config = script.BuildConfig(dataclasses.replace(tiny_config, translation=0.2), tmp_path / "tree", layout="files")
    with pytest.raises(UserError, match=r"translation is 0\.2: choose 0 or 0\.5, or --layout shards"):
        script.main(config)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("translation", [0.0, 0.5])
def test_files_in_the_original_layout_convert_to_the_same_shards(
    translation: float, tiny_config: ProceduralConfig, tmp_path: Path
) -> None:
    """Our renderer writes the folder layout of 3DIEBench(-T); the converter of the real data sets reads it."""
    config = dataclasses.replace(tiny_config, translation=translation)
    script = load_script("procedural")
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        script.write_files(tree, config, split, workers=1)
    paths = np.load(tree / "train_images.npy", allow_pickle=False)
    assert paths[0].startswith("/")
    assert paths[0].endswith("/")
    folder = tree / paths[0].strip("/")
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [f"image_{view}.jpg" for view in range(4)] + [f"latent_{view}.npy" for view in range(4)]
    )
    first_latent = np.load(folder / "latent_0.npy", allow_pickle=False)
    assert (first_latent.dtype, first_latent.shape) == (np.float64, (10 if translation else 7,))
    first_image = (folder / "image_0.jpg").read_bytes()
    script.write_files(tree, config, "train", workers=1)
    assert (folder / "image_0.jpg").read_bytes() == first_image

    converter = load_script("threediebench")
    converter.convert(
        converter.Config(source=tree, out=tmp_path / "shards", verify=True, source_name="tests", license="CC0-1.0")
    )
    build_procedural(tmp_path / "direct", config, ("train", "val"), workers=1, show_progress=False)
    for split in ("train", "val"):
        converted, direct = ShardDataset(tmp_path / "shards", split), ShardDataset(tmp_path / "direct", split)
        rows = {key.decode(): row for row, key in enumerate(direct.keys)}
        order = [rows[key.decode().split("_", 1)[1]] for key in converted.keys]
        assert sorted(order) == list(range(direct.num_objects))
        assert converted.class_names == direct.class_names
        for ours, theirs in ((converted.labels, direct.labels), (converted.latents, direct.latents)):
            assert np.array_equal(ours, theirs[order])
        assert np.array_equal(converted.quats_xyzw, direct.quats_xyzw[order])
        pictures = {name.split("_", 1)[1]: data for name, data in stored_views(tmp_path / "shards", split).items()}
        assert pictures == stored_views(tmp_path / "direct", split)
