"""A small set of posed shards with latents of its own: an azimuth, an elevation, a tool; no rotation, no hues."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.writer import write_split
from ssl_equi.latents.schema import LatentSchema

TURNTABLE = LatentSchema.from_json(
    {
        "latents": [
            {"name": "azimuth", "kind": "angle", "columns": [0, 1]},
            {"name": "elevation", "kind": "number", "columns": [1, 2], "range": [0, 90], "unit": "deg"},
            {"name": "tool", "kind": "category", "columns": [2, 3], "names": ["none", "grip"]},
        ]
    }
)
CLASSES = ("apple", "car")
SIDE = 32


def write_turntables(folder: Path, train_objects: int = 12, val_objects: int = 6, num_views: int = 6) -> Path:
    """Splits train and val, whose views show their latents as grey squares."""
    for split, count, seed in (("train", train_objects, 0), ("val", val_objects, 1)):
        generator = np.random.default_rng(seed)
        records = [_record(f"{split}-{index}", index % 2, num_views, generator) for index in range(count)]
        write_split(
            folder, split, records, CLASSES, source="turntables of the tests", seed=0, license="CC0-1.0",
            schema=TURNTABLE, mean_rgb=(0.5, 0.5, 0.5), std_rgb=(0.25, 0.25, 0.25),
        )  # fmt: skip
    return folder


def _record(key: str, label: int, num_views: int, generator: np.random.Generator) -> ObjectRecord:
    latents = TURNTABLE.sample(generator, num_views).float().numpy()
    images = []
    for azimuth, elevation, tool in latents:
        shown = [np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth)), elevation / 45 - 1, 2 * tool - 1]
        squares = np.kron(np.reshape(shown, (2, 2)), np.ones((SIDE // 2, SIDE // 2)))
        pixels = np.repeat((127.5 + 127 * squares).round().astype(np.uint8)[..., None], 3, axis=2)
        pixels[SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2, 0] = 200 * label
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        images.append(stream.getvalue())
    return ObjectRecord(key, label, latents, images)
