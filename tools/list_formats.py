"""Writes the table of docs/encoders.md that says which architectures can be exported to which formats.

    PYTHONPATH=. python tools/list_formats.py                          in a clone; ten minutes on one core
    PYTHONPATH=. python tools/list_formats.py --families resnet18      prints these rows only

Each family of ours and some of timm's are made with random weights, exported by the code of `evaluation/export.py`, and
opened by timm in a process that knows nothing else. A cell is the largest difference from the encoder, or the reason
why there is none.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.catalogue import model_arguments
from ssl_equi.errors import UserError
from ssl_equi.export.encoder import EncoderCard, read_encoder_config, save_encoder
from ssl_equi.export.programs import SUFFIXES, compared_program, open_programmed
from ssl_equi.export.timm_folders import modules_that_register
from tests.fakes import with_other_values

PAGE = Path(__file__).parent.parent / "docs" / "encoders.md"
HEAD = ("family", "tried", "timm opens it", *SUFFIXES)
RULE = "|" + "---|" * len(HEAD)
TABLE = re.compile(r"^\| family \| tried \|.*\n(?:\|.*\n)*", flags=re.MULTILINE)

# Opens each folder before anything of ours is imported, and again with the modules that register it.
OPEN_BY_TIMM = """
import importlib, json, sys
import timm
folders = json.loads(sys.argv[1])

def opens(folder):
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        return False
    return True

alone = {name: opens(folder) for name, (folder, modules) in folders.items()}
assert not any(name.startswith("ssl_equi") for name in sys.modules)
for name, (folder, modules) in folders.items():
    for module in modules:
        importlib.import_module(module)
    assert opens(folder), name
print(json.dumps(alone))
"""


@dataclass(frozen=True)
class Family:
    """Architectures that consist of the same operations.

    Attributes:
        architecture: the one that is tried, with `arguments` that make it small.
        image_size: side of its images in pixels.
    """

    architecture: str
    image_size: int
    arguments: dict[str, Any] = field(default_factory=dict)


SHALLOW = {"depth": 2}
WRAPPED = {"backbone": "strided_cnn_pooled"}
FAMILIES = {
    "strided_cnn_*": Family("strided_cnn_nano", 32),
    "resnet*_small_images": Family("resnet18_small_images", 32),
    "sie_resnet*": Family("sie_resnet18", 64),
    "octic_vit_*": Family("octic_vit_tiny_patch16_224", 64, SHALLOW),
    "hybrid_octic_vit_*": Family("hybrid_octic_vit_tiny_patch16_224", 64, SHALLOW),
    "invariant_octic_vit_*": Family("invariant_octic_vit_tiny_patch16_224", 64, SHALLOW),
    "shift_equivariant_vit_*": Family("shift_equivariant_vit_tiny_patch16_224", 64, SHALLOW),
    "shift_equivariant_twins_*": Family("shift_equivariant_twins_small", 224),
    "c4_resnet*": Family("c4_resnet10_small_images", 32),
    "d4_resnet*": Family("d4_resnet10_small_images", 32),
    "c8_resnet*": Family("c8_resnet10_small_images", 32),
    "so2_resnet*": Family("so2_resnet10_small_images", 32),
    "group_averaged": Family("group_averaged", 32, WRAPPED),
    "canonicalized": Family("canonicalized", 32, WRAPPED),
    "capsule_*": Family("capsule_strided_cnn_pooled", 64),
    "resnet18": Family("resnet18", 64),
    "vit_tiny_patch16_224": Family("vit_tiny_patch16_224", 224),
    "convnext_atto": Family("convnext_atto", 64),
    "efficientnet_lite0": Family("efficientnet_lite0", 64),
    "twins_svt_small": Family("twins_svt_small", 64),
}
"""Ours by the pattern of their names, each name in one; then some of timm's."""


@dataclass(frozen=True)
class Config:
    families: tuple[str, ...] = ()
    """Rows to print; when none is named, the whole table is written into the page."""


def export_family(family: Family, folder: Path) -> dict[str, Any]:
    """The encoder's folder with random weights in place of what training would leave; returns its config."""
    encoder = with_other_values(create_encoder(family.architecture, family.image_size, **family.arguments))
    width = int(encoder.num_features)  # type: ignore[arg-type]
    card = EncoderCard(
        architecture=family.architecture,
        model_args=model_arguments(family.architecture, family.image_size, family.arguments),
        image_size=family.image_size,
        mean_rgb=(0.5, 0.4, 0.3),
        std_rgb=(0.2, 0.3, 0.25),
        parts={"all": (0, width), "inv": (0, width // 2), "equi": (width // 2, width)},
        objective="none",
        trained_on="nothing",
        license="apache-2.0",
        tag="random",
    )
    save_encoder(encoder, folder, card)
    return read_encoder_config(folder)


def opened_by_timm(folders: dict[str, tuple[str, list[str]]]) -> dict[str, bool]:
    """By name whether timm alone opens a folder; with the imports that are named beside it, it must."""
    command = [sys.executable, "-c", OPEN_BY_TIMM, json.dumps(folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"timm can't open an exported folder: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def program_cells(folder: Path) -> list[str]:
    """For each format of programs the largest difference, or the reason why there is none."""
    cells = []
    for program_format in SUFFIXES:
        try:
            difference = compared_program(open_programmed(folder), program_format)[1]
            cells.append(f"{difference:.0e}" if difference else "0")
        except UserError as error:
            cells.append(str(error).replace("|", "/"))
    return cells


def rows(names: Iterable[str]) -> list[list[str]]:
    """A row of the table for each family."""
    with tempfile.TemporaryDirectory() as temporary:
        folders: dict[str, tuple[str, list[str]]] = {}
        cells: dict[str, list[str]] = {}
        for name in names:
            folder = Path(temporary) / str(len(folders))
            config = export_family(FAMILIES[name], folder)
            folders[name] = (str(folder), modules_that_register(config))
            cells[name] = program_cells(folder)
        alone = opened_by_timm(folders)
    found = []
    for name, (_, modules) in folders.items():
        family = FAMILIES[name]
        arguments = "".join(f", `{key}={value}`" for key, value in family.arguments.items())
        tried = f"`{family.architecture}`, {family.image_size} pixels{arguments}"
        imports = "alone" if alone[name] else f"after `import {', '.join(modules)}`"
        found.append([f"`{name}`", tried, imports, *cells[name]])
    return found


def table(names: Iterable[str]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [HEAD, *rows(names)]]
    return "\n".join([lines[0], RULE, *lines[1:]]) + "\n"


def main(config: Config) -> None:
    if unknown := set(config.families) - set(FAMILIES):
        raise UserError(f"there is no family {min(unknown)!r}: choose from {', '.join(FAMILIES)}")
    if config.families:
        print(table(config.families), end="")
        return
    page = PAGE.read_text()
    if not TABLE.search(page):
        raise UserError(f"{PAGE} has no table that begins with '| family | tried |': restore it")
    PAGE.write_text(TABLE.sub(lambda _: table(FAMILIES), page))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    options = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(options))
