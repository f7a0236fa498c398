"""Painted meshes for tests, and the albedo that a picture shows."""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from ssl_equi.scenes.mesh import Mesh, Paint, mesh_of_triangles
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.scene import SceneSettings

# Turned by this about x, an object's +z points at the camera, its +x to the left of the picture and its +y down.
TO_CAMERA = (-math.pi / 4, 0.0, 0.0)
RED, GREEN, BLUE, GREY = (0.6, 0.1, 0.1), (0.1, 0.5, 0.1), (0.1, 0.1, 0.7), (0.4, 0.4, 0.4)
# upper left, upper right; lower left, lower right
FOUR_COLORS = np.array([[RED, GREEN], [BLUE, GREY]], dtype=np.float32)

# The corners of a square, as it is seen: lower left, lower right, upper right, upper left; counter-clockwise.
SQUARE = np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=np.float64)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])
SQUARE_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)


def painted_square(
    texture: np.ndarray | None = None, corner_colors: np.ndarray | None = None, uv: np.ndarray = SQUARE_UV
) -> Mesh:
    """A square whose front is seen under `TO_CAMERA`, with colours [4, 3] of its corners."""
    colors = np.ones((4, 3)) if corner_colors is None else corner_colors
    paint = Paint(
        corner_colors=colors[SQUARE_FACES].astype(np.float32),
        corner_uv=uv[SQUARE_FACES].astype(np.float32),
        face_textures=np.full(2, -1 if texture is None else 0, dtype=np.int32),
        textures=() if texture is None else (texture,),
    )
    return mesh_of_triangles(SQUARE, SQUARE_FACES, np.ones((2, 3), dtype=np.float32), paint)


def latent(rotation: tuple[float, float, float] = TO_CAMERA) -> Tensor:
    """Latents [1, 7] with a lamp behind what faces the camera: daylight alone is on it, and nothing is too bright."""
    return torch.tensor([[*rotation, 0.2, 1.2, -math.pi / 2, 0.6]], dtype=torch.float64)


def linear_picture(mesh: Mesh, latents: Tensor, **settings: float) -> np.ndarray:
    """Linear light [H, W, 3] of one picture."""
    renderer = Renderer([mesh], SceneSettings(**settings))  # type: ignore[arg-type]
    levels = renderer.render(torch.zeros(1, dtype=torch.int64), latents)[0].numpy() / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def shown_albedo(mesh: Mesh, latents: Tensor, **settings: float) -> np.ndarray:
    """Albedo [H, W, 3] that a picture shows; NaN where the object is not.

    Light grows with the albedo in a straight line, whose two ends are the same mesh painted black and white.
    """

    def in_one(albedo: float) -> Mesh:
        return dataclasses.replace(mesh, face_colors=np.full_like(mesh.face_colors, albedo), paint=None)

    shown, black, white = (linear_picture(each, latents, **settings) for each in (mesh, in_one(0), in_one(1)))
    # Where they are equal, neither is seen.
    covered = (white - black).min(axis=-1, keepdims=True) > 0.05
    return np.where(covered, (shown - black) / np.where(covered, white - black, 1), np.nan)
