"""Small stand-ins for what the documents name: photographs, tables, archives, meshes, weights."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

CLASSES, OBJECTS, VIEWS, SIDE = ("apple", "car"), 5, 12, 64
TABLES = ("views.csv", "coil20/views.csv", "rig.csv", "log.jsonl")
PHOTOGRAPHS = ("data/photos", "photos", "frames", "coil20")


def write_posed_photographs(folder: Path, table: str) -> None:
    """Photographs CLASS/OBJECT/image_VIEW.jpg, where the documents' tables look for them, and one of the tables.

    It has all columns of all these tables.
    """
    places = [folder, *(folder / name for name in PHOTOGRAPHS)]
    rows = [posed_row(kind, number, view) for kind in CLASSES for number in range(OBJECTS) for view in range(VIEWS)]
    generator = np.random.default_rng(0)
    for row in rows:
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for place in places:
            path = place / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    with (folder / table).open("w", newline="") as file:
        if table.endswith(".jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def posed_row(kind: str, number: int, view: int) -> dict[str, Any]:
    """A row of the tables: an object on a turntable, seen from two heights."""
    azimuth, polar = 360 / VIEWS * view, 30 + 10 * (view % 2) + number
    rotation = Rotation.from_euler("xyz", [polar, 0, azimuth], degrees=True)
    row: dict[str, Any] = {
        "image": f"{kind}/{kind}{number}/image_{view}.jpg", "class": kind, "kind": kind, "object": f"{kind}{number}",
        "view": view, "split": "val" if number == OBJECTS - 1 else "train", "lamp": ("left", "right")[view % 2],
        "azimuth": azimuth, "azimuth_deg": azimuth, "polar": polar, "polar_deg": polar, "elevation": 90 - polar,
        "elbow": 0.01 * polar, "wrist": azimuth / 60,
    }  # fmt: skip
    row |= {f"pose_{axis}": value for axis, value in zip("xyzw", rotation.as_quat().tolist())}
    row |= {f"place_{axis}": view + value for value, axis in enumerate("xyz")}
    matrix = rotation.as_matrix().tolist()
    return row | {f"pose_{i + 1}{j + 1}": matrix[i][j] for i in range(3) for j in range(3)}


def write_imagenet(folder: Path, image_bytes: Callable[..., bytes]) -> None:
    """train/ and val/ with a folder for each of three classes, named as ImageNet's."""
    for split, count in (("train", 4), ("val", 2)):
        for label, wnid in enumerate(("n01440764", "n01739381", "n02105855")):
            for number in range(count):
                path = folder / split / wnid / f"{split}_{label}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image_bytes(number + 5 * label))


def write_photographs(folder: Path, image_bytes: Callable[..., bytes]) -> None:
    """30 images side by side."""
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(image_bytes(number, size=(40 + number, 60 - number)))


def write_weights(file: Path, architecture: str) -> None:
    """Random weights of an architecture of timm, in the layout of the published ones."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(architecture).state_dict(), file)
