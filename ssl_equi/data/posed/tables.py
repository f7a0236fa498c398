"""Posed images that a table lists: objects, classes, splits and latents of its rows, and the views to store.

A row is a view. What can be told wrong from the table alone is told before anything is written.
"""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image

from ssl_equi.data.images import FORMATS, decode_image
from ssl_equi.data.order import epoch_permutation
from ssl_equi.data.posed.latents import parse_latent, warnings_of
from ssl_equi.data.posed.reading import Table, read_table
from ssl_equi.data.shards.convert import (
    RESIZED_QUALITY,
    encode_jpeg_view,
    encode_png,
    key_with_hash,
    natural_order,
    resized_square,
)
from ssl_equi.data.shards.format import MAX_KEY_LENGTH, ObjectRecord, view_format_of, view_image_size
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.errors import DataError
from ssl_equi.latents.schema import Latent, LatentSchema
from ssl_equi.options import Count, ImageSide, Range

SPLITS = ("train", "val", "test")
DEFAULT_VAL_SHARE = 0.2
SPLIT_BY_VIEWS = "the split is by views: 'val' shows the objects of 'train' in other views"
_COLUMN_IN_PATTERN = re.compile(r"\{([^{}]+)\}")
_ORIENTATION_TAG = 0x0112  # of EXIF
# By the tag's value, what turns stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class TableOptions:
    """What the columns of a table mean, and how its images are stored."""

    table: Path
    """Table of the views, a row each: .csv, .jsonl (an object a line) or .parquet (needs pyarrow)."""
    latent: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """NAME[=COLUMN,...]:KIND[:OPTION...], once for each latent; see above."""
    image_column: str = "image"
    """Column of the images' paths, or a pattern of columns: '{label}/{object}/image_{view}.jpg'."""
    images: Path | None = None
    """Folder that the paths are relative to; that of the table when not given."""
    object_column: str = "object"
    """Column that names each view's object."""
    class_column: str | None = None
    """Column that names each object's class; each object is a class of its own when not given."""
    split_column: str | None = None
    """Column that says train, val or test, the same for all views of an object."""
    val_every_view: Count | None = None
    """Split by views: of each object every N-th row, the first among them, is in val and all others in train."""
    val_share: Annotated[float, Range(above=0, below=1)] | None = None
    """Share of each class's objects that are in val, drawn by the seed; 0.2 when nothing else says what is in val."""
    image_size: ImageSide | None = None
    """Store the central square of every image in this side in pixels; images as they are when not given."""
    exif_orientation: Literal["refuse", "apply", "ignore"] = "refuse"
    """What to do with images whose EXIF data say that their pixels are stored turned or mirrored."""

    @property
    def image_parts(self) -> list[str]:
        """What the paths of images are made of: text, a column, text, a column, ..., text."""
        parts = _COLUMN_IN_PATTERN.split(self.image_column)
        return parts if len(parts) > 1 else ["", self.image_column, ""]


@dataclass(frozen=True)
class PosedObject:
    """An object of one split, and its views as rows of the table."""

    key: str
    label: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PosedTable:
    """A table whose every cell has been read."""

    options: TableOptions
    table: Table
    folder: Path
    names: list[str]
    """Of the rows' images within the folder."""
    schema: LatentSchema
    latents: np.ndarray
    """float64 [rows, L]"""
    class_names: tuple[str, ...]
    splits: dict[str, list[PosedObject]]
    warnings: tuple[str, ...]

    def path(self, row: int) -> Path:
        """Of a row's image."""
        return self.folder / self.names[row]

    def record(self, item: PosedObject) -> ObjectRecord:
        """All that is stored of an object."""
        return ObjectRecord(
            item.key, item.label, self.latents[list(item.rows)], [self.read_view(row)[0] for row in item.rows]
        )

    @cached_property
    def first(self) -> tuple[int, tuple[int, int], str]:
        """A row with the size and the format that all others need: the first view of the training split."""
        row = self.splits["train"][0].rows[0]
        pixels, data = self._decoded(row)
        return row, pixels.shape[:2], view_format_of(data)

    @property
    def view_format(self) -> str:
        """Of the stored views: with --image-size JPEG, or PNG where the images are PNG of this size."""
        _, size, found = self.first
        side = self.options.image_size
        return found if side is None or (size == (side, side) and found == "png") else "jpg"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the manifest says of pixels and split."""
        notes = [SPLIT_BY_VIEWS] if self.options.val_every_view is not None else []
        if self.options.image_size is not None:
            stored = "PNG" if self.view_format == "png" else f"JPEG of quality {RESIZED_QUALITY}"
            notes.append(
                f"of views of other sizes, the central square was resized to {self.options.image_size} pixels a side "
                f"when they were converted and stored as {stored}"
            )
        if self.options.exif_orientation == "apply":
            notes.append("views were turned as their EXIF orientation says when they were converted")
        return tuple(notes)

    def plan(self, items: Sequence[PosedObject]) -> str:
        """A hash of all views of a split, so that only runs of the same table are continued."""
        listed = [[item.key, item.label, [self.names[row] for row in item.rows]] for item in items]
        how = [self.options.image_size, self.options.exif_orientation]
        rows = [row for item in items for row in item.rows]
        return hashlib.sha256(canonical_json([listed, how]) + self.latents[rows].tobytes()).hexdigest()

    def read_view(self, row: int) -> tuple[bytes, np.ndarray]:
        """The bytes to store for a row's image, its own where no pixel changes, and its pixels uint8 [H, W, 3].

        Raises DataError, naming the row, for what is no image, or not of the size and format of the others.
        """
        pixels, data = self._decoded(row)
        orientation, changed, side = _orientation(data), False, self.options.image_size
        if orientation in _UPRIGHT and self.options.exif_orientation == "refuse":
            raise self._error(
                row,
                f"{self.path(row)} is stored turned (EXIF orientation {orientation}): give --exif-orientation apply "
                f"to turn it upright, or ignore if the latents are those of the stored pixels",
            )
        if orientation in _UPRIGHT and self.options.exif_orientation == "apply":
            pixels, changed = np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation])), True
        if side is None:
            self._check_size(row, pixels)
        elif pixels.shape[:2] != (side, side):
            pixels, changed = resized_square(pixels, side), True
        elif view_format_of(data) != self.view_format:
            changed = True
        if not changed:
            try:
                view_image_size(data, self.view_format, str(self.path(row)))
            except DataError as error:
                raise self._error(row, str(error)) from error
            return data, pixels
        if self.view_format not in ("jpg", "png"):
            problem = f"{self.path(row)} is turned and can't be stored as {self.view_format} again: save it as PNG"
            raise self._error(row, problem)
        if self.view_format == "png":
            return encode_png(pixels), pixels
        encoded = encode_jpeg_view(pixels)
        return encoded, decode_image(encoded, str(self.path(row)))

    def _decoded(self, row: int) -> tuple[np.ndarray, bytes]:
        path = self.path(row)
        try:
            data = path.read_bytes()
            return decode_image(data, str(path)), data
        except OSError as error:
            raise self._error(row, f"{path} can't be read ({error.strerror}): allow it, or take the row out") from error
        except DataError as error:
            raise self._error(row, str(error)) from error

    def _check_size(self, row: int, pixels: np.ndarray) -> None:
        first, size, _ = self.first
        cure = "give --image-size SIDE to crop and resize all images"
        (height, width), (first_height, first_width) = pixels.shape[:2], size
        if height != width:
            raise self._error(row, f"{self.path(row)} has {height} x {width} pixels and views are squares: {cure}")
        if height != first_height:
            raise self._error(
                row,
                f"{self.path(row)} has {height} x {width} pixels and {self.path(first)} has {first_height} x "
                f"{first_width}: {cure}",
            )

    def _error(self, row: int, problem: str) -> DataError:
        # Of a pattern's columns the last, in which rows differ most.
        return self.table.error(row, self.options.image_parts[-2], problem)


def _orientation(data: bytes) -> int:
    """EXIF's, 1 for upright; 1 where there is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data, for which Pillow raises errors of many types, say nothing
        return 1


# ---------------------------------------------------------------- from a table to objects


def read_posed_table(options: TableOptions, seed: int) -> PosedTable:
    """Reads and checks a table; the seed draws the objects of val where no column says which.

    Raises DataError, with file, line and column, for the first cell that can't be used.
    """
    if sum(given is not None for given in (options.split_column, options.val_every_view, options.val_share)) > 1:
        raise DataError(
            "each of --split-column, --val-every-view and --val-share says what is in val: give one of them"
        )
    if options.image_size is not None and options.image_size < 2:
        raise DataError(f"--image-size is {options.image_size}: give a side of at least 2 pixels")
    specs = [parse_latent(text) for text in options.latent]
    if not specs:
        raise DataError("no --latent is given: name what is known of the views, such as --latent azimuth:angle:deg")
    named = [options.object_column, options.class_column, options.split_column]
    columns = [*options.image_parts[1::2], *(column for column in named if column is not None)]
    columns += [name for spec in specs for name in spec.columns]
    table = read_table(options.table, list(dict.fromkeys(columns)))
    objects = _objects(table, options.object_column)
    folder = options.table.parent if options.images is None else options.images
    names = _image_names(table, options, folder)
    latents: list[Latent] = []
    values: list[np.ndarray] = []
    warnings: list[str] = []
    for spec in specs:
        kind, own = spec.read(table)
        latents.append(Latent(spec.name, kind, sum(other.shape[1] for other in values)))
        values.append(own)
        warnings += warnings_of(latents[-1], own, list(objects.values()))
    schema = LatentSchema(tuple(latents))
    class_of = {name: name for name in objects}
    if options.class_column is not None:
        class_of = _word_of_objects(table, options.class_column, objects, "class", "give an object one class")
    rows_of_splits = _split(table, options, objects, class_of, seed)
    _check_splits(table, options, rows_of_splits, class_of)
    class_names = tuple(sorted(set(class_of.values()), key=natural_order))
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: [PosedObject(_key(name), label_of[class_of[name]], tuple(rows)) for name, rows in found.items()]
        for split, found in rows_of_splits.items()
    }
    return PosedTable(
        options, table, folder, names, schema, np.concatenate(values, axis=1), class_names, splits, tuple(warnings)
    )


def _image_names(table: Table, options: TableOptions, folder: Path) -> list[str]:
    """The rows' images; DataError for one that isn't there or stands in two rows."""
    before, columns, between = options.image_parts[0], options.image_parts[1::2], options.image_parts[2::2]
    words = [table.words(column) for column in columns]
    names: list[str] = []
    row_of_name: dict[str, int] = {}
    for row in range(table.num_rows):
        names.append(os.path.normpath(before + "".join(own[row] + after for own, after in zip(words, between))))
        path, other = folder / names[row], row_of_name.setdefault(names[row], row)
        if other != row:
            problem = f"{path} is the image of {table.place(other)} too: list every view once"
            raise table.error(row, columns[-1], problem)
        if not path.is_file():
            problem = f"there is no file {path}: mend the path, or name its folder with --images"
            raise table.error(row, columns[-1], problem)
    return names


def _objects(table: Table, column: str) -> dict[str, list[int]]:
    """The rows of each object, in the order of the table."""
    objects: dict[str, list[int]] = {}
    for row, name in enumerate(table.words(column)):
        objects.setdefault(name, []).append(row)
    return objects


def _word_of_objects(table: Table, column: str, objects: dict[str, list[int]], what: str, cure: str) -> dict[str, str]:
    """What a column says of each object; DataError unless it says the same in all of its rows."""
    words = table.words(column)
    for name, (first, *others) in objects.items():
        for row in others:
            if words[row] != words[first]:
                problem = f"object '{name}' has {what} '{words[row]}' here and '{words[first]}' in {table.place(first)}"
                raise table.error(row, column, f"{problem}: {cure}")
    return {name: words[rows[0]] for name, rows in objects.items()}


def _key(name: str) -> str:
    fits = re.fullmatch(r"[A-Za-z0-9_-]+", name) and len(name) <= MAX_KEY_LENGTH
    return name if fits else key_with_hash(name, name)


def _split(
    table: Table, options: TableOptions, objects: dict[str, list[int]], class_of: dict[str, str], seed: int
) -> dict[str, dict[str, list[int]]]:
    """The rows of each object, by split."""
    every = options.val_every_view
    if every is not None:
        if every < 2:
            raise DataError(f"--val-every-view is {every} and leaves nothing to train on: give at least 2")
        train = {name: [row for place, row in enumerate(rows) if place % every] for name, rows in objects.items()}
        return {"train": train, "val": {name: rows[::every] for name, rows in objects.items()}}
    if options.split_column is not None:
        for row, word in enumerate(table.words(options.split_column)):
            if word not in SPLITS:
                raise table.error(row, options.split_column, f"'{word}' is no split: write {', '.join(SPLITS)}")
        cure = "keep an object in one split, or split by views with --val-every-view"
        split_of = _word_of_objects(table, options.split_column, objects, "split", cure)
    else:
        split_of = _drawn_splits(options, class_of, seed)
    splits = {
        split: {name: rows for name, rows in objects.items() if split_of[name] == split}
        for split in SPLITS
        if split in split_of.values()
    }
    if "train" not in splits or len(splits) < 2:
        raise DataError(
            f"table {options.table} has objects of {' and '.join(splits)} only: train on some and judge others, in val "
            f"or test"
        )
    return splits


def _drawn_splits(options: TableOptions, class_of: dict[str, str], seed: int) -> dict[str, str]:
    """Of each class the share of objects in val that is asked for, at least one, and at least one in train."""
    if options.class_column is None:
        raise DataError(
            "each object is a class of its own without --class-column, and no class of val may be missing in train: "
            "give --class-column (of one word if there is but one class), or split by views with --val-every-view"
        )
    share = DEFAULT_VAL_SHARE if options.val_share is None else options.val_share
    split_of = dict.fromkeys(class_of, "train")
    for label, name in enumerate(sorted(set(class_of.values()), key=natural_order)):
        members = [each for each, own in class_of.items() if own == name]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        # Each class is drawn from by itself, so that further classes don't change its split.
        for place in epoch_permutation(len(members), seed, epoch=label)[:count].tolist():
            split_of[members[place]] = "val"
    return split_of


def _check_splits(
    table: Table, options: TableOptions, splits: dict[str, dict[str, list[int]]], class_of: dict[str, str]
) -> None:
    """Raises DataError for what no encoder could be trained or judged on."""
    trained = {class_of[name] for name in splits["train"]}
    for split, objects in splits.items():
        for name, rows in objects.items():
            if class_of[name] not in trained:
                raise table.error(
                    rows[0],
                    options.class_column or options.object_column,
                    f"class '{class_of[name]}' is in {split} and not in train: move one of its objects there, or give "
                    f"--class-column or --val-every-view if each object is a class of its own",
                )
            if len(rows) < 2:
                raise table.error(
                    (rows or splits["val"][name])[0],
                    options.object_column,
                    f"object '{name}' has {len(rows)} view in {split}, and pairs need 2: add one, or take it out",
                )
