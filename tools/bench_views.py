"""How much faster a batch of views is made than image by image.

    python tools/bench_views.py [--json FILE] [--device cuda] [--batch-size N] [--rounds N] [--image-size S]

SimCLR's augmentations for ImageNet (crop of 0.08 to 1 of the area, flip, jitter at strength 0.8, grey, blur with a
kernel of a tenth of the side), made of decoded uint8 pictures whose sides are between the view's side and 8/7 of it.
Ours: `ssl_equi.views` on the whole batch on --device, from uint8 on that device to float32 views, drawing of the
parameters included. Compared with `torchvision.transforms.v2` on the CPU, image after image as a data loader's worker
does, on uint8 and on float32 images, of which the faster counts. One thread each. Ours and theirs take turns, round
after round; printed are the median ratios of the seconds an image, and their range. Target: above 1.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from benchmarks import Row, machine_of, row_of, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from ssl_equi.views.presets import tenth_of_side, view_pipelines

TARGET = 1.0


@dataclass(frozen=True)
class Config:
    json: Path | None = None
    """write the rows to this file too"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where our views are made"""
    batch_size: int = 256
    """images of a round"""
    image_size: int = 224
    """side of the views in pixels"""
    rounds: int = 5
    """measurements of each, after one that warms up"""
    seed: int = 0
    """of pictures and parameters"""


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures of several sizes, one by one and on a canvas that fits all."""

    each: list[Tensor]
    """uint8 [3, h, w]"""
    canvas: Tensor
    """uint8 [N, H, W, 3] on the device, padded at the right and bottom"""
    sizes: Tensor
    """int64 [N, 2], height and width"""


def make_pictures(config: Config, generator: torch.Generator) -> Pictures:
    """Smooth coloured pictures with some noise; what they show hardly matters for the speed."""
    largest = config.image_size * 8 // 7
    sizes = torch.randint(config.image_size, largest + 1, (config.batch_size, 2), generator=generator)
    coarse = torch.rand(config.batch_size, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (largest, largest), mode="bilinear")
    pictures = (smooth * 235 + 20 * torch.rand(smooth.shape, generator=generator)).to(torch.uint8)
    for picture, (height, width) in zip(pictures, sizes.tolist(), strict=True):
        picture[:, height:] = 0
        picture[:, :, width:] = 0
    each = [
        picture[:, :height, :width].contiguous()
        for picture, (height, width) in zip(pictures, sizes.tolist(), strict=True)
    ]
    return Pictures(each, pictures.permute(0, 2, 3, 1).contiguous().to(config.device), sizes)


def torchvision_transform(image_size: int, first_to_float: bool) -> v2.Compose:
    """The same augmentations for one picture; on float32 images, or on uint8 ones as far as the end."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    augmentations = [
        v2.RandomResizedCrop(image_size, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(tenth_of_side(image_size), (0.1, 2.0))], p=0.5),
    ]
    return v2.Compose([to_float, *augmentations] if first_to_float else [*augmentations, to_float])


def contenders(config: Config, pictures: Pictures, generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """What is timed: each makes a view of every picture."""
    pipeline, _ = view_pipelines("simclr_imagenet", config.image_size)

    def ours() -> None:
        images = pictures.canvas.permute(0, 3, 1, 2)
        parameters = pipeline.draw(len(images), source_sizes=pictures.sizes, generator=generator)
        pipeline.apply(images, parameters)
        if config.device == "cuda":
            torch.cuda.synchronize()

    def theirs(first_to_float: bool) -> Callable[[], object]:
        transform = torchvision_transform(config.image_size, first_to_float)
        return lambda: torch.stack([transform(picture) for picture in pictures.each])

    return {"ours": ours, "torchvision on uint8": theirs(False), "torchvision on float32": theirs(True)}


def measure(config: Config) -> dict[str, list[float]]:
    """Milliseconds an image, round by round, of each contender."""
    torch.manual_seed(config.seed)  # torchvision draws from the global generator
    generator = torch.Generator().manual_seed(config.seed)
    clock = time.process_time if config.device == "cpu" else time.perf_counter
    runs = contenders(config, make_pictures(config, generator), generator)
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(config.rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            elapsed = clock() - start
            if round_number > 0:  # the first round warms up
                milliseconds[name].append(1000 * elapsed / config.batch_size)
    return milliseconds


def as_row(config: Config, milliseconds: dict[str, list[float]]) -> Row:
    """For the JSON file: how often our views are made in the time of torchvision's faster way."""
    ours = milliseconds.pop("ours")
    fastest = min(milliseconds, key=lambda name: statistics.median(milliseconds[name]))
    ratios = [theirs / own for theirs, own in zip(milliseconds[fastest], ours, strict=True)]
    sizes = f"{config.image_size} px, batches of {config.batch_size} on {config.device}"
    return row_of(f"SimCLR views of {sizes}, {fastest} / ours", ratios, TARGET)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    milliseconds = measure(config)
    table = Table(title=f"milliseconds an image ({machine_of(config.device)['device']}, one thread)")
    for header in ("", "median", "range"):
        table.add_column(header, justify="right")
    for name, values in milliseconds.items():
        table.add_row(name, f"{statistics.median(values):.3f}", f"{min(values):.3f} - {max(values):.3f}")
    row = as_row(config, dict(milliseconds))
    console = Console(width=100)
    console.print(table)
    console.print(f"{row['name']}: {row['ratio']:.2f} ({row['low']:.2f} - {row['high']:.2f})")
    write_rows(config.json, [row], config.device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
