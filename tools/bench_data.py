"""What loading costs beside decoding alone, and beside the usual ways of loading the same images.

    python tools/bench_data.py [--json FILE] [--threads N] [--rounds N] [--objects N] [--folder DIR]
    python tools/bench_data.py --measure scaling        1, 2, 4, ... threads and processes of our loader; some minutes

Data like 3DIEBench's are made first: objects with 50 views of 256 x 256 pixels, 12 KB each, as shards and as one file
a view with its latents in another; and images like ImageNet's, 110 KB each, as shards. All lies in the page cache.

- decoding: simplejpeg decodes the same bytes, which are in memory, into buffers that are already there. Threads share
  the work as our loader's do.
- our reader: `ShardDataset.read_views`, batch by batch, in one thread; of images `ImageShards.read_image`.
- our loader: `stored_loader`, which decodes ahead in threads. It runs on before and after what is measured: the time
  from one batch to a later one, in which it decodes as many batches as it gives out.
- our loader, processes: the same with worker processes that share a ring of buffers.
- files, PIL: as the papers' loaders do it: a torch DataLoader whose workers open two views' files with PIL, resize,
  convert and normalise them, read two files of latents and make the relative rotation with SciPy.
- WebDataset: a torch DataLoader whose workers stream the same shards object by object and decode two views as above.

- our loader, from the disk; from memory: views of 64 x 64 pixels that were decoded once (`--cache-decoded`) and are
  copied by threads, beside our loader that decodes them.
- our loader, nvJPEG: `gpu_loader`, which a GPU decodes for, where there is one; and `stored_loader` with the copy
  of each batch to the GPU.

scaling: images a second of our loader by the number of its threads, and of its worker processes, up to the number of
cores; each of them runs by itself, on small views. Where more of either stop helping is where to stop.

Every round all of them take their turn, in reverse order every other round. A figure is a ratio of seconds a pair (an
image) in the same round; CPU seconds are those of the process and its workers (read from /proc, so Linux is needed).
"""

import io
import multiprocessing
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from benchmarks import Row, print_rows, row_of, write_rows
from loader_scaling import WARM_UP_BATCHES, ScalingConfig, measure_scaling, print_scaling
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.cache import CachedViews, DecodedInMemory
from ssl_equi.data.loading.gpu import encoded_views, gpu_loader, nvjpeg_decoder
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.format import ObjectRecord
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.writer import write_split
from ssl_equi.errors import UserError

VIEW_SIDE, VIEW_QUALITY, SMALL_SIDE = 256, 90, 64
DIFFERENT_PICTURES = 64
MEAN_RGB, STD_RGB = (0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969)


@dataclass(frozen=True)
class Config:
    """Sizes, and where the data are made."""

    measure: Literal["comparison", "scaling"] = "comparison"
    """comparison: our loader beside decoding alone and the usual ways. scaling: our loader, by its number of threads
    and of processes."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """Sizes of scaling; objects, views and batches are those below."""
    json: Path | None = None
    """Also write the table to this file."""
    threads: int = 2
    """Decoding threads or processes of ours, and worker processes of the others."""
    rounds: int = 9
    """Measured rounds, after one that warms up."""
    objects: int = 256
    """Objects, each of which gives the others one pair a round."""
    views: int = 50
    """Views of an object."""
    batch_size: int = 32
    """Pairs in a batch."""
    epochs: int = 6
    """Passes over the objects in a round of decoding and of ours, which are faster."""
    images: int = 200
    """Images like ImageNet's."""
    folder: Path | None = None
    """Where the data are made; a temporary folder, which is removed, by default."""


class Seconds(NamedTuple):
    """For one pair or image: wall clock, and CPU time of the process and of its workers that ended."""

    wall: float
    cpu: float


Work = Callable[[], int]  # does its share of a round and returns the number of pairs or images
Contestant = Callable[[], Seconds]  # takes its turn in a round


# ---------------------------------------------------------------- data


def picture_bytes(number: int, height: int, width: int, noise: float, quality: int) -> bytes:
    """A smooth coloured JPEG; the noise sets its size in bytes."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = smooth + generator.normal(scale=noise, size=smooth.shape)
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=quality, colorsubsampling="420")


def make_objects(config: Config, folder: Path, side: int = VIEW_SIDE) -> list[bytes]:
    """Writes `shards/train-*.tar` and `files/OBJECT/`; returns the JPEGs that both consist of."""
    pictures = [picture_bytes(number, side, side, 4.0, VIEW_QUALITY) for number in range(DIFFERENT_PICTURES)]
    generator = np.random.default_rng(0)

    def records() -> Iterator[ObjectRecord]:
        for number in range(config.objects):
            latents = generator.uniform(0, 1, (config.views, 7)) * [np.pi, np.pi, np.pi, 1, np.pi / 4, 2 * np.pi, 1]
            latents[:, :3] -= np.pi / 2
            images = [pictures[(number + 7 * view) % len(pictures)] for view in range(config.views)]
            files = folder / "files" / f"object_{number:05d}"
            files.mkdir(parents=True)
            for view, image in enumerate(images):
                (files / f"image_{view}.jpg").write_bytes(image)
                np.save(files / f"latent_{view}.npy", latents[view])
            yield ObjectRecord(files.name, 0, latents, images)

    (folder / "shards").mkdir(parents=True)
    write_split(
        folder / "shards", "train", records(), ("object",), source="made for a benchmark", seed=0, license="CC0-1.0",
        objects_per_shard=max(1, config.objects // 8),
    )  # fmt: skip
    return pictures


def make_images(config: Config, folder: Path) -> list[bytes]:
    """Writes `images/train-000000.tar` in WebDataset's layout; returns its JPEGs, in order."""
    pictures = [picture_bytes(number, 375 + number % 50, 500, 12.0, 92) for number in range(config.images)]
    (folder / "images").mkdir(parents=True)
    with tarfile.open(folder / "images" / "train-000000.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for number, picture in enumerate(pictures):
            for suffix, data in (("jpg", picture), ("cls", b"0")):
                member = tarfile.TarInfo(f"image_{number:05d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return pictures


# ---------------------------------------------------------------- decoding, and ours


def decoding(pictures: list[bytes], pairs: int, batch_size: int, threads: int, pool: ThreadPoolExecutor) -> Work:
    """Bytes in memory into reused buffers, a batch after the other, as many threads at once as the loader has."""
    buffers = np.zeros((batch_size, 2, VIEW_SIDE, VIEW_SIDE, 3), dtype=np.uint8)
    chunk_size = max(1, batch_size // (2 * threads))

    def decode_rows(batch: int, rows: range) -> None:
        for row in rows:
            for view in range(2):
                data = pictures[(batch * batch_size + row + 31 * view) % len(pictures)]
                simplejpeg.decode_jpeg(data, "RGB", buffer=buffers[row, view], strict=True)

    def run() -> int:
        batches = range(pairs // batch_size)
        chunks = [range(first, min(first + chunk_size, batch_size)) for first in range(0, batch_size, chunk_size)]
        list(pool.map(decode_rows, *zip(*((batch, rows) for batch in batches for rows in chunks), strict=True)))
        return len(batches) * batch_size

    return run


def reading(dataset: ShardDataset, pairs: int, batch_size: int) -> Work:
    """Two views of drawn objects into a reused buffer, in this thread."""
    generator = np.random.default_rng(0)
    buffer = np.zeros((batch_size, 2, *dataset.image_size, 3), dtype=np.uint8)

    def run() -> int:
        batches = pairs // batch_size
        for _ in range(batches):
            objects = generator.integers(0, dataset.num_objects, batch_size)
            views = generator.permuted(np.tile(np.arange(dataset.num_views), (batch_size, 1)), axis=1)[:, :2]
            dataset.read_views(objects, views, buffer)
        return batches * batch_size

    return run


def loading(loader: Loader, pairs: int) -> Contestant:
    """Batches of our loader, latents and relative rotations' quaternions included, while it runs on."""
    batch_size = loader.order.local_batch_size

    def turn() -> Seconds:
        batches = loader.batches(0)

        def take() -> int:
            for _ in range(pairs // batch_size):
                next(batches)
            return (pairs // batch_size) * batch_size

        for _ in range(WARM_UP_BATCHES):
            next(batches)
        seconds = seconds_of(take)
        loader.batches(0)  # ends the one before, and with it what is decoded ahead
        return seconds

    return turn


# ---------------------------------------------------------------- the usual ways


class FilePairs(Dataset):
    """Two views of an object a time from a folder of files, with PIL, NumPy and SciPy."""

    def __init__(self, folder: Path, views: int) -> None:
        # Before the workers are forked, so that none of them imports it anew.
        from scipy.spatial.transform import Rotation
        from torchvision import transforms

        self.rotation = Rotation
        self.objects, self.views = sorted(folder.iterdir()), views
        self.transform = transforms.Compose(
            [
                transforms.Resize((VIEW_SIDE, VIEW_SIDE)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN_RGB, STD_RGB),
            ]
        )

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        chosen = np.random.choice(self.views, 2, replace=False)
        images, rotations = [], []
        for view in chosen:
            with Image.open(self.objects[index] / f"image_{view}.jpg") as image:
                images.append(self.transform(image.convert("RGB")))
            latents = np.load(self.objects[index] / f"latent_{view}.npy")
            rotations.append(self.rotation.from_euler("xyz", latents[:3]))
        relative = (rotations[0].inv() * rotations[1]).as_quat()
        return images[0], images[1], torch.as_tensor(relative, dtype=torch.float32)


def stream(shards: list[str]) -> Any:
    """A WebDataset of two views of each object: uint8 images [2, H, W, 3] and their latents [2, 7]."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError("webdataset, which ours is compared with, is missing: pip install webdataset") from error

    def two_views(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        views = sorted(name for name in record if name.endswith(".jpg"))
        chosen = np.random.choice(len(views), 2, replace=False)
        images = [simplejpeg.decode_jpeg(record[views[view]], "RGB", strict=True) for view in chosen]
        return np.stack(images), np.load(io.BytesIO(record["latents.npy"]))[chosen]

    return webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(two_views)


def worker_batches(dataset: Any, config: Config) -> Work:
    """One pass of a torch DataLoader over the objects, whose workers start and end with it."""

    def run() -> int:
        loader = DataLoader(dataset, batch_size=config.batch_size, num_workers=config.threads)
        return sum(len(batch[0]) for batch in loader)

    return run


# ---------------------------------------------------------------- images


def decoding_each(pictures: list[bytes]) -> Work:
    """Bytes in memory to new arrays, for sizes differ."""

    def run() -> int:
        for data in pictures:
            simplejpeg.decode_jpeg(data, "RGB", strict=True)
        return len(pictures)

    return run


def reading_each(shards: ImageShards) -> Work:
    """All images, in an order that is not the shard's."""
    order = np.random.default_rng(0).permutation(len(shards.labels)).tolist()

    def run() -> int:
        for index in order:
            shards.read_image(index)
        return len(order)

    return run


# ---------------------------------------------------------------- figures


def cpu_seconds() -> float:
    """Of this process, its children that run and those that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = 0
    for child in multiprocessing.active_children():
        for thread in Path(f"/proc/{child.pid}/task").glob("*/schedstat"):
            running += int(thread.read_text().split()[0])  # nanoseconds on a CPU
    return time.process_time() + ended.ru_utime + ended.ru_stime + running * 1e-9


def seconds_of(work: Work) -> Seconds:
    """Seconds a pair or image of some work."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    count = work()
    return Seconds((time.perf_counter() - wall) / count, (cpu_seconds() - cpu) / count)


def timed(work: Work) -> Contestant:
    """A contestant whose turn is all of this work."""
    return lambda: seconds_of(work)


def seconds_in_turns(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[Seconds]]:
    """Seconds a pair of each, one figure a round, after a round that is not counted."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name in list(contestants) if round_number % 2 == 0 else list(reversed(contestants)):
            seconds[name].append(contestants[name]())
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: dict[str, list[Seconds]], clock: str, above: str, below: str, target: float | None = None) -> Row:
    """One contestant's seconds over another's."""
    pairs = zip(seconds[above], seconds[below], strict=True)
    values = [getattr(one, clock) / getattr(other, clock) for one, other in pairs]
    return row_of(f"{'wall clock' if clock == 'wall' else 'CPU time'}, {above} / {below}", values, target)


def measure_objects(config: Config, folder: Path) -> list[Row]:
    """Ours against decoding alone, in one thread and in several, and the usual ways against ours."""
    pictures = make_objects(config, folder)
    pairs = config.epochs * config.objects
    dataset = ShardDataset(folder / "shards", "train")
    shards = [str(path) for path in sorted((folder / "shards").glob("train-*.tar"))]
    loader_options = {"global_batch_size": config.batch_size, "seed": 0, "pin_memory": False}
    with ExitStack() as open_until_then:
        loader = open_until_then.enter_context(stored_loader(dataset, **loader_options, threads=config.threads))
        workers = open_until_then.enter_context(stored_loader(dataset, **loader_options, workers=config.threads))
        pools = [open_until_then.enter_context(ThreadPoolExecutor(threads)) for threads in (1, config.threads)]
        seconds = seconds_in_turns(
            {
                "decoding, one thread": timed(decoding(pictures, pairs, config.batch_size, 1, pools[0])),
                "decoding": timed(decoding(pictures, pairs, config.batch_size, config.threads, pools[1])),
                "our reader": timed(reading(dataset, pairs, config.batch_size)),
                "our loader": loading(loader, pairs),
                "our loader, processes": loading(workers, pairs),
                "files, PIL": timed(worker_batches(FilePairs(folder / "files", config.views), config)),
                "WebDataset": timed(worker_batches(stream(shards), config)),
            },
            config.rounds,
        )
    return [
        ratio(seconds, "cpu", "our reader", "decoding, one thread", 1.15),
        ratio(seconds, "cpu", "our loader", "decoding", 1.15),
        ratio(seconds, "wall", "our loader", "decoding", 1.3),
        ratio(seconds, "cpu", "our loader, processes", "decoding", 1.15),
        ratio(seconds, "wall", "our loader, processes", "decoding", 1.3),
        ratio(seconds, "cpu", "files, PIL", "our loader", 8),
        ratio(seconds, "cpu", "WebDataset", "our loader", 5),
        *(
            row_of(f"CPU milliseconds a pair, {name}", [1000 * value.cpu for value in values])
            for name, values in seconds.items()
        ),
        *measure_gpu(config, dataset),
    ]


def measure_decoded_once(config: Config, folder: Path) -> list[Row]:
    """Small views that were decoded once, copied from the disk and from memory, against decoding them."""
    make_objects(config, folder / "small", SMALL_SIDE)
    dataset, pairs = ShardDataset(folder / "small" / "shards", "train"), config.epochs * config.objects
    splits = {
        "decoding": dataset,
        "from the disk": CachedViews(dataset, folder / "small" / "cache"),
        "from memory": DecodedInMemory(dataset),
    }
    options: dict[str, Any] = {"global_batch_size": config.batch_size, "seed": 0, "pin_memory": False}
    with ExitStack() as open_until_then:
        loaders = {
            name: open_until_then.enter_context(stored_loader(split, threads=config.threads, **options))
            for name, split in splits.items()
        }
        contestants = {f"our loader, {name}": loading(loader, pairs) for name, loader in loaders.items()}
        seconds = seconds_in_turns(contestants, config.rounds)
    ours = "our loader, from memory"
    return [
        *(
            ratio(seconds, clock, ours, below)
            for below in ("our loader, decoding", "our loader, from the disk")
            for clock in ("wall", "cpu")
        ),
        *(
            row_of(f"wall microseconds a pair, {name}", [1e6 * value.wall for value in values])
            for name, values in seconds.items()
        ),
    ]


def loading_to_gpu(loader: Loader, pairs: int) -> Contestant:
    """Batches that lie on the GPU when the last one's work is done."""
    batch_size = loader.order.local_batch_size
    batches = loader.batches(0)

    def run() -> int:
        for _ in range(pairs // batch_size):
            next(batches).to("cuda")
        torch.cuda.synchronize()
        return (pairs // batch_size) * batch_size

    return run


def measure_gpu(config: Config, dataset: ShardDataset) -> list[Row]:
    """Decoding on the GPU against decoding in threads and copying; no rows without a GPU."""
    if not torch.cuda.is_available():
        return []
    pairs, device = config.epochs * config.objects, torch.device("cuda")
    options: dict[str, Any] = {"global_batch_size": config.batch_size, "seed": 0, "threads": config.threads}
    with (
        stored_loader(dataset, **options) as threads,
        gpu_loader(encoded_views(dataset), device=device, decode=nvjpeg_decoder(device), **options) as nvjpeg,
    ):
        contestants = {
            "our loader, to the GPU": loading_to_gpu(threads, pairs),
            "our loader, nvJPEG": loading_to_gpu(nvjpeg, pairs),
        }
        seconds = seconds_in_turns(contestants, config.rounds)
    wall = [
        row_of(f"wall milliseconds a pair, {name}", [1000 * value.wall for value in values])
        for name, values in seconds.items()
    ]
    pairs_of_times = zip(seconds["our loader, to the GPU"], seconds["our loader, nvJPEG"], strict=True)
    ratios = [one.wall / other.wall for one, other in pairs_of_times]
    return [row_of("wall clock, our loader, to the GPU / our loader, nvJPEG", ratios), *wall]


def measure_images(config: Config, folder: Path) -> list[Row]:
    """Our reader of single images against decoding alone, in one thread."""
    pictures = make_images(config, folder)
    contestants = {
        "decoding": timed(decoding_each(pictures)),
        "our reader": timed(reading_each(ImageShards(folder / "images", "train"))),
    }
    seconds = seconds_in_turns(contestants, config.rounds)
    return [
        ratio(seconds, "cpu", "our reader", "decoding", 1.1),
        row_of("CPU milliseconds an image, decoding", [1000 * value.cpu for value in seconds["decoding"]]),
    ]


def main(config: Config) -> None:
    if min(config.objects, config.images) < config.batch_size or config.threads < 1 or config.rounds < 1:
        raise UserError(
            f"{config.objects} objects, {config.images} images, {config.threads} threads, {config.rounds} rounds: give "
            f"at least a batch of {config.batch_size} of each, one thread and one round"
        )
    torch.set_num_threads(1)
    folder = config.folder or Path(tempfile.mkdtemp(prefix="bench_data_"))
    try:
        if config.measure == "scaling":
            make_objects(config, folder, config.scaling.image_size)
            rows = measure_scaling(config.scaling, ShardDataset(folder / "shards", "train"), config.batch_size)
            print_scaling(config.scaling, rows)
            write_rows(config.json, rows, "cpu")
            return
        objects = measure_objects(config, folder)
        small, images = measure_decoded_once(config, folder), measure_images(config, folder)
    finally:
        if config.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print_rows(
        f"pairs of views, {config.threads} threads of {os.cpu_count()} cores", objects, ["{:.2f}"] * len(objects)
    )
    print_rows(f"pairs of views of {SMALL_SIDE} pixels that were decoded once", small, ["{:.2f}"] * len(small))
    print_rows("images like ImageNet's, one thread", images, ["{:.2f}"] * len(images))
    rows = objects + small + [{**row, "name": f"images: {row['name']}"} for row in images]
    write_rows(config.json, rows, "cpu")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
