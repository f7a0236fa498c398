"""Latents that columns of a table hold: NAME[=COLUMN,...]:KIND[:OPTION...]."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_equi.data.posed.reading import Table
from ssl_equi.data.shards.convert import natural_order
from ssl_equi.errors import DataError
from ssl_equi.geometry.rotations import quat_multiply, quat_positive
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.kind import FULL_TURN, Bounds, LatentKind
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import Latent
from ssl_equi.latents.translation import Translation

# What the words behind the kind say; `range=` and `period=` have values.
_WORDS: dict[str, tuple[str, Any]] = {
    "deg": ("unit", "deg"), "rad": ("unit", "rad"), "turn": ("unit", "turn"),
    "quat_xyzw": ("storage", "quat_xyzw"), "euler_xyz": ("storage", "euler_xyz"), "matrix": ("storage", "matrix"),
    "polar_azimuth": ("storage", "polar_azimuth"), "xyz": ("storage", "xyz"),
    "polar": ("polar", True), "clockwise": ("clockwise", True),
}  # fmt: skip
_STORAGES = {"rotation": ("quat_xyzw", "euler_xyz", "matrix"), "direction": ("polar_azimuth", "xyz")}
_OPTIONS = {
    "angle": ("unit", "period", "range"),
    "number": ("unit", "range"),
    "translation": ("range",),
    "rotation": ("storage", "unit", "range"),
    "direction": ("storage", "unit", "range"),
    "category": (),
    "viewing_sphere": ("unit", "polar", "clockwise"),
}
_NO_UNIT = ("quat_xyzw", "matrix", "xyz")
_LARGEST_ERROR = 0.01  # of a quaternion's length, and of the entries of R R^T: what rounding to two digits makes


@dataclass(frozen=True)
class LatentColumns:
    """A latent as `--latent` names it: what it is, and which columns hold it."""

    name: str
    kind: str
    columns: tuple[str, ...]
    options: dict[str, Any]

    def read(self, table: Table) -> tuple[LatentKind, np.ndarray]:
        """The kind, with what is measured of it, and the values to store, float64 [rows, C].

        Raises DataError for a cell that holds no value of this kind.
        """
        return _READERS[self.kind](self, table)


def parse_latent(text: str) -> LatentColumns:
    """A `--latent` option; DataError, with the option and what it can be, for one that isn't right."""
    head, *words = text.split(":")
    name, has_columns, columns = head.partition("=")
    if not words:
        raise DataError(f"--latent {text} names no kind: write NAME:KIND, with {', '.join(_OPTIONS)}")
    kind, *words = words
    if kind not in _OPTIONS:
        raise DataError(f"--latent {text} has kind '{kind}': choose from {', '.join(_OPTIONS)}")
    options: dict[str, Any] = {}
    for word in words:
        key, value = _option(text, kind, word)
        if key in options:
            raise DataError(f"--latent {text} says its {key} twice: say it once")
        options[key] = value
    if kind in _STORAGES and "storage" not in options:
        raise DataError(f"--latent {text} leaves open how it is written: add one of {', '.join(_STORAGES[kind])}")
    is_angle = kind in ("angle", "viewing_sphere", *_STORAGES) and options.get("storage") not in _NO_UNIT
    if is_angle and "unit" not in options:
        raise DataError(f"--latent {text} is told in angles without a unit: add one of {', '.join(FULL_TURN)}")
    if options.get("storage") in _NO_UNIT and "unit" in options:
        raise DataError(f"--latent {text} has a unit and no angles: leave it out")
    defaults = tuple(f"{name}{suffix}" for suffix in _suffixes(kind, options))
    named = tuple(column.strip() for column in columns.split(",")) if has_columns else defaults
    allowed = (1, 2, 3) if kind == "translation" else (len(defaults),)
    if len(named) not in allowed or "" in named:
        raise DataError(f"--latent {text} names {len(named)} columns: give {' or '.join(map(str, allowed))}")
    wanted = {"translation": len(named), "angle": 1, "number": 1, "rotation": 3, "direction": 2}
    if "range" in options and len(options["range"]) != wanted[kind]:
        raise DataError(f"--latent {text} has {len(options['range'])} ranges: give {wanted[kind]}, as LOW..HIGH,...")
    return LatentColumns(name, kind, named, options)


def _option(text: str, kind: str, word: str) -> tuple[str, Any]:
    key, has_value, value = word.partition("=")
    known = [name for name, (option, _) in _WORDS.items() if option in _OPTIONS[kind]]
    known = [name for name in known if kind not in _STORAGES or name in (*_STORAGES[kind], *FULL_TURN)]
    known += [f"{name}=" for name in ("period", "range") if name in _OPTIONS[kind]]
    if (f"{key}=" if has_value else key) not in known:
        raise DataError(f"--latent {text} has '{word}': kind {kind} takes {', '.join(known) or 'no options'}")
    if not has_value:
        return _WORDS[key]
    try:
        if key == "period":
            _, period = _bounds(f"0..{value}")
            return key, period
        return key, tuple(_bounds(bounds) for bounds in value.split(","))
    except ValueError:
        example = "period=180" if key == "period" else "range=-90..90"
        raise DataError(f"--latent {text} has '{word}': write it like {example}") from None


def _bounds(text: str) -> Bounds:
    low, high = (float(bound) for bound in text.split(".."))
    if not -math.inf < low < high < math.inf:
        raise ValueError
    return low, high


def _suffixes(kind: str, options: dict[str, Any]) -> tuple[str, ...]:
    """What is put behind a latent's name for its columns in a table."""
    if kind == "rotation":
        return Rotation(options["storage"]).column_suffixes
    if kind == "direction":
        return Direction(options["storage"]).column_suffixes
    if kind == "viewing_sphere":
        return ("_azimuth", "_polar" if "polar" in options else "_elevation")
    return ("_x", "_y", "_z") if kind == "translation" else ("",)


# ---------------------------------------------------------------- from cells to values, kind by kind


def _read_angle(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    values = table.numbers(spec.columns)
    ranges = spec.options.get("range", ())
    _check_ranges(table, spec.columns, values, ranges)
    return Angle(spec.options["unit"], spec.options.get("period"), *ranges), values


def _read_number(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    values = table.numbers(spec.columns)
    return Number(_ranges(spec, table, values)[0], spec.options.get("unit")), values


def _read_translation(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    values = table.numbers(spec.columns)
    return Translation(_ranges(spec, table, values)), values


def _ranges(spec: LatentColumns, table: Table, values: np.ndarray) -> tuple[Bounds, ...]:
    """As stated, or the extremes of all splits together."""
    if stated := spec.options.get("range"):
        _check_ranges(table, spec.columns, values, stated)
        return tuple(stated)
    for place, column in enumerate(spec.columns):
        if np.ptp(values[:, place]) == 0:
            raise DataError(
                f"{table.path} has {values[0, place]:g} in column '{column}' of every row, which gives latent "
                f"'{spec.name}' no range: leave the column out of --latent, or add :range=LOW..HIGH"
            )
    return tuple(zip(values.min(axis=0).tolist(), values.max(axis=0).tolist()))


def _read_category(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    words = table.words(spec.columns[0])
    names = sorted(set(words), key=natural_order)
    if len(names) < 2:
        raise DataError(
            f"{table.path} has '{words[0]}' in column '{spec.columns[0]}' of every row: leave latent '{spec.name}' out"
        )
    number = {name: float(place) for place, name in enumerate(names)}
    return Category(tuple(names)), np.array([[number[word]] for word in words])


def _read_direction(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    values, storage = table.numbers(spec.columns), spec.options["storage"]
    ranges = spec.options.get("range", ())
    _check_ranges(table, spec.columns, values, ranges)
    if storage == "xyz":
        zero = np.flatnonzero(np.linalg.norm(values, axis=1) < 1e-9)
        if len(zero):
            raise table.error(int(zero[0]), spec.columns[0], "the vector is zero and points nowhere: mend it")
        return Direction(storage, ranges=ranges), values
    return Direction(storage, spec.options["unit"], ranges), values


def _read_rotation(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    values, storage = table.numbers(spec.columns), spec.options["storage"]
    ranges = spec.options.get("range", ())
    if storage == "euler_xyz":
        _check_ranges(table, spec.columns, values, ranges)
        return Rotation(storage, spec.options["unit"], ranges), values
    if storage == "quat_xyzw":
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        wrong = np.flatnonzero(np.abs(lengths - 1) > _LARGEST_ERROR)
        if len(wrong):
            problem = f"the quaternion has length {lengths[wrong[0], 0]:.3g} and not 1: mend it (x, y, z come before w)"
            raise table.error(int(wrong[0]), spec.columns[0], problem)
        return Rotation(storage, ranges=ranges), values / lengths
    matrices = values.reshape(-1, 3, 3)
    errors = np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    for bad, problem in (
        (errors > _LARGEST_ERROR, "the matrix is no rotation, its rows are not at right angles or not of length 1"),
        (np.linalg.det(matrices) < 0, "the matrix mirrors, its determinant is -1"),
    ):
        if bad.any():
            raise table.error(int(np.flatnonzero(bad)[0]), spec.columns[0], f"{problem}: mend it")
    return Rotation(storage, ranges=ranges), values


def _read_viewing_sphere(spec: LatentColumns, table: Table) -> tuple[LatentKind, np.ndarray]:
    """R = Rz(elevation) Rx(-azimuth): x is the object's vertical, y points to the camera and z to the right."""
    angles = table.numbers(spec.columns)
    quarter = FULL_TURN[spec.options["unit"]] / 4
    from_above = "polar" in spec.options
    bounds = (0.0, 2 * quarter) if from_above else (-quarter, quarter)
    _check_ranges(table, spec.columns[1:], angles[:, 1:], [bounds])
    azimuth_rad, height_rad = torch.from_numpy(angles * (math.pi / 2 / quarter)).unbind(-1)
    if "clockwise" in spec.options:
        azimuth_rad = -azimuth_rad
    elevation_rad = math.pi / 2 - height_rad if from_above else height_rad
    zero = torch.zeros_like(azimuth_rad)
    turned = torch.stack([(-azimuth_rad / 2).sin(), zero, zero, (azimuth_rad / 2).cos()], dim=-1)
    tipped = torch.stack([zero, zero, (elevation_rad / 2).sin(), (elevation_rad / 2).cos()], dim=-1)
    return Rotation("quat_xyzw"), quat_positive(quat_multiply(tipped, turned)).numpy()


_READERS: dict[str, Callable[[LatentColumns, Table], tuple[LatentKind, np.ndarray]]] = {
    "angle": _read_angle,
    "number": _read_number,
    "translation": _read_translation,
    "rotation": _read_rotation,
    "direction": _read_direction,
    "category": _read_category,
    "viewing_sphere": _read_viewing_sphere,
}


def _check_ranges(table: Table, columns: Sequence[str], values: np.ndarray, ranges: Sequence[Bounds]) -> None:
    """Raises DataError for the first value outside of its column's range."""
    for place, (low, high) in enumerate(ranges):
        outside = np.flatnonzero((values[:, place] < low) | (values[:, place] > high))
        if len(outside):
            problem = f"{values[outside[0], place]:g} is outside of {low:g} to {high:g}: mend it, or its unit or range"
            raise table.error(int(outside[0]), columns[place], problem)


# ---------------------------------------------------------------- what looks wrong, and may be right


def warnings_of(latent: Latent, values: np.ndarray, objects: Sequence[Sequence[int]]) -> list[str]:
    """Sentences on a latent [rows, C] that can't be learnt, or may be of another kind or unit.

    Args:
        objects: the rows of each object.
    """
    what = f"latent '{latent.name}'"
    if np.ptp(values, axis=0).max() == 0:
        return [f"{what} never varies, so that nothing can be learnt of it"]
    warnings = []
    if all(np.ptp(values[rows], axis=0).max() == 0 for rows in map(list, objects)):
        warnings.append(f"{what} is the same in all views of each object, so that its action is always the same")
    if isinstance(latent.kind, Angle):
        period = latent.kind.full_period
        sorted_values = np.sort(np.remainder(values[:, 0], period))
        gaps = np.diff(sorted_values, append=sorted_values[0] + period)
        if gaps.max() > period / 2:
            warnings.append(
                f"{what} is an angle and takes up {period - gaps.max():.3g} of its {period:.4g} {latent.kind.unit}: if "
                f"it has two ends and never comes round, name it a number, and if this isn't so, look at its unit"
            )
    return warnings
