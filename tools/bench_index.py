"""What opening a split of many images costs, in time and in memory of a process beyond the page cache.

    python tools/bench_index.py [--images N] [--folder DIR] [--json FILE]

The split is made first: an index of as many images as `--images` says, all of them one small JPEG that stands once in
each shard, so that 10 million images take 400 MB of disk. It is then opened in a fresh process. Memory is RssAnon of
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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import MIB, Row, print_rows, row_of, write_rows
from google_crc32c import value as crc32c_of
from PIL import Image

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.index import ImageIndex
from ssl_equi.data.shards.manifest import ImageManifest, ShardEntry, index_folder, shard_name
from ssl_equi.data.single_views import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, SingleViews
from ssl_equi.errors import UserError
from ssl_equi.files import sha256_of_file

SIDE = 32
CLASSES = 1000
IMAGES_PER_SHARD = 2000
IMAGE_OFFSET = 512  # behind a tar header
BYTES_PER_RECORD = 2048  # the fewest that a manifest may state
BATCH_SIZE = 64
OPENINGS = 5
SAMPLING_SECONDS = 0.005


@dataclass(frozen=True)
class Config:
    """How many images, and where the split is made."""

    images: int = 10_000_000
    """Images of the split."""
    folder: Path | None = None
    """Where the split is made; a temporary folder, which is removed, by default."""
    json: Path | None = None
    """Also write the table to this file."""
    opened: Path | None = None
    """Make nothing: open the split in this folder and print the figures as JSON, as each fresh process does."""


def make_split(folder: Path, images: int) -> None:
    """Writes `train` with its index; arrays that are all zeros take no room on the disk."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 99, dtype=np.uint8)).save(buffer, "JPEG")
    content = bytes(IMAGE_OFFSET) + buffer.getvalue()
    counts = [min(IMAGES_PER_SHARD, images - first) for first in range(0, images, IMAGES_PER_SHARD)]
    names = [shard_name("train", number) for number in range(len(counts))]
    for name, count in zip(names, counts):
        (folder / name).write_bytes(content)
        os.truncate(folder / name, count * BYTES_PER_RECORD)  # a hole, of which the disk keeps nothing
    sha256 = hashlib.sha256(content).hexdigest()
    shards = tuple(
        ShardEntry(name, count * BYTES_PER_RECORD, sha256, number * IMAGES_PER_SHARD, count)
        for number, (name, count) in enumerate(zip(names, counts))
    )
    columns: dict[str, Any] = {
        "shard_numbers": np.repeat(np.arange(len(counts)), counts),
        "offsets": IMAGE_OFFSET,
        "sizes": len(buffer.getvalue()),
        "crc32c": crc32c_of(buffer.getvalue()),
        "labels": np.arange(images) % CLASSES,
        "heights": SIDE,
        "widths": SIDE,
    }
    sidecars = index_folder(folder, "train")
    sidecars.mkdir()
    for name, dtype in ImageIndex.DTYPES.items():
        array = np.lib.format.open_memmap(sidecars / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=(images,))
        if name in columns:
            array[:] = columns[name]
        array.flush()
    ImageManifest(
        split="train", num_objects=images, num_unlabelled=0, class_names=tuple(str(label) for label in range(CLASSES)),
        images_per_class=tuple(np.bincount(columns["labels"], minlength=CLASSES).tolist()), kinds={"JPEG": images},
        height_range=(SIDE, SIDE), width_range=(SIDE, SIDE), mean_rgb=IMAGENET_MEAN_RGB, std_rgb=IMAGENET_STD_RGB,
        measured_mean_rgb=IMAGENET_MEAN_RGB, measured_std_rgb=IMAGENET_STD_RGB, measured_images=1,
        source="made for a benchmark", source_version="1", license="CC0-1.0", reencoding=None, seed=0,
        writer="bench_index", plan_sha256=sha256, shards=shards,
        sidecars={path.name: sha256_of_file(path) for path in sorted(sidecars.iterdir())},
    ).write(folder)  # fmt: skip


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
    with sampled_private_mib() as samples:
        started = time.perf_counter()
        images = ImageShards(folder, "train")
        first_milliseconds = 1000 * (time.perf_counter() - started)
        opened_mib = private_mib() - samples[0]
        collection = SingleViews(images, CenterCrop(SIDE, SIDE))
        with stored_loader(
            collection, global_batch_size=BATCH_SIZE, views=1, seed=0, threads=2, pin_memory=False
        ) as loader:
            for epoch in range(3):
                for batch in islice(loader.batches(epoch * loader.steps_per_epoch), 3):
                    if (batch.labels != batch.object_indices % CLASSES).any():
                        raise UserError("a label is another image's: this benchmark is broken")
        loaded_mib = private_mib() - samples[0]
    wall_milliseconds, cpu_milliseconds = [first_milliseconds], []
    for _ in range(OPENINGS):
        started, cpu_started = time.perf_counter(), time.process_time()
        ImageShards(folder, "train")
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


def measure(folder: Path, images: int) -> list[Row]:
    """The rows of the table, of a split that is made in this folder."""
    make_split(folder, images)
    found = measured_in_a_fresh_process(folder)
    return [
        row_of("milliseconds, openings", found["milliseconds"], 50),
        row_of("CPU milliseconds, openings", found["cpu_milliseconds"], 50),
        row_of("MiB of private memory, opened", [found["opened_mib"]], 200),
        row_of("MiB of private memory, batches loaded", [found["loaded_mib"]], 200),
        row_of("MiB of private memory, most", [found["peak_mib"]], 200),
    ]


def main(config: Config) -> None:
    if config.opened is not None:
        print(json.dumps(open_and_load(config.opened)))
        return
    if config.images < BATCH_SIZE:
        raise UserError(f"--images is {config.images}: give at least a batch of {BATCH_SIZE}")
    folder = config.folder or Path(tempfile.mkdtemp(prefix="bench_index_"))
    try:
        rows = measure(folder, config.images)
    finally:
        if config.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print_rows(f"a split of {config.images:,} images", rows, ["{:.1f}"] * len(rows))
    write_rows(config.json, rows, "cpu")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
