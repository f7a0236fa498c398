"""A folder of mesh files as shards: layouts, classes, splits, broken models, resuming, and what opens the result."""

import dataclasses
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ssl_equi.data.rendering import mesh_sets
from ssl_equi.data.rendering import splits as rendering
from ssl_equi.data.rendering.mesh_lists import MeshFile, list_models
from ssl_equi.data.rendering.mesh_sets import MeshSetConfig, divide, splits_by_objects
from ssl_equi.data.shards.format import MAX_KEY_LENGTH
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from tests.launched import load_script
from tests.real_data import shared_data

ROOT = Path(__file__).parents[2]
TINY = MeshSetConfig(views=3, image_size=16, supersampling=1, objects_per_shard=2)


@pytest.fixture(scope="module")
def meshes() -> ModuleType:
    return load_script(ROOT / "datasets" / "meshes.py")


def write_models(folder: Path, names: Iterable[str]) -> Path:
    """Tetrahedra that differ in shape and colour, at these paths."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"v 0 0 0 {number % 3 / 2} 0.5 0.2", f"v 1 0 {number} 1 1 1", "v 0 1 0 0 1 0", f"v {number} 0 1 0 0 1"]
        path.write_text("\n".join([*lines, "f 1 3 2", "f 1 2 4", "f 1 4 3", "f 2 3 4", ""]))
    return folder


def of_classes(**counts: int) -> list[MeshFile]:
    return [
        MeshFile(f"{name}/{number}.obj", f"{name}/{number}", name)
        for name, count in counts.items()
        for number in range(count)
    ]


def classes(models: Iterable[MeshFile]) -> dict[str, str]:
    return {model.name: model.class_name for model in models}


# --- which models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.obj", "b.PLY"], {"a": "a", "b": "b"}),
        (["cup/mesh.obj", "cup/mesh.mtl", "pan/any.glb"], {"cup": "cup", "pan": "pan"}),
        (["cup/1.obj", "cup/2.obj", "pan/1.obj"], {"cup/1": "cup", "cup/2": "cup", "pan/1": "pan"}),
        (["cup/red/x.obj", "cup/blue/x.obj"], {"cup/red": "cup", "cup/blue": "cup"}),
        (["cup/1/models/x.obj", "pan/2/x.obj"], {"cup/1/models": "cup", "pan/2": "pan"}),
        (["cup/x.obj", ".hidden/x.obj", "cup/.y.obj", "cup/notes.txt"], {"cup": "cup"}),
    ],
)
def test_objects_and_classes_follow_from_the_layout(files: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    assert classes(list_models(write_models(tmp_path, files))) == expected


def test_one_file_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    write_models(tmp_path, ["cup/textured.obj", "cup/plain.stl", "pan/textured.obj", "pan/plain.stl"])
    assert classes(list_models(tmp_path, "textured.*")) == {"cup": "cup", "pan": "pan"}
    write_models(tmp_path / "deep", ["cup/1/textured.obj", "cup/1/plain.stl"])
    with pytest.raises(DataError, match=r"object cup/1 in .* has 2 mesh files .*--files 'plain.stl'"):
        list_models(tmp_path / "deep")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["notes.txt"], "holds no mesh file that fits"),
        (["a.obj", "cup/b.obj"], r"a.obj and cup/b.obj lie at different depths"),
        (["cup/b.obj", "cup/red/x.obj"], r"lie at different depths"),
    ],
)
def test_folders_that_cannot_be_understood_are_named(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list_models(write_models(tmp_path, files))
    with pytest.raises(DataError, match="is not a folder"):
        list_models(tmp_path / "nowhere")


def test_a_table_gives_the_classes(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", ["red_cup/x.obj", "blue_cup/x.obj", "pan/x.obj"])
    table = tmp_path / "classes.csv"
    table.write_text("object,class\nred_cup,cup\nblue_cup,cup\npan,pan\n\nnot_there,lid\n")
    assert classes(list_models(models, classes=table)) == {"red_cup": "cup", "blue_cup": "cup", "pan": "pan"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line of .* is ''"),
        ("name,kind\n", "the first line of .* is 'name,kind': write object,class"),
        ("object,class\ncup\n", "line 2 of .* is 'cup'"),
        ("object,class\ncup,\n", "line 2 of .* is 'cup,'"),
        ("object,class\ncup,a\ncup,b\n", "line 3 of .* gives 'cup' a second class"),
        ("object,class\ncup,a\n", "lacks 1 of 2 objects, the first of them 'pan'"),
    ],
)
def test_malformed_tables_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list_models(write_models(tmp_path / "models", ["cup/x.obj", "pan/x.obj"]), classes=tmp_path / "classes.csv")


# --- which split ----------------------------------------------------------------------------------------------------


def test_splits_share_no_object_and_every_class_is_trained_on() -> None:
    models = of_classes(cup=10, pan=3, lid=2, jar=1)
    divided = divide(models, TINY)
    names = {split: {model.name for model in members} for split, members in divided.items()}
    assert names["train"] | names["val"] | names["test"] == {model.name for model in models}
    assert not (names["train"] & names["val"] or names["train"] & names["test"] or names["val"] & names["test"])
    assert names["ood_rotation"] == names["test"] and "ood_family" not in names
    counts = {split: [sum(name.startswith(kind) for name in names[split]) for kind in ("cup", "pan", "lid", "jar")]
              for split in ("train", "val", "test")}  # fmt: skip
    assert counts == {"train": [7, 1, 1, 1], "val": [1, 1, 1, 0], "test": [2, 1, 0, 0]}


def test_splits_are_drawn_from_the_seed_and_per_class() -> None:
    models = of_classes(cup=10, pan=10)
    again = divide(list(reversed(models)), TINY)
    first = divide(models, TINY)
    assert {model.name for model in first["test"]} == {model.name for model in divide(models, TINY)["test"]}
    others = [divide(models, dataclasses.replace(TINY, seed=seed))["test"] for seed in range(1, 5)]
    assert any(set(other) != set(first["test"]) for other in others)
    with_another = divide([*models, *of_classes(lid=5)], TINY)
    assert set(first["test"]) <= set(with_another["test"])
    assert {len(members) for members in again.values()} == {len(members) for members in first.values()}


def test_classes_of_one_object_are_split_by_views() -> None:
    models = of_classes(cup=1, pan=1)
    divided = divide(models, TINY)
    assert divided["train"] == divided["val"] == divided["test"] == models
    assert not splits_by_objects(models, TINY)
    with pytest.raises(DataError, match="--split-by objects needs a class of two objects and these 2 have one each"):
        divide(models, dataclasses.replace(TINY, split_by="objects"))
    by_views = dataclasses.replace(TINY, split_by="views", test_share=0.0)
    assert set(divide(of_classes(cup=4), by_views)) == {"train", "val", "ood_rotation"}


def test_held_out_classes_are_never_trained_on() -> None:
    config = dataclasses.replace(TINY, held_out_classes=("pan",))
    divided = divide(of_classes(cup=5, pan=4), config)
    assert {model.class_name for model in divided["ood_family"]} == {"pan"} and len(divided["ood_family"]) == 4
    assert all(model.class_name == "cup" for split in ("train", "val", "test") for model in divided[split])
    with pytest.raises(DataError, match="there is no class 'mug' to hold out: choose from cup, pan"):
        divide(of_classes(cup=5, pan=4), dataclasses.replace(TINY, held_out_classes=("mug",)))
    with pytest.raises(DataError, match="all 1 classes are held out"):
        divide(of_classes(cup=5), dataclasses.replace(TINY, held_out_classes=("cup",)))


def test_nothing_is_outside_of_rotations_that_are_all_drawn() -> None:
    assert "ood_rotation" not in divide(of_classes(cup=5), dataclasses.replace(TINY, rotation="uniform"))


def test_keys_hold_letters_digits_and_two_signs_and_never_meet() -> None:
    names = ["cup/1", "cup_1", "Käse", "Kase", "a b", "x" * 200]
    keys = mesh_sets._keys_of(names)
    assert len(set(keys)) == len(names) and all(len(key) <= MAX_KEY_LENGTH for key in keys)
    assert keys[3] == "Kase" and keys[0].startswith("cup_1-") and keys[4].startswith("a_b-")


# --- building -------------------------------------------------------------------------------------------------------

MODELS = [f"{kind}/{number}/mesh.obj" for kind in ("cup", "lid", "pan") for number in range(4)]


def test_the_result_opens_like_3diebench(meshes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = write_models(tmp_path / "models", MODELS)
    config = meshes.Config(
        models, tmp_path / "shards", dataclasses.replace(TINY, held_out_classes=("lid",)), license="CC0-1.0",
        workers=1, verify=True,
    )  # fmt: skip
    meshes.main(config)
    said = capsys.readouterr().out
    assert "12 models of 3 classes; cup/0/mesh.obj is object cup/0, class cup" in said
    assert "split by objects, drawn per class; objects: train 4, val 2, test 2, ood_rotation 2, ood_family 4" in said
    assert "verified ood_family" in said and f"--dataset 3diebench --data-dir {tmp_path / 'shards'}" in said
    for split in ("val", "test", "ood_rotation"):
        data = open_data("3diebench", tmp_path / "shards", split, 16)
        assert data.train.class_names == data.evaluation.class_names == ("cup", "pan")
        assert data.has_poses and data.license == "CC0-1.0"
        outside = np.abs(data.evaluation.latents[..., :3]).max(axis=-1) > np.pi / 2
        assert outside.all() == outside.any() == (split == "ood_rotation")
    assert ShardDataset(tmp_path / "shards", "ood_family").class_names == ("lid",)
    images = np.zeros((4, 3, 16, 16, 3), np.uint8)
    data.train.read_views(np.arange(4), np.tile(np.arange(3), (4, 1)), images)
    pixels = images.reshape(-1, 3) / 255
    assert pixels.mean(axis=0) == pytest.approx(data.mean_rgb, abs=0.005)
    assert pixels.std(axis=0) == pytest.approx(data.std_rgb, abs=0.01)


def test_objects_that_move_open_like_3diebench_t(meshes: ModuleType, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", MODELS[:4])
    moving = dataclasses.replace(TINY, translation=0.5)
    meshes.main(meshes.Config(models, tmp_path / "shards", moving, workers=1))
    data = open_data("3diebench-t", tmp_path / "shards", "test", 16)
    assert data.train.latents.shape == (2, 3, 10) and np.abs(data.train.latents[..., 7:]).max() <= 0.5
    with pytest.raises(DataError, match="give --dataset 3diebench-t"):
        open_data("3diebench", tmp_path / "shards", "test", 16)


def test_views_of_the_same_objects_differ_between_splits(meshes: ModuleType, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", ["cup.obj", "pan.obj"])
    meshes.main(meshes.Config(models, tmp_path / "shards", TINY, workers=1))
    data = open_data("3diebench", tmp_path / "shards", "test", 16)
    assert data.notes[0] == mesh_sets.SAME_OBJECTS
    assert sorted(data.train.keys) == sorted(data.evaluation.keys) == [b"cup", b"pan"]
    both = np.concatenate([data.train.latents.reshape(-1, 7), data.evaluation.latents.reshape(-1, 7)])
    assert len(np.unique(both, axis=0)) == 12


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    meshes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write_models(tmp_path / "models", [f"cup/{number}.obj" for number in range(12)])
    whole = meshes.Config(models, tmp_path / "whole", TINY, workers=1)
    meshes.main(whole)
    real, calls = mesh_sets.render_models, []

    def stopping(objects, **options):
        calls.append(len(objects))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(objects, **options)

    monkeypatch.setattr(mesh_sets, "render_models", stopping)
    stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        meshes.main(stopped)
    meshes.main(stopped)
    names = sorted(path.name for path in whole.out.rglob("*") if path.is_file())
    assert names == sorted(path.name for path in stopped.out.rglob("*") if path.is_file()) and calls[2] < 9
    for path in (path for path in whole.out.rglob("*") if path.is_file()):
        assert path.read_bytes() == (stopped.out / path.relative_to(whole.out)).read_bytes(), path.name


def test_another_model_under_the_same_name_is_not_mixed_in(meshes: ModuleType, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", ["cup.obj", "pan.obj"])
    config = meshes.Config(models, tmp_path / "shards", TINY, workers=1)
    meshes.main(config)
    (tmp_path / "shards" / "val.manifest.json").unlink()
    text = (models / "cup.obj").read_text()
    (models / "cup.obj").write_text(text.replace("0.5 0.2", "0.9 0.9"))
    with pytest.raises(DataError, match="holds a split 'train' of other settings or another data set"):
        meshes.main(config)


def test_what_is_sent_to_processes_can_be_sent(tmp_path: Path) -> None:
    models = list_models(write_models(tmp_path, ["cup.obj", "pan.obj"]))
    checked = mesh_sets.check_models(tmp_path, models, TINY, workers=1)
    splits = mesh_sets.rendered_splits(tmp_path, divide(models, TINY), checked, TINY, mesh_sets.Provenance("", ""))
    render, objects = pickle.loads(pickle.dumps((splits["val"].render, splits["val"].objects)))
    assert [record.images for record in render(objects)] == [record.images for record in splits["val"].records()]


@pytest.mark.slow
def test_worker_processes_render_the_same_bytes(
    meshes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write_models(tmp_path / "models", ["cup.obj", "pan.obj"])
    meshes.main(meshes.Config(models, tmp_path / "one", TINY, workers=1))
    monkeypatch.setattr(mesh_sets, "FEW_MODELS", 0)
    monkeypatch.setattr(rendering, "SMALL_BUILD_IMAGES", 0)
    meshes.main(meshes.Config(models, tmp_path / "two", TINY, workers=2))
    for split in ("train", "val"):
        assert ShardDataset(tmp_path / "one", split).fingerprint == ShardDataset(tmp_path / "two", split).fingerprint


def test_broken_models_are_all_named_before_anything_is_rendered(
    meshes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    models = write_models(tmp_path / "models", [f"{name}.obj" for name in "abcd"])
    (models / "b.obj").write_text("")
    (models / "e.ply").write_text("no mesh")
    config = meshes.Config(models, tmp_path / "shards", TINY, workers=1)
    with pytest.raises(DataError, match=r"(?s)2 of 5 models can't be rendered.*--skip-broken:\n.*b\.obj.*\n.*e\.ply"):
        meshes.main(config)
    assert not config.out.exists()
    meshes.main(dataclasses.replace(config, skip_broken=True))
    assert "left out:" in capsys.readouterr().out
    data = open_data("3diebench", config.out, "val", 16)
    assert data.train.num_objects == 3
    assert "2 of 5 models could not be read and were left out" in data.notes


def test_only_broken_models_are_an_error_even_where_they_may_be_left_out(meshes: ModuleType, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", ["a.obj"])
    (models / "a.obj").write_text("")
    with pytest.raises(DataError, match="1 of 1 models can't be rendered"):
        meshes.main(meshes.Config(models, tmp_path / "shards", TINY, workers=1, skip_broken=True))


def test_missing_textures_are_said(meshes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = write_models(tmp_path / "models", ["a.obj", "b.obj"])
    (models / "b.obj").write_text("mtllib lost.mtl\n" + (models / "b.obj").read_text())
    meshes.main(meshes.Config(models, tmp_path / "shards", TINY, workers=1))
    said = "1 of 2 models name textures or materials that are missing, and lack them"
    assert f"{said}; b.obj names lost.mtl" in capsys.readouterr().out
    assert said in open_data("3diebench", tmp_path / "shards", "val", 16).notes


@pytest.mark.slow
def test_scanned_models_become_a_set(meshes: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(shared_data("household_models") / "models.tar.xz") as archive:
        archive.extractall(tmp_path / "models", filter="data")
    fruit = tmp_path / "fruit"
    for name in ("plastic_apple", "plastic_banana", "plastic_lemon"):
        (fruit / "fruit").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name).rename(fruit / "fruit" / name)
    config = dataclasses.replace(TINY, up="z", image_size=32)
    meshes.main(meshes.Config(fruit, tmp_path / "shards", config, workers=1))
    data = open_data("3diebench", tmp_path / "shards", "test", 32)
    assert data.train.class_names == ("fruit",)
    assert {data.train.num_objects, data.evaluation.num_objects} == {1}
    assert not any("missing" in note for note in data.notes)
