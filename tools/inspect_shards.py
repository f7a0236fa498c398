"""Shows what is in a folder of shards: counts, classes, sizes, statistics, a contact sheet, and what is damaged.

python tools/inspect_shards.py data/3diebench                              every split
python tools/inspect_shards.py data/imagenet --split val --verify          every byte is read; status 1 if any is wrong
python tools/inspect_shards.py data/imagenet --split train --contact-sheet sheet.jpg

It knows rendered objects, images with a manifest, and image shards that others wrote, for WebDataset for instance.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import simplejpeg
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import CenterCrop
from ssl_equi.data.order import epoch_permutation
from ssl_equi.data.shards.foreign import describe_counts, find_shards
from ssl_equi.data.shards.image_shards import ImageShards
from ssl_equi.data.shards.manifest import ImageManifest, Manifest, read_image_manifest
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.data.shards.verify import Damage, find_damage, kind_of_split
from ssl_equi.data.single_views import SingleViews
from ssl_equi.errors import DataError
from ssl_equi.files import list_folder
from ssl_equi.runtime.system import usable_cores
from ssl_equi.scenes.sheet import contact_sheet

MOST_ROWS = 12  # of a table, unless --all
FINGERPRINT_DIGITS = 16  # as the converters print it


@dataclass(frozen=True)
class Config:
    """What to show."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the shards."""
    split: str | None = None
    """One split; every split of the folder when not given."""
    all: bool = False
    """List every shard, class and damaged record, not only the first of them."""
    verify: bool = False
    """Read every byte, decode every image, and list what is damaged; the exit status is then 1 if anything is."""
    workers: int = usable_cores()
    """Threads that verify."""
    contact_sheet: Path | None = None
    """JPEG file for a sheet of images that are drawn from the split, or from the first one: a row an object's views."""
    sheet_rows: int = 8
    """Rows of the contact sheet."""
    sheet_columns: int = 10
    """Images in a row of the contact sheet."""
    sheet_image_side: int = 96
    """Side of each image on the contact sheet, in pixels."""
    seed: int = 0
    """Draws other images for the contact sheet."""


def main(config: Config) -> None:
    console = Console()
    splits = splits_of(config.folder) if config.split is None else (config.split,)
    damages = 0
    for split in splits:
        if config.verify:
            damages += verify(console, config, split)
        try:
            show(console, config, split)
        except DataError as error:
            if not config.verify:
                raise
            console.print(f"[red]not shown[/red]: {escape(str(error))}", soft_wrap=True)
    if config.contact_sheet is not None:
        draw_sheet(config, splits[0])
        console.print(f"{config.contact_sheet}: images of {splits[0]}")
    if damages:
        sys.exit(1)


def splits_of(folder: Path) -> tuple[str, ...]:
    """The names of all splits in a folder; DataError if there is none."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: name a folder of shards")
    suffix = ".manifest.json"
    present = [entry.name for entry in list_folder(folder)]
    names = {name.removesuffix(suffix) for name in present if name.endswith(suffix)}
    names |= {name.rpartition("-")[0] for name in present if "-" in name and name.endswith(".tar")}
    if not names:
        raise DataError(f"{folder} holds neither a manifest nor shards SPLIT-*.tar: name a folder of shards")
    return tuple(sorted(names, key=lambda name: (name != "train", name)))


def show(console: Console, config: Config, split: str) -> None:
    """Print what a split holds."""
    kind = kind_of_split(config.folder, split)
    if kind == "objects":
        objects = ShardDataset(config.folder, split)
        manifest = objects.manifest
        print_facts(console, split, facts_of_objects(manifest, objects))
        print_latents(console, manifest)
        class_names, labels, shards = manifest.class_names, objects.labels, shard_rows(manifest)
    else:
        images = ImageShards(config.folder, split)
        class_names, labels = images.class_names, images.labels
        if kind == "images":
            image_manifest = read_image_manifest(config.folder, split)
            print_facts(console, split, facts_of_images(image_manifest))
            shards = shard_rows(image_manifest)
        else:
            shards = foreign_shard_rows(images)
            passed_over = describe_counts(images.passed_over) or "nothing"
            facts = {"made by": "others: no manifest, no checksums", **totals(shards), "passed over": passed_over}
            print_facts(console, split, facts)
    print_classes(console, class_names, labels, config.all)
    print_shards(console, shards, "objects" if kind == "objects" else "images", config.all)


def facts_of_objects(manifest: Manifest, objects: ShardDataset) -> dict[str, str]:
    height, width = manifest.image_size
    return {
        "source": manifest.source,
        "licence": manifest.license,
        "made by": f"{manifest.writer}, seed {manifest.seed}",
        "objects": f"{manifest.num_objects:,} x {manifest.num_views} views of {width} x {height} pixels",
        "kind": manifest.view_format,
        **({"notes": "; ".join(manifest.notes)} if manifest.notes else {}),
        **totals(shard_rows(manifest), manifest.num_views),
        "normalisation": normalisation(manifest.mean_rgb, manifest.std_rgb),
        "fingerprint": objects.fingerprint[:FINGERPRINT_DIGITS],
    }


def facts_of_images(manifest: ImageManifest) -> dict[str, str]:
    unlabelled = f", {manifest.num_unlabelled:,} of them without a class" if manifest.num_unlabelled else ""
    measured = normalisation(manifest.measured_mean_rgb, manifest.measured_std_rgb)
    return {
        "source": f"{manifest.source} ({manifest.source_version})",
        "licence": manifest.license,
        "made by": f"{manifest.writer}, seed {manifest.seed}",
        "images": f"{manifest.num_objects:,}{unlabelled}",
        "kinds": ", ".join(f"{count:,} {kind}" for kind, count in manifest.kinds.items()),
        "pixels changed": manifest.reencoding or "no",
        "width": f"{between(*manifest.width_range)} pixels",
        "height": f"{between(*manifest.height_range)} pixels",
        **totals(shard_rows(manifest)),
        "normalisation": normalisation(manifest.mean_rgb, manifest.std_rgb),
        "measured": f"{measured} ({manifest.measured_images:,} images)",
        "fingerprint": manifest.fingerprint[:FINGERPRINT_DIGITS],
    }


def normalisation(mean_rgb: Sequence[float] | None, std_rgb: Sequence[float] | None) -> str:
    if mean_rgb is None or std_rgb is None:
        return "not stated"
    mean, std = (" ".join(f"{value:.4f}" for value in rgb) for rgb in (mean_rgb, std_rgb))
    return f"mean {mean}; std {std}"


ShardRow = tuple[str, int, int]  # name, objects, bytes


def shard_rows(manifest: Manifest | ImageManifest) -> list[ShardRow]:
    return [(entry.name, entry.count, entry.bytes) for entry in manifest.shards]


def foreign_shard_rows(images: ImageShards) -> list[ShardRow]:
    shards = find_shards(images.folder, images.split)
    counts = np.bincount(images.shard_numbers, minlength=len(shards)).tolist()
    return [(shard.name, count, shard.stat().st_size) for shard, count in zip(shards, counts)]


def totals(shards: Sequence[ShardRow], num_views: int = 1) -> dict[str, str]:
    size, images = sum(size for _, _, size in shards), num_views * sum(count for _, count, _ in shards)
    return {"shards": f"{len(shards):,}, {human_bytes(size)} ({human_bytes(size / images)} an image)"}


def between(lowest: int, highest: int) -> str:
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def human_bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def print_facts(console: Console, split: str, facts: Mapping[str, str]) -> None:
    table = Table(title=f"split {split}", box=None, show_header=False, title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, escape(value))
    console.print(table)


def left_titled(*headers: str, title: str) -> Table:
    return Table(
        *headers, title=title, title_justify="left", title_style="bold", caption_justify="left", box=box.SIMPLE_HEAD
    )


def print_latents(console: Console, manifest: Manifest) -> None:
    table = left_titled("latent", "kind", "column", "lowest", "highest", title=f"{len(manifest.latent_names)} latents")
    for column in (3, 4):
        table.columns[column].justify = "right"
    schema = manifest.schema
    for latent in schema.latents:
        for number, name in enumerate(manifest.latent_names[latent.columns]):
            lowest, highest = manifest.latent_ranges[name]
            known = (latent.name, latent.kind.kind) if number == 0 else ("", "")
            table.add_row(*known, name, f"{lowest:.4f}", f"{highest:.4f}")
    table.caption = f"rigid motions: {', '.join(motion.name for motion in schema.motions)}" if schema.motions else None
    console.print(table)


def print_classes(console: Console, class_names: Sequence[str], labels: np.ndarray, show_all: bool) -> None:
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    empty = int((counts == 0).sum())
    title = f"{len(class_names):,} classes, {between(int(counts.min()), int(counts.max()))} each"
    table = left_titled("label", "class", "count", title=title + (f", {empty:,} without any" if empty else ""))
    for column in (0, 2):
        table.columns[column].justify = "right"
    rows = [(str(label), escape(name), f"{counts[label]:,}") for label, name in enumerate(class_names)]
    add_rows(table, rows, show_all)
    console.print(table)


def print_shards(console: Console, shards: Sequence[ShardRow], what: str, show_all: bool) -> None:
    table = left_titled("shard", what, "bytes", title=f"{len(shards):,} shard{'s' if len(shards) > 1 else ''}")
    for column in (1, 2):
        table.columns[column].justify = "right"
    add_rows(table, [(escape(name), f"{count:,}", f"{size:,}") for name, count, size in shards], show_all)
    console.print(table)


def add_rows(table: Table, rows: Sequence[tuple[str, ...]], show_all: bool) -> None:
    """All rows, or the first and the last few with a line that says how many are left out."""
    if show_all or len(rows) <= MOST_ROWS:
        for row in rows:
            table.add_row(*row)
        return
    for row in rows[: MOST_ROWS - 3]:
        table.add_row(*row)
    table.add_row(*("..." for _ in rows[0]))
    for row in rows[-2:]:
        table.add_row(*row)
    table.caption = f"{len(rows) - MOST_ROWS + 1:,} left out; --all shows them"


def verify(console: Console, config: Config, split: str) -> int:
    """Read a split whole and list its damages, as many as there are."""
    found: list[Damage] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"reading {split}", total=len(list(config.folder.glob(f"{split}-*.tar"))))
        for damage in find_damage(
            config.folder, split, workers=config.workers, report_shard=lambda name: progress.advance(task)
        ):
            found.append(damage)
    if not found:
        console.print(f"split {split}: [green]whole[/green], every byte read and every image decoded")
        return 0
    title = f"split {split}: [red]{len(found):,} damaged[/red]"
    table = left_titled("file", "key", "at byte", "what", title=title)
    table.columns[0].overflow = table.columns[1].overflow = table.columns[3].overflow = "fold"
    table.columns[2].justify = "right"
    shown = found if config.all else found[:MOST_ROWS]
    for damage in shown:
        offset = "" if damage.offset is None else f"{damage.offset:,}"
        table.add_row(escape(damage.file.name), escape(damage.key or ""), offset, escape(damage.what))
    if len(shown) < len(found):
        table.caption = f"{len(found) - len(shown):,} left out; --all shows them"
    console.print(table)
    return len(found)


def draw_sheet(config: Config, split: str) -> None:
    """A JPEG of images drawn from a split: of rendered objects each row holds the first views of one object."""
    side, rows, columns = config.sheet_image_side, config.sheet_rows, config.sheet_columns
    crop = CenterCrop(side, side)
    is_rendered = kind_of_split(config.folder, split) == "objects"
    collection: ViewCollection
    if is_rendered:
        collection = ShardDataset(config.folder, split)
        columns = min(columns, collection.num_views)
    else:
        collection = SingleViews(ImageShards(config.folder, split), crop)
    wanted = rows if is_rendered else rows * columns
    drawn = epoch_permutation(collection.num_objects, config.seed, epoch=0)[:wanted]
    views = np.tile(np.arange(columns if is_rendered else 1), (len(drawn), 1))
    stored = np.empty((*views.shape, *collection.image_size, 3), dtype=np.uint8)
    collection.read_views(drawn, views, stored)
    images = np.empty((views.size, side, side, 3), dtype=np.uint8)
    for image, out in zip(stored.reshape(-1, *stored.shape[2:]), images):
        crop.place(image, out)
    sheet = np.ascontiguousarray(contact_sheet(images, min(columns, len(images))))
    config.contact_sheet.write_bytes(simplejpeg.encode_jpeg(sheet, quality=90, colorspace="RGB"))


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
