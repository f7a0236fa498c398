"""Measures how far any encoder is from invariant and equivariant under symmetries of images, layer by layer.

    python evaluation/equivariance.py runs/sie/encoder                               d4, the embedded test split
    python evaluation/equivariance.py runs/sie/encoder --symmetries c4 circular_shifts rotations
    python evaluation/equivariance.py random:d4_resnet10_small_images                random weights
    python evaluation/equivariance.py random:resnet18 --dataset random               smooth noise, no data set
    python evaluation/equivariance.py timm:resnet18 --image-size 64                  timm's pretrained weights
    python evaluation/equivariance.py runs/simclr/encoder --dataset cifar10 --data-dir DATA

- c4, d4: quarter turns, and mirrorings. Exact: they only move pixels.
- circular_shifts: what leaves the image on one side comes in on the other. Exact.
- rotations: by any angles, within a circle. Not exact: they interpolate; how much that alone does is printed.

An error is the root of the mean squared distance between the features of a transformed image and those of the image
(invariance_error), or what the encoder itself says they become (equivariance_error), over the mean squared distance
between different images: 0 is exact, 1 as different as another image. Layers are compared as maps whose cells move
like pixels, with the encoder's own action where it states one, and after pooling. Prints tables, appends all records
to results.json and writes report.html, in --out (the folder above the encoder when not given).
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import shlex
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import normalise_images
from ssl_equi.data.sources import DatasetName, open_data
from ssl_equi.data.view_counts import of_objects
from ssl_equi.errors import UserError
from ssl_equi.evaluation.encoders import open_encoder
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.results import refuse_other_content
from ssl_equi.evaluation.samples import evenly_spread
from ssl_equi.evaluation.symmetry.errors import measure_symmetry
from ssl_equi.evaluation.symmetry.image_symmetries import DEFAULT_ANGLES_DEG, SymmetryName, image_symmetries
from ssl_equi.evaluation.symmetry.results import add_symmetry, print_layers, symmetry_records
from ssl_equi.evaluation.tables import print_records
from ssl_equi.options import ActsWhen, Count, ImageSide, Range, Seed

NOISE_CELLS = 8  # independent values along each side of a random image
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


Pixels = Annotated[int, Range(minimum=-16_384, maximum=16_384)]
Degrees = Annotated[float, Range(minimum=-360, maximum=360)]
_SHIFTS = ActsWhen(lambda options: "circular_shifts" in options.symmetries, "add --symmetries circular_shifts")


@dataclass(frozen=True)
class Config:
    """Which encoder is measured, under what, and on which images."""

    encoder: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder, timm:NAME (pretrained), random:NAME or hub:OWNER/NAME."""
    symmetries: tuple[SymmetryName, ...] = ("d4",)
    """Sets of symmetries."""
    dataset: DatasetName | Literal["random"] = "3diebench-p"
    """3diebench-p and 3diebench-pt render themselves; random is smooth noise; the others need --data-dir."""
    data_dir: str | Path | None = None
    """Folder with the data set; the user's cache folder for those that render themselves when not given."""
    split: str = "test"
    """Split that the images are of."""
    image_size: ImageSide | None = None
    """Side of the images in pixels; when not given that which the encoder was trained on, or 64."""
    num_images: Count = 128
    """So many images, spread over the split, one an object."""
    shifts: Annotated[tuple[Pixels, ...], _SHIFTS] = ()
    """Distances of circular shifts in pixels, to the right, down and both; 15 of them when not given."""
    all_shifts: Annotated[bool, _SHIFTS] = False
    """Every circular shift, one for each pixel; slow."""
    angles: Annotated[
        tuple[Degrees, ...], ActsWhen(lambda options: "rotations" in options.symmetries, "add --symmetries rotations")
    ] = DEFAULT_ANGLES_DEG
    """Rotations in degrees, counter-clockwise."""
    layers: bool = True
    """Measure layers, too; takes about twice as long."""
    batch_size: Count = 64
    """Images in one forward pass."""
    seed: Seed = 0
    """Draws the views, or the random images."""
    out: Path | None = None
    """Folder of results.json, arrays.npz and report.html."""


def main(config: Config) -> None:
    source = open_encoder(config.encoder, image_size=config.image_size)
    out = config.out or source.out_folder
    refuse_other_content(out / "results.json")
    random_encoder = source.untrained()
    for encoder in (source.module, random_encoder):
        if encoder is not None:
            encoder.to(DEVICE)
    pixels, labels, mean_rgb, std_rgb = open_images(config, source.image_size)
    images = normalise_images(torch.from_numpy(pixels), source.mean_rgb or mean_rgb, source.std_rgb or std_rgb)
    images = images.contiguous()
    sets = [
        image_symmetries(name, images.shape[2], config.shifts or None, config.all_shifts, config.angles)
        for name in config.symmetries
    ]
    split = "random images" if config.dataset == "random" else config.split
    measured, records = [], []
    for symmetries in sets:
        print(f"{symmetries.name}: {len(images)} images under {len(symmetries.elements)} elements", flush=True)
        measure = partial(
            measure_symmetry, images=images, symmetries=symmetries, parts=source.parts, labels=labels,
            batch_size=config.batch_size,
        )  # fmt: skip
        errors = measure(source.module, with_layers=config.layers)
        random_parts = None if random_encoder is None else measure(random_encoder, with_layers=False).parts
        found = symmetry_records(errors, random_parts, split, config.seed)
        print_records(found)
        print_layers(errors)
        print()
        measured.append(errors)
        records += found
    for note in source.notes:
        print(note)
    described = {
        "title": f"symmetry of {source.name}", "command": f"python {shlex.join(sys.argv)}",
        "options": {name: str(value) for name, value in asdict(config).items()},
    }  # fmt: skip
    add_symmetry(out, measured, pixels, records, described)
    write_report_or_warn([out], out / "report.html")
    print(f"added to {out / 'results.json'}; figures in {out / 'report.html'}")


def open_images(
    config: Config, image_size: int
) -> tuple[np.ndarray, Tensor | None, tuple[float, ...], tuple[float, ...]]:
    """Images uint8 [N, S, S, 3], their labels, and mean and deviation of the data set's colours."""
    if config.num_images < 2:
        raise UserError(f"--num-images is {config.num_images}: errors are relative to other images, give 2 or more")
    if config.dataset == "random":
        return random_images(config.num_images, image_size, config.seed), None, (0.5,) * 3, (0.25,) * 3
    data = open_data(config.dataset, config.data_dir, config.split, image_size)
    for note in data.notes:
        print(note)
    pixels, labels = read_images(data.evaluation, config.num_images, config.seed)
    return pixels, labels, data.mean_rgb, data.std_rgb


def random_images(count: int, side: int, seed: int) -> np.ndarray:
    """Smooth noise, uint8 [N, S, S, 3]."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(count, 3, NOISE_CELLS, NOISE_CELLS, generator=generator)
    smooth = F.interpolate(cells, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return (smooth * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def read_images(collection: ViewCollection, count: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """One view per object, of at most this many objects, evenly spread over the split."""
    height, width = collection.image_size
    if height != width:
        raise UserError(
            f"the images of {collection.folder} have {height} x {width} pixels and symmetries are those of squares: "
            "give a data set of square images"
        )
    objects = evenly_spread(collection.num_objects, count)
    own_views = of_objects(collection.views_of_each, objects[:, None])
    views = np.random.default_rng(seed).integers(0, own_views, (len(objects), 1))
    return collection.images(objects, views)[:, 0], torch.from_numpy(
        np.asarray(collection.labels, dtype=np.int64)[objects]
    )


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
