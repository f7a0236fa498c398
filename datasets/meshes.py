"""Build shards of posed views of your own mesh files (OBJ, PLY, GLB, glTF, STL, OFF), with their textures and colours.

    python datasets/meshes.py --models MODELS --out data/mine
    python datasets/meshes.py --models SCANS --out data/scans --up z --image-size 128 --views 50 --translation 0.5
    python datasets/meshes.py --models YCB --out data/ycb --files textured.obj --classes classes.csv --test-share 0.3
    python datasets/meshes.py --models MODELS --out data/mine --held-out-classes chair lamp --verify

Train on them with `--dataset 3diebench --data-dir data/mine`, or 3diebench-t with --translation. Every object is drawn
in the scene of 3DIEBench under random poses and lights, as the embedded set is. All models are read once before the
first is rendered, so that what is broken is known then. An interrupted build goes on where it stopped when the same
command is given again. Needs the extra `meshes`; the card beside this file has the rest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.rendering.mesh_files import import_trimesh
from ssl_equi.data.rendering.mesh_lists import MeshFile, list_models
from ssl_equi.data.rendering.mesh_sets import (
    SAME_OBJECTS,
    CheckedModel,
    MeshSetConfig,
    Provenance,
    check_models,
    divide,
    rendered_splits,
    splits_by_objects,
)
from ssl_equi.data.rendering.splits import build_splits, default_workers
from ssl_equi.data.shards.verify import verify_split
from ssl_equi.errors import DataError
from ssl_equi.options import Threads

NAMED_PROBLEMS = 5  # that an error message spells out


@dataclass(frozen=True)
class Config:
    """Options of the converter."""

    models: Path
    """Folder of the models: DIR/CLASS/OBJECT/FILE, DIR/CLASS/FILE, DIR/OBJECT/FILE or DIR/FILE."""
    out: Path
    """Where the shards go."""
    set: Annotated[MeshSetConfig, tyro.conf.arg(name="")]
    """What is rendered of the models."""
    files: str = "*"
    """Names of the mesh files, with wildcards, where folders hold several for one object."""
    classes: Path | None = None
    """CSV file of the columns object,class; objects are called as their folder or file is, from MODELS."""
    skip_broken: bool = False
    """Go on without the models that can't be read, instead of naming them and stopping."""
    source_name: str | None = None
    """Where the models are from, for the manifest; the name of their folder by default."""
    license: str = "unstated"
    """The licence of the models, for the manifest."""
    workers: Threads | None = None
    """Processes that read and render; one for each core when not given."""
    device: str = "cpu"
    """cpu, or cuda to render on a GPU."""
    verify: bool = False
    """Read everything back and compare all checksums when done."""


def main(config: Config) -> None:
    import_trimesh()
    workers = config.workers or default_workers()
    listed = list_models(config.models, config.files, config.classes)
    divide(listed, config.set)  # options that don't fit are named before minutes of reading
    print(f"reading {len(listed)} models in {config.models}", flush=True)
    checked = check_models(config.models, listed, config.set, workers)
    models, notes = usable_models(listed, checked, config.skip_broken)
    divided = divide(models, config.set)
    by_objects = splits_by_objects(models, config.set)
    notes += () if by_objects else (SAME_OBJECTS,)
    say_what_was_read(listed[0], models, divided, by_objects)
    source = f"{config.source_name or config.models.resolve().name}, rendered by ssl_equi.scenes"
    splits = rendered_splits(
        config.models, divided, checked, config.set, Provenance(source, config.license, notes), config.device
    )
    build_splits(config.out, splits, list(splits), workers=workers, device=config.device)
    if config.verify:
        for split in splits:
            verify_split(config.out, split)
            print(f"verified {split}")
    flags = f"--dataset {'3diebench-t' if config.set.translation else '3diebench'} --data-dir {config.out}"
    flags += "" if "test" in splits or "val" not in splits else " --evaluation-split val"
    print(f"{len(models)} models are in {config.out}: train on them with {flags}")


def usable_models(
    listed: Sequence[MeshFile], checked: Mapping[str, CheckedModel], skip_broken: bool
) -> tuple[list[MeshFile], tuple[str, ...]]:
    """The models that can be rendered, and what the manifest says of the others and of missing textures.

    Raises:
        DataError: some can't be rendered and aren't to be left out, or none can.
    """
    problems = [checked[model.path].problem for model in listed if checked[model.path].problem]
    models = [model for model in listed if not checked[model.path].problem]
    if problems and (not skip_broken or not models):
        shown = "\n".join(problems[:NAMED_PROBLEMS])
        raise DataError(
            f"{len(problems)} of {len(listed)} models can't be rendered; mend or remove them, or leave them out with "
            f"--skip-broken:\n{shown}" + ("\n..." if len(problems) > NAMED_PROBLEMS else "")
        )
    bare = [model for model in models if checked[model.path].missing]
    notes = []
    if problems:
        notes.append(f"{len(problems)} of {len(listed)} models could not be read and were left out")
        print("\n".join(["left out:", *problems]))
    if bare:
        notes.append(f"{len(bare)} of {len(models)} models name textures or materials that are missing, and lack them")
        first = checked[bare[0].path].missing[0]
        print(f"{notes[-1]}; {bare[0].path} names {first}")
    return models, tuple(notes)


def say_what_was_read(
    first: MeshFile, models: Sequence[MeshFile], divided: Mapping[str, Sequence[MeshFile]], by_objects: bool
) -> None:
    """Prints classes and splits, and how the first model was understood."""
    counts = Counter(model.class_name for model in models)
    print(
        f"{len(models)} models of {len(counts)} classes; {first.path} is object {first.name}, class {first.class_name}"
    )
    sizes = ", ".join(f"{split} {len(members)}" for split, members in divided.items())
    alone = sum(count == 1 for count in counts.values())
    why = "by objects, drawn per class" if by_objects else f"by views: {SAME_OBJECTS}"
    if by_objects and alone:
        why += f"; the only objects of {alone} classes are in train"
    print(f"split {why}; objects: {sizes}", flush=True)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
