"""Prints how much of the embedded set's objects is in sight, at rest and moved, at two sizes.

    python tools/check_visibility.py
    python tools/check_visibility.py --scales 1.0 1.15 1.3 --objects 12

The area of an object is counted in pixels of its silhouette, once in the picture and once in a picture of twice the
width with the floor away, so what is cut off by the frame and what is hidden by the floor are both lost. About half a
minute on one core.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.rendering.procedural import ProceduralConfig, latents_of_object, plan_objects
from ssl_equi.data.rendering.splits import ObjectTranslation
from ssl_equi.geometry.latents import FURTHEST_TRANSLATION, TRANSLATION_COLUMNS
from ssl_equi.scenes.families import DEFAULT_FAMILIES, build_object
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.rasteriser import rasterise, visible_surface
from ssl_equi.scenes.scene import FLOOR_Z, NEAR_DEPTH, SceneSettings, main_camera, scene_parameters


@dataclass(frozen=True)
class Config:
    """Whose visibility is measured."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """Object families."""
    objects: int = 6
    """Train objects of each family."""
    views: int = 20
    """Views of each object."""
    scales: tuple[float, ...] = (1.0, SceneSettings.object_scale)
    """Diagonals of the objects' bounding boxes; 1.0 is that of 3DIEBench and 3DIEBench-T."""
    translation: ObjectTranslation = FURTHEST_TRANSLATION
    """How far the moved objects move along each of their own axes."""
    resolution: int = 128
    """Side of the picture in which areas are counted, in pixels."""


@dataclass(frozen=True)
class Visibility:
    """Of n views, each [n].

    covered: share of the picture's pixels that show the object
    lost: share of the object's area that the frame cuts off or the floor hides
    sinks: whether any vertex is below the floor
    """

    covered: NDArray[np.float64]
    lost: NDArray[np.float64]
    sinks: NDArray[np.bool_]


def main(config: Config) -> None:
    set_config = ProceduralConfig(
        families=config.families, train_objects=config.objects, views=config.views, translation=config.translation
    )
    planned_objects = plan_objects(set_config, "train")
    columns = "covered", "lost > 0", "> 10 %", "> 25 %", "> 50 %", "all", "sinks"
    table = Table("objects", "scale", *columns, title="pixels covered; views that lose a share of the object; in %")
    for moved in (False, True):
        for scale in config.scales:
            found = []
            for planned in planned_objects:
                latents = latents_of_object(planned, set_config, set_config.rotation)
                if not moved:
                    latents[:, TRANSLATION_COLUMNS] = 0
                mesh = build_object(planned.family, planned.object_seed)
                found.append(visibility(mesh, latents, scale, config.resolution))
            table.add_row("moved" if moved else "at rest", f"{scale:g}", *shares(found))
    Console().print(table)
    print(f"{len(planned_objects) * config.views:,} views of {len(planned_objects)} objects")


def visibility(mesh: Mesh, latents: NDArray[np.float64], scale: float, resolution: int) -> Visibility:
    """Visibility of one object under latents [n, 7 or 10]; `scale` is the diagonal of its bounding box."""
    parameters = scene_parameters(torch.from_numpy(latents))
    corners = scale * torch.from_numpy(mesh.vertices[mesh.faces])
    world = torch.einsum("nij,fcj->nfci", parameters.rotation, corners) + parameters.centre[:, None, None]
    # twice the width at the same focal length: the picture is the middle of it
    camera = dataclasses.replace(main_camera(resolution, torch.device("cpu")), resolution=2 * resolution)
    pixel_from_world = camera.pixel_from_world()[0]
    projected = world @ pixel_from_world[:, :3].T + pixel_from_world[:, 3]
    image = torch.arange(len(latents)).repeat_interleave(len(mesh.faces))
    fragments = rasterise(projected.flatten(0, 1).permute(2, 1, 0).contiguous(), image, 2 * resolution, NEAR_DEPTH)
    floor = camera.floor_inverse_depth().reshape(-1)

    def silhouettes(background: torch.Tensor) -> NDArray[np.float64]:
        shown = torch.zeros(len(latents) * (2 * resolution) ** 2)
        shown[visible_surface(fragments, background, len(latents)).pixel] = 1
        return shown.view(len(latents), 2 * resolution, 2 * resolution).numpy().astype(np.float64)

    middle = slice(resolution // 2, resolution // 2 + resolution)
    seen = silhouettes(floor)[:, middle, middle].sum(axis=(1, 2))
    whole = silhouettes(torch.zeros_like(floor)).sum(axis=(1, 2))
    sinks = (world[..., 2] < FLOOR_Z).flatten(1).any(dim=1).numpy()
    return Visibility(covered=seen / resolution**2, lost=1 - seen / np.maximum(whole, 1), sinks=sinks)


def shares(found: list[Visibility]) -> list[str]:
    """The columns of the table, in percent."""
    lost = np.concatenate([one.lost for one in found])
    values = [np.concatenate([one.covered for one in found]).mean()]
    values += [(lost > limit).mean() for limit in (0, 0.1, 0.25, 0.5)]
    values += [(lost == 1).mean(), np.concatenate([one.sinks for one in found]).mean()]
    return [f"{100 * value:.2f}" for value in values]


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
