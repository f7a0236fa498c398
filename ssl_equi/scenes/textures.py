"""Colours of painted meshes at the visible samples: corner colours, and textures with mip levels.

Textures of all meshes lie in one tensor of planes [3, texels], each followed by its smaller levels (Williams,
SIGGRAPH 1983). A sample reads the level whose texels are as large as it is: four texels of each of the two nearest
levels, weighted by distance. All of it is linear light, in which the mean of two colours is what a blurred eye sees.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_equi.scenes.mesh import Mesh, Paint
from ssl_equi.scenes.rasteriser import VisibleSurface


class PackedPaint:
    """The paint of the faces of all meshes, one after the other; meshes without any are painted white.

    corner_colors: [3, 3 (corners), F]; uv: [2, 3 (corners), F]
    texture: [F] int64, -1 for none; texels: [F], twice the signed area of the face in its texture, in texels
    """

    def __init__(self, meshes: Sequence[Mesh], device: torch.device) -> None:
        paints = [mesh.paint or _white(len(mesh.faces)) for mesh in meshes]
        counts = np.array([len(paint.textures) for paint in paints])
        first_texture = np.cumsum(counts) - counts
        texture = np.concatenate(
            [
                np.where(paint.face_textures < 0, -1, paint.face_textures + first)
                for paint, first in zip(paints, first_texture)
            ]
        ).astype(np.int64)
        textures = [image for paint in paints for image in paint.textures]
        uv = np.concatenate([paint.corner_uv for paint in paints])
        edges = uv[:, 1:] - uv[:, :1]
        area = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
        sizes = np.array([image.shape[0] * image.shape[1] for image in textures] + [0])  # the last is that of -1
        colors = np.concatenate([paint.corner_colors for paint in paints])

        self.corner_colors = torch.from_numpy(colors).permute(2, 1, 0).contiguous().to(device)
        self.uv = torch.from_numpy(uv).permute(2, 1, 0).contiguous().to(device)
        self.texture = torch.from_numpy(texture).to(device)
        self.texels = torch.from_numpy((area * sizes[texture]).astype(np.float32)).to(device)
        self._textures = PackedTextures(textures, device) if textures else None

    def colors_at(self, surface: VisibleSurface, sample_face: Tensor) -> Tensor:
        """What multiplies the albedo of the samples, [3, S]; `sample_face` [S] is the packed face of each."""
        colors = (self.corner_colors.index_select(2, sample_face) * surface.weights).sum(1)
        if self._textures is None:
            return colors
        texture = self.texture.index_select(0, sample_face)
        textured = (texture >= 0).nonzero().squeeze(1)
        face, weights = sample_face.index_select(0, textured), surface.weights.index_select(1, textured)
        # The mean over the triangle's picture, in place of the measure at the sample: perspective changes it little
        # over the triangles of an object.
        texels_per_sample = (self.texels.index_select(0, face) / surface.area_px.index_select(0, textured)).abs()
        u, v = (self.uv.index_select(2, face) * weights).sum(1)
        texels = self._textures.sample(texture.index_select(0, textured), u, v, texels_per_sample)
        return colors.index_copy(1, textured, colors.index_select(1, textured) * texels)


class PackedTextures:
    """Linear images [H, W, 3] of any sizes and their mip levels, down to one texel."""

    def __init__(self, images: Sequence[NDArray[np.float32]], device: torch.device) -> None:
        pyramids = [mip_levels(torch.from_numpy(image)) for image in images]
        self._most_levels = max(len(pyramid) for pyramid in pyramids)
        levels = [level for pyramid in pyramids for level in pyramid]
        # Textures with fewer levels have their last one again, so that all have a row of equal length.
        rows, row = [], 0
        for pyramid in pyramids:
            rows += [row + min(level, len(pyramid) - 1) for level in range(self._most_levels)]
            row += len(pyramid)
        sizes = torch.tensor([[level.shape[1], level.shape[2]] for level in levels])
        texels = sizes.prod(dim=1)
        entries = torch.stack([sizes[:, 0], sizes[:, 1], texels.cumsum(0) - texels])[:, rows]
        self._height, self._width, self._first = entries.to(device)
        self._texels = torch.cat([level.flatten(1) for level in levels], dim=1).to(device)

    def sample(self, texture: Tensor, u: Tensor, v: Tensor, texels_per_sample: Tensor) -> Tensor:
        """Colours [3, S] of textures [S] at (u, v) [S], for samples that cover so many texels [S] of a first level."""
        # Half the binary logarithm of an area is that of a length; a magnified texture stays at its first level.
        depth = (0.5 * texels_per_sample.clamp(min=1).log2()).clamp(max=self._most_levels - 1)
        finer = depth.floor()
        entry = texture * self._most_levels + finer.long()
        coarser = entry + (finer < self._most_levels - 1)
        return torch.lerp(self._bilinear(entry, u, v), self._bilinear(coarser, u, v), depth - finer)

    def _bilinear(self, entry: Tensor, u: Tensor, v: Tensor) -> Tensor:
        height, width = self._height.index_select(0, entry), self._width.index_select(0, entry)
        first = self._first.index_select(0, entry)
        # Rows run down and v runs up; the centre of the first texel is half a texel from the edge.
        x, y = u * width - 0.5, (1 - v) * height - 0.5
        left, top = x.floor(), y.floor()
        x_share, y_share = x - left, y - top
        colors = self._texels.new_zeros(3, len(entry))
        for y_step, y_weight in ((0, 1 - y_share), (1, y_share)):
            row_start = first + (top.long() + y_step) % height * width
            for x_step, x_weight in ((0, 1 - x_share), (1, x_share)):
                texel = row_start + (left.long() + x_step) % width
                colors += self._texels.index_select(1, texel) * (x_weight * y_weight)
        return colors


def mip_levels(image: Tensor) -> list[Tensor]:
    """The image [H, W, 3] and smaller ones, each half as high and wide as the one before; [3, h, w]."""
    levels = [image.permute(2, 0, 1).float()]
    while max(levels[-1].shape[1:]) > 1:
        height, width = (max(1, side // 2) for side in levels[-1].shape[1:])
        levels.append(F.interpolate(levels[-1][None], size=(height, width), mode="area")[0])
    return levels


def _white(count: int) -> Paint:
    return Paint(
        corner_colors=np.ones((count, 3, 3), dtype=np.float32),
        corner_uv=np.zeros((count, 3, 2), dtype=np.float32),
        face_textures=np.full(count, -1, dtype=np.int32),
    )
