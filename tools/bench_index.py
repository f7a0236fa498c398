"""What opening a split of many images costs, in time and in memory of a process beyond the page cache.

    python tools/bench_index.py [--images N] [--folder DIR] [--json FILE]

Two splits are made: of as many images as `--images` says, and of as many objects with 2 or 3 views and one latent. All
images are one small JPEG that stands once in each shard, so that 10 million take 400 MB of disk, and the objects with
their views 800 MB. Each split is then opened in a fresh process. Memory is RssAnon of
/proc/self/status, sampled while batches at the start of three epochs are loaded, so Linux is needed. Now and then an
opening holds a full run of Python's garbage collector, which takes .1 s with PyTorch's objects: see the range.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from benchmarks import MIB, Row, print_rows, row_of, write_rows
from google_crc32c import value as crc32c_of
from PIL import Image

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.index import ImageIndex, SplitIndex, shapes_of_arrays
from ssl_equi.data.shards.manifest import ImageManifest, Manifest, ShardEntry, index_folder, shard_name
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import kind_of_split
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, SingleViews
from ssl_equi.data.view_counts import is_view
from ssl_equi.errors import UserError
from ssl_equi.files import sha256_of_file
from ssl_equi.latents.number import Number
from ssl_equi.latents.schema import Latent, LatentSchema

SIDE = 32
CLASSES = 1000
RECORDS_PER_SHARD = 2000
FEWEST_VIEWS, MOST_VIEWS = 2, 3  # of objects
SCHEMA = LatentSchema((Latent("size", Number((0.0, 1.0)), 0),))
IMAGE_OFFSET = 512  # behind a tar header
BYTES_PER_RECORD = 2048  # the fewest that a manifest may state
BATCH_SIZE = 64
OPENINGS = 5
SAMPLING_SECONDS = 0.005


Kind = Literal["images", "objects"]


@dataclass(frozen=True)
class Config:
    """How many images and objects, and where the splits are made."""

    images: int = 10_000_000
    """Images of the one split, and objects of the other."""
    folder: Path | None = None
    """Where the splits are made, and removed again; the system's folder of temporary files by default."""
    json: Path | None = None
    """Also write the table to this file."""
    opened: Path | None = None
    """Make nothing: open the split in this folder and print the figures as JSON, as each fresh process does."""


def make_split(folder: Path, records: int, kind: Kind = "images") -> None:
    """Writes `train` with its index; arrays that are all zeros take no room on the disk."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 99, dtype=np.uint8)).save(buffer, "JPEG")
    content = bytes(IMAGE_OFFSET) + buffer.getvalue()
    counts = [min(RECORDS_PER_SHARD, records - first) for first in range(0, records, RECORDS_PER_SHARD)]
    names = [shard_name("train", number) for number in range(len(counts))]
    for name, count in zip(names, counts):
        (folder / name).write_bytes(content)
        os.truncate(folder / name, count * BYTES_PER_RECORD)  # a hole, of which the disk keeps nothing
    sha256 = hashlib.sha256(content).hexdigest()
    labels = np.arange(records) % CLASSES
    common: dict[str, Any] = {
        "split": "train", "num_objects": records, "class_names": tuple(str(label) for label in range(CLASSES)),
        "mean_rgb": IMAGENET_MEAN_RGB, "std_rgb": IMAGENET_STD_RGB, "source": "made for a benchmark",
        "license": "CC0-1.0", "seed": 0, "writer": "bench_index", "plan_sha256": sha256, "sidecars": {},
        "shards": tuple(
            ShardEntry(name, count * BYTES_PER_RECORD, sha256, number * RECORDS_PER_SHARD, count)
            for number, (name, count) in enumerate(zip(names, counts))
        ),
    }  # fmt: skip
    columns: dict[str, Any] = {
        "shard_numbers": np.repeat(np.arange(len(counts)), counts),
        "offsets": IMAGE_OFFSET,
        "sizes": len(buffer.getvalue()),
        "crc32c": crc32c_of(buffer.getvalue()),
        "labels": labels,
    }
    manifest: ImageManifest | Manifest
    if kind == "images":
        columns |= {"heights": SIDE, "widths": SIDE}
        manifest = ImageManifest(
            num_unlabelled=0, images_per_class=tuple(np.bincount(labels, minlength=CLASSES).tolist()),
            kinds={"JPEG": records}, height_range=(SIDE, SIDE), width_range=(SIDE, SIDE),
            measured_mean_rgb=IMAGENET_MEAN_RGB, measured_std_rgb=IMAGENET_STD_RGB, measured_images=1,
            source_version="1", reencoding=None, **common,
        )  # fmt: skip
    else:
        view_counts = FEWEST_VIEWS + np.arange(records) % (MOST_VIEWS - FEWEST_VIEWS + 1)
        there = is_view(view_counts, MOST_VIEWS)
        columns |= {name: np.where(there, columns[name], 0) for name in ("offsets", "sizes", "crc32c")}
        columns["view_counts"] = view_counts
        manifest = Manifest(
            num_views=MOST_VIEWS, fewest_views=FEWEST_VIEWS, image_size=(SIDE, SIDE),
            latent_names=SCHEMA.column_names, latent_ranges=dict.fromkeys(SCHEMA.column_names, (0.0, 0.0)),
            latent_schema=SCHEMA.as_json(), **common,
        )  # fmt: skip
    sidecars = index_folder(folder, "train")
    sidecars.mkdir()
    dtypes = ImageIndex.DTYPES if kind == "images" else SplitIndex.DTYPES
    for name, shape in shapes_of_arrays(manifest).items():
        path, dtype = sidecars / f"{name}.npy", np.dtype(dtypes[name])
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if name in columns:
            array[:] = columns[name]
        array.flush()
    replace(manifest, sidecars={path.name: sha256_of_file(path) for path in sorted(sidecars.iterdir())}).write(folder)


def private_mib() -> float:
    """Memory of this process that is no file's, in MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise UserError("/proc/self/status has no RssAnon: run this benchmark on Linux")
    return int(found[1]) * 1024 / MIB


@contextmanager
def sampled_private_mib() -> Iterator[list[float]]:
    """A list that grows by one sample of `private_mib` every few milliseconds."""
    samples = [private_mib()]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            samples.append(private_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append(private_mib())


def open_and_load(folder: Path) -> dict[str, Any]:
    """Milliseconds of openings in this process, and how much its private memory grew with one of them and batches."""
    open_split = ImageShards if kind_of_split(folder, "train") == "images" else ShardDataset
    with sampled_private_mib() as samples:
        started = time.perf_counter()
        split = open_split(folder, "train")
        first_milliseconds = 1000 * (time.perf_counter() - started)
        opened_mib = private_mib() - samples[0]
        collection = split if isinstance(split, ShardDataset) else SingleViews(split, CenterCrop(SIDE, SIDE))
        views = min(2, collection.fewest_views)
        with stored_loader(
            collection, global_batch_size=BATCH_SIZE, views=views, seed=0, threads=2, pin_memory=False
        ) as loader:
            for epoch in range(3):
                for batch in islice(loader.batches(epoch * loader.steps_per_epoch), 3):
                    if (batch.labels != batch.object_indices % CLASSES).any():
                        raise UserError("a label is another image's: this benchmark is broken")
        loaded_mib = private_mib() - samples[0]
    wall_milliseconds, cpu_milliseconds = [first_milliseconds], []
    for _ in range(OPENINGS):
        started, cpu_started = time.perf_counter(), time.process_time()
        open_split(folder, "train")
        wall_milliseconds.append(1000 * (time.perf_counter() - started))
        cpu_milliseconds.append(1000 * (time.process_time() - cpu_started))
    return {
        "milliseconds": wall_milliseconds,
        "cpu_milliseconds": cpu_milliseconds,
        "opened_mib": opened_mib,
        "loaded_mib": loaded_mib,
        "peak_mib": max(samples) - samples[0],
    }


def measured_in_a_fresh_process(folder: Path) -> dict[str, Any]:
    """The figures of `open_and_load`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--opened", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(folder: Path, records: int, kind: Kind) -> list[Row]:
    """The rows of the table of one kind of split, which is made in this folder and removed again."""
    folder.mkdir(parents=True)
    try:
        make_split(folder, records, kind)
        found = measured_in_a_fresh_process(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [
        row_of(f"{kind}: milliseconds, openings", found["milliseconds"], 50),
        row_of(f"{kind}: CPU milliseconds, openings", found["cpu_milliseconds"], 50),
        row_of(f"{kind}: MiB of private memory, opened", [found["opened_mib"]], 200),
        row_of(f"{kind}: MiB of private memory, batches loaded", [found["loaded_mib"]], 200),
        row_of(f"{kind}: MiB of private memory, most", [found["peak_mib"]], 200),
    ]


def main(config: Config) -> None:
    if config.opened is not None:
        print(json.dumps(open_and_load(config.opened)))
        return
    if config.images < BATCH_SIZE:
        raise UserError(f"--images is {config.images}: give at least a batch of {BATCH_SIZE}")
    with tempfile.TemporaryDirectory(prefix="bench_index_", dir=config.folder) as folder:
        rows = [row for kind in get_args(Kind) for row in measure(Path(folder) / kind, config.images, kind)]
    print_rows(f"splits of {config.images:,} images, and of as many objects", rows, ["{:.1f}"] * len(rows))
    write_rows(config.json, rows, "cpu")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
