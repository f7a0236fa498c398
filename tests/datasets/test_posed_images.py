"""The converter of tables of posed images: what is read back, and what is refused by file, line and column."""

import csv
import json
import math
import re
import shlex
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.spatial.transform import Rotation as SciPyRotation

from ssl_equi.cli import parse_command_line
from ssl_equi.data.posed.latents import parse_latent
from ssl_equi.data.posed.reading import read_table
from ssl_equi.data.posed.tables import SPLIT_BY_VIEWS, TableOptions, read_posed_table
from ssl_equi.data.shards import convert
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.sources import open_data
from ssl_equi.errors import DataError
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import Latent
from ssl_equi.latents.translation import Translation
from tests.launched import load_script
from tests.real_data import shared_data

SCRIPT = Path(__file__).parents[2] / "datasets" / "posed_images.py"
LATENTS = ("azimuth:angle:deg", "elevation:number:deg", "place:translation", "pose:rotation:quat_xyzw", "lamp:category")
NUM_VIEWS, SIDE = 3, 8
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def posed_images() -> ModuleType:
    """The script as a module; datasets/ is no package."""
    return load_script(SCRIPT)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Two classes of three objects with three views each, their images as PNG; the table isn't written yet."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    made = []
    for number in range(6):
        for view in range(NUM_VIEWS):
            pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            name = f"photos/thing{number}_{view}.png"
            Image.fromarray(pixels).save(tmp_path / name)
            quat = generator.normal(size=4)
            made.append({
                "image": name, "object": f"thing{number}", "kind": ("cup", "jug")[number % 2],
                "split": "val" if number > 3 else "train", "azimuth": generator.uniform(0, 360),
                "elevation": generator.uniform(-10, 90), "lamp": ("left", "right")[view % 2],
                **dict(zip(("place_x", "place_y", "place_z"), generator.normal(size=3))),
                **dict(zip(("pose_x", "pose_y", "pose_z", "pose_w"), quat / np.linalg.norm(quat))),
            })  # fmt: skip
    return made


def write_csv(path: Path, rows: Rows, encoding: str = "utf-8", newline: str = "\n") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
    return path


def options(table: Path, **changed: Any) -> TableOptions:
    return TableOptions(
        **{"table": table, "latent": LATENTS, "class_column": "kind", "split_column": "split", **changed}
    )


def read(table: Path, **changed: Any):
    return read_posed_table(options(table, **changed), seed=0)


def stored(folder: Path, split: str) -> tuple[ShardDataset, np.ndarray]:
    dataset = ShardDataset(folder, split)
    pixels = np.zeros((dataset.num_objects, dataset.num_views, *dataset.image_size, 3), np.uint8)
    views = np.tile(np.arange(dataset.num_views), (dataset.num_objects, 1))
    dataset.read_views(np.arange(dataset.num_objects), views, pixels)
    return dataset, pixels


# ---------------------------------------------------------------- read back equal


def test_a_written_table_is_read_back(
    posed_images: ModuleType, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_csv(tmp_path / "views.csv", rows)
    posed_images.main(posed_images.Config(options(table), tmp_path / "out", "CC0-1.0", workers=2, verify=True))
    numeric = [name for name in rows[0] if name not in ("image", "object", "kind", "split", "lamp")]
    for split, things in (("train", {"thing0", "thing1", "thing2", "thing3"}), ("val", {"thing4", "thing5"})):
        dataset, pixels = stored(tmp_path / "out", split)
        assert {key.decode() for key in dataset.keys.tolist()} == things
        for place, key in enumerate(dataset.keys.tolist()):
            own = [row for row in rows if row["object"] == key.decode()]
            assert dataset.class_names[dataset.labels[place]] == own[0]["kind"]
            for view, row in enumerate(own):
                np.testing.assert_array_equal(pixels[place, view], np.asarray(Image.open(tmp_path / row["image"])))
                assert dataset.read_encoded(place, view) == (tmp_path / row["image"]).read_bytes()
                names = dataset.schema.column_names
                found = dict(zip(names, dataset.latents[place, view].tolist()))
                assert found.pop("lamp") == ("left", "right").index(row["lamp"])
                expected = [np.float32(row[name]) for name in numeric]
                np.testing.assert_allclose([found[name] for name in numeric], expected, rtol=2e-7, atol=0)
            quats = np.array([[row[f"pose_{axis}"] for axis in "xyzw"] for row in own])
            quats *= np.where(quats[:, 3:] < 0, -1, 1)
            np.testing.assert_allclose(dataset.quats_xyzw[place], quats, atol=1e-7)
        kinds = {latent.name: latent.kind for latent in dataset.schema.latents}
        assert kinds["azimuth"] == Angle("deg") and kinds["lamp"] == Category(("left", "right"))
        # Of both splits together, so that both have the same actions.
        elevations = [row["elevation"] for row in rows]
        assert kinds["elevation"] == Number((min(elevations), max(elevations)), "deg")
        extremes = [tuple(float(extreme(row[name] for row in rows)) for extreme in (min, max)) for name in numeric[2:5]]
        assert kinds["place"] == Translation(tuple(extremes)) and kinds["pose"] == Rotation("quat_xyzw")
    data = open_data("posed", tmp_path / "out", "val", SIDE)
    assert data.license == "CC0-1.0" and data.train.schema.pose.name == "pose"
    assert data.notes == ("mean and standard deviation of the pixels were measured on 12 training views",)
    printed = capsys.readouterr().out
    assert "train: 4 objects of 2 classes x 3 views of 8 x 8 pixels in 1 shards" in printed
    command = re.search(r"recipes/sie\.py .*", " ".join(printed.split()))
    assert command and "--dataset posed" in command[0] and command[0].endswith("azimuth elevation place pose lamp")


def test_objects_may_have_different_numbers_of_views(posed_images: ModuleType, rows: Rows, tmp_path: Path) -> None:
    del rows[17], rows[4]
    posed_images.main(posed_images.Config(options(write_csv(tmp_path / "views.csv", rows)), tmp_path, "CC0-1.0"))
    counts = {}
    for split in ("train", "val"):
        dataset = ShardDataset(tmp_path, split)
        counts |= dict(zip([key.decode() for key in dataset.keys.tolist()], dataset.view_counts.tolist()))
    assert counts == {"thing0": 3, "thing1": 2, "thing2": 3, "thing3": 3, "thing4": 3, "thing5": 2}


def test_tables_of_all_kinds_hold_the_same(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows[4]["object"] = rows[3]["object"] = rows[5]["object"] = 'a "thing", in\ntwo lines'
    plain = read(write_csv(tmp_path / "plain.csv", rows))
    windows = read(write_csv(tmp_path / "windows.csv", rows, encoding="utf-8-sig", newline="\r\n"))
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "views.jsonl").write_text(lines + "\n\n", encoding="utf-8-sig")
    for other in (windows, read(tmp_path / "views.jsonl")):
        np.testing.assert_array_equal(other.latents, plain.latents)
        assert (other.schema, other.names, other.splits) == (plain.schema, plain.names, plain.splits)
    keys = [item.key for item in plain.splits["train"]]
    assert keys[:2] == ["thing0", keys[1]] and re.fullmatch(r"a__thing___in_two_lines-[0-9a-f]{10}", keys[1])
    # The row behind an object's name of two lines begins in line 1 + 1 + 4 + 1.
    assert windows.table.lines[:6] == plain.table.lines[:6] == [2, 3, 4, 5, 7, 9]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "views.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'ssl-equi\[tables\]', or save it as \.csv"):
        read(tmp_path / "views.parquet")


def test_parquet_is_read(rows: Rows, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="tables in Parquet need pyarrow, which is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "views.parquet")
    plain, other = read(write_csv(tmp_path / "plain.csv", rows)), read(tmp_path / "views.parquet")
    np.testing.assert_array_equal(other.latents, plain.latents)
    assert (other.schema, other.names, other.splits) == (plain.schema, plain.names, plain.splits)
    assert str(other.table.error(3, "azimuth", "x")).endswith("views.parquet, row 4, column 'azimuth': x")


def test_paths_are_made_of_columns_and_relative_to_a_folder(rows: Rows, tmp_path: Path) -> None:
    for row in rows:
        row["view"] = row.pop("image")[-5]
    (tmp_path / "tables").mkdir()
    table = write_csv(tmp_path / "tables" / "views.csv", rows)
    found = read(table, images=tmp_path, image_column="./photos/{object}_{view}.png")
    assert found.names[4] == "photos/thing1_1.png" and found.path(4) == tmp_path / "photos" / "thing1_1.png"


# ---------------------------------------------------------------- splits


def test_objects_of_each_class_are_drawn_by_the_seed(rows: Rows, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "views.csv", rows)
    drawn = set()
    for seed in range(8):
        found = read_posed_table(options(table, split_column=None), seed)
        assert found.splits == read_posed_table(options(table, split_column=None), seed).splits
        keys = {split: [item.key for item in items] for split, items in found.splits.items()}
        assert sorted(keys["train"] + keys["val"]) == [f"thing{number}" for number in range(6)]
        assert [item.label for item in found.splits["val"]] in ([0, 1], [1, 0]), "one of each class, and 0.2 of 3"
        drawn.add(tuple(keys["val"]))
    assert len(drawn) > 2
    found = read(table, split_column=None, val_share=0.99)
    assert [len(items) for items in found.splits.values()] == [2, 4], "each class keeps one to train on"
    for row in rows[:3]:
        row["kind"] = "pan"
    found = read(write_csv(table, rows), split_column=None)
    assert "thing0" in [item.key for item in found.splits["train"]], "the only one of its class"


def test_views_are_split_and_objects_are_classes(posed_images: ModuleType, rows: Rows, tmp_path: Path) -> None:
    for number, row in enumerate(rows):  # of two objects with nine views each
        row["object"] = f"obj{2 if number < 9 else 10}"
    table = write_csv(tmp_path / "views.csv", rows)
    chosen = options(table, class_column=None, split_column=None, val_every_view=4)
    posed_images.main(posed_images.Config(chosen, tmp_path / "out", "CC0-1.0"))
    data = open_data("posed", tmp_path / "out", "val", SIDE)
    assert data.train.class_names == ("obj2", "obj10") and data.notes[0] == SPLIT_BY_VIEWS
    assert (data.train.num_views, data.evaluation.num_views) == (6, 3)
    place = data.evaluation.keys.tolist().index(b"obj10")
    np.testing.assert_array_equal(
        data.evaluation.latents[place, :, 0], [np.float32(rows[9 + view]["azimuth"]) for view in (0, 4, 8)]
    )


# ---------------------------------------------------------------- pixels


def test_images_of_all_kinds_become_squares_of_one_size(posed_images: ModuleType, rows: Rows, tmp_path: Path) -> None:
    """Grey ones, with a palette, of another size or format; what has the size already keeps its bytes."""
    generator = np.random.default_rng(1)
    grey, palette, photo, wide = (tmp_path / row["image"] for row in rows[:4])
    Image.fromarray(generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(grey)
    Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).convert("P").save(palette)
    pixels = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    pixels[:, SIDE : 2 * SIDE] = 200  # what the central square holds
    Image.fromarray(pixels).save(wide)
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(photo, format="JPEG", quality=95)
    table = write_csv(tmp_path / "views.csv", rows)
    posed_images.main(posed_images.Config(options(table, image_size=SIDE), tmp_path / "out", "CC0-1.0"))
    dataset, views = stored(tmp_path / "out", "train")
    first, second = (dataset.keys.tolist().index(key) for key in (b"thing0", b"thing1"))
    assert dataset.read_encoded(first, 0) == grey.read_bytes() and dataset.manifest.view_format == "png"
    np.testing.assert_array_equal(views[first, 0], np.asarray(Image.open(grey).convert("RGB")))
    np.testing.assert_array_equal(views[first, 1], np.asarray(Image.open(palette).convert("RGB")))
    assert (views[second, 0] == 200).all() and abs(views[first, 2].astype(int) - 90).max() <= 1
    assert dataset.manifest.notes[0].startswith("of views of other sizes, the central square was resized to 8 pixels")
    posed_images.main(posed_images.Config(options(table, image_size=4), tmp_path / "small", "CC0-1.0"))
    dataset, views = stored(tmp_path / "small", "train")
    assert dataset.manifest.view_format == "jpg" and dataset.image_size == (4, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_never_overlooked(rows: Rows, tmp_path: Path, orientation: int) -> None:
    path = tmp_path / rows[0]["image"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    table = write_csv(tmp_path / "views.csv", rows)
    data, pixels = read(table, exif_orientation="ignore").read_view(0)
    assert data == path.read_bytes()
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))
    turned, pixels = read(table, exif_orientation="apply").read_view(0)
    assert (turned == data) == (orientation == 1)
    np.testing.assert_array_equal(pixels, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    if orientation > 1:
        with pytest.raises(DataError, match=rf"line 2, column 'image': .* \(EXIF orientation {orientation}\): give"):
            read(table).read_view(0)


# ---------------------------------------------------------------- the viewing sphere


def test_the_viewing_sphere_is_the_object_as_the_camera_sees_it(tmp_path: Path) -> None:
    """R takes a point of the object to (up, to the camera, right) of a camera that stands at azimuth and elevation."""
    generator = np.random.default_rng(0)
    azimuths, elevations = generator.uniform(-400, 400, 20), generator.uniform(-90, 90, 20)
    rows = [{"a": azimuth, "e": elevation, "p": 90 - elevation} for azimuth, elevation in zip(azimuths, elevations)]
    table = read_table(write_csv(tmp_path / "t.csv", rows), ["a", "e", "p"])
    kind, quats = parse_latent("pose=a,e:viewing_sphere:deg").read(table)
    assert kind == Rotation("quat_xyzw") and (quats[:, 3] >= 0).all()
    matrices = SciPyRotation.from_quat(quats).as_matrix()
    for matrix, azimuth, elevation in zip(matrices, np.deg2rad(azimuths), np.deg2rad(elevations)):
        # The world of the object: its first axis is up, and azimuths turn from the second to the third backwards, which
        # is counter-clockwise seen from above, as (up, front, right) is right-handed.
        at_azimuth = np.array([0, math.cos(azimuth), math.sin(azimuth)])
        to_camera = math.sin(elevation) * np.array([1.0, 0, 0]) + math.cos(elevation) * at_azimuth
        np.testing.assert_allclose(matrix @ to_camera, [0, 1, 0], atol=1e-12)
        right = np.cross([1.0, 0, 0], at_azimuth)  # of the camera, whose horizon is level
        np.testing.assert_allclose(matrix @ right, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(parse_latent("pose=a,p:viewing_sphere:deg:polar").read(table)[1], quats, atol=1e-12)
    other = write_csv(tmp_path / "o.csv", [{"pose_azimuth": -row["a"], "pose_elevation": row["e"]} for row in rows])
    mirrored = parse_latent("pose:viewing_sphere:deg:clockwise")
    np.testing.assert_allclose(mirrored.read(read_table(other, mirrored.columns))[1], quats, atol=1e-12)


@pytest.mark.parametrize(
    ("storage", "columns", "values"),
    [
        ("quat_xyzw", "xyzw", lambda turn: turn.as_quat()),
        ("euler_xyz:deg", "xyz", lambda turn: turn.as_euler("xyz", degrees=True)),
        ("matrix", ("11", "12", "13", "21", "22", "23", "31", "32", "33"), lambda turn: turn.as_matrix().ravel()),
    ],
)
def test_rotations_of_all_storages_are_the_same(
    tmp_path: Path, storage: str, columns: str, values: Callable[[SciPyRotation], np.ndarray]
) -> None:
    turns = SciPyRotation.random(5, random_state=0)
    written = write_csv(tmp_path / "t.csv", [dict(zip((f"pose_{c}" for c in columns), values(turn))) for turn in turns])
    spec = parse_latent(f"pose:rotation:{storage}")
    kind, found = spec.read(read_table(written, spec.columns))
    np.testing.assert_allclose(
        SciPyRotation.from_quat(kind.quats(torch.from_numpy(found)).numpy()).as_matrix(), turns.as_matrix(), atol=1e-9
    )


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("azimuth", "names no kind: write NAME:KIND, with angle, number"),
        ("azimuth:azimuth", "has kind 'azimuth': choose from angle, number, translation, rotation"),
        ("azimuth:angle", "angles without a unit: add one of deg, rad, turn"),
        ("azimuth:angle:degree", "has 'degree': kind angle takes deg, rad, turn, period=, range="),
        ("azimuth:angle:deg:rad", "says its unit twice"),
        ("azimuth:angle:deg:period=-1", "has 'period=-1': write it like period=180"),
        ("size:number:range=3", "has 'range=3': write it like range=-90..90"),
        ("size:number:range=3..1", "has 'range=3..1': write it like range=-90..90"),
        ("size:number:range=0..1,0..1", "has 2 ranges: give 1"),
        ("size:number:quat_xyzw", "kind number takes deg, rad, turn, range="),
        ("pose:rotation", "leaves open how it is written: add one of quat_xyzw, euler_xyz, matrix"),
        ("pose:rotation:xyz", "kind rotation takes deg, rad, turn, quat_xyzw, euler_xyz, matrix, range="),
        ("pose:rotation:euler_xyz", "angles without a unit"),
        ("pose:rotation:quat_xyzw:deg", "has a unit and no angles: leave it out"),
        ("pose=a,b,c:rotation:quat_xyzw", "names 3 columns: give 4"),
        ("place=a,b,c,d:translation", "names 4 columns: give 1 or 2 or 3"),
        ("lamp:category:deg", "kind category takes no options"),
        ("pose:viewing_sphere:polar", "angles without a unit"),
    ],
)
def test_options_that_are_no_latents(text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        parse_latent(text)
    assert str(caught.value).startswith(f"--latent {text} ") and "\n" not in str(caught.value)


def change(row: int, **cells: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[row].update(cells)


def drop(column: str) -> Callable[[Rows], None]:
    return lambda rows: [row.pop(column) for row in rows]


def everywhere(**cells: Any) -> Callable[[Rows], None]:
    return lambda rows: [row.update(cells) for row in rows]


def remove(*places: int) -> Callable[[Rows], None]:
    def without(rows: Rows) -> None:
        rows[:] = [row for place, row in enumerate(rows) if place not in places]

    return without


SPHERE = {"latent": ("azimuth:angle:deg", "pose=azimuth,elevation:viewing_sphere:deg")}
MATRIX = {"latent": ("pose=m1,m2,m3,m4,m5,m6,m7,m8,m9:rotation:matrix",)}


def matrices(*diagonal: float) -> Callable[[Rows], None]:
    values = np.diag(diagonal).ravel().tolist()
    return everywhere(**{f"m{place + 1}": value for place, value in enumerate(values)})


@pytest.mark.parametrize(
    ("damage", "changed", "message"),
    [
        (drop("azimuth"), {}, "views.csv has no column 'azimuth', its columns are image, object, kind, split, eleva"),
        (drop("object"), {}, "views.csv has no column 'object'"),
        (drop("kind"), {}, "views.csv has no column 'kind'"),
        (change(5, azimuth=""), {}, "views.csv, line 7, column 'azimuth': the cell is empty"),
        (change(5, azimuth="  "), {}, "views.csv, line 7, column 'azimuth': the cell is empty"),
        (change(5, object=""), {}, "views.csv, line 7, column 'object': the cell is empty"),
        (change(5, lamp=""), {}, "views.csv, line 7, column 'lamp': the cell is empty"),
        (change(5, azimuth="nan"), {}, "views.csv, line 7, column 'azimuth': 'nan' is no finite number"),
        (change(5, place_y="inf"), {}, "views.csv, line 7, column 'place_y': 'inf' is no finite number"),
        (change(5, elevation="12°"), {}, "views.csv, line 7, column 'elevation': '12°' is no finite number"),
        (change(5, elevation="1,5"), {}, "views.csv, line 7, column 'elevation': '1,5' is no finite number"),
        (change(5, image="photos/no.png"), {}, "views.csv, line 7, column 'image': there is no file"),
        (change(5, image="photos"), {}, "views.csv, line 7, column 'image': there is no file"),
        (change(5, image="./photos/thing0_0.png"), {}, "thing0_0.png is the image of line 2 too"),
        (change(5, kind="cup"), {}, "line 7, column 'kind': object 'thing1' has class 'cup' here and 'jug' in line 5"),
        (change(5, split="val"), {}, "line 7, column 'split': object 'thing1' has split 'val' here and 'train' in"),
        (change(5, split="valid"), {}, "line 7, column 'split': 'valid' is no split: write train, val, test"),
        (everywhere(split="train"), {}, "has objects of train only"),
        (everywhere(split="val"), {}, "has objects of val only"),
        (lambda rows: [row.update(kind="pan") for row in rows[12:]], {}, "line 14, column 'kind': class 'pan' is in v"),
        (remove(16, 17), {}, "line 17, column 'object': object 'thing5' has 1 view in val, and pairs need 2"),
        (change(5, pose_x=0, pose_y=0, pose_z=0, pose_w=0), {}, "line 7, column 'pose_x': the quaternion has length 0"),
        (change(5, pose_w=9), {}, "line 7, column 'pose_x': the quaternion has length 9"),
        (matrices(1, 1, 2), MATRIX, "line 2, column 'm1': the matrix is no rotation"),
        (matrices(1, 1, -1), MATRIX, "line 2, column 'm1': the matrix mirrors, its determinant is -1"),
        (change(5, elevation=91), SPHERE, "line 7, column 'elevation': 91 is outside of -90 to 90"),
        (everywhere(elevation=3), {}, "has 3 in column 'elevation' of every row, which gives latent 'elevation' no ra"),
        (everywhere(lamp="on"), {}, "has 'on' in column 'lamp' of every row"),
        (change(5, elevation=99), {"latent": ("elevation:number:range=-90..95",)}, "line 7, column 'elevation': 99 is"),
        (change(5, x=0), {"latent": ()}, "no --latent is given"),
        (change(5, x=0), {"latent": ("Azimuth=azimuth:angle:deg",)}, "latent name 'Azimuth' is not usable"),
        (change(5, x=0), {"latent": LATENTS[:1] * 2}, "latent name 'azimuth' comes 2 times"),
        (change(5, x=0), {"val_every_view": 2}, "each of --split-column, --val-every-view and --val-share"),
        (change(5, x=0), {"val_every_view": 1, "split_column": None}, "--val-every-view is 1"),
        (change(5, x=0), {"val_every_view": 3, "split_column": None}, "object 'thing0' has 1 view in val, and p"),
        (change(5, x=0), {"split_column": None, "class_column": None}, "each object is a class of its own without"),
        (change(5, x=0), {"class_column": None}, "line 14, column 'object': class 'thing4' is in val and not in train"),
        (change(5, x=0), {"image_size": 1}, "--image-size is 1: give a side of at least 2"),
    ],
)  # fmt: skip
def test_what_a_table_can_not_say(
    rows: Rows, tmp_path: Path, damage: Callable[[Rows], None], changed: dict[str, Any], message: str
) -> None:
    for row in rows:
        row["x"] = 1
    damage(rows)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(write_csv(tmp_path / "views.csv", rows), **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "views.csv has no column 'image', its columns are none"),
        (b"image,object\n", "views.csv has no row: write one row for each view"),
        (b"image,object\n\n,\n", "views.csv has no row: write one row for each view"),
        (b"image;object\na;b\n", "its columns are image;object: separate columns by commas"),
        (b"image,object,image\na,b,c\n", "has 2 columns 'image'"),
        (b"image,object\na,b\nc\n", "views.csv, line 3, has 1 cells and the header 2"),
        (b"image,object\na,b\nc,d,e\n", "views.csv, line 3, has 3 cells and the header 2"),
        (b'image,object\na,b\nc,"d\n', "views.csv, line 3, is no CSV"),
        (b"image,object\na,b\nc,caf\xe9\n", "views.csv, line 3, is not text in UTF-8"),
        ("image,object\na,b\n".encode("utf-16"), "views.csv, line 1, is not text in UTF-8"),
    ],
)
def test_files_that_are_no_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "views.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(tmp_path / "views.csv", ["image", "object"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a"}', "views.jsonl, line 1, has no 'object': write all of image, object"),
        ('{"image": "a", "object": "b"}\n{"image": [1], "object": "b"}', "line 2, column 'image': a list is no text"),
        ('{"image": NaN, "object": 1}', "views.jsonl, line 1, is not valid JSON"),
        ("[]", "views.jsonl, line 1, holds a JSON array, not an object"),
    ],
)
def test_files_that_are_no_json_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "views.jsonl").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(tmp_path / "views.jsonl", ["image", "object"])


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"views\.xlsx ends in '\.xlsx': save the table as"):
        read_table(tmp_path / "views.xlsx", ["image"])
    with pytest.raises(DataError, match=r"views\.csv is missing"):
        read_table(tmp_path / "views.csv", ["image"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\x89PNG\r\n\x1a\n", "does not decode"),
        ((SIDE, 2 * SIDE, "PNG"), "has 8 x 16 pixels and views are squares: give --image-size SIDE"),
        ((SIDE // 2, SIDE // 2, "PNG"), "photos/thing0_0.png has 8 x 8: give --image-size SIDE"),
        ((SIDE, SIDE, "JPEG"), "is jpg and not png: give all views of a split one format"),
    ],
)
def test_images_that_can_not_be_stored(
    posed_images: ModuleType, rows: Rows, tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / rows[5]["image"]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(np.zeros((*content[:2], 3), np.uint8)).save(path, format=content[2])
    config = posed_images.Config(options(write_csv(tmp_path / "views.csv", rows)), tmp_path / "out", "CC0-1.0")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        posed_images.main(config)
    assert "views.csv, line 7, column 'image': " in str(caught.value)
    assert not (tmp_path / "out" / "train.manifest.json").exists()


def test_what_looks_wrong_is_said(rows: Rows, tmp_path: Path) -> None:
    for number, row in enumerate(rows):
        row |= {"azimuth": 7, "joint": 0.1 * number, "weight": number // NUM_VIEWS}
    latents = ("azimuth:angle:deg", "joint:angle:deg", "weight:number")
    warnings = read(write_csv(tmp_path / "views.csv", rows), latent=latents).warnings
    assert [warning.partition(":")[0] for warning in warnings] == [
        "latent 'azimuth' never varies, so that nothing can be learnt of it",
        "latent 'joint' is an angle and takes up 1.7 of its 360 deg",
        "latent 'weight' is the same in all views of each object, so that its action is always the same",
    ]


# ---------------------------------------------------------------- the command


def test_interrupted_conversion_goes_on_and_other_tables_are_refused(
    posed_images: ModuleType, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(tmp_path / "views.csv", rows)

    def config(out: str, **changed: Any):
        own = options(changed.pop("table", table), **changed)
        return posed_images.Config(own, tmp_path / out, "CC0-1.0", "things", objects_per_shard=1, workers=1, seed=3)

    posed_images.main(config("whole"))
    original, keys = posed_images.PosedTable.record, []

    def stop(self: Any, item: Any) -> Any:
        if len(keys) == 3:
            raise KeyboardInterrupt
        keys.append(item.key)
        return original(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(posed_images.PosedTable, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            posed_images.main(config("parts"))
    assert sorted(path.suffix for path in (tmp_path / "parts").iterdir()).count(".tar") < 4
    moved = write_csv(tmp_path / "photos" / "moved.csv", rows)
    posed_images.main(config("parts", images=tmp_path, table=moved))
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes()
    rows[0]["azimuth"] += 1
    write_csv(table, rows)
    with pytest.raises(DataError, match="holds a train split made with other options or from other images"):
        posed_images.main(config("whole"))


def test_the_command_line_names_latents_one_by_one(posed_images: ModuleType) -> None:
    words = "--table t.csv --out o --license l --latent a:angle:deg --latent b:category --val-every-view 3"
    config = parse_command_line(posed_images.Config, "", arguments=shlex.split(words))
    assert config.views.latent == ("a:angle:deg", "b:category") and config.views.val_every_view == 3


# ---------------------------------------------------------------- photographs


def test_eth80_by_its_own_table(posed_images: ModuleType, tmp_path: Path) -> None:
    folder = shared_data("eth80")
    chosen_objects = ("cup1", "cup10", "car2", "car14")
    with tarfile.open(folder / "eth80_128.tar.gz") as archive:
        members = [member for member in archive if Path(member.name).parent.name in chosen_objects]
        archive.extractall(tmp_path / "eth80", members, filter="data")
    with (folder / "views.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["object"] in chosen_objects]
    table = write_csv(tmp_path / "views.csv", rows)
    latents = ("azimuth=azimuth_deg:angle:deg", "pose=azimuth_deg,polar_deg:viewing_sphere:deg:polar")
    chosen = TableOptions(
        table, latents, "{class}/{object}/image_{view}.jpg", tmp_path / "eth80", class_column="class",
        split_column="split",
    )  # fmt: skip
    posed_images.main(posed_images.Config(chosen, tmp_path / "out", "none stated"))
    for split, objects in (("train", {"cup1", "car2"}), ("val", {"cup10", "car14"})):
        dataset = ShardDataset(tmp_path / "out", split)
        assert {key.decode() for key in dataset.keys.tolist()} == objects and dataset.num_views == 41
        for place, key in enumerate(dataset.keys.tolist()):
            name = f"{dataset.class_names[dataset.labels[place]]}/{key.decode()}"
            assert dataset.read_encoded(place, 17) == (tmp_path / "eth80" / name / "image_17.jpg").read_bytes()
            # The archive's latents are the Euler angles x, y, z of the same rotation, R = Rz Ry Rx.
            known = np.stack([np.load(tmp_path / "eth80" / name / f"latent_{view}.npy") for view in range(41)])
            turns = SciPyRotation.from_quat(dataset.quats_xyzw[place])
            assert (SciPyRotation.from_euler("xyz", known[:, :3]) * turns.inv()).magnitude().max() < 1e-6


def test_coil20_by_the_table_that_the_page_writes(
    posed_images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(shared_data("coil20") / "coil20.tar") as archive:
        members = [member for member in archive if re.match(r"(\./)?obj(2|10)__", member.name)]
        archive.extractall(tmp_path / "coil20", members, filter="data")
    monkeypatch.chdir(tmp_path)
    page = (SCRIPT.parents[1] / "docs" / "your_own_posed_images.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1], {})
    with open("coil20/views.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 * 72
    table = write_csv(tmp_path / "coil20" / "two.csv", [row for row in rows if row["object"] in ("obj2", "obj10")])
    chosen = TableOptions(table, ("azimuth:angle:deg",), val_every_view=4)
    posed_images.main(posed_images.Config(chosen, tmp_path / "out", "none stated"))
    val = ShardDataset(tmp_path / "out", "val")
    assert (val.num_objects, val.num_views, val.image_size, val.manifest.view_format) == (2, 18, (128, 128), "png")
    np.testing.assert_array_equal(val.latents[..., 0], np.tile(np.arange(0, 360, 20), (2, 1)))
    assert val.schema.latents == (Latent("azimuth", Angle("deg"), 0),) and val.quats_xyzw is None


def test_statistics_are_those_of_stored_views(
    posed_images: ModuleType, rows: Rows, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(convert, "MEASURED_VIEWS", 5)
    table = write_csv(tmp_path / "views.csv", rows)
    posed_images.main(posed_images.Config(options(table, image_size=4), tmp_path / "out", "CC0-1.0"))
    dataset, pixels = stored(tmp_path / "out", "train")
    # One of each object, then another one of the first.
    chosen = np.stack([*(pixels[place, place % NUM_VIEWS] for place in range(4)), pixels[0, 1]]) / 255
    np.testing.assert_allclose(dataset.mean_rgb, chosen.mean(axis=(0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(dataset.std_rgb, chosen.std(axis=(0, 1, 2)), atol=6e-5)
