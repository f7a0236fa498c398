"""From meshes and latents to pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_equi.geometry.latents import LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION
from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.scenes.mesh import Mesh, Paint
from ssl_equi.scenes.rasteriser import VisibleSurface, depth_buffer, expand_counts, rasterise, visible_surface
from ssl_equi.scenes.scene import (
    FLOOR_Z,
    NEAR_DEPTH,
    Cameras,
    SceneParameters,
    SceneSettings,
    light_cameras,
    main_camera,
    scene_parameters,
)
from ssl_equi.scenes.shading import LightMaps, floor_radiance, make_light_maps, object_radiance, srgb_from_linear
from ssl_equi.scenes.textures import PackedPaint

__all__ = ["Renderer", "SceneSettings"]

DEFAULT_SETTINGS = SceneSettings()

# pictures are drawn in passes of about this many samples: few enough for a CPU's caches, many enough to fill a GPU
SAMPLES_PER_PASS_CPU = 2**19
SAMPLES_PER_PASS_GPU = 2**26


class Renderer:
    """Draws a fixed set of meshes, many pictures at a time.

    The pictures are a function of the mesh and the latents alone: the same input gives the same bytes on a CPU, and
    the company in a batch changes nothing but rounding. (A GPU adds the samples of a pixel in any order: up to 1/255.)
    On a CPU, several processes of one thread each (`torch.set_num_threads(1)`) draw faster than one of several threads.

    Raises ValueError for meshes that are malformed.
    """

    def __init__(
        self,
        meshes: Sequence[Mesh],
        settings: SceneSettings = DEFAULT_SETTINGS,
        device: torch.device | str = "cpu",
    ) -> None:
        _require_well_formed(meshes)
        self.settings = settings
        self.device = torch.device(device)
        self.num_meshes = len(meshes)
        self._faces = _PackedFaces(meshes, self.device)
        painted = any(mesh.paint is not None for mesh in meshes)
        self._paint = PackedPaint(meshes, self.device) if painted else None
        self._camera = main_camera(settings.sample_resolution, self.device)
        self._rays = self._camera.rays().reshape(3, -1)
        self._floor_inverse_depth = self._camera.floor_inverse_depth().reshape(-1)
        self._floor_points = _floor_points(main_camera(settings.resolution, self.device))
        samples = SAMPLES_PER_PASS_CPU if self.device.type == "cpu" else SAMPLES_PER_PASS_GPU
        self._images_per_pass = max(1, samples // settings.sample_resolution**2)

    @torch.no_grad()
    def render(self, mesh_indices: Tensor, latents: Tensor) -> Tensor:
        """Pictures [n, resolution, resolution, 3] uint8, sRGB, on the renderer's device.

        mesh_indices: [n] integers; latents: [n, 7 or 10] (see ssl_equi.geometry.latents), best in float64.
        Raises ValueError for other shapes, latents that are not finite and meshes that do not exist.
        """
        self._require_valid(mesh_indices, latents)
        mesh_indices, latents = copy_together([mesh_indices.long(), latents.double()], self.device)
        resolution = self.settings.resolution
        images = torch.empty(len(latents), resolution, resolution, 3, dtype=torch.uint8, device=self.device)
        for start in range(0, len(latents), self._images_per_pass):
            one_pass = slice(start, start + self._images_per_pass)
            images[one_pass] = self._render_pass(mesh_indices[one_pass], latents[one_pass])
        return images

    def _render_pass(self, mesh_indices: Tensor, latents: Tensor) -> Tensor:
        settings = self.settings
        parameters = scene_parameters(latents)
        image, face = self._faces.of_meshes(mesh_indices)
        corners = self._faces.corners.index_select(2, face)

        lights = light_cameras(parameters, settings)
        light_fragments = rasterise(
            self._project(corners, image, parameters, lights), image, lights.resolution, NEAR_DEPTH
        )
        light_background = lights.floor_inverse_depth().reshape(-1)
        light_maps = make_light_maps(depth_buffer(light_fragments, light_background), light_background, lights)

        fragments = rasterise(
            self._project(corners, image, parameters, self._camera), image, settings.sample_resolution, NEAR_DEPTH
        )
        surface = visible_surface(fragments, self._floor_inverse_depth, len(latents))
        floor = floor_radiance(self._floor_points, parameters, light_maps, settings)
        samples = self._shade_objects(surface, face, parameters, light_maps)
        return _quantise(self._merge(floor, samples, surface))

    def _project(self, corners: Tensor, image: Tensor, parameters: SceneParameters, cameras: Cameras) -> Tensor:
        """Homogeneous pixel coordinates [3, 3 (corners), T] of corners [3 (axes), 3 (corners), T] in object space."""
        world_from_object = torch.cat(
            [self.settings.object_scale * parameters.rotation, parameters.centre[:, :, None]], dim=-1
        )
        pixel_from_world = cameras.pixel_from_world()
        # a matrix product in full precision, whatever precision (TF32, autocast) is set for the training's products
        pixel_from_object = (pixel_from_world[:, :, :3, None] * world_from_object[:, None]).sum(2)
        pixel_from_object[:, :, 3] += pixel_from_world[:, :, 3]
        matrices = pixel_from_object.permute(1, 2, 0).reshape(12, -1).index_select(1, image).view(3, 4, -1)
        x, y, z = corners
        return torch.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in matrices])

    def _shade_objects(
        self, surface: VisibleSurface, face: Tensor, parameters: SceneParameters, light_maps: LightMaps
    ) -> Tensor:
        """Radiance [3, S] of the visible samples; `face` [T] is the packed face of each rasterised triangle."""
        sample_face = face.index_select(0, surface.triangle)
        rays = self._rays.index_select(1, surface.pixel % self.settings.sample_resolution**2)
        corner_normals = self._faces.normals.index_select(2, sample_face)
        x, y, z = (corner_normals * surface.weights).sum(1)
        rotation = parameters.rotation.permute(1, 2, 0).reshape(9, -1).index_select(1, surface.image).view(3, 3, -1)
        normals = torch.stack([row[0] * x + row[1] * y + row[2] * z for row in rotation])
        albedo = self._faces.colors.index_select(1, sample_face)
        if self._paint is not None:
            albedo = albedo * self._paint.colors_at(surface, sample_face)
        return object_radiance(
            surface=surface,
            rays=rays,
            camera_position=self._camera.position[0],
            normals=normals,
            albedo=albedo,
            parameters=parameters,
            light_maps=light_maps,
            settings=self.settings,
        )

    def _merge(self, floor: Tensor, samples: Tensor, surface: VisibleSurface) -> Tensor:
        """Linear pictures [n, 3, p]: the floor [n, 3, p] where no object sample [3, S] covers it."""
        supersampling, resolution = self.settings.supersampling, self.settings.resolution
        width = self.settings.sample_resolution
        pixel_row = surface.pixel // (width * supersampling)
        pixel = pixel_row * resolution + surface.pixel % width // supersampling
        count = floor.shape[0] * floor.shape[2]
        share = 1 / supersampling**2
        objects_and_coverage = torch.cat([samples * share, torch.full_like(samples[:1], share)])
        summed = floor.new_zeros(4, count).scatter_add_(1, pixel.expand(4, -1), objects_and_coverage)
        objects, coverage = summed.view(4, floor.shape[0], floor.shape[2]).split([3, 1])
        return torch.addcmul(objects.transpose(0, 1), floor, 1 - coverage.transpose(0, 1))

    def _require_valid(self, mesh_indices: Tensor, latents: Tensor) -> None:
        if latents.ndim != 2 or latents.shape[1] not in (LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION):
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}: give [n, {LATENT_SIZE}] (3DIEBench) "
                f"or [n, {LATENT_SIZE_WITH_TRANSLATION}] (with translation)"
            )
        if mesh_indices.shape != latents.shape[:1] or mesh_indices.is_floating_point():
            raise ValueError(
                f"mesh_indices have shape {tuple(mesh_indices.shape)} and type {mesh_indices.dtype}: "
                f"give one integer for each of the {len(latents)} latents"
            )
        finite = torch.isfinite(latents).all(dim=1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise ValueError(f"latents[{row}] is {latents[row].tolist()}: all values must be finite")
        exists = (mesh_indices >= 0) & (mesh_indices < self.num_meshes)
        if not exists.all():
            row = int((~exists).nonzero()[0])
            raise ValueError(
                f"mesh_indices[{row}] is {int(mesh_indices[row])}: the renderer holds meshes 0 to {self.num_meshes - 1}"
            )


class _PackedFaces:
    """The faces of all meshes, one after the other, as planes.

    corners: [3 (axes), 3 (corners), F]; normals: [3 (axes), 3 (corners), F]; colors: [3, F]
    """

    def __init__(self, meshes: Sequence[Mesh], device: torch.device) -> None:
        counts = torch.tensor([len(mesh.faces) for mesh in meshes], dtype=torch.int64)
        self._counts = counts.to(device)
        self._first = (counts.cumsum(0) - counts).to(device)

        def planes(arrays: list[np.ndarray]) -> Tensor:
            joined = torch.from_numpy(np.concatenate(arrays).astype(np.float32))
            return joined.permute(*reversed(range(joined.ndim))).contiguous().to(device)

        self.corners = planes([mesh.vertices[mesh.faces] for mesh in meshes])
        self.normals = planes([mesh.corner_normals for mesh in meshes])
        self.colors = planes([mesh.face_colors for mesh in meshes])

    def of_meshes(self, mesh_indices: Tensor) -> tuple[Tensor, Tensor]:
        """For meshes [n]: the position in 0 .. n-1 and the packed face of each of their T triangles, both [T]."""
        owner, rank = expand_counts(self._counts.index_select(0, mesh_indices))
        return owner, self._first.index_select(0, mesh_indices).index_select(0, owner) + rank


def _require_well_formed(meshes: Sequence[Mesh]) -> None:
    if not meshes:
        raise ValueError("the renderer was given no meshes: give at least one")
    for index, mesh in enumerate(meshes):
        count = len(mesh.faces)
        if mesh.corner_normals.shape != (count, 3, 3) or mesh.face_colors.shape != (count, 3):
            raise ValueError(
                f"mesh {index} has {count} faces, corner_normals of shape {mesh.corner_normals.shape} and face_colors "
                f"of shape {mesh.face_colors.shape}: give ({count}, 3, 3) and ({count}, 3)"
            )
        if count and not (mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)):
            raise ValueError(
                f"mesh {index} has faces that use vertices {mesh.faces.min()} to {mesh.faces.max()}: "
                f"it has only 0 to {len(mesh.vertices) - 1}"
            )
        if mesh.paint is not None:
            _require_well_formed_paint(mesh.paint, count, index)


def _require_well_formed_paint(paint: Paint, count: int, index: int) -> None:
    shapes = (paint.corner_colors.shape, paint.corner_uv.shape, paint.face_textures.shape)
    if shapes != ((count, 3, 3), (count, 3, 2), (count,)):
        raise ValueError(
            f"mesh {index} has {count} faces and a paint of shapes {shapes}: give ({count}, 3, 3) corner_colors, "
            f"({count}, 3, 2) corner_uv and ({count},) face_textures"
        )
    if count and not (paint.face_textures.min() >= -1 and paint.face_textures.max() < len(paint.textures)):
        raise ValueError(
            f"mesh {index} has faces with textures {paint.face_textures.min()} to {paint.face_textures.max()}: it has "
            f"only 0 to {len(paint.textures) - 1}, and -1 for none"
        )


def _floor_points(camera: Cameras) -> Tensor:
    """World positions [3, resolution^2] of the floor behind each pixel; the camera sees nothing but floor."""
    rays = camera.rays().reshape(3, -1)
    points = camera.position.t() + rays / camera.floor_inverse_depth().reshape(-1)
    points[2] = FLOOR_Z
    return points


def _quantise(linear: Tensor) -> Tensor:
    """uint8 [n, H, W, 3] in sRGB of linear pictures [n, 3, H * W]."""
    side = int(linear.shape[2] ** 0.5 + 0.5)
    levels = (srgb_from_linear(linear.clamp(0, 1)) * 255 + 0.5).to(torch.uint8)
    return levels.view(-1, 3, side, side).permute(0, 2, 3, 1)
