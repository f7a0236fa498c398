"""Mesh files in a folder of models, and their classes."""

import csv
import dataclasses
import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ssl_equi.data.rendering.mesh_files import MESH_SUFFIXES
from ssl_equi.errors import DataError, visible


@dataclass(frozen=True)
class MeshFile:
    """One object: its path in the folder of models, what it is called there, and its class."""

    path: str
    name: str
    class_name: str


def list_models(folder: Path, pattern: str = "*", classes: Path | None = None) -> list[MeshFile]:
    """The models in a folder, by path: each mesh file whose name fits the pattern is an object.

    Files that lie in DIR are a class each, as are folders DIR/OBJECT with one file. Where a folder holds several, it is
    a class and each file an object; of DIR/CLASS/OBJECT/..., and deeper, the first folder is the class. A table of
    classes replaces all of these.

    Raises:
        DataError: there are no models, they lie in different depths, or an object has two files.
    """
    if not folder.is_dir():
        raise DataError(f"{visible(str(folder))} is not a folder: give the folder of your models with --models")
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        fitting = (name for name in files if fnmatch.fnmatch(name, pattern) and not name.startswith("."))
        meshes = (Path(place, name) for name in fitting if Path(name).suffix.lower() in MESH_SUFFIXES)
        paths += [PurePosixPath(path.relative_to(folder).as_posix()) for path in meshes]
    if not paths:
        raise DataError(
            f"{visible(str(folder))} holds no mesh file that fits {pattern!r}: give a folder of files "
            f"{', '.join(MESH_SUFFIXES)}"
        )
    paths.sort()
    deepest, shallowest = max(paths, key=_depth), min(paths, key=_depth)
    if _depth(deepest) != _depth(shallowest) and min(_depth(deepest), _depth(shallowest)) < 3:
        raise DataError(
            f"{visible(str(shallowest))} and {visible(str(deepest))} lie at different depths of "
            f"{visible(str(folder))}: bring all models to DIR/CLASS/OBJECT/FILE, DIR/CLASS/FILE or DIR/FILE, or choose "
            f"some with --files"
        )
    models = _named(folder, paths)
    return models if classes is None else _with_classes(models, classes)


def _depth(path: PurePosixPath) -> int:
    return len(path.parts)


def _named(folder: Path, paths: Sequence[PurePosixPath]) -> list[MeshFile]:
    depth = _depth(paths[0])
    in_folder = Counter(path.parent for path in paths)
    if depth == 1 or (depth == 2 and max(in_folder.values()) > 1):
        names = [path.with_suffix("").as_posix() for path in paths]
    else:
        names = [path.parent.as_posix() for path in paths]
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        both = [path.name for path, name in zip(paths, names) if name == doubles[0]]
        raise DataError(
            f"object {visible(doubles[0])} in {visible(str(folder))} has {len(both)} mesh files ({visible(both[0])}, "
            f"{visible(both[1])}): leave one of each, or choose by name, such as --files '{visible(both[0])}'"
        )
    names = [visible(name) for name in names]
    return [MeshFile(path.as_posix(), name, name.partition("/")[0]) for path, name in zip(paths, names)]


def _with_classes(models: Sequence[MeshFile], table: Path) -> list[MeshFile]:
    """The models with the classes of a CSV file of the columns object and class; models that it lacks are an error."""
    name = visible(str(table))
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} can't be read as CSV ({error}): give a table of the columns object,class") from error
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["object", "class"]:
        raise DataError(f"the first line of {name} is {','.join(rows[0]) if rows else ''!r}: write object,class there")
    class_of: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != 2 or not row[0].strip() or not row[1].strip():
            raise DataError(f"line {number} of {name} is {','.join(row)!r}: write an object and its class")
        if class_of.setdefault(row[0].strip(), row[1].strip()) != row[1].strip():
            raise DataError(f"line {number} of {name} gives {row[0]!r} a second class: leave one")
    lacking = [model.name for model in models if model.name not in class_of]
    if lacking:
        raise DataError(
            f"{name} lacks {len(lacking)} of {len(models)} objects, the first of them {lacking[0]!r}: add it"
        )
    return [dataclasses.replace(model, class_name=class_of[model.name]) for model in models]
