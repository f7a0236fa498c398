"""Draws a contact sheet of object families: for each, views of a few objects.

python tools/contact_sheet.py docs/families.jpg                    the 24 default families
python tools/contact_sheet.py all.jpg --families all               every family
python tools/contact_sheet.py chairs.jpg --families chair --rows 6
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import simplejpeg
import torch
import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.scenes.families import DEFAULT_FAMILIES, FAMILIES, build_object
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.sampling import sample_latents
from ssl_equi.scenes.scene import SceneSettings
from ssl_equi.scenes.sheet import contact_sheet


@dataclass(frozen=True)
class Config:
    """What is drawn."""

    out: Annotated[Path, tyro.conf.Positional]
    """JPEG file to write."""
    families: tuple[str, ...] = DEFAULT_FAMILIES
    """Families, or the word all."""
    objects: int = 4
    """Objects of each family."""
    views: int = 2
    """Views of each object."""
    rows: int = 1
    """Rows for each family."""
    columns: int = 2
    """Families side by side."""
    resolution: int = 64
    """Side of an image in pixels."""
    seed: int = 0
    """Draws other poses and lights."""


def main(config: Config) -> None:
    families = tuple(FAMILIES) if config.families == ("all",) else config.families
    strips = [draw_family(family, config) for family in families]
    while len(strips) % config.columns:
        strips.append(np.full_like(strips[0], 255))
    bands = [np.concatenate(strips[i : i + config.columns], axis=1) for i in range(0, len(strips), config.columns)]
    sheet = np.ascontiguousarray(np.concatenate(bands))
    config.out.write_bytes(simplejpeg.encode_jpeg(sheet, quality=88, colorspace="RGB"))
    print(f"{config.out}: {len(families)} families, {sheet.shape[1]} x {sheet.shape[0]} pixels")


def draw_family(family: str, config: Config) -> np.ndarray:
    """One strip of `objects` x `views` images, in `rows` rows."""
    meshes = [build_object(family, seed) for seed in range(config.objects * config.rows)]
    renderer = Renderer(meshes, SceneSettings(resolution=config.resolution))
    latents = sample_latents(len(meshes) * config.views, np.random.default_rng(config.seed))
    images = renderer.render(torch.arange(len(meshes)).repeat_interleave(config.views), torch.from_numpy(latents))
    return contact_sheet(images.numpy(), config.objects * config.views)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
